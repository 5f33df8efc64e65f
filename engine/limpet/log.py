"""The log: what was committed since the last checkpoint, one record a flush. No I/O.

A small commit does not touch the trees. Its changes become a record behind the last one, in a run
of pages that the meta names: one contiguous write, one sync. Changes are logical (this key of this
tree has this value from now on), so a commit of one key takes one page, whatever the depth of its
tree. A checkpoint applies what has gathered to the trees and begins a new *epoch*: an empty log in
the same place.

What makes a record the next one of its epoch, all of it needed:

    its checksum, over the whole run     a torn record is no record
    its own page number                  a misdirected write is found out
    the epoch, the stamp of the meta     what an earlier epoch left in the same place is over
    the checksum of the record before    what follows a torn record that has been written anew is over
    a higher txid                        no record counts twice

`durable_txid` says which commits were known to be safe when the record was written. So a record
that is missing in front of one that knows it to be safe is damage, not the end of the log.

Sources: logical redo records between shadow-paged checkpoints after Gray et al., "The Recovery
Manager of the System R Database Manager" (1981); the salted, chained frames after SQLite's WAL.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .checksum import ChecksumFunction
from .errors import CorruptError
from .format import (
    CHECKSUM,
    LOG,
    LOG_CHANGE,
    LOG_CHANGES_AT,
    LOG_DELETE,
    LOG_GROUP,
    LOG_RECORD,
    PAGE,
    PAGE_AFTER_CHECKSUM,
    PAGE_HEADER_SIZE,
    Pgno,
    Txid,
    log_record_pages,
    max_inline_entry,
    page_checksum,
    stamp_txid,
)

_HEAD = struct.Struct(PAGE_AFTER_CHECKSUM.format + LOG_RECORD.format.removeprefix("<"))
_LONE_CHANGE = struct.Struct(LOG_GROUP.format + LOG_CHANGE.format.removeprefix("<"))

# The log takes an eighth of the file, within these bounds. A commit takes at least a page, so the
# pages are the commits between two checkpoints. More of them make checkpoints cheaper, since changes
# share leaves and branches: with 1,000 random keys a key takes two thirds of what it takes with 250.
# They make opening after a crash slower: 1,000 pages take some 8 ms to read and to go through.
_SHARE = 8
_MIN_PAGES = 32
_MAX_PAGES = 512
_MAX_SIZE = 2 << 20
# Changes of one epoch. A checkpoint takes some 30 us for each, and its commit and all behind it wait; and a commit that
# deletes or scans copies the overlays that it changes, 11 us at 4,000 keys.
_MAX_CHANGES = 3072
_LARGEST_SHARE = 4  # a commit that takes more than a quarter of the log is cheaper as a checkpoint
# Values are large from half a page on. A value of n bytes takes at most so many n-ths of a page.
VALUE_PAGES = 3
UNLIMITED = 1 << 62


def region_size(high_water: int, page_size: int) -> int:
    """How many pages the log of a file of `high_water` pages should have."""
    return min(max(_MIN_PAGES, high_water // _SHARE), _MAX_PAGES, _MAX_SIZE // page_size)


class LogEnd(NamedTuple):
    """How far an epoch has come, in the file.

    used      pages that its records take
    previous  checksum of the last of them
    synced    whether all of them are on stable storage
    doubled   whether both metas name the epoch, so that no single bad page can hide it
    """

    used: int = 0
    previous: int = 0
    synced: bool = True
    doubled: bool = False


@dataclass(slots=True, eq=False)
class Log:
    """An epoch: where its next record goes. What waits to be in it is in the chain (chain.py).

    epoch   stamp of the checkpoint; 0 as long as that is in memory only
    start   first page of the log; 0 as long as it has no place
    size    its pages
    end     how far it has come
    taken   (pages, bytes of changes) of all records so far, with the one that is being written: it may
            take a page more than it would together with what comes after it
    blank   whether its place is new, and still to be written with zeros

    What the next checkpoint may take for the changes in it is promised (promise.py), in bytes: `change_cost` for
    each change, and VALUE_PAGES times the size of all.

    limit        how far that may go; at first, and after opening, nothing is promised
    large_limit  how far the size may go with a commit that has values of more than `inline` bytes: they come in runs
    replayed     bytes of changes that were in it when the file was opened, which no commit counts
    at_rest      pages that have to be left behind it, and `tallest`: the height of the tallest tree; 0: not yet known
    """

    epoch: int
    start: int
    size: int
    page_size: int
    end: LogEnd = field(default_factory=LogEnd)
    taken: tuple[int, int] = (0, 0)
    blank: bool = False
    change_cost: int = 0
    limit: int = -1
    large_limit: int = 0
    replayed: int = 0
    at_rest: int = 0
    tallest: int = 0
    inline: int = field(init=False)

    def __post_init__(self) -> None:
        self.inline = max_inline_entry(self.page_size)

    def has_room(self, size: int, own: int, count: int) -> bool:
        """Whether one more commit can wait for the next record.

        size   bytes of changes since the epoch began, its own included
        own    bytes of its own
        count  changes since the epoch began, its own included
        """
        used, taken = self.taken
        waiting = size - taken
        pages = own_pages = 1
        if LOG_CHANGES_AT + waiting > self.page_size:
            pages, own_pages = log_record_pages(waiting, self.page_size), log_record_pages(own, self.page_size)
        return (
            used + pages <= self.size
            and count <= _MAX_CHANGES
            and (own_pages == 1 or own_pages * _LARGEST_SHARE <= self.size)
        )

    def is_promised(self, size: int, own: int, count: int) -> bool:
        """Whether the next checkpoint has pages for one more commit; the arguments are those of `has_room`."""
        return count * self.change_cost + size * VALUE_PAGES <= self.limit and (
            own <= self.inline or size <= self.large_limit
        )


# -- encoding ------------------------------------------------------------------------------------


def encode_changes(tree_id: int, changes: Collection[tuple[bytes, bytes | None]]) -> bytes:
    """The changes of one commit to one tree: (key, value; None: deleted)."""
    if len(changes) == 1:  # half the time, for most commits
        ((key, value),) = changes
        if value is not None:
            return _LONE_CHANGE.pack(tree_id, 1, len(key), len(value)) + key + value
    parts = [LOG_GROUP.pack(tree_id, len(changes))]
    for key, value in changes:
        if value is None:
            parts += LOG_CHANGE.pack(len(key), LOG_DELETE), key
        else:
            parts += LOG_CHANGE.pack(len(key), len(value)), key, value
    return b"".join(parts)


def encode_record(
    changes: bytes,
    pgno: int,
    stamp: int,
    epoch: int,
    previous: int,
    durable_txid: int,
    commit_us: int,
    page_size: int,
    checksum: ChecksumFunction,
    seed: int,
) -> tuple[int, bytes]:
    """A record, padded to whole pages; returns (its checksum, the record)."""
    size = len(changes)
    pages = log_record_pages(size, page_size)
    head = _HEAD.pack(LOG, 0, pages, pgno, 0, stamp, epoch, durable_txid, commit_us, previous, size)
    body = (head + changes).ljust(pages * page_size - CHECKSUM.size, b"\0")
    found = checksum(body, seed)
    return found, CHECKSUM.pack(found) + body


# -- decoding ------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One record, its checksum verified.

    at       its place in the log, in pages from the beginning
    pages    how many it takes
    """

    at: int
    pages: int
    checksum: int
    stamp: int
    epoch: int
    durable_txid: int
    commit_us: int
    previous: int
    changes: bytes

    @property
    def txid(self) -> Txid:
        """The newest commit in it."""
        return stamp_txid(self.stamp)


