"""Log records: how most commits get to the disk.

    begin    what all commits since the last flush changed, as one record, and where it goes
    write    one contiguous write, and a sync
    finish   the record is in the file: its commits count

`begin` changes nothing and `finish` puts everything in place by one statement, so an interrupt between
them leaves the commits waiting as they were: the next record, which goes to the same place, has them too.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from .backup import now_us
from .books import Books
from .chain import SYNC, Chain, Commit
from .checkpoint import write_copy_of_meta
from .format import Meta, make_stamp
from .log import Log, LogEnd, decode_record, encode_record

DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@dataclass(slots=True, eq=False)
class Record:
    """A record that is to be written.

    tip     the newest commit in it
    log     the epoch; `end` is how far that is when the record is in the file
    offset  where it goes, in bytes
    data    the record; empty if only a sync is missing
    sync    whether it has to be on stable storage
    copy    the meta of the epoch, if the other slot has to get it first
    """

    tip: Commit
    log: Log
    end: LogEnd
    offset: int
    data: bytes
    sync: bool
    copy: Meta | None


def begin(books: Books, chain: Chain, nonce: int, *, sync: bool) -> Record:
    """The next record. The caller has the lock of the books.

    nonce   16 random bits, for its stamp
    sync    whether somebody waits for stable storage; if another one of the commits does, it is synced anyway
    """
    tip = chain.tip
    log = tip.log
    end = log.end
    each: Commit | None = tip
    while not sync and each is not None and each is not chain.shown:
        sync, each = each.durability == SYNC, each.before
    changes = chain.waiting()
    data = b""
    used, previous = end.used, end.previous
    if changes:
        pager = books.pager
        previous, data = encode_record(
            changes,
            log.start + used,
            make_stamp(tip.txid, nonce),
            log.epoch,
            end.previous,
            chain.durable_txid,
            now_us(),
            log.page_size,
            pager.checksum,
            pager.seed,
        )
        used += len(data) // log.page_size
        log.taken = used, tip.size
    copy = replace(books.ledger.metas.newest, clean=False) if sync and not end.doubled else None
    after = LogEnd(used, previous, sync or (end.synced and not data), end.doubled or copy is not None)
    return Record(tip, log, after, (log.start + end.used) * log.page_size, data, sync, copy)


def write(books: Books, record: Record) -> None:
    """Write the record, unsynced unless that is all there is to do. OSError."""
    if record.data and record.sync and record.copy is None and record.log.end.synced:
        books.file.write_synced(record.offset, record.data)
    elif record.data:
        books.file.write(record.offset, record.data)


def complete(books: Books, record: Record) -> None:
    """What comes after the record itself: the copy of the meta, and the sync. OSError."""
    copy = record.copy
    if copy is not None:  # from now on no single damaged page can hide the log
        write_copy_of_meta(books, copy, 1 - books.ledger.metas.slot)
    if record.sync and (copy is not None or not record.log.end.synced or not record.data):
        books.file.sync()


def finish(books: Books, chain: Chain, record: Record) -> None:
    """The record is in the file: its commits count. The caller has the lock of the books."""
    tip, log, end, ledger = record.tip, record.log, record.end, books.ledger
    if record.copy is not None:
        ledger = replace(ledger, metas=ledger.metas.doubled(record.copy))
    shown = tip if chain.is_unseen(tip) else chain.shown
    log.end, books.ledger, books.clean, chain.written, chain.shown = end, ledger, False, tip, shown
    tip.before = None


def is_absent(books: Books, record: Record) -> bool:
    """Whether a record that could not be written is not in the file; a part of it is no record.

    An earlier attempt may have left a shorter one in the same place.
    """
    if not record.data:
        return False
    log, pager = record.log, books.pager
    try:
        region = books.file.read(record.offset, len(record.data))
    except OSError:
        return False
    start = record.offset // log.page_size
    found = decode_record(region, 0, start, log.page_size, pager.checksum, pager.seed)
    return found is None or found.epoch != log.epoch or found.previous != log.end.previous
