"""What an import from redb says of the rows that it met: of each table how many were read, and what became of them.

Every row of a table of the old file is in its account exactly once: written, skipped for a reason, or set aside in
quarantine. What the archive gets besides (backfill.py) is a copy of rows that are in the account already, so it is
counted for itself.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .report import Commit

THERE = "in the store already"
OTHER = "the store has another row under this key"
GONE_ON = "the session has gone on in the store"
OTHER_MESSAGE = "the store has another message under this number"
TWICE = "the same message twice in the file"
QUARANTINED = "in the store's quarantine already"
UNKNOWN_TABLE = "not a table of the gateway"
BACKFILLED = "archived by the import"


@dataclass(slots=True)
class TableAccount:
    """What became of the rows of one table of the old file.

    name         its name there
    read         rows
    written      table of the store -> rows
    skipped      reason -> rows
    quarantined  rows that the store cannot hold as what they should be, kept word by word in quarantine
    backfill     of rows that the archive lacked and that are counted above as active ones: BACKFILLED, or the reason
                 why they are not archived -> rows
    """

    name: str
    read: int = 0
    written: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    quarantined: int = 0
    backfill: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def adds_up(self) -> bool:
        """Whether every row read is accounted for once."""
        return self.read == sum(self.written.values()) + sum(self.skipped.values()) + self.quarantined


@dataclass(slots=True)
class RedbImport:
    """The account of an import.

    path       of the old file
    commit     the commit of it that was read, and why
    dry_run    nothing was written; the numbers are what would have been
    tables     one account for each table of the old file
    notes      choices made where something could be read in two ways, and what else a person should know
    more_notes how many there are beyond those
    """

    path: str
    commit: Commit
    dry_run: bool
    tables: list[TableAccount] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more_notes: int = 0

    @property
    def adds_up(self) -> bool:
        """Whether every row of every table is accounted for once."""
        return all(table.adds_up for table in self.tables)

    @property
    def changed(self) -> int:
        """How many rows were added to the store, those that only the archive lacked included."""
        return sum(sum(table.written.values()) + table.quarantined for table in self.tables) + self.backfilled

    @property
    def backfilled(self) -> int:
        """How many active messages were archived because the old store had not done it yet."""
        return sum(table.backfill.get(BACKFILLED, 0) for table in self.tables)

    @property
    def quarantined(self) -> int:
        """How many rows were set aside."""
        return sum(table.quarantined for table in self.tables)

    @property
    def complete(self) -> bool:
        """Whether everything in the file is in the store as what it was: no row left out, none in quarantine."""
        left_out = {OTHER, OTHER_MESSAGE, UNKNOWN_TABLE, QUARANTINED}
        return not any(
            table.quarantined or left_out & (table.skipped.keys() | table.backfill.keys()) for table in self.tables
        )

    def to_dict(self) -> dict[str, Any]:
        """The account as JSON values, for a program."""
        # asdict cannot copy a defaultdict.
        plain = [
            dataclasses.replace(
                table, written=dict(table.written), skipped=dict(table.skipped), backfill=dict(table.backfill)
            )
            for table in self.tables
        ]
        account = dataclasses.asdict(dataclasses.replace(self, tables=plain))
        return account | {
            "changed": self.changed,
            "backfilled": self.backfilled,
            "complete": self.complete,
            "adds_up": self.adds_up,
        }

    def lines(self) -> Iterator[str]:
        """The account as text, for a person."""
        yield f"from       {self.path}, transaction {self.commit.transaction_id}: {self.commit.why}"
        for text in (*self.commit.rejected, *self.commit.warnings):
            yield f"warning    {text}"
        width = max([len(table.name) for table in self.tables], default=0)
        for table in self.tables:
            parts = [f"{count:,} to {name}" for name, count in table.written.items()]
            parts += [f"{count:,} skipped: {reason}" for reason, count in table.skipped.items()]
            parts += [f"{table.quarantined:,} to quarantine"] if table.quarantined else []
            yield f"{table.name.ljust(width)}  {table.read:>9,} read" + "".join(f"; {part}" for part in parts)
            if table.backfill:
                rows = sum(table.backfill.values())
                parts = [f"{count:,} {reason}" for reason, count in table.backfill.items()]
                yield f"{''.ljust(width)}  {rows:>9,} of these the old store had not archived: {'; '.join(parts)}"
        for text in self.notes:
            yield f"note       {text}"
        if self.more_notes:
            yield f"note       and {self.more_notes:,} more"
        total = sum(table.read for table in self.tables)
        verb = "would be added" if self.dry_run else "added"
        account = "the account adds up" if self.adds_up else "THE ACCOUNT DOES NOT ADD UP"
        yield f"{total:,} rows read, {self.changed:,} {verb}; {account}"
