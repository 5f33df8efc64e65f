"""Rows that were asked for again, by key: a look-up of one of them is a look-up in a dict. No I/O.

A row cache belongs to one root of one tree, and a root names content, so what it holds is right for
as long as there is somebody to ask. A checkpoint that changes the tree gives the new root a copy with
its changes; who reads the old root keeps the old one. Changes that are not in the tree yet lie in an
overlay, which is asked first.

Rows come in a leaf at a time, once it has been asked a few times, and only while there is room
(pager.py keeps the books). Large values, which a leaf only refers to, stay out.

Numbers: a random look-up among 100,000 rows takes 0.5 us here, most of it waiting for memory, where
the way through two branches and a leaf takes three times as long.
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
        size = getattr(self, "size", 0)  # an interrupt may have come before it was there
        if size:
            self._gone.append(size)

    def missing(self, leaf: Leaf) -> dict[bytes, bytes]:
        """The rows of a leaf that could be in here and are not."""
        rows = self.rows
        found = zip(leaf.keys(), leaf.values(), strict=True)
        return {key: value for key, value in found if key not in rows and type(value) is bytes}

    def add(self, rows: dict[bytes, bytes], size: int) -> None:
        """Take in rows that are missing; size: as `size_of` gives it."""
        self.rows.update(rows)
        self.size += size

    def clear(self) -> None:
        """Forget the rows, for everybody who has the dict at hand as well."""
        self.rows.clear()
        self.size = 0

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


def size_of(rows: dict[bytes, bytes]) -> int:
    """Bytes of memory that rows take in a cache."""
    return sum(map(len, rows)) + sum(map(len, rows.values())) + len(rows) * ROW_OVERHEAD
