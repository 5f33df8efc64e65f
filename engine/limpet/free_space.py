"""Which pages may be written, and the map of free pages that a commit leaves on disk. No I/O.

Three states of a page in [4, high_water), as the newest commit sees them:

    used      reached from the commit's roots                             bit 0 in the map
    free      not reached; nobody needs its old content: reusable         bit 1
    pending   not reached, but an older meta or a snapshot still needs it bit 1

The map on disk knows only used and free, because the rest follows: a page is pending when a valid
older meta marks it used. Snapshots die with their process. In memory:

    _bits       the map, one bit a page, of the newest commit
    _reusable   one byte a page: 1 if it may be handed out, 2 if that takes room from the disk again
                (`trim`). Finding a run of n free pages is then `_reusable.find(b"\\1" * n)`, which
                runs in C: 20 us for a map of 1 GiB
    _pending    what the commits freed, until the horizons pass

The rule of reuse. A page freed by commit k was last used by commit k - 1, so it may be handed out
once k <= the txid of every meta that may be on the disk and of every snapshot that is still read.
A page that was born after the last state handed to a flush was never on disk: only snapshots hold
it back.

Pages handed out to a transaction that has not committed are neither reusable nor marked in the
map, so a crash or an abort forgets them.

The map is a radix tree over page numbers. Level 0 holds bitmaps, level n the references of level
n - 1. Writing it takes pages, which changes it; `plan_map` repeats until nothing changes, and it
ends because a map page that was given a place keeps it.

Sources: the horizon rule after LMDB's list of free pages, bitmaps after redb's allocator; the
byte-per-page search is ours.
"""

from __future__ import annotations

import errno
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate

from .errors import CorruptError, is_disk_full
from .format import (
    FIRST_NODE_PGNO,
    FREE_SPACE,
    FREE_SPACE_TREE,
    MAX_PAGES,
    PAGE,
    PAGE_AFTER_CHECKSUM,
    PAGE_HEADER_SIZE,
    REF_SIZE,
    Pgno,
    Ref,
    bitmap_bits,
    map_fanout,
    map_height,
)

MapPosition = tuple[int, int]  # (level, index within the level)
MapBefore = tuple[dict[MapPosition, Ref], set[int]]  # references, dirty bitmaps

# A run that does not exist is grown at the end of the file while less than a fifth of the file is
# reusable, and put together from pieces after that. In a long life of small commits a third made
# files 12 % larger, and a checkpoint wrote 78 places in the stead of 118, which is 3 us a commit.
_GROW_BELOW = 5
_HOLLOW = 2
_HOLLOW_PAGE = bytes([_HOLLOW])


@dataclass(slots=True, eq=False)
class Pending:
    """Pages that commit `txid` freed, until the horizons pass it."""

    txid: int
    pgnos: Sequence[int]


