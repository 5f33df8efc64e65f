"""Trees as a transaction sees them: bytes to bytes, at one root, with or without changes on top.

    SnapshotTree    a tree of a snapshot; refuses changes
    WorkingTree     a tree of a write transaction: a root and an overlay of changes
    ENDED           what a table of a finished transaction has in the place of its tree

A working tree's overlay maps changed keys to values, None for a delete. `get` looks there first,
`scan` merges. Applying the overlay (transaction.py) makes a new root and empties it.

Invariant: a delete stands in the overlay only for a key that the root has. So the number of
entries is entry_count + delta, as soon as it is known which keys set so far the root lacks;
`unresolved` holds those nobody has asked about yet, because a bulk load never will.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from operator import add
from typing import Any, NamedTuple, NoReturn, Protocol

from . import btree
from .codecs import Codec, KeyCodec
from .errors import ClosedError, CorruptError, ReadOnlyError
from .format import MAX_VALUE_SIZE, max_inline_entry, max_key_size
from .node import Overflow
from .pager import Pager

Batch = tuple[list[bytes], list[bytes]]


class TableInfo(NamedTuple):
    """One table of a snapshot."""

    tree_id: int
    root: int
    entry_count: int
    key: KeyCodec
    value: Codec


class Tree(Protocol):
    """What a table needs of a tree. Keys and values are encoded; stored values may be Overflow.

    CorruptError from `get` lacks the name of the table; the others add it.
    """

    name: str
    version: int  # changes whenever the content does
    codecs: tuple[KeyCodec, Codec] | None  # None: the table does not exist
    max_key_size: int

    def get(self, key: bytes) -> bytes | None: ...
    def has(self, key: bytes) -> bool: ...
    def scan(self, low: bytes | None, high: bytes | None, *, reverse: bool = False) -> Iterator[Batch]: ...
    def load(self, stored: bytes) -> bytes: ...
    def entry_count(self) -> int: ...
    def set(self, key: bytes, value: bytes) -> None: ...
    def set_many(self, keys: list[bytes], values: list[bytes]) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def delete_range(self, low: bytes | None, high: bytes | None) -> int: ...
    def clear(self) -> None: ...
    def create(self, codecs: tuple[KeyCodec, Codec]) -> None: ...


class SnapshotTree:
    """A tree of a snapshot. Stateless: the transactions on one snapshot share it.

    get  is a function with the tree's place bound to it, made in C: one call less for each look-up
    """

    __slots__ = ("_count", "_pager", "_root", "_tree_id", "codecs", "get", "max_key_size", "name")
    version = 0

    def __init__(self, name: str, pager: Pager, info: TableInfo | None) -> None:
        self.name = name
        self._pager = pager
        self.max_key_size = max_key_size(pager.page_size)
        self.codecs: tuple[KeyCodec, Codec] | None
        if info is None:
            self._tree_id = self._root = self._count = 0
            self.codecs = None
        else:
            self._tree_id, self._root, self._count = info.tree_id, info.root, info.entry_count
            self.codecs = (info.key, info.value)
        self.get: Callable[[bytes], bytes | None] = partial(btree.get, pager, self._root, self._tree_id)

    def has(self, key: bytes) -> bool:
        try:
            return bool(self._root) and btree.get(self._pager, self._root, self._tree_id, key) is not None
        except CorruptError as error:
            raise named(error, self.name) from None

    def scan(self, low: bytes | None, high: bytes | None, *, reverse: bool = False) -> Iterator[Batch]:
        if self._root and (low is None or high is None or low < high):
            try:
                yield from btree.scan(self._pager, self._root, self._tree_id, low, high, reverse=reverse)
            except CorruptError as error:
                raise named(error, self.name) from None

    def load(self, stored: bytes) -> bytes:
        if type(stored) is not Overflow:
            return stored
        try:
            return self._pager.overflow_value(stored, self._tree_id)
        except CorruptError as error:
            raise named(error, self.name) from None

    def entry_count(self) -> int:
        return self._count

    def set(self, key: bytes, value: bytes) -> None:
        self._refuse()

    def set_many(self, keys: list[bytes], values: list[bytes]) -> None:
        self._refuse()

    def delete(self, key: bytes) -> bool:
        self._refuse()

    def delete_range(self, low: bytes | None, high: bytes | None) -> int:
        self._refuse()

    def clear(self) -> None:
        self._refuse()

    def create(self, codecs: tuple[KeyCodec, Codec]) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ReadOnlyError(f"table {self.name!r} was opened for reading; change it inside `with db.write() as txn:`")


class WorkingState(NamedTuple):
    """The state of a working tree, to go back to."""

    codecs: tuple[KeyCodec, Codec] | None
    tree_id: int
    root: int
    entry_count: int
    overlay: dict[bytes, bytes | None]
    delta: int
    unresolved: set[bytes]


class Owner(Protocol):
    """What a working tree needs of its transaction."""

    undo: list[tuple[Callable[..., None], tuple[Any, ...]]] | None

    def new_tree_id(self) -> int: ...
    def grown(self, size: int) -> None: ...
    def free_tree(self, root: int, tree_id: int) -> None: ...


# Bytes of Python objects beside the bytes of key and value: two headers, a slot and a half in the
# dict, an entry in the set of unresolved keys.
_ENTRY_OVERHEAD = 33 + 33 + 150 + 50
_MERGED = 100  # changes merged at a time by a scan
_UNASKED = 64  # keys that may come before their order is given up
_REPORTED = 64 << 10  # bytes of overlay at a time; telling the transaction of each costs a call of 0.1 us


class WorkingTree:
    """A tree of the write transaction. Only the transaction's thread uses it."""

    __slots__ = (
        "_grown",
        "_inline_limit",
        "_owner",
        "_pager",
        "_sorted",
        "_unasked",
        "changed",
        "codecs",
        "count",
        "delta",
        "has_large",
        "max_key_size",
        "name",
        "overlay",
        "root",
        "tree_id",
        "unresolved",
        "version",
    )

    def __init__(self, name: str, pager: Pager, owner: Owner, info: TableInfo | None) -> None:
        self.name = name
        self._pager = pager
        self.max_key_size = max_key_size(pager.page_size)
        self._owner = owner
        self._inline_limit = max_inline_entry(pager.page_size)
        self._grown = 0  # bytes of overlay that the transaction has not been told of
        self.has_large = False  # whether a value was set that belongs on overflow pages
        self.version = 0
        self.changed = False  # since the transaction began
        self._sorted: list[bytes] | None = None
        self._unasked = 0  # keys that came since somebody asked for their order
        self.overlay: dict[bytes, bytes | None] = {}
        self.delta = 0
        self.unresolved: set[bytes] = set()
        self.codecs: tuple[KeyCodec, Codec] | None = None
        self.tree_id = self.root = self.count = 0
        if info is not None:
            self.tree_id, self.root, self.count = info.tree_id, info.root, info.entry_count
            self.codecs = (info.key, info.value)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        overlay = self.overlay
        if key in overlay:
            return overlay[key]
        return btree.get(self._pager, self.root, self.tree_id, key)

    def has(self, key: bytes) -> bool:
        return self.overlay[key] is not None if key in self.overlay else self._is_below(key)

    def _is_below(self, key: bytes) -> bool:
        if not self.root:
            return False
        try:
            return btree.get(self._pager, self.root, self.tree_id, key) is not None
        except CorruptError as error:
            raise named(error, self.name) from None

    def load(self, stored: bytes) -> bytes:
        if type(stored) is not Overflow:
            return stored
        try:
            return self._pager.overflow_value(stored, self.tree_id)
        except CorruptError as error:
            raise named(error, self.name) from None

    def scan(self, low: bytes | None, high: bytes | None, *, reverse: bool = False) -> Iterator[Batch]:
        """Valid until the tree changes; the caller watches `version` and begins anew."""
        if low is not None and high is not None and low >= high:
            return
        changed = self._changed_keys()
        first = bisect_left(changed, low) if low is not None else 0
        last = bisect_left(changed, high) if high is not None else len(changed)
        if self.root:
            below = btree.scan(self._pager, self.root, self.tree_id, low, high, reverse=reverse)
            try:
                for keys, values in below:
                    if reverse:
                        at = bisect_left(changed, keys[0], first, last)
                        yield from self._merged(keys, values, changed, at, last, reverse=True)
                        last = at
                    else:
                        at = bisect_left(changed, keys[-1] + b"\0", first, last)
                        yield from self._merged(keys, values, changed, first, at, reverse=False)
                        first = at
            except CorruptError as error:
                raise named(error, self.name) from None
        yield from self._merged([], [], changed, first, last, reverse=reverse)

    def _merged(
        self, keys: list[bytes], values: list[bytes], changed: list[bytes], first: int, last: int, *, reverse: bool
    ) -> Iterator[Batch]:
        """A batch with the changes [first, last) on top; some at a time, since the caller may want but one."""
        if first == last:
            if keys:
                yield keys, values
            return
        starts = range(first, last, _MERGED)
        for start in reversed(starts) if reverse else starts:
            stop = min(start + _MERGED, last)
            low = 0 if start == first else bisect_left(keys, changed[start])
            high = len(keys) if stop == last else bisect_left(keys, changed[stop])
            batch = self._merge(keys[low:high], values[low:high], changed[start:stop])
            if batch[0]:
                yield batch

    def _merge(self, keys: list[bytes], values: list[bytes], above: list[bytes]) -> Batch:
        entries: dict[bytes, bytes | None] = dict(zip(keys, values, strict=True))
        entries.update((key, self.overlay[key]) for key in above)
        merged = [(key, value) for key in sorted(entries) if (value := entries[key]) is not None]
        return [key for key, _ in merged], [value for _, value in merged]

    def _changed_keys(self) -> list[bytes]:
        """The keys of the overlay in order; kept up to date as long as somebody asks for them."""
        self._unasked = 0
        if self._sorted is None:
            self._sorted = sorted(self.overlay)
        return self._sorted

    def _keep_sorted(self, key: bytes) -> None:
        """A key came into the overlay. Sorting all keys anew for each look at their order would be quadratic."""
        assert self._sorted is not None
        self._unasked += 1
        if self._unasked > _UNASKED:
            self._sorted = None
        else:
            insort(self._sorted, key)

    def entry_count(self) -> int:
        """O(1), but for one look-up, once, of each key set since somebody last asked."""
        if self.unresolved:
            if self._owner.undo is not None:
                self._owner.undo.append((self._undo_resolution, (self.delta, self.unresolved)))
            self.delta += sum(not self._is_below(key) for key in self.unresolved)
            self.unresolved = set()
        return self.count + self.delta

    # -- writing ---------------------------------------------------------------------------------

    def create(self, codecs: tuple[KeyCodec, Codec]) -> None:
        """Begin a table that does not exist."""
        self._remember_state()
        self.codecs = codecs
        self.tree_id = self._owner.new_tree_id()
        self.changed = True

    def set(self, key: bytes, value: bytes) -> None:
        overlay = self.overlay
        undo = self._owner.undo
        if undo is not None:
            undo.append((self._undo_key, (key, key in overlay, overlay.get(key), self.delta, key in self.unresolved)))
        if key in overlay:
            if overlay[key] is None:
                self.delta += 1
        else:
            if self.root:
                self.unresolved.add(key)
            else:
                self.delta += 1
            if self._sorted is not None:
                self._keep_sorted(key)
        overlay[key] = value
        self.version += 1
        self.changed = True
        size = len(key) + len(value)
        if size > self._inline_limit:
            self.has_large = True
        self._grown += size + _ENTRY_OVERHEAD
        if self._grown > _REPORTED:
            self._report()

    def set_many(self, keys: list[bytes], values: list[bytes]) -> None:
        """As `set` for each, at half the cost."""
        if self._owner.undo is not None:
            for key, value in zip(keys, values, strict=True):
                self.set(key, value)
            return
        overlay = self.overlay
        if self.root:
            added = {key for key in keys if key not in overlay}
            self.unresolved |= added
            self.delta += sum(overlay[key] is None for key in set(keys) - added)
            overlay.update(zip(keys, values, strict=True))
        else:
            before = len(overlay)  # no deletes in here: there is nothing below to delete
            overlay.update(zip(keys, values, strict=True))
            self.delta += len(overlay) - before
        self._sorted = None
        self.version += 1
        self.changed = True
        sizes = list(map(add, map(len, keys), map(len, values)))
        if max(sizes) > self._inline_limit:
            self.has_large = True
        self._grown += sum(sizes) + _ENTRY_OVERHEAD * len(sizes)
        if self._grown > _REPORTED:
            self._report()

    def _report(self) -> None:
        grown, self._grown = self._grown, 0
        self._owner.grown(grown)

    def delete(self, key: bytes) -> bool:
        overlay = self.overlay
        if key in overlay:
            if overlay[key] is None:
                return False
            below = self._is_below(key)
        elif self._is_below(key):
            below = True
        else:
            return False
        undo = self._owner.undo
        if undo is not None:
            undo.append((self._undo_key, (key, key in overlay, overlay.get(key), self.delta, key in self.unresolved)))
        if key in self.unresolved:
            self.unresolved.discard(key)
            self.delta -= below
        else:
            self.delta -= 1
        if below:
            if self._sorted is not None and key not in overlay:
                self._keep_sorted(key)
            overlay[key] = None
        else:
            del overlay[key]
            if self._sorted is not None:
                del self._sorted[bisect_left(self._sorted, key)]
        self.version += 1
        self.changed = True
        self._grown += len(key) + _ENTRY_OVERHEAD
        if self._grown > _REPORTED:
            self._report()
        return True

    def delete_range(self, low: bytes | None, high: bytes | None) -> int:
        if low is None and high is None:
            count = self.entry_count()
            self.clear()
            return count
        doomed = [key for keys, _ in self.scan(low, high) for key in keys]
        for key in doomed:
            self.delete(key)
        return len(doomed)

    def clear(self) -> None:
        if self.codecs is None or not (self.root or self.overlay):
            return
        self._remember_state()
        if self.root:
            try:
                self._owner.free_tree(self.root, self.tree_id)
            except CorruptError as error:
                raise named(error, self.name) from None
        self.replace_content(0, 0)
        self.changed = True

    def replace_content(self, root: int, count: int) -> None:
        """Stand at another root, with nothing on top. The old overlay is left as it is, for an undo."""
        self.root, self.count = root, count
        self.overlay, self.delta, self.unresolved, self._sorted = {}, 0, set(), None
        self.has_large = False
        self.version += 1

    def state(self) -> WorkingState:
        """Everything that `restore` needs."""
        return WorkingState(self.codecs, self.tree_id, self.root, self.count, self.overlay, self.delta, self.unresolved)

    def restore(self, state: WorkingState) -> None:
        """Go back to an earlier state, or take over that of another tree."""
        self.codecs, self.tree_id, self.root, self.count, self.overlay, self.delta, self.unresolved = state
        self.has_large = True  # not part of the state; it costs a look when it is wrong
        self._sorted = None
        self.version += 1

    def _remember_state(self) -> None:
        if self._owner.undo is not None:
            self._owner.undo.append((self.restore, (self.state(),)))

    def _undo_resolution(self, delta: int, unresolved: AbstractSet[bytes]) -> None:
        self.delta, self.unresolved = delta, set(unresolved)

    def _undo_key(self, key: bytes, was_there: bool, value: bytes | None, delta: int, was_unresolved: bool) -> None:
        if was_there:
            self.overlay[key] = value
        else:
            self.overlay.pop(key, None)
        self.delta = delta
        if was_unresolved:
            self.unresolved.add(key)
        else:
            self.unresolved.discard(key)
        self._sorted = None
        self.version += 1


class _EndedTree:
    """Stands in for the tree of a transaction that has ended."""

    name = ""
    version = -1
    codecs: tuple[KeyCodec, Codec] | None = None
    max_key_size = MAX_VALUE_SIZE  # let every change get as far as its refusal

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ClosedError("the transaction has ended; tables and iterators are valid inside it only")

    get = has = scan = load = entry_count = set = set_many = delete = delete_range = clear = create = _refuse


ENDED: Tree = _EndedTree()


def named(error: CorruptError, table: str) -> CorruptError:
    """The error with the table's name in it."""
    if error.table is None:
        error.table = table
    return error
