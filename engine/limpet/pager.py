"""Pages by reference: verified when they are read, cached decoded, held until they are written.

A reference pins content: page number and checksum. So the cache is keyed by reference; when a page
is written anew it has another reference, and the old entry ages out. Only that checksums have 32
bits: one page number may meet a reference that it has had before, with other content. So a node
that is written replaces what is cached under its reference (`renew`).

The cache has two generations, together never larger than the budget. What is read goes into the
hot one. When the budget is spent, the cold one gives up its oldest entries; when it has none left,
the hot one becomes the cold one. A hit among the cold is moved up. That is close to LRU, keeps
whatever fits, and costs a hit among the hot nothing at all: it is one look-up in a dict, which the
tree does itself (`pager.hot.get(ref)`).

Rows that were asked for again take up to half of the budget (row_cache.py).

Held pages belong to commits that are in memory and not yet in the file.

Threads: everything here may be called from any thread. Dict look-ups need no lock; the
bookkeeping of the cache has one of its own, which is never held during I/O. A signal handler or a
finalizer that reads in the middle of it (`is_busy`) reads past the cache; others do not get this far.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from .checksum import checksum_function
from .errors import ClosedError, CorruptError, command
from .file import File
from .format import (
    CHECKSUM,
    FIRST_NODE_PGNO,
    OVERFLOW,
    PAGE,
    PAGE_HEADER_SIZE,
    Header,
    Ref,
    max_inline_entry,
    max_key_size,
    overflow_page_count,
    page_checksum,
    ref_checksum,
    ref_pgno,
    seal_page,
)
from .node import Leaf, Node, Overflow, decode_node
from .row_cache import RowCache, size_of
from .turn import owner_of

_NO_CHANGES: Mapping[bytes, bytes | None] = MappingProxyType({})


class Pager:
    """The pages of one file."""

    __slots__ = (
        "__weakref__",
        "cache_size",
        "_cold",
        "_cold_size",
        "_hot_size",
        "_lock",
        "_refused_size",
        "_row_caches",
        "_rows_gone",
        "_rows_size",
        "checksum",
        "failure",
        "fetch",
        "file",
        "header",
        "held",
        "hot",
        "is_busy",
        "max_inline_entry",
        "max_key_size",
        "page_size",
        "read_count",
        "seed",
    )

    def __init__(self, file: File, header: Header, cache_size: int, cache_lock: threading.RLock | None = None) -> None:
        """Read pages of `file`, keeping at most `cache_size` bytes of them decoded.

        cache_lock  for the bookkeeping of the cache; the pagers of one database share one
        """
        self.file = file
        self.header = header
        self.page_size = header.page_size
        self.max_key_size = max_key_size(header.page_size)
        self.max_inline_entry = max_inline_entry(header.page_size)
        self.checksum = checksum_function(header.checksum_kind)
        self.seed = self.checksum(header.file_id, 0)
        self.fetch = file.read  # `use_map` changes it, once the file is known to be sound
        self.held: dict[int, bytes] = {}  # first pgno -> page, or run of overflow pages
        self.failure: str | None = None  # why pages cannot be read any more
        self.hot: dict[int, Node] = {}
        self._cold: dict[int, Node] = {}
        self._hot_size = 0
        self._cold_size = 0
        self.cache_size = cache_size
        self._row_caches: weakref.WeakSet[RowCache] = weakref.WeakSet()  # their tables own them
        self._rows_size = 0  # bytes in them
        self._rows_gone: list[int] = []  # of those that are gone, not yet taken from that
        self._refused_size = 0  # bytes of rows that found no room since they were last emptied
        self._lock = cache_lock or threading.RLock()
        self.is_busy = owner_of(self._lock)  # whether this thread is in the middle of the bookkeeping
        self.read_count = 0

    # -- reading ---------------------------------------------------------------------------------

    def node(self, ref: int, tree_id: int) -> Node:
        """The leaf or branch behind a reference.

        raises   CorruptError; OSError when the system cannot read
        cost     0.1 us when cached, about 5 us when not
        """
        node = self.hot.get(ref)
        if node is None:
            node = self._cold.get(ref)
            if node is None:
                node = decode_node(self.page(ref), ref_pgno(ref), tree_id)
            self.remember(ref, node)
        return node

    def passing_node(self, ref: int, tree_id: int) -> Node:
        """As `node`, for a long scan: what was not cached enters the cache only while there is room."""
        node = self.hot.get(ref) or self._cold.get(ref)
        if node is None:
            node = decode_node(self.page(ref), ref_pgno(ref), tree_id)
            if self._hot_size + self._cold_size + self._rows_size + node.memory <= self.cache_size:
                self.remember(ref, node)
        return node

    def page(self, ref: int) -> bytes:
        """The verified bytes of the page behind a reference."""
        return self._verified(ref, self.page_size)

    def overflow_value(self, record: Overflow, tree_id: int) -> bytes:
        """The value that an overflow record stands for."""
        size, ref = record.value_size, record.ref
        run = self._verified(ref, overflow_page_count(size, self.page_size) * self.page_size)
        _, kind, _, _, pgno, own_tree_id, _ = PAGE.unpack_from(run)
        if (kind, pgno, own_tree_id) != (OVERFLOW, ref_pgno(ref), tree_id):
            raise CorruptError(
                "not the overflow run that the leaf refers to",
                pgno=ref_pgno(ref),
                expected=f"kind {OVERFLOW}, page {ref_pgno(ref)}, tree {tree_id}",
                found=f"kind {kind}, page {pgno}, tree {own_tree_id}",
            )
        return run[PAGE_HEADER_SIZE : PAGE_HEADER_SIZE + size]

    def _verified(self, ref: int, size: int) -> bytes:
        if self.failure:
            raise ClosedError(self.failure)
        pgno = ref_pgno(ref)
        page = self.held.get(pgno)
        if page is None or len(page) != size or CHECKSUM.unpack_from(page)[0] != ref_checksum(ref):
            self.read_count += 1  # not held; or the page number has another page by now, and this one was written
            page = self.fetch(pgno * self.page_size, size)
        found = page_checksum(page, self.checksum, self.seed)
        if found != ref_checksum(ref) or len(page) != size or pgno < FIRST_NODE_PGNO:
            raise self._damage(ref, page, size, found)
        return page

    def _damage(self, ref: int, page: bytes, size: int, found: int) -> CorruptError:
        pgno, expected = ref_pgno(ref), ref_checksum(ref)
        offset = pgno * self.page_size
        if pgno < FIRST_NODE_PGNO:
            return CorruptError("a reference points into the file's head", pgno=pgno, offset=offset)
        if len(page) != size:
            return CorruptError(
                f"the file ends at byte {self.file.size()}, inside or before the page; it was cut short",
                pgno=pgno,
                offset=offset,
                expected=f"{size} bytes",
                found=f"{len(page)} bytes",
            )
        stored = CHECKSUM.unpack_from(page)[0]
        what = (
            "the page is whole but not the one referred to: a stale version, or written to the wrong place"
            if stored == found
            else "the page is damaged: its checksum does not match"
        )
        return CorruptError(
            f"{what}; {command('check', self.file.path)} shows the extent",
            pgno=pgno,
            offset=offset,
            expected=expected,
            found=found,
        )

    def use_map(self) -> None:
        """Read through the map from now on. Until then the file is suspect and read by pread, which cannot kill us."""
        self.fetch = self.file.page

    # -- the cache -------------------------------------------------------------------------------

    def remember(self, ref: int, node: Node) -> None:
        """Put a node among the hot."""
        if self.is_busy():
            return
        with self._lock:
            if ref in self.hot:
                return
            moved = self._cold.pop(ref, None)
            if moved is not None:
                self._cold_size -= moved.memory
            self.hot[ref] = node
            self._hot_size += node.memory
            if self._hot_size + self._cold_size + self._rows_size > self.cache_size:
                self._evict()

    def renew(self, written: Mapping[int, Node | None]) -> None:
        """Pages were written: put their nodes among the hot; where there is None, at least nothing older stays."""
        self.discard(written)
        with self._lock:
            for ref, node in written.items():
                if node is not None:
                    self.hot[ref] = node
                    self._hot_size += node.memory
            if self._hot_size + self._cold_size + self._rows_size > self.cache_size:
                self._evict()

    def discard(self, refs: Iterable[int]) -> None:
        """The newest commit has no use for these nodes: make room. Who reads an older one reads them again."""
        with self._lock:
            for ref in refs:
                node = self.hot.pop(ref, None)
                if node is not None:
                    self._hot_size -= node.memory
                elif (node := self._cold.pop(ref, None)) is not None:
                    self._cold_size -= node.memory

    def row_cache(
        self, before: RowCache | None = None, changes: Mapping[bytes, bytes | None] = _NO_CHANGES
    ) -> RowCache:
        """A row cache for a root: an empty one, or for the root that `changes` made of the one `before` belongs to."""
        with self._lock:
            cache = RowCache(self._rows_gone) if before is None else before.after(changes)
            self._row_caches.add(cache)
            self._rows_size += cache.size
        return cache

    def keep_rows(self, cache: RowCache, leaf: Leaf) -> None:
        """Put the rows of a leaf that is asked often into its tree's row cache, if there is room.

        Rows never push others out one by one: once as many bytes were refused as there is room for,
        all of them go, and those that are still asked for come back.
        """
        leaf.hits = -_PAUSE
        if self.is_busy():
            return
        with self._lock:
            self._count_rows()
            rows = cache.missing(leaf)
            size = size_of(rows)
            if not rows or self.failure is not None or not self.cache_size:
                return
            if self._rows_size + size > self.cache_size // _ROWS_SHARE:
                self._refused_size += size
                if self._refused_size < self.cache_size // _ROWS_SHARE:
                    return
                self._forget_rows()
            cache.add(rows, size)
            self._rows_size += size
            if self._hot_size + self._cold_size + self._rows_size > self.cache_size:
                self._evict()

    def _count_rows(self) -> None:
        """Tables that are gone have taken theirs with them."""
        while self._rows_gone:
            self._rows_size -= self._rows_gone.pop()

    def _forget_rows(self) -> None:
        for cache in self._row_caches:
            self._rows_size -= cache.size
            cache.clear()
        self._refused_size = 0

    def _evict(self) -> None:
        """Make room: the oldest of the cold, a sixteenth of the cache at once."""
        if not self._cold:
            self._cold, self._cold_size = self.hot, self._hot_size
            self.hot, self._hot_size = {}, 0
        self._count_rows()
        excess = self._hot_size + self._cold_size + self._rows_size - self.cache_size + self.cache_size // 16
        victims = []
        for ref, node in self._cold.items():
            if excess <= 0:
                break
            victims.append(ref)
            excess -= node.memory
            self._cold_size -= node.memory
        for ref in victims:
            del self._cold[ref]

    @property
    def cached_size(self) -> int:
        """Bytes of memory that the cached nodes and rows take."""
        with self._lock:
            self._count_rows()
            return self._hot_size + self._cold_size + self._rows_size

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self.hot, self._cold, self._hot_size, self._cold_size = {}, {}, 0, 0
            self._forget_rows()

    def abandon(self, why: str) -> None:
        """In a forked child: read nothing any more, from the cache neither. The parent may have held the lock."""
        self._lock = threading.RLock()
        self.is_busy = owner_of(self._lock)
        self.failure = why
        self.forget()

    # -- writing ---------------------------------------------------------------------------------

    def seal(self, body: bytes, pgno: int) -> tuple[Ref, bytes]:
        """Put the checksum before the rest of a page; returns (reference, page)."""
        return seal_page(body, pgno, self.checksum, self.seed)

    def hold(self, pages: dict[int, bytes]) -> None:
        """Keep the pages of a commit until they are written."""
        self.held.update(pages)

    def release(self, pgnos: Iterable[int]) -> None:
        """Forget held pages: they are in the file now, or nobody needs them."""
        for pgno in pgnos:
            self.held.pop(pgno, None)

    def write(self, pages: dict[int, bytes]) -> None:
        """Write pages in as few contiguous runs as there are. No sync.

        raises   OSError; some of the pages may then be written
        """
        run: list[bytes] = []
        start = end = 0
        size = 0
        for pgno in sorted(pages):
            page = pages[pgno]
            if run and (pgno != end or size >= _LONGEST_RUN):
                self.file.write(start * self.page_size, b"".join(run))
                run, size = [], 0
            if not run:
                start = pgno
            run.append(page)
            size += len(page)
            end = pgno + len(page) // self.page_size
        if run:
            self.file.write(start * self.page_size, b"".join(run))


_PAUSE = 100  # look-ups in a leaf before its rows are offered once more: they may be there, or have been refused
_ROWS_SHARE = 2  # half of the cache may be rows; the leaves that they come from are the first to leave the other half
_LONGEST_RUN = 4 << 20  # bytes joined for one write call; bounds the copy, larger is not faster
