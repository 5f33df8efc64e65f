"""Overlays become pages: the work of a write transaction on the pages of the file.

Most transactions do none of this: their changes end in the log. One that changes more than the log
has room for, that drops or renames, or whose overlays outgrow their share of memory, applies its
overlays to the trees: the new pages get places in free space, where only this transaction knows
them, so a crash or an abort forgets them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from . import btree
from .errors import CorruptError
from .format import max_inline_entry, overflow_page_count, ref_pgno
from .node import Overflow, encode_overflow, overflow_record
from .overlay import WorkingTree
from .pager import Pager


class PageSource(Protocol):
    """Where pages come from, and go back to. Each raises OSError if the file cannot grow."""

    @property
    def high_water(self) -> int: ...
    def allocate(self, count: int) -> list[int]: ...
    def allocate_runs(self, counts: Sequence[int]) -> list[range]: ...
    def give_back(self, pgnos: Iterable[int]) -> None: ...


class PageWork:
    """What a transaction has done to the pages of the file.

    allocated   pages taken from free space: one set for each savepoint that was entered since there are any, and
                the first for all before
    held        first page numbers of new pages that are still to be written
    freed       pages that are not needed any more: the base's, and those taken before the innermost savepoint
    stale       references of nodes that the new trees do not use
    spilled     whether some of the new pages were written already
    """

    __slots__ = ("_pager", "_source", "_stamp", "allocated", "freed", "held", "spilled", "stale", "txid")

    def __init__(self, source: PageSource, pager: Pager, txid: int, stamp: int) -> None:
        """txid: the number of the commit that it may become; stamp: what marks the pages of this attempt at it."""
        self.txid = txid
        self._source = source
        self._pager = pager
        self._stamp = stamp
        self.allocated: list[set[int]] = [set()]
        self.held: set[int] = set()
        self.freed: list[int] = []
        self.stale: list[int] = []
        self.spilled = False

    @property
    def stamp(self) -> int:
        """What marks its pages."""
        return self._stamp

    def apply(self, tree: WorkingTree, *, join_thin: bool = True) -> None:
        """Turn all that is on top of a tree's root into pages; it stands at its new root then.

        join_thin  False: see `btree.apply`
        raises   CorruptError; OSError
        cost     reads, merges and encodes each leaf concerned, and the branches above, once
        """
        if not tree.changes():
            return
        pager = self._pager
        changes = self._with_overflow(tree)
        try:
            read = partial(pager.node, tree_id=tree.tree_id)
            edit = btree.apply(read, pager.page_size, tree.root, changes, join_thin=join_thin)
        except CorruptError as error:
            error.table = error.table or tree.name
            raise
        pgnos = self._source.allocate(edit.drafts)
        self.allocated[-1].update(pgnos)
        root, pages = btree.seal(pager, edit, tree.tree_id, self._stamp, pgnos)
        self._hold(pages)
        self.stale += edit.freed
        self.free(ref_pgno(ref) for ref in edit.freed)
        for record in edit.dropped:
            self.free(record.pgnos(pager.page_size))
        tree.remember_state()
        tree.replace_content(root, tree.count + edit.delta, pager.row_cache(tree.rows, changes))

    def _with_overflow(self, tree: WorkingTree) -> btree.Changes:
        """The overlay, with large values moved to overflow pages."""
        changes = tree.changes()
        if not tree.has_large:
            return changes
        page_size = self._pager.page_size
        limit = max_inline_entry(page_size)
        large = [key for key, value in changes.items() if value is not None and len(key) + len(value) > limit]
        if not large:
            return changes
        changes = changes.copy()
        pages: dict[int, bytes] = {}
        values = [value for key in large if (value := changes[key]) is not None]
        runs = self._source.allocate_runs([overflow_page_count(len(value), page_size) for value in values])
        self.allocated[-1].update(*runs)
        for key, value, run in zip(large, values, runs, strict=True):
            body = encode_overflow(value, ref_pgno(run[0]), tree.tree_id, self._stamp, page_size)
            ref, pages[run[0]] = self._pager.seal(body, run[0])
            changes[key] = overflow_record(len(value), ref)
        self._hold(pages)
        return changes

    def _hold(self, pages: dict[int, bytes]) -> None:
        self._pager.hold(pages)
        self.held.update(pages)

    def free(self, pgnos: Iterable[int]) -> None:
        """Free pages; those that this transaction took since the last savepoint can be taken again."""
        own = self.allocated[-1]
        if isinstance(pgnos, range) and pgnos.stop > self._source.high_water:  # a length may lie, and be huge
            raise CorruptError("an overflow run reaches behind the end", pgno=pgnos.start)
        for pgno in pgnos:
            if pgno in own:
                own.discard(pgno)
                self.held.discard(pgno)
                self._pager.release((pgno,))
                self._source.give_back((pgno,))
            else:
                self.freed.append(pgno)

    def free_tree(self, root: int, tree_id: int) -> None:
        """Free all pages of a tree. Cost: reads its branches and leaves."""
        for page in list(btree.page_refs(self._pager, root, tree_id)):
            if isinstance(page, Overflow):
                self.free(page.pgnos(self._pager.page_size))
            else:
                self.free((page,))

    def spill(self) -> None:
        """Write held pages now, so that a large transaction does not live in memory. No sync."""
        pages = {pgno: self._pager.held[pgno] for pgno in self.held}
        self.spilled = True
        self._pager.write(pages)
        self._pager.release(pages)
        self.held.clear()

    def give_all_back(self) -> None:
        """The transaction does not commit: what it took is free again."""
        allocated, self.allocated = self.allocated, [set()]
        for pgnos in allocated:
            self._pager.release(pgnos)
            self._source.give_back(pgnos)

    # -- savepoints ------------------------------------------------------------------------------

    def enter_savepoint(self) -> int:
        """From here on, pages can be given back on their own; returns what `undo_savepoint` needs."""
        self.allocated.append(set())
        return len(self.freed)

    def keep_savepoint(self) -> None:
        """What the innermost savepoint took belongs to what is around it."""
        allocated = self.allocated.pop()
        self.allocated[-1] |= allocated

    def undo_savepoint(self, freed_count: int) -> None:
        """Take back what was done to pages since `enter_savepoint` gave `freed_count`."""
        allocated = self.allocated.pop()
        del self.freed[freed_count:]
        self.held -= allocated
        self._pager.release(allocated)
        self._source.give_back(allocated)
