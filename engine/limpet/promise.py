"""Promises: what is in the log can be brought into the trees without a byte more on the disk. Here they are kept.

A full disk must let rows be deleted, and a delete takes pages before it gives any back. So the rule is:
whatever is in the log can be brought into the trees, and after that an entry of each table can be
changed, in the file as it is. In numbers, after every commit that goes into the log:

    room >= promised + at rest

    room      pages that can be handed out once both metas are at the newest checkpoint
    promised  the most that the next checkpoint takes for what is in the log
    at rest   what has to be left behind it

    make   before a commit goes into the log: grow the file by what is missing, and say how far the log
           may go with that (`Log.is_promised`). Asked at the first commit of an epoch, and again when
           it has come so far
    check  before a commit becomes a checkpoint: who adds entries does not get the last pages

Far from a full disk a promise is rough: a page for each change, and no look at the trees. When the disk
is nearly full, or the file could not grow, it is exact, and room.py has the arithmetic.
"""

from __future__ import annotations

import errno

from . import room
from .books import Books
from .chain import Commit
from .free_space import FreeSpace
from .log import UNLIMITED, VALUE_PAGES, region_size
from .transaction import WriteTransaction

# A promise is kept this part ahead of what it needs, so that it need not be renewed for each commit.
_AHEAD = 4
_LEAST_AHEAD = 8  # pages


def make(books: Books, base: Commit, own: int, added: int) -> bool:
    """Find room for what one more commit adds to the next checkpoint. The caller is the writer.

    base     the commit before it
    own      bytes of its changes
    added    how many they are
    returns  False if it has to be a checkpoint itself
    raises   OSError, but not because the disk is full
    cost     some us; on a disk that is nearly full 0.5 us for each change in the log, and reads branches
    """
    at_rest = _at_rest(books, base)
    if not books.extent.is_scarce() and _make_roughly(books, base, own, added, at_rest):
        return True
    log, page_size = base.log, books.page_size
    need = room.of_changes(books.pager, base.snapshot.tables)
    per_change = room.of_change(log.tallest)
    large = VALUE_PAGES * own // page_size + 1
    with books.lock:
        space = books.space()
        books.reclaim(space)
        wanted = need.pages + max(per_change * added + large, need.pages // _AHEAD)
        _grow(books, space, wanted + at_rest)
        spare = books.room(space) - at_rest - need.pages
        if wanted - need.pages > spare:
            return False
        large_limit = 0
        if own > log.inline:
            # A checkpoint that is in memory may begin with the same stretch when it is flushed.
            flush = 0 if log.epoch else room.of_flush(len(base.snapshot.tables), space.map_pages)
            books.extent.try_reserve(space.high_water + need.large + large + flush)
            run = max(space.longest_stretch(), books.extent.capacity - space.high_water) - need.large - flush
            if run < large:
                return False
            large_limit = base.size + run * page_size // VALUE_PAGES
        change_cost = per_change * page_size
        limit = spare * page_size + base.count * change_cost + base.size * VALUE_PAGES
        log.change_cost, log.limit, log.large_limit = change_cost, limit, large_limit
    return True


def _make_roughly(books: Books, base: Commit, own: int, added: int, at_rest: int) -> bool:
    """As `make` on a disk that is far from full; False if it is full all the same."""
    log, page_size = base.log, books.page_size
    count, replayed = base.count + added, VALUE_PAGES * log.replayed
    with books.lock:
        space = books.space()
        books.reclaim(space)
        trees = space.high_water - space.free_count - log.size  # no more than these can change
        needed = min(count, trees) + (VALUE_PAGES * (base.size + own) + replayed) // page_size + 1
        if not _grow(books, space, needed + max(needed // _AHEAD, _LEAST_AHEAD) + at_rest):
            return False
        spare = books.room(space) - at_rest
        change_cost = page_size
        if spare - trees >= needed - min(count, trees) + log.size // _AHEAD:  # let all of it change, then
            spare, change_cost = spare - trees, 0
        log.change_cost, log.limit, log.large_limit = change_cost, spare * page_size - replayed, UNLIMITED
    return True


def _grow(books: Books, space: FreeSpace, pages: int) -> bool:
    """Let there be room for so many pages; False if the disk is full. The caller has the lock of the books."""
    return books.extent.try_reserve(books.extent.capacity + pages - books.room(space))


def _at_rest(books: Books, commit: Commit) -> int:
    """Pages that have to be left behind the log of a commit: the same for the whole epoch."""
    log = commit.log
    if not log.at_rest:
        heights = room.heights(books.pager, commit.snapshot.tables)
        with books.lock:
            pages = room.at_rest(heights, books.space().map_pages)
        log.at_rest, log.tallest = pages, max(heights, default=1)
    return log.at_rest


def kept(books: Books, commit: Commit) -> int:
    """Pages that have to stay in the file, for the checkpoint that follows a commit and behind that."""
    return room.of_changes(books.pager, commit.snapshot.tables).pages + _at_rest(books, commit)


def check(books: Books, base: Commit, transaction: WriteTransaction, share: float) -> None:
    """Before a transaction, all of which is in pages, becomes a checkpoint: there is room for its flush, and behind it.

    share   of the pages at rest that have to be left if it takes more than it frees: all of them by what adds
            entries, a part by what only changes some, none by what deletes
    raises  OSError
    """
    at_rest = _at_rest(books, base)
    with books.lock:
        space, work = books.space(), transaction.work()
        books.reclaim(space)
        tables = len(base.snapshot.tables) + len(transaction.changed_tables())
        missing = room.of_flush(tables, space.map_pages) - books.free(space)
        if not base.log.start:  # it gets its first place
            first = region_size(0, books.page_size)
            missing += first
            if space.longest_stretch() < first:
                missing = max(missing, space.high_water + first - books.extent.capacity)
        if sum(map(len, work.allocated)) > len(work.freed):
            missing = max(missing, int(share * at_rest) - books.room(space) - len(work.freed))
        if missing > 0 and not books.extent.try_reserve(books.extent.capacity + missing):
            raise OSError(
                errno.ENOSPC,
                "no space left on the device; the last pages of the file are kept for deletes, which go on",
                books.path,
            )
