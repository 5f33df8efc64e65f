"""The commit that is shown: the two metas, which of them is chosen and why, and the log on top of it.

What the metas and the log mean is decided by recovery.py, which opens databases by the same rules.
Here is what only a looker-on needs: to go on where a database would not open, and to notice that a
writer has gone on meanwhile.

Shown is the newest commit, or another that the file still has (`_other`): the checkpoint that the
other meta names, with what its log still says, or any checkpoint or log record by its number.

A commit stays whole in the file for as long as one of the metas names its checkpoint. So damage is
believed only where that is still so (`believing_damage`); else what looks like damage is perhaps a
page that was written over while it was read, and a BusyError says so. Who catches that refreshes
and tries again, TRIES times in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import BusyError, ClosedError, CorruptError, FormatError, NoSuchCommitError
from ..format import META_PGNOS, META_SIZE, Meta
from ..log import Record, Replay, decode_changes
from ..recovery import Choice, read_log, read_metas, recover
from .raw import RawFile
from .results import MetaInfo

TRIES = 3  # at a file that changes while it is read


class Logged(NamedTuple):
    """The newest change of a key in the log. value: None if it was deleted; pgno: of the record."""

    value: bytes | None
    pgno: int


Changes = dict[int, dict[bytes, Logged]]  # tree id -> key -> its newest change


NEWEST = "newest"
OLDER = "older"  # the checkpoint that the other meta names, if it is another one, and its log as far as it goes


class ShownCommit:
    """What is shown of a file, until `refresh` is called again.

    choice       the metas and the log; None where no checksum can be computed, so that none can be believed
    changes      what the log says
    undecodable  records of the log that are whole, and contradict themselves; what they changed is left out
    """

    def __init__(self, raw: RawFile, wanted: str | int = NEWEST) -> None:
        """wanted: NEWEST, OLDER, or a txid. NoSuchCommitError if it is not in the file."""
        self._raw = raw
        self._wanted = wanted
        self.choice: Choice | None = None
        self.changes: Changes = {}
        self.undecodable: list[CorruptError] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the metas again, and take the newest commit, or the one that is wanted instead."""
        if not self._raw.is_verifiable:
            return
        pager = self._raw.pager
        for _ in range(TRIES):
            newest = recover(pager)
            if any(isinstance(meta, CorruptError) for meta in newest.found):
                newest = recover(pager)  # it may have been in the middle of being written
            self.choice = newest if self._wanted == NEWEST or newest.meta is None else self._other(newest)
            self.changes, self.undecodable = _changes(self.choice)
            if newest.problem is None or _epochs(read_metas(pager)) == _epochs(newest.found):
                return

    def show(self, wanted: str | int) -> None:
        """Show another commit. NoSuchCommitError if it is not in the file; then all is as it was."""
        before, self._wanted = self._wanted, wanted
        try:
            self.refresh()
        except NoSuchCommitError:
            self._wanted = before
            raise

    def _other(self, newest: Choice) -> Choice:
        """The commit that is wanted, as if its meta were the only one. `problem` stays that of the file."""
        assert newest.slot is not None
        there: list[int] = []
        epochs: set[int] = set()
        for slot in (newest.slot, 1 - newest.slot):
            meta = newest.found[slot]
            if not isinstance(meta, Meta) or meta.epoch in epochs:
                continue
            epochs.add(meta.epoch)
            records = read_log(self._raw.pager, meta).records
            txids = [meta.txid, *(record.txid for record in records)]
            wanted = self._wanted
            if wanted == OLDER and slot != newest.slot:
                wanted = txids[-1]
            if wanted in txids:
                count = [int(txid) for txid in txids].index(int(wanted))
                shown = Replay(records[:count], txids[count], txids[count])
                return Choice(newest.found, slot, meta, None, shown, newest.reasons, newest.problem)
            there += txids
        raise NoSuchCommitError(f"{self._raw.path}: {self._not_there(newest, there)}")

    def _not_there(self, newest: Choice, there: list[int]) -> str:
        if self._wanted != OLDER:
            listed = ", ".join(map(str, sorted(there)))
            return f"commit {self._wanted} is not in the file, or not by itself; those that are: {listed}"
        assert newest.slot is not None
        found = newest.found[1 - newest.slot]
        if isinstance(found, CorruptError):
            return f"there is no older commit: page {META_PGNOS[1 - newest.slot]}, {found.message}"
        return f"there is no older commit: both metas name checkpoint {found.txid}"

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
        if self.choice is None:
            return None
        return self.choice.problem or next(iter(self.undecodable), None)

    @property
    def txid(self) -> int | None:
        """The commit, what the log says included; None if there is none."""
        choice = self.choice
        if choice is None or choice.meta is None:
            return None
        return choice.meta.txid if choice.log is None else choice.log.last_txid

    @property
    def closed_cleanly(self) -> bool:
        """Whether the file was closed cleanly, and nothing was committed since."""
        return self.choice is not None and self.choice.clean

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


def _changes(choice: Choice) -> tuple[Changes, list[CorruptError]]:
    """The newest change in the log of each key, and the records that do not decode, which are left out."""
    changes: Changes = {}
    undecodable: list[CorruptError] = []
    if choice.meta is None or choice.log is None:
        return changes, undecodable
    for record in choice.log.records:
        pgno = choice.meta.log_start + record.at
        try:
            groups = list(decode_changes(record.changes, pgno))
        except CorruptError as error:
            undecodable.append(error)
            continue
        for group in groups:
            found = changes.setdefault(group.tree_id, {})
            found.update((key, Logged(value, pgno)) for key, value in group.changes)
    return changes, undecodable
