"""Read-only access to redb files, the files of the Rust gateway, in pure Python.

    from limpet_store.redb import RedbFile

    with RedbFile("data.redb") as file:
        for table in file.tables():
            print(table.name, table.entry_count)
        for key, value in file.table("kv").items(): ...

Modules from the user inwards: `reader` (commit, tables, rows), `commit` (which of two commits), `format` (every byte),
`xxh3` (the checksum), `source` (the file), `report` (what there is to say), `testing` (makes redb files for tests).
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
