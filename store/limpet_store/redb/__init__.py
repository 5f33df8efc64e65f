"""Read-only access to redb files, the files of the Rust gateway, in pure Python.

    from limpet_store.redb import RedbFile

    with RedbFile("data.redb") as file:
        for table in file.tables():
            print(table.name, table.entry_count)
        for key, value in file.table("kv").items(): ...

Modules from the user inwards: `creation` (a new store from an old file, complete or not at all), `importer` (what
becomes of the gateway's rows), `account` (what it says of them), `backfill` (what the archive lacks), `dialect` (the
keys); these need the store. And the reader by itself: `reader` (tables,
rows), `commit` (which of two commits), `report` (what there is to say), `format` (every byte), `xxh3` (the checksum),
`source` (the file). `testing` makes redb files for tests.
"""

from __future__ import annotations

from .reader import RedbFile, RedbTable
from .report import Commit, Report, SlotReport, TableReport
from .source import BytesSource, FileSource, Source

__all__ = [
    "BytesSource",
    "Commit",
    "FileSource",
    "RedbFile",
    "RedbTable",
    "Report",
    "SlotReport",
    "Source",
    "TableReport",
]