class Group(NamedTuple):
    """Changes to one tree, in order."""

    tree_id: int
    changes: list[tuple[bytes, bytes | None]]


def decode_record(
    region: bytes, at: int, start: int, page_size: int, checksum: ChecksumFunction, seed: int
) -> Record | None:
    """The record at page `at` of the log, or None if there is none that is whole.

    region   the bytes of the log
    start    page number of its first page
    """
    offset = at * page_size
    if offset + LOG_CHANGES_AT > len(region):
        return None
    stored, kind, _, pages, pgno, _, stamp = PAGE.unpack_from(region, offset)
    if kind != LOG or pgno != start + at or not pages or offset + pages * page_size > len(region):
        return None
    run = region[offset : offset + pages * page_size]
    if page_checksum(run, checksum, seed) != stored:
        return None
    epoch, durable_txid, commit_us, previous, size = LOG_RECORD.unpack_from(run, PAGE_HEADER_SIZE)
    if log_record_pages(size, page_size) != pages:
        return None
    changes = run[LOG_CHANGES_AT : LOG_CHANGES_AT + size]
    return Record(at, pages, stored, stamp, epoch, durable_txid, commit_us, previous, changes)


def decode_changes(changes: bytes, pgno: int) -> Iterator[Group]:
    """The changes in a record, a group for each commit and tree, in the order of the commits.

    pgno     of the record, for the messages
    raises   CorruptError: lengths that disagree
    """
    at = 0
    end = len(changes)
    while at < end:
        if at + LOG_GROUP.size > end:
            raise _cut_off(pgno)
        tree_id, count = LOG_GROUP.unpack_from(changes, at)
        at += LOG_GROUP.size
        group: list[tuple[bytes, bytes | None]] = []
        for _ in range(count):
            if at + LOG_CHANGE.size > end:
                raise _cut_off(pgno)
            key_size, value_size = LOG_CHANGE.unpack_from(changes, at)
            at += LOG_CHANGE.size
            value_at = at + key_size
            value: bytes | None = None
            key = changes[at:value_at]
            at = value_at
            if value_size != LOG_DELETE:
                at += value_size
                value = changes[value_at:at]
            if at > end:
                raise _cut_off(pgno)
            group.append((key, value))
        yield Group(tree_id, group)


