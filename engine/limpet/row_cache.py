"""Rows that were asked for again, by key: a look-up of one of them is a look-up in a dict. No I/O.

A row cache belongs to one root of one tree, and a root names content, so what it holds is right for
as long as there is somebody to ask. A checkpoint that changes the tree gives the new root a copy
with its changes; who reads the old root keeps the old one. Changes that are not in
the tree yet lie in an overlay, which is asked first.

Rows come in a leaf at a time, once it has been asked a few times, and only while there is room
(pager.py keeps the books). Large values, which a leaf only refers to, stay out.

Numbers: a random look-up among 100,000 rows takes 0.4 us here, most of it waiting for memory, where
the way through two branches and a leaf with the same rows takes 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping

from .node import Leaf

ROW_OVERHEAD = 2 * (33 + 8) + 54  # bytes: headers of key and value, rounding, a slot in a dict of any fill


class RowCache:
    """Rows of one tree at one root. Any thread may look into `rows`; only the pager changes them.

    rows  encoded key -> stored value, never an Overflow. A key that is not there may be in the tree
    size  bytes of memory that they take
    """

    __slots__ = ("__weakref__", "_gone", "rows", "size")

    def __init__(self, gone: list[int]) -> None:
        """gone: where the size is left when nobody has the cache any more."""
        self._gone = gone
        self.rows: dict[bytes, bytes] = {}
        self.size = 0

    def __del__(self) -> None:
        if self.size:
            self._gone.append(self.size)

    def add(self, leaf: Leaf) -> None:
        """Take in the rows of a leaf."""
        found = zip(leaf.keys(), leaf.values(), strict=True)
        self.rows.update([row for row in found if type(row[1]) is bytes] if leaf.overflow else found)
        self.size += size_of(leaf)

    def clear(self) -> None:
        """Forget the rows, for everybody who has the dict at hand as well."""
        self.rows.clear()
        self.size = 0

    def holds(self, leaf: Leaf) -> bool:
        """Whether the rows of a leaf are in here."""
        return leaf.keys()[0] in self.rows

    def after(self, changes: Mapping[bytes, bytes | None]) -> RowCache:
        """A copy for the root that a checkpoint made of this one's.

        changes  key -> stored value, or None for a delete; of those that are cached, inline values stay so
        cost     5 ns a cached row, 0.1 us a change
        """
        copy = RowCache(self._gone)
        if self.rows:
            rows = copy.rows = self.rows.copy()
            for key in rows.keys() & changes.keys():
                value = changes[key]
                if type(value) is bytes:
                    rows[key] = value
                else:
                    del rows[key]
            copy.size = self.size * len(rows) // len(self.rows)
        return copy


def size_of(leaf: Leaf) -> int:
    """Bytes of memory that the rows of a leaf take."""
    return len(leaf.page) + leaf.count * ROW_OVERHEAD
