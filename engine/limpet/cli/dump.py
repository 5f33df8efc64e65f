"""`limpet dump`: all entries, as lines of JSON."""

from __future__ import annotations

import argparse

from ..console import not_negative, text
from ..errors import CorruptError, command
from ..inspection import Inspection, TableSummary, plain
from .terminal import DAMAGED, Verbs, add_page_size, add_verb, code_of, emit_row, inspected, note, plural

_TEXT = """\
One line of JSON an entry, in key order: {"table": ..., "key": ..., "value": ...}. Bytes are "0x" and
hex digits, tuple keys are arrays, UUIDs and times are text, infinities and NaN the texts "inf",
"-inf" and "nan".

What cannot be read is left out and named on stderr, with how many entries of which table that are,
the rest is written, and the exit code is 2: this is also the way to save what is left of a damaged
file.

--commit says of which commit: "newest"; "older", the checkpoint before, which stays in the file
until the next one, with what its log still says; or the number of a checkpoint or of a record of
the log. If it is not there, those that are there are listed, and the exit code is 1.

examples
  limpet dump app.limpet > everything.jsonl
  limpet dump app.limpet users --limit 10
  limpet dump --commit older app.limpet > before.jsonl
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "dump", run, "write all entries as lines of JSON", _TEXT)
    parser.add_argument("table", metavar="TABLE", nargs="?", type=text, help="only this table")
    parser.add_argument("--limit", type=not_negative, metavar="N", help="at most so many entries of each table")
    parser.add_argument(
        "--commit", type=_commit, default="newest", metavar="COMMIT", help="newest (the default), older, or a number"
    )
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with inspected(arguments) as inspection:
        inspection.show(arguments.commit)
        if inspection.commit_problem is not None and inspection.txid is not None:
            note(f"the database cannot be opened: {inspection.commit_problem}; this is commit {inspection.txid}")
        dump = _Dump(inspection, arguments.limit)
        if arguments.table is None:
            dump.everything()
        else:
            dump.table(inspection.table(arguments.table))
        if dump.is_damaged and arguments.commit == "newest" and (older := inspection.older_with_rows()) is not None:
            size = () if arguments.page_size is None else ("--page-size", str(arguments.page_size))
            call = command("dump", arguments.file, "--commit", "older", *size)
            note(f"commit {older}, the one before, is in the file too: {call} writes what can be read of it")
        return DAMAGED if dump.is_damaged else code_of(inspection)


class _Dump:
    """Writes tables to stdout, and what could not be read of them to stderr."""

    def __init__(self, inspection: Inspection, limit: int | None) -> None:
        self._inspection = inspection
        self._limit = limit
        self.is_damaged = False

    def everything(self) -> None:
        """All tables."""
        tables = self._inspection.tables(on_damage=self._left_out)
        for table in tables:
            self.table(table)
        meta = self._inspection.info().meta
        missing = 0 if meta is None else meta.table_count - len(tables)
        if missing > 0:
            self.is_damaged = True
            note(f"{plural(missing, 'table')} could not be found; how many entries they have is not known")

    def table(self, table: TableSummary) -> None:
        """One table."""
        was_damaged, self.is_damaged = self.is_damaged, False
        count = 0
        try:
            for key, value in self._inspection.items(table.name, on_damage=self._left_out):
                if count == self._limit:
                    break
                emit_row({"table": table.name, "key": plain(key), "value": plain(value)})
                count += 1
            else:
                self._count(table, count)
        except CorruptError as error:  # its codecs are not known
            self._left_out(error)
            self._count(table, count)
        self.is_damaged = self.is_damaged or was_damaged

    def _count(self, table: TableSummary, count: int) -> None:
        """Say how many entries were left out, where any were or the file counts more than there are."""
        missing = table.entry_count - count
        if self.is_damaged or missing:
            self.is_damaged = True
            note(f"table {table.name!r}: {count:,} of {table.entry_count:,} entries written, {max(0, missing):,} lost")

    def _left_out(self, error: CorruptError) -> None:
        self.is_damaged = True
        note(f"left out: {error}")


def _commit(text: str) -> str | int:
    if text in ("newest", "older"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"a commit is newest, older or a number, not {text!r}")