def _cut_off(pgno: int) -> CorruptError:
    return CorruptError("the changes in the log record do not add up to its size", pgno=Pgno(pgno))


# -- replay --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Replay:
    """What a log holds.

    records   those of the epoch, in order
    last_txid the newest commit; the checkpoint's if there are no records
    seen_txid the highest txid of any whole record in the region, so that none is given out again
    problem   why what is missing behind the last record is damage and not just the end
    """

    records: list[Record]
    last_txid: Txid
    seen_txid: int
    problem: CorruptError | None = None

    @property
    def used(self) -> int:
        """Pages that the records take."""
        return self.records[-1].at + self.records[-1].pages if self.records else 0


def replay(region: bytes, start: int, epoch: int, page_size: int, checksum: ChecksumFunction, seed: int) -> Replay:
    """Find the records of an epoch, and tell a torn end from a rotten middle.

    region   the bytes of the log; shorter if the file is
    start    page number of its first page
    epoch    stamp of the checkpoint that the meta names
    cost     looks once at each page of the log
    """
    txid = stamp_txid(epoch)
    found = Replay([], txid, txid)
    at = previous = 0
    while record := decode_record(region, at, start, page_size, checksum, seed):
        if record.epoch != epoch or record.previous != previous or record.txid <= found.last_txid:
            break
        found.records.append(record)
        found.last_txid = record.txid
        at += record.pages
        previous = record.checksum
    found.seen_txid = found.last_txid
    for later in range(at, len(region) // page_size):
        offset = later * page_size
        if region[offset + 4] != LOG:
            continue
        # Most are what earlier epochs left, and are passed over for 0.5 us; computing the checksum takes 3.
        left_stamp, left_epoch = (
            PAGE.unpack_from(region, offset)[6],
            LOG_RECORD.unpack_from(region, offset + PAGE.size)[0],
        )
        if stamp_txid(left_stamp) <= found.last_txid and stamp_txid(left_epoch) <= txid:
            continue
        left = decode_record(region, later, start, page_size, checksum, seed)
        if left is None:
            continue
        found.seen_txid = max(found.seen_txid, left.txid)
        if found.problem is None and (
            left.durable_txid > found.last_txid if left.epoch == epoch else stamp_txid(left.epoch) > txid
        ):
            found.problem = CorruptError(
                f"the log breaks off after commit {found.last_txid}, but a record further on was written when commit "
                f"{left.durable_txid} was safe: a record between them is damaged"
                if left.epoch == epoch
                else f"the log belongs to checkpoint {stamp_txid(left.epoch)}, and the newest meta that can be read "
                f"names {txid}: the newer one is damaged",
                pgno=Pgno(start + at),
                offset=(start + at) * page_size,
            )
    return found
