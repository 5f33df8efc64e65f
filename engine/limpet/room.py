"""How many pages a checkpoint may take: bounds that are known before it is made. Reads branches, writes nothing.

A full disk must let rows be deleted, and what is in the log must get into the trees. Both take pages
before they give any back. So the pages that the next checkpoint may need are in the file before a
commit is let into the log, and ordinary growth does not get the last ones (promise.py). Here is the arithmetic of it:

    of a tree     every leaf that changes is written once, and once more if it may split; the
                  branches above them likewise; a new root; overflow pages of large values
    of a flush    the catalogue's pages and the map's
    at rest       two flushes, and a transaction that changes a few entries of each table: with so
                  much left, and an empty log, rows can be deleted on a full disk

A bound holds for trees whose thin nodes are not joined with a neighbour, which would take a page
more for each; a checkpoint that is short of pages leaves them thin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from .errors import CorruptError
from .format import END_SIZE, OVERFLOW_RECORD, REF_SIZE, max_inline_entry, overflow_page_count
from .node import Branch, Leaf, branch_payload, leaf_payload
from .overlay import TableInfo
from .pager import Pager

_CATALOGUE_ENTRIES = 8  # of a catalogue's leaf, at least, whatever the names: they take half a leaf at most
_MOST_AT_REST = 64  # pages for the rows of a transaction at rest, however many tables there are
_HEIGHT = 4  # taken for that of a tree whose root cannot be read


class Need(NamedTuple):
    """Pages that a checkpoint may take.

    pages  all of them, overflow pages included
    large  overflow pages among them, which come in runs
    """

    pages: int
    large: int


def of_changes(pager: Pager, tables: dict[str, TableInfo]) -> Need:
    """What a checkpoint of all overlays takes, without the pages of its flush.

    cost  0.5 us a change; reads the branches above them
    """
    pages = large = 0
    for info in tables.values():
        if info.overlay is None:
            continue
        changes = info.overlay.changes
        try:
            need = of_tree(pager, info.root, info.tree_id, changes)
        except CorruptError:  # the checkpoint will say so; here it is enough not to promise too much
            need = Need(2 * _HEIGHT * len(changes), 0)
        pages += need.pages
        large += need.large
    return Need(pages, large)


def of_tree(pager: Pager, root: int, tree_id: int, changes: dict[bytes, bytes | None]) -> Need:
    """What the tree takes that `changes` make of the one at `root`, thin nodes not joined; values not yet moved out."""
    if not changes:
        return Need(0, 0)
    keys = sorted(changes)
    bound = _Bound(pager, changes)
    waiting: list[tuple[int, int, int]] = []
    if not root:
        bound.add_leaf(None, keys)
    else:
        node = pager.node(root, tree_id)
        if isinstance(node, Branch):
            waiting.append((root, 0, len(keys)))
        else:
            bound.add_leaf(node, keys)
    hot = pager.hot
    while waiting:
        ref, low, high = waiting.pop()
        branch = pager.node(ref, tree_id)
        if not isinstance(branch, Branch):
            raise CorruptError("the page has the wrong level for its place")
        bound.branches += 1
        separators, children = branch.keys, branch.children
        while low < high:
            index = bisect_right(separators, keys[low])
            end = bisect_left(keys, separators[index], low, high) if index < len(separators) else high
            child = children[index]
            if branch.level > 1:
                waiting.append((child, low, end))
            else:
                leaf = hot.get(child)
                bound.add_leaf(leaf if isinstance(leaf, Leaf) else None, keys[low:end])
            low = end
    return bound.need(len(keys[-1]) if len(keys) == 1 else max(map(len, keys)))


class _Bound:
    """What has been counted of one tree."""

    __slots__ = ("_changes", "_inline", "_page_size", "_payload", "branches", "large", "leaves", "splits")

    def __init__(self, pager: Pager, changes: dict[bytes, bytes | None]) -> None:
        self._changes = changes
        self._page_size = pager.page_size
        self._payload = leaf_payload(pager.page_size)
        self._inline = max_inline_entry(pager.page_size)
        self.leaves = self.splits = self.branches = self.large = 0

    def add_leaf(self, leaf: Leaf | None, keys: list[bytes]) -> None:
        """A leaf of which these keys change; None: not at hand, and perhaps full."""
        added = count = 0
        for key in keys:
            value = self._changes[key]
            if value is not None:
                size = len(key) + len(value)
                if size > self._inline:
                    self.large += overflow_page_count(len(value), self._page_size)
                    size = len(key) + OVERFLOW_RECORD.size + END_SIZE
                added += size + 2 * END_SIZE
                count += 1
        self.leaves += 1
        if not count or (leaf is not None and leaf.used + added - self._replaced(leaf, keys, added) <= self._payload):
            return
        self.splits += min(count, -(-2 * added // self._payload))

    def _replaced(self, leaf: Leaf, keys: list[bytes], added: int) -> int:
        """Bytes of the leaf that go; looked at only where it makes a difference."""
        if leaf.used + added <= self._payload:
            return 0
        there = leaf.keys()
        gone = 0
        for key in keys:
            at = bisect_left(there, key)
            if at < len(there) and there[at] == key:
                gone += leaf.entry_size(at)
        return gone

    def need(self, longest: int) -> Need:
        """All of it; `longest` is the size of the longest key."""
        more = -(-2 * self.splits * (longest + END_SIZE + REF_SIZE) // branch_payload(self._page_size))
        branches = self.branches + (min(self.branches, self.splits) + more + 1 if self.splits else 0)
        return Need(self.leaves + self.splits + branches + self.large, self.large)


def of_flush(table_count: int, map_pages: int) -> int:
    """What the catalogue and the map take when a checkpoint is flushed."""
    leaves = -(-table_count // _CATALOGUE_ENTRIES)
    return leaves + (leaves > 1) + map_pages + 1


def of_change(tallest: int) -> int:
    """What one more change takes at most, without overflow pages; `tallest`: the height of the tallest tree."""
    return 2 * tallest + 1  # every node on the way may split, and then there is a new root


def at_rest(heights: list[int], map_pages: int) -> int:
    """What a file has to have left when its log is empty; `heights`: those of its trees."""
    return 2 * of_flush(len(heights), map_pages) + min(2 * sum(heights), _MOST_AT_REST)


def heights(pager: Pager, tables: dict[str, TableInfo]) -> list[int]:
    """How many nodes are on the way to an entry, for each table. Cost: reads the roots."""
    return [_height(pager, info) for info in tables.values()]


def _height(pager: Pager, info: TableInfo) -> int:
    if not info.root:
        return 1
    try:
        return pager.node(info.root, info.tree_id).level + 1
    except CorruptError:
        return _HEIGHT
