"""What there is to say about a redb file, as values: for `limpet-store inspect-redb`, logs and tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit that is read.

    slot             0 or 1
    transaction_id   redb's number of the commit
    format_version   2 or 3
    clean            the writer closed the file
    verified         every page of the commit was verified before a row was read (after a crash, to choose)
    why              the rule that chose it
    rejected         newer commits that turned out incomplete
    warnings         what a person should know
    """

    slot: int
    transaction_id: int
    format_version: int
    clean: bool
    verified: bool
    why: str
    rejected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotReport:
    """One of the two commit slots; version and transaction mean something only if the checksum fits."""

    index: int
    primary: bool
    checksum_ok: bool
    version: int
    transaction_id: int


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table, read to its end, or to the damage."""

    name: str
    kind: str
    key_type: str
    value_type: str
    entry_count: int
    entries_read: int
    key_bytes: int
    value_bytes: int
    pages: int
    page_bytes: int
    used_bytes: int
    depth: int
    damage: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole file. `ok` means that every row of every table was read and verified."""

    path: str
    file_size: int
    page_size: int
    slots: tuple[SlotReport, ...]
    commit: Commit
    tables: tuple[TableReport, ...]
    checksums: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.errors

    def lines(self) -> Iterator[str]:
        """The report as text, for a person."""
        commit = self.commit
        yield f"file       {self.path}: {self.file_size:,} bytes, redb file format {commit.format_version}"
        yield f"closed     {'cleanly' if commit.clean else 'not cleanly (a crash, or a copy of a file in use)'}"
        for slot in self.slots:
            state = (
                f"transaction {slot.transaction_id}, format {slot.version}" if slot.checksum_ok else "checksum fails"
            )
            marks = [mark for mark, set_ in (("primary", slot.primary), ("read", slot.index == commit.slot)) if set_]
            yield f"slot {slot.index}     {state}{' (' + ', '.join(marks) + ')' if marks else ''}"
        yield f"commit     {commit.transaction_id}: {commit.why}"
        for text in commit.rejected:
            yield f"rejected   {text}"
        yield f"checksums  every page read was verified ({self.checksums})"
        yield ""
        rows = [("table", "rows", "keys", "values", "pages", "in pages", "depth", "types")]
        rows += [
            (
                table.name,
                f"{table.entries_read:,}",
                f"{table.key_bytes:,}",
                f"{table.value_bytes:,}",
                f"{table.pages:,}",
                f"{table.page_bytes:,}",
                str(table.depth),
                f"{table.key_type} -> {table.value_type}{' (multimap)' if table.kind == 'multimap' else ''}",
            )
            for table in self.tables
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [
                cell.ljust(width) if column in (0, 7) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        yield ""
        for text in self.errors:
            yield f"error      {text}"
        for text in self.warnings:
            yield f"warning    {text}"
        yield "ok" if self.ok else f"{len(self.errors)} damaged"
