"""The commit that is shown: the two metas, which of them is chosen and why, and the log on top of it.

What the metas and the log mean is decided by recovery.py, which opens databases by the same rules.
Here is what only a looker-on needs: to go on where a database would not open, and to notice that a
writer has gone on meanwhile.

A commit stays whole in the file for as long as one of the metas names its checkpoint. So damage is
believed only where that is still so (`believing_damage`); else what looks like damage is perhaps a
page that was written over while it was read, and a BusyError says so. Who catches that refreshes
and tries again, TRIES times in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import BusyError, ClosedError, CorruptError, FormatError
from ..format import META_PGNOS, META_SIZE, Meta
from ..log import Record, decode_changes
from ..recovery import Choice, read_metas, recover
from .raw import RawFile
from .results import MetaInfo

TRIES = 3  # at a file that changes while it is read


class Logged(NamedTuple):
    """The newest change of a key in the log. value: None if it was deleted; pgno: of the record."""

    value: bytes | None
    pgno: int


Changes = dict[int, dict[bytes, Logged]]  # tree id -> key -> its newest change


class ShownCommit:
    """What is shown of a file, until `refresh` is called again.

    choice   the metas and the log; None where no checksum can be computed, so that none can be believed
    changes  what the log says
    """

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self.choice: Choice | None = None
        self.changes: Changes = {}
        self.refresh()

    def refresh(self) -> None:
        """Look at the metas again, and take the newest commit."""
        if not self._raw.is_verifiable:
            return
        pager = self._raw.pager
        for _ in range(TRIES):
            choice = recover(pager)
            if any(isinstance(meta, CorruptError) for meta in choice.found):
                choice = recover(pager)  # it may have been in the middle of being written
            self.choice, self.changes = choice, _changes(choice)
            if choice.problem is None or _epochs(read_metas(pager)) == _epochs(choice.found):
                return

    def has_moved(self, *, older: bool = False) -> bool:
        """Whether the commit, or the one of the other meta too, may have been written over since."""
        choice = self.choice
        if choice is None:
            return False
        now = _epochs(read_metas(self._raw.pager))
        if choice.meta is None:
            return now != _epochs(choice.found)
        needed = {choice.meta.epoch}
        if older and choice.older is not None:
            needed.add(choice.older.epoch)
        return not needed <= now

    @contextmanager
    def believing_damage(self) -> Iterator[None]:
        """Let a CorruptError through if the commit is still in the file, and raise BusyError in its place if not."""
        try:
            yield
        except CorruptError:
            if self.has_moved():
                raise BusyError(
                    f"{self._raw.path}: a writer wrote over commit {self.txid} while it was read; try again, stop the "
                    "writer, or read a backup"
                ) from None
            raise

    @property
    def meta(self) -> Meta:
        """The chosen checkpoint.

        raises   CorruptError if there is none; FormatError if the header is lost with all that metas are verified by;
                 ClosedError
        """
        if self._raw.is_closed:
            raise ClosedError("the inspection is closed")
        choice = self.choice
        if choice is None:
            raise self._raw.problem or FormatError(f"{self._raw.path}: there are no pages to look at")
        if choice.meta is None:
            raise choice.problem or CorruptError("no commit can be read")
        return choice.meta

    @property
    def problem(self) -> CorruptError | None:
        """Why the database cannot be opened, header aside; None if it can."""
        return None if self.choice is None else self.choice.problem

    @property
    def txid(self) -> int | None:
        """The commit, what the log says included; None if there is none."""
        choice = self.choice
        if choice is None or choice.meta is None:
            return None
        return choice.meta.txid if choice.log is None else choice.log.last_txid

    @property
    def closed_cleanly(self) -> bool:
        """Whether the file was closed cleanly, or is as it was made: one meta, marked clean, and an empty one."""
        choice = self.choice
        return choice is not None and (
            choice.clean or (choice.meta is not None and choice.meta.clean and choice.older is None)
        )

    @property
    def records(self) -> list[Record]:
        """The log records on top of the checkpoint."""
        return [] if self.choice is None or self.choice.log is None else self.choice.log.records

    def log_pages(self) -> tuple[range, dict[int, Record]]:
        """The pages of the log, and page -> the record that is there."""
        choice = self.choice
        if choice is None or choice.meta is None:
            return range(0), {}
        start = choice.meta.log_start
        used = {start + record.at + at: record for record in self.records for at in range(record.pages)}
        return range(start, start + choice.meta.log_size), used

    def metas(self) -> list[tuple[MetaInfo, CorruptError | None]]:
        """Both metas, and what is wrong with each; nothing where none can be believed."""
        choice = self.choice
        if choice is None:
            return []
        infos: list[tuple[MetaInfo, CorruptError | None]] = []
        for slot, (pgno, found) in enumerate(zip(META_PGNOS, choice.found, strict=True)):
            chosen = choice.slot == slot
            if isinstance(found, Meta):
                infos.append((MetaInfo(pgno, found, None, False, chosen), None))
                continue
            head = self._raw.read(pgno)[:META_SIZE]
            is_empty = len(head) == META_SIZE and not any(head)
            infos.append((MetaInfo(pgno, None, str(found), is_empty, chosen), found))
        return infos


def _epochs(metas: list[Meta | CorruptError]) -> set[int]:
    return {meta.epoch for meta in metas if isinstance(meta, Meta)}


def _changes(choice: Choice) -> Changes:
    """The newest change in the log of each key; a record that does not decode is left out."""
    changes: Changes = {}
    if choice.meta is None or choice.log is None:
        return changes
    for record in choice.log.records:
        pgno = choice.meta.log_start + record.at
        try:
            groups = list(decode_changes(record.changes, pgno))
        except CorruptError:
            continue
        for group in groups:
            found = changes.setdefault(group.tree_id, {})
            found.update((key, Logged(value, pgno)) for key, value in group.changes)
    return changes