class FreeSpace:
    """The space of one file. Not thread-safe: the books guard it with their lock.

    high_water   first page number never handed out
    free_count   pages whose bit is set
    """

    def __init__(
        self,
        page_size: int,
        high_water: int,
        bits: bytearray,
        refs: dict[MapPosition, Ref],
        reserve: Callable[[int], None],
        fill: Callable[[int, int], None] = lambda first, count: None,
    ) -> None:
        """Start from a loaded map; every page marked free in it counts as pending until told otherwise.

        bits      the map, little-endian bit order, at least high_water bits
        refs      where the pages of the map are
        reserve   called with a new high water mark before it is used; makes the file that long
                  or raises OSError
        fill      called with a hollow page and how many before they are used; makes them real space
                  or raises OSError
        """
        self._page_size = page_size
        self._bits_per_page = bitmap_bits(page_size)
        self.high_water = high_water
        self._bits = bits
        self._bits.extend(bytes(-(-high_water // 8) - len(bits)))
        self._refs = refs
        self._reserve = reserve
        self._fill = fill
        self._reusable = bytearray(high_water)
        self._cursor = 0
        self._dirty: set[int] = set()  # level-0 indexes whose bits changed since the last flush
        self._pending: deque[Pending] = deque()
        self._pending_young: deque[Pending] = deque()
        self.free_count = int.from_bytes(bits, "little").bit_count()

    def copy(self) -> FreeSpace:
        """A copy whose map and whose pending pages can be changed without changing these.

        Which pages may be handed out is shared: what either hands out, the other does not. As soon as the copy
        needs room at the end of the file, it is the one that goes on.
        cost     32 KiB and a few us for each GiB of the file
        """
        other = copy(self)
        other._bits = self._bits[:]
        other._dirty = self._dirty.copy()
        other._pending = self._pending.copy()
        other._pending_young = self._pending_young.copy()
        return other

    # -- handing out -----------------------------------------------------------------------------

    def allocate(self, count: int, slack: int = 0) -> list[int]:
        """Hand out `count` pages, contiguous where possible, in ascending order.

        slack    pages that will be asked for next: look for a run with room for them behind
        raises   OSError when there are too few and the file cannot grow; nothing has been handed out then
        """
        if not count:
            return []
        wanted = count + slack
        start = self._find(wanted)
        if start is None and self.reusable_count * _GROW_BELOW < self.high_water + wanted:
            start = self._try_extend(wanted)
        if start is None:
            start = self._find(count)
        if start is None:
            missing = count - self.reusable_count
            if missing <= 0:
                return self._collect(count)
            start = self._try_extend(count)
            if start is None:  # not one run, but the pieces and the end of the file together may do
                self._lengthen(self.high_water + missing)
                return self._collect(count)
        self._take(start, count)
        return list(range(start, start + count))

    def allocate_run(self, count: int) -> range:
        """Hand out `count` contiguous pages."""
        start = self._find(count)
        if start is None:
            start = self._extend(count)
        self._take(start, count)
        return range(start, start + count)

    def run_at_end(self, count: int) -> range:
        """Hand out `count` contiguous pages that were never used."""
        start = self.high_water
        self._lengthen(start + count)
        self._take(start, count)
        return range(start, start + count)

    def allocate_runs(self, counts: Sequence[int]) -> list[range]:
        """Hand out runs of these many contiguous pages each: one behind the other if there is room for that."""
        start = self._find(sum(counts))
        if start is None:
            runs: list[range] = []
            try:
                runs.extend(map(self.allocate_run, counts))  # as far as it gets
            except BaseException:
                for run in runs:
                    self.give_back(run)
                raise
            return runs
        self._take(start, sum(counts))
        ends = list(accumulate(counts, initial=start))
        return list(map(range, ends, ends[1:]))

    def give_back(self, pgnos: Iterable[int]) -> None:
        """Take back pages handed out to a transaction that did not commit."""
        reusable = self._reusable
        for pgno in pgnos:
            reusable[pgno] = reusable[pgno] or 1

    def _find(self, count: int) -> int | None:
        run = b"\1" * count
        start = self._reusable.find(run, self._cursor)
        if start < 0:
            start = self._reusable.find(run)
        return start if start >= 0 else None

    def _collect(self, count: int) -> list[int]:
        """Put `count` of the reusable pages together from the largest pieces, by powers of two."""
        pieces: list[int] = []
        size = 1 << max(0, count.bit_length() - 1)
        while len(pieces) < count:
            size = min(size, count - len(pieces))
            start = self._find(size)
            if start is None:
                size //= 2  # ends at single pages, of which there are enough
                continue
            self._take(start, size)
            pieces.extend(range(start, start + size))
        return sorted(pieces)

    def _take(self, start: int, count: int) -> None:
        self._reusable[start : start + count] = bytes(count)
        self._cursor = start + count

    def hollow(self, pgnos: Iterable[int]) -> None:
        """Note that reusable pages have no room on the disk any more: they come after those that have."""
        reusable = self._reusable
        for pgno in pgnos:
            if pgno < self.high_water and reusable[pgno] == 1:
                reusable[pgno] = _HOLLOW

    def _extend(self, count: int) -> int:
        """Get room from the disk: for hollow pages, or behind the reusable ones at the end of the file."""
        start = self._reusable.find(_HOLLOW_PAGE * count)
        if start >= 0:
            self._fill(start, count)
            self._reusable[start : start + count] = b"\1" * count
            return start
        start = self.high_water
        while start > FIRST_NODE_PGNO and self._reusable[start - 1] == 1:
            start -= 1
        self._lengthen(start + count)
        return start

    def _try_extend(self, count: int) -> int | None:
        """As `_extend`; None if the disk is full."""
        try:
            return self._extend(count)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return None

    def _lengthen(self, new: int) -> None:
        """Move the high water mark to `new`."""
        if new > MAX_PAGES:
            raise OSError(errno.EFBIG, f"the file cannot have more than {MAX_PAGES} pages")
        self._reserve(new)
        old, added = self.high_water, new - self.high_water
        bits = self._bits + bytes(-(-new // 8) - len(self._bits))
        for pgno in range(old, new):
            bits[pgno >> 3] |= 1 << (pgno & 7)
        dirty = self._dirty.union(range(old // self._bits_per_page, (new - 1) // self._bits_per_page + 1))
        reusable = self._reusable + b"\1" * added
        free_count = self.free_count + added
        # By one statement without calls: an interrupt finds all of it, or nothing.
        self._bits, self._dirty, self._reusable, self.high_water, self.free_count = (
            bits,
            dirty,
            reusable,
            new,
            free_count,
        )

    def longest_stretch(self) -> int:
        """Pages of the longest run that may be handed out."""
        return max((count for _, count in self.stretches(1)), default=0)

    def stretches(self, shortest: int) -> list[tuple[int, int]]:
        """The runs of at least `shortest` pages that may be handed out: (first page, pages)."""
        found = re.finditer(rb"\x01{%d,}" % shortest, self._reusable)
        return [(match.start(), match.end() - match.start()) for match in found]

    # -- commits ---------------------------------------------------------------------------------

    def commit(self, txid: int, allocated: Iterable[int], freed: Sequence[int], young: Sequence[int]) -> list[Pending]:
        """Record what commit `txid` took and gave.

        freed    pages that a meta on disk, or one being written, may need
        young    freed pages that were never part of a state handed to a flush
        returns  what `undo` needs
        """
        self.mark_used(allocated)
        self.mark_free(freed)
        self.mark_free(young)
        return self.add_pending(txid, freed, young)

    def check_used(self, pgnos: Sequence[int]) -> None:
        """Before pages are freed whose numbers come from a file: each has to be in use, and to be named once.

        raises   CorruptError; without this, two owners of a page would go unnoticed until one overwrites the other
        """
        bits, high_water = self._bits, self.high_water
        for pgno in pgnos:
            if not FIRST_NODE_PGNO <= pgno < high_water or bits[pgno >> 3] >> (pgno & 7) & 1:
                raise CorruptError("a page that is in use lies behind the end, or is marked free", pgno=Pgno(pgno))
        if len(set(pgnos)) != len(pgnos):
            raise CorruptError("a page is in use twice; `limpet check` shows where")

    def add_pending(self, txid: int, freed: Sequence[int], young: Sequence[int] = ()) -> list[Pending]:
        """Let pages that are marked free wait for the horizons to pass `txid`."""
        added = []
        for queue, pgnos in ((self._pending, freed), (self._pending_young, young)):
            if pgnos:
                added.append(Pending(txid, pgnos))
                queue.append(added[-1])
        return added

    def undo(self, allocated: Collection[int], pending: Iterable[Pending]) -> None:
        """Take back a `commit` of which nobody outside has heard. The newest commit first.

        The pages can be given back once this is in force.
        """
        for entry in pending:
            queue = self._pending if entry in self._pending else self._pending_young
            queue.remove(entry)
            self.mark_used(entry.pgnos)
        self.mark_free(allocated)

    def mark_used(self, pgnos: Iterable[int]) -> None:
        """Mark pages as reached from the newest commit."""
        bits, per_page, dirty = self._bits, self._bits_per_page, self._dirty
        count = 0
        for pgno in pgnos:
            mask = 1 << (pgno & 7)
            if not bits[pgno >> 3] & mask:  # an assert would be gone under `python -O`; files depend on this one
                raise AssertionError(f"page {pgno} is handed out twice")
            bits[pgno >> 3] ^= mask
            dirty.add(pgno // per_page)
            count += 1
        self.free_count -= count

    def mark_free(self, pgnos: Iterable[int]) -> None:
        """Mark pages as no longer reached from the newest commit; they are not reusable by that."""
        bits, per_page, dirty = self._bits, self._bits_per_page, self._dirty
        count = 0
        for pgno in pgnos:
            mask = 1 << (pgno & 7)
            if bits[pgno >> 3] & mask:
                raise AssertionError(f"page {pgno} is freed twice")
            bits[pgno >> 3] |= mask
            dirty.add(pgno // per_page)
            count += 1
        self.free_count += count

    def reclaim(self, horizon: int, young_horizon: int) -> list[int]:
        """Make pending pages reusable.

        horizon        the lowest txid of all valid metas and all snapshots being read
        young_horizon  the lowest txid of all snapshots being read
        returns        the pages
        """
        reclaimed: list[int] = []
        for queue, limit in ((self._pending, horizon), (self._pending_young, young_horizon)):
            while queue and queue[0].txid <= limit:
                pgnos = queue.popleft().pgnos
                self.give_back(pgnos)
                reclaimed.extend(pgnos)
        return reclaimed

    def set_pending(self, txid: int, needed: bytes | None) -> None:
        """Sort the free pages of a newly opened file into reusable and pending.

        txid     the newest commit; pages that the older meta needs wait until metas have passed it
        needed   the older valid meta's map of free pages, or None if there is no such meta
        """
        bits = self._bits
        other = bytes(len(bits)) if needed is None else needed
        pending = []
        for pgno in range(FIRST_NODE_PGNO, self.high_water):
            byte, mask = pgno >> 3, 1 << (pgno & 7)
            if bits[byte] & mask:
                if needed is None or byte >= len(other) or other[byte] & mask:
                    self._reusable[pgno] = 1
                else:
                    pending.append(pgno)
        if pending:
            self.add_pending(txid, pending)

    @property
    def has_pending(self) -> bool:
        """Whether any page waits for the horizons."""
        return bool(self._pending or self._pending_young)

    @property
    def pending_count(self) -> int:
        """Pages freed that a meta or a snapshot still needs."""
        return sum(len(entry.pgnos) for queue in (self._pending, self._pending_young) for entry in queue)

    def pending_up_to(self, readers: int) -> int:
        """Pages freed that no snapshot needs, the oldest of them being `readers`: those wait for metas only."""
        return sum(
            len(entry.pgnos)
            for queue in (self._pending, self._pending_young)
            for entry in queue
            if entry.txid <= readers
        )

    @property
    def map_pages(self) -> int:
        """Pages of the map on disk, if all of them had to be written."""
        total = pages = -(-self.high_water // self._bits_per_page)
        for _ in range(map_height(self.high_water, self._page_size)):
            pages = -(-pages // map_fanout(self._page_size))
            total += pages
        return total

    def retained_by_readers(self, horizon: int, oldest: int) -> int:
        """Pages freed up to `horizon` that only snapshots, the oldest of them `oldest`, hold back."""
        return sum(len(entry.pgnos) for entry in self._pending if oldest < entry.txid <= horizon)

    @property
    def reusable_count(self) -> int:
        """Pages that may be handed out now. Cost: 20 to 200 us for each GiB of the file.

        Counted each time: a number that is kept beside them would be wrong after an interrupt.
        """
        return self._reusable.count(1)

    # -- the map on disk -------------------------------------------------------------------------

    @property
    def map_is_dirty(self) -> bool:
        """Whether the map on disk differs from the one in memory."""
        return bool(self._dirty)

    def plan_map(self, take: Callable[[int], list[int]], free: Callable[[int], None]) -> dict[MapPosition, int]:
        """Give every map page that must be rewritten a place.

        take     hands out pages and commits them: count -> page numbers
        free     frees and commits the page of an old version
        returns  position -> page number
        """
        planned: dict[MapPosition, int] = {}
        fanout = map_fanout(self._page_size)
        while True:
            wanted = {(0, index) for index in self._dirty}
            for level in range(map_height(self.high_water, self._page_size)):
                wanted |= {(level + 1, index // fanout) for at, index in wanted if at == level}
            missing = wanted - planned.keys()
            if not missing:
                return planned
            for position, pgno in zip(sorted(missing), take(len(missing)), strict=True):
                planned[position] = pgno
                if old := self._refs.get(position):
                    free(old & 0xFFFFFFFF)

    def encode_map(
        self, planned: dict[MapPosition, int], stamp: int, seal: Callable[[bytes, int], tuple[Ref, bytes]]
    ) -> tuple[dict[int, bytes], dict[MapPosition, Ref]]:
        """Encode the map pages that were given a place.

        seal     (page from byte 4 on, page number) -> (reference, page)
        returns  (page number -> page, all references of the new map); `install_map` takes the latter
        """
        refs = dict(self._refs)
        pages: dict[int, bytes] = {}
        payload = self._page_size - PAGE_HEADER_SIZE
        fanout = map_fanout(self._page_size)
        for (level, index), pgno in sorted(planned.items()):  # children before their parents
            if level == 0:
                content = bytes(self._bits[index * payload : (index + 1) * payload])
                count = 0
            else:
                children = [refs.get((level - 1, child), 0) for child in range(index * fanout, (index + 1) * fanout)]
                while children and not children[-1]:
                    children.pop()
                count = len(children)
                content = b"".join(child.to_bytes(REF_SIZE, "little") for child in children)
            body = PAGE_AFTER_CHECKSUM.pack(FREE_SPACE, level, count, pgno, FREE_SPACE_TREE, stamp)
            refs[level, index], pages[pgno] = seal(body + content + bytes(payload - len(content)), pgno)
        return pages, refs

    def install_map(self, refs: dict[MapPosition, Ref]) -> MapBefore:
        """Take the encoded map for the one on disk; returns what `restore_map` needs."""
        before = self._refs, self._dirty
        self._refs, self._dirty = refs, set()
        return before

    def restore_map(self, before: MapBefore) -> None:
        """The encoded map did not get to the disk after all."""
        self._refs = before[0]
        self._dirty |= before[1]

    def map_root(self) -> Ref:
        """The reference of the map's root; 0 while nothing was ever free."""
        return self._refs.get((map_height(self.high_water, self._page_size), 0), Ref(0))


def load_map(
    root: int, high_water: int, page_size: int, read: Callable[[Ref], bytes]
) -> tuple[bytearray, dict[MapPosition, Ref]]:
    """Read the map of a commit.

    read     gives the verified page behind a reference
    returns  (bits, references), as FreeSpace wants them
    raises   CorruptError
    """
    payload = page_size - PAGE_HEADER_SIZE
    bits = bytearray(-(-high_water // 8))
    refs: dict[MapPosition, Ref] = {}
    if root:
        waiting: list[tuple[int, int, int]] = [(root, map_height(high_water, page_size), 0)]
        fanout = map_fanout(page_size)
        while waiting:
            ref, level, index = waiting.pop()
            page = read(Ref(ref))
            children = check_map_page(page, Pgno(ref & 0xFFFFFFFF), level)
            refs[level, index] = Ref(ref)
            if level:
                for at, child in enumerate(children):
                    if child:
                        waiting.append((child, level - 1, index * fanout + at))
                continue
            start = index * payload
            if start >= len(bits):
                raise CorruptError("the free-space map covers pages behind the end", pgno=Pgno(ref & 0xFFFFFFFF))
            content = page[PAGE_HEADER_SIZE:]
            if any(content[len(bits) - start :]):
                raise CorruptError("the free-space map marks pages behind the end", pgno=Pgno(ref & 0xFFFFFFFF))
            bits[start : start + payload] = content[: len(bits) - start]
    if bits[0] & 0x0F or (high_water & 7 and bits[-1] >> (high_water & 7)):
        raise CorruptError("the free-space map marks pages that cannot be free", pgno=Pgno(root & 0xFFFFFFFF))
    return bits, refs


def check_map_page(page: bytes, pgno: Pgno, level: int) -> tuple[int, ...]:
    """Verify the header of a map page; returns its children (none at level 0).

    raises   CorruptError
    """
    _, kind, own_level, count, own_pgno, tree_id, _ = PAGE.unpack_from(page)
    if (kind, own_level, own_pgno, tree_id) != (FREE_SPACE, level, pgno, FREE_SPACE_TREE):
        raise CorruptError(
            "not the page of the free-space map that belongs here",
            pgno=pgno,
            expected=f"kind {FREE_SPACE}, level {level}, page {pgno}, tree {FREE_SPACE_TREE}",
            found=f"kind {kind}, level {own_level}, page {own_pgno}, tree {tree_id}",
        )
    if not level:
        return ()
    if count > map_fanout(len(page)):
        raise CorruptError(f"the map page counts {count} children, which it cannot hold", pgno=pgno)
    at = PAGE_HEADER_SIZE
    return tuple(
        int.from_bytes(page[at + REF_SIZE * index : at + REF_SIZE * (index + 1)], "little") for index in range(count)
    )
