"""Log records: how most commits get to the disk.

    begin    what all commits since the last flush changed, as one record, and where it goes
    write    one contiguous write, and a sync
    finish   the record is in the file: its commits count

`finish` puts everything in place by one statement. A record that an interrupt left between the two is
written again by whoever flushes next: the same bytes in the same place, and only if they are not there.
"""

from __future__ import annotations

from dataclasses import replace

from .backup import now_us
from .books import Books
from .chain import SYNC, Chain, Commit, Record
from .checkpoint import write_copy_of_meta, write_once
from .format import make_stamp
from .log import LogEnd, encode_record


def begin(books: Books, chain: Chain, nonce: int, *, sync: bool) -> Record:
    """The next record, which is pending from now on. The caller has the lock of the books.

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
    record = Record(tip, log, after, (log.start + end.used) * log.page_size, data, sync, copy)
    chain.pending = record
    return record


def write(books: Books, record: Record, *, again: bool) -> None:
    """Write the record, unsynced unless that is all there is to do. OSError.

    again   it may be there already
    """
    if again:
        write_once(books, record.offset, record.data)
    elif record.data and record.sync and record.copy is None and record.log.end.synced:
        books.file.write_synced(record.offset, record.data)
    elif record.data:
        books.file.write(record.offset, record.data)


def complete(books: Books, record: Record, *, again: bool) -> None:
    """What comes after the record itself: the copy of the meta, and the sync. OSError."""
    copy = record.copy
    if copy is not None:  # from now on no single damaged page can hide the log
        write_copy_of_meta(books, copy, 1 - books.ledger.metas.slot)
    if record.sync and (again or copy is not None or not record.log.end.synced or not record.data):
        books.file.sync()


def finish(books: Books, chain: Chain, record: Record) -> None:
    """The record is in the file: its commits count. The caller has the lock of the books."""
    tip, log, end, ledger = record.tip, record.log, record.end, books.ledger
    if record.copy is not None:
        ledger = replace(ledger, metas=ledger.metas.doubled(record.copy))
    shown = tip if chain.is_unseen(tip) else chain.shown
    log.end, books.ledger, books.clean, chain.written, chain.shown, chain.pending = end, ledger, False, tip, shown, None
    tip.before = None
    chain.show(shown, tip.txid, sync=record.sync)


def is_absent(books: Books, record: Record) -> bool:
    """Whether a record that could not be written is not in the file; a part of it is no record."""
    try:
        return bool(record.data) and books.file.read(record.offset, len(record.data)) != record.data
    except OSError:
        return False
