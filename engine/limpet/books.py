"""The books of an open file: which pages may be written, and what the next checkpoint has to bring to the disk.

    Books    one for each file; hands pages out and takes them back
    Ledger   what the books say: replaced as a whole, never half changed

What changes the ledger works on a copy and puts the copy in place by one assignment, together with
the commit that it belongs to. So nothing that stops a thread half-way, an error, an interrupt, leaves
books that disagree with the commits. Pages that are handed out to a transaction are not in the ledger:
if nobody remembers them, they are lost until the file is opened again, and free then.

Which pages may be used again: see free_space.py. The horizons that it asks for are known here: the
metas on the disk, and the snapshots that are read.

Lock: `lock`, which the chain of commits (chain.py) shares. Held for moments, and during I/O only where
the file grows or gets back space that `trim` gave away, and where the map of free space is read at the
first write.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .chain import Chain, Commit
from .errors import CorruptError, is_disk_full
from .file import File
from .format import MAX_PAGES, Header, Meta, ref_pgno
from .free_space import FreeSpace, MapBefore, Pending, load_map
from .pager import Pager

_log = logging.getLogger("limpet")

_GROWTH_SHARE = 8  # the file grows by an eighth,
_MIN_GROWTH = 64 << 10  # but by 64 KiB at least
_MAX_GROWTH = 8 << 20  # and 8 MiB at most
_PLENTY = 64 << 20  # bytes free on the disk, more than any checkpoint of a log takes


class Metas(NamedTuple):
    """The checkpoints whose metas are on the disk.

    slot    index into META_PGNOS of the newest
    newest  that one
    other   the one in the other slot; None if it cannot be used
    """

    slot: int
    newest: Meta
    other: Meta | None

    @property
    def horizon(self) -> int:
        """The txid of the oldest; its pages have to stay."""
        return int(self.newest.txid if self.other is None else min(self.newest.txid, self.other.txid))

    @property
    def by_slot(self) -> list[Meta | None]:
        """What is in the two slots, in their order."""
        return [self.other, self.newest] if self.slot else [self.newest, self.other]

    def turned(self, meta: Meta) -> Metas:
        """After `meta` was written into the other slot, as the newest."""
        return Metas(1 - self.slot, meta, self.newest)

    def doubled(self, meta: Meta) -> Metas:
        """After a copy of the newest was written into the other slot."""
        return Metas(self.slot, self.newest, meta)


@dataclass(slots=True, eq=False)
class Plan:
    """A checkpoint that is being written: everything that is needed to write it, once more if need be, or to undo it.

    base            the newest commit in it
    meta, slot      what will make it count, and where that goes
    pages           everything to be written before: first page number -> page, or run of pages
    unwritten       of these, the pages of commits in memory
    dirty_tables    the tables whose entries in the catalogue it changes
    taken           pages for the catalogue and the map
    freed           their old pages, before they are pending
    pending         the same after that
    map_before      the map of free space before
    catalogue_root  where it will be
    growth          how often the file had grown when it was planned
    is_synced       whether all but the meta is on stable storage. From then on a meta may name the pages, and they are
                    not written again: a power cut while they are would damage the newest checkpoint
    """

    base: Commit
    slot: int
    unwritten: set[int]
    dirty_tables: set[str]
    growth: int
    pages: dict[int, bytes] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    freed: list[int] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    map_before: MapBefore | None = None
    catalogue_root: int = 0
    meta: Meta | None = None
    is_synced: bool = False


@dataclass(slots=True, eq=False)
class Ledger:
    """What the books say.

    metas           the checkpoints on the disk
    base            the newest commit whose changes are all in trees, on the disk or not
    catalogue_root  of the checkpoint on the disk
    nonce           of the newest commit that wrote pages
    space           None as long as nobody has written
    unwritten       first page numbers of held pages of commits in memory; unwritten_size: their bytes, a run whole
    young           pages of commits that no flush has seen yet
    dirty_tables    tables whose entries in the catalogue have to change
    plan            the checkpoint that is being written
    """

    metas: Metas
    base: Commit
    catalogue_root: int
    nonce: int
    space: FreeSpace | None = None
    unwritten: set[int] = field(default_factory=set)
    unwritten_size: int = 0
    young: set[int] = field(default_factory=set)
    dirty_tables: set[str] = field(default_factory=set)
    plan: Plan | None = None

    def copy(self) -> Ledger:
        """A copy to be changed. Cost: a bit for each page of the file, 4 us a GiB, and the pages that are not written.

        What is handed out, and what is not, is shared with it (FreeSpace.copy).
        """
        return replace(
            self,
            space=None if self.space is None else self.space.copy(),
            unwritten=self.unwritten.copy(),
            young=self.young.copy(),
            dirty_tables=self.dirty_tables.copy(),
        )


class Extent:
    """How long the file is.

    capacity    pages that it has room for
    is_refused  whether the disk was full when it was last to grow
    growth      how often it was made longer; growth_synced: the same when that was last synced
    """

    __slots__ = ("_file", "_page_size", "capacity", "growth", "growth_synced", "is_refused")

    def __init__(self, file: File, page_size: int, high_water: int) -> None:
        """high_water: as far as it is known to be synced."""
        self._file = file
        self._page_size = page_size
        self.capacity = file.size() // page_size
        self.is_refused = False
        self.growth = int(self.capacity > high_water)  # a process that died may have added space and not synced it
        self.growth_synced = 0

    def reserve(self, high_water: int) -> None:
        """Make the file long enough for `high_water` pages, by real space, or somewhat longer. OSError."""
        if high_water <= self.capacity:
            return
        page_size = self._page_size
        size = self.capacity * page_size
        step = max(_MIN_GROWTH, min(_MAX_GROWTH, size // _GROWTH_SHARE))
        generous = max(high_water, -(-(size + step) // page_size))
        try:
            self._grow(generous)
        except OSError:
            if generous == high_water:
                raise
            self._grow(high_water)

    def try_reserve(self, high_water: int) -> bool:
        """Make the file long enough for `high_water` pages, and no longer; False if the disk is full. OSError."""
        if high_water <= self.capacity:
            return True
        free = self._file.disk_free()
        if high_water > MAX_PAGES or (free is not None and free < (high_water - self.capacity) * self._page_size):
            self.is_refused = True
            return False  # as it would say after having been filled
        try:
            self._grow(high_water)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return False
        return True

    def _grow(self, pages: int) -> None:
        self.growth += 1  # first: growth that nobody knows of would never be synced
        try:
            self._file.grow(pages * self._page_size)
        except OSError as error:
            self.is_refused = self.is_refused or is_disk_full(error)
            raise
        self.capacity, self.is_refused = pages, False

    def is_scarce(self) -> bool:
        """Whether the disk may soon be full, as far as the system says, and the last try to grow."""
        free = self._file.disk_free()
        return self.is_refused or (free is not None and free < _PLENTY)

    def fill(self, first: int, count: int) -> None:
        """Give pages real space that have none. OSError."""
        self._file.write(first * self._page_size, bytes(count * self._page_size))

    def cut(self, pages: int) -> int:
        """Cut the file behind so many pages; returns the bytes given back."""
        before, end = self._file.size(), pages * self._page_size
        if before <= end:
            return 0
        self.capacity = pages
        self._file.truncate(end)
        return before - end

    @property
    def is_synced(self) -> bool:
        """Whether the length is on stable storage."""
        return self.growth == self.growth_synced


class Books:
    """The books of one file.

    ledger  what they say; whoever replaces it has the lock
    clean   whether the file has the mark of a clean close, and nothing has been committed to it since
    """

    __slots__ = (
        "_chain",
        "_pins",
        "clean",
        "extent",
        "file",
        "header",
        "ledger",
        "lock",
        "page_size",
        "pager",
        "path",
    )

    def __init__(
        self,
        pager: Pager,
        path: str,
        ledger: Ledger,
        chain: Chain,
        pins: dict[int, int],
        lock: threading.RLock,
        *,
        clean: bool,
    ) -> None:
        """pins: id of a read transaction -> txid of its snapshot."""
        self.pager = pager
        self.file: File = pager.file
        self.header: Header = pager.header
        self.page_size = pager.page_size
        self.path = path
        self.ledger = ledger
        self.lock = lock
        self._chain = chain
        self._pins = pins
        self.clean = clean
        self.extent = Extent(pager.file, pager.page_size, ledger.metas.newest.high_water)

    # -- free space ------------------------------------------------------------------------------

    def space(self) -> FreeSpace:
        """The free space, read from the file at the first write. The caller has the lock.

        raises   CorruptError: the map is damaged; the database can still be read
        cost     once, reads the map: one page of it for 128 MiB of the file
        """
        space = self.ledger.space
        if space is None:
            space = self._load_space()
            self.ledger = replace(self.ledger, space=space)
        return space

    def _load_space(self) -> FreeSpace:
        metas = self.ledger.metas
        meta, older = metas.newest, metas.other
        page_size = self.page_size
        bits, refs = load_map(meta.free_space_root, meta.high_water, page_size, self.pager.page)
        space = FreeSpace(page_size, meta.high_water, bits, refs, self.extent.reserve, self.extent.fill)
        if space.free_count != meta.free_count:
            raise CorruptError(
                "the map of free space does not add up; the database can still be read",
                expected=meta.free_count,
                found=space.free_count,
            )
        roots = [info.root for info in self.ledger.base.snapshot.tables.values()]
        space.check_used(
            [
                *(ref_pgno(ref) for ref in refs.values()),
                *range(meta.log_start, meta.log_start + meta.log_size),
                *{ref_pgno(ref) for ref in (meta.catalogue_root, *roots) if ref},
            ]
        )
        needed = None
        if older is not None and older is not meta and older.txid != meta.txid:
            needed = self._free_in_older(older, meta.high_water)
        space.set_pending(meta.txid, needed)
        for offset, size in self.file.holes():
            space.hollow(range(offset // page_size, -(-(offset + size) // page_size)))
        return space

    def _free_in_older(self, older: Meta, high_water: int) -> bytes:
        """Which pages the older commit does not need, as a map; none of them if its own map is damaged."""
        try:
            bits, _ = load_map(older.free_space_root, older.high_water, self.page_size, self.pager.page)
        except CorruptError as error:
            _log.warning("%s: commit %d, the one before, is damaged: %s", self.path, older.txid, error)
            return bytes(-(-high_water // 8))
        for pgno in range(older.high_water, min(high_water, 8 * len(bits))):  # the older commit has never used those
            bits[pgno >> 3] |= 1 << (pgno & 7)
        return bytes(bits)

    def reclaim(self, space: FreeSpace) -> None:
        """Find out which freed pages may be used again. Only who asks for pages needs to know."""
        if space.has_pending:
            readers = self._oldest_reader()
            self.pager.release(space.reclaim(min(readers, self.ledger.metas.horizon), readers))

    def _oldest_reader(self) -> int:
        """The lowest txid of the snapshots that are read, and of the one that new readers get."""
        published = self._chain.published  # first this, then the pins: a reader that comes between them looks again
        newest = self._chain.shown.txid if published is None else published.txid
        return min([newest, *list(self._pins.values())])

    def free(self, space: FreeSpace) -> int:
        """Pages that can be handed out in the file as it is. The caller has the lock."""
        return space.reusable_count + self.extent.capacity - space.high_water

    def room(self, space: FreeSpace) -> int:
        """As `free`, once both metas are at the newest checkpoint in memory."""
        return self.free(space) + space.pending_up_to(min([self._chain.last_txid, *list(self._pins.values())]))

    # -- what transactions ask for (paging.PageSource) -------------------------------------------

    @property
    def high_water(self) -> int:
        """The first page number never used."""
        with self.lock:
            return self.space().high_water

    def allocate(self, count: int) -> list[int]:
        """Hand out pages, in ascending order. OSError if the file cannot grow."""
        with self.lock:
            space = self.space()
            self.reclaim(space)
            # Behind the tree's pages, the catalogue's and the map's will want a place in the same run.
            return space.allocate(count, slack=2)

    def allocate_runs(self, counts: Sequence[int]) -> list[range]:
        """Hand out runs of these many contiguous pages. OSError if the file cannot grow."""
        with self.lock:
            space = self.space()
            self.reclaim(space)
            return space.allocate_runs(counts)

    def give_back(self, pgnos: Iterable[int]) -> None:
        """Take back pages that were handed out to a transaction that does not commit."""
        with self.lock:
            self.space().give_back(pgnos)

    # -- numbers ---------------------------------------------------------------------------------

    def held_size(self, pgnos: Iterable[int]) -> int:
        """Bytes of held pages."""
        held = self.pager.held
        return sum(len(held[pgno]) for pgno in pgnos if pgno in held)
