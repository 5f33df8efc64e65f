"""Trees as a transaction sees them: bytes to bytes, at one root, with or without changes on top.

    Overlay         changes on top of a root that were committed and are not yet in the tree
    SnapshotTree    a tree of a snapshot; refuses changes
    WorkingTree     a tree of a write transaction: a root and changes on top, others' and its own
    ENDED           what a table of a finished transaction has in the place of its tree

An overlay maps changed keys to values, None for a delete. `get` looks there first, `scan` merges.
A small commit makes the overlay of its snapshot from that of the one before; a checkpoint applies
it (transaction.py), which makes a new root and empties it. Since snapshots share what they have in
common, an overlay is two dicts, one on top of the other: the upper one is small, and copied by each
commit that only sets keys; the lower one is copied when the upper one has grown.

How many entries there are is known when it is asked, not before: setting a key would need a look
whether the tree has it. A working tree's number is that of what it began with, plus `delta`, as
soon as it is known which keys set so far are new; `unresolved` holds those nobody has asked about
yet. A bulk load never will, and neither will most commits of one key: a look costs 2 us when the
leaf is in memory, 25 us when it is not, and the rest of such a commit 40 us.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, ItemsView, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from . import btree
from .codecs import Codec, KeyCodec
from .errors import ClosedError, CorruptError, ReadOnlyError
from .format import MAX_VALUE_SIZE
from .node import Overflow
from .pager import Pager
from .row_cache import RowCache

Batch = tuple[list[bytes], list[bytes]]
Changed = ItemsView[bytes, bytes | None]  # keys and their values; None: deleted


class Overlay:
    """The changes on top of a root, as one commit left them. Immutable, but for a memory of what was asked.

    settled      changes that many overlays share
    recent       those on top of them
    entry_count  entries of the tree with the changes, None as long as nobody has asked: it takes a look-up in the tree
                 for each change
    counted      whether somebody has; then later commits to the table keep the number up to date
    sorted       the keys in order, None as long as nobody has asked
    """

    __slots__ = ("_changes", "counted", "entry_count", "recent", "settled", "sorted")

    def __init__(
        self,
        settled: dict[bytes, bytes | None],
        recent: dict[bytes, bytes | None],
        keys: list[bytes] | None = None,
        entry_count: int | None = None,
        counted: bool = False,
    ) -> None:
        """From now on they belong to the overlay. keys: those of `changes` in order, if they are known."""
        self.settled = settled
        self.recent = recent
        self.entry_count = entry_count
        self.counted = counted
        self.sorted = keys
        self._changes = None if recent else settled

    @property
    def changes(self) -> dict[bytes, bytes | None]:
        """All changes in one dict; not to be changed."""
        if self._changes is None:
            self._changes = _together(self.settled, self.recent)
        return self._changes

    def count(self, root_count: int, is_below: Callable[[bytes], bool]) -> int:
        """The entries of a tree of `root_count` with the changes on top."""
        if self.entry_count is None:
            added = sum((value is not None) - is_below(key) for key, value in self.changes.items())
            self.entry_count = root_count + added
            self.counted = True
        return self.entry_count

    def keys(self) -> list[bytes]:
        """The keys in order; not to be changed."""
        if self.sorted is None:
            self.sorted = sorted(self.changes)
        return self.sorted


_new_overlay = Overlay.__new__


def _together(settled: dict[bytes, bytes | None], recent: dict[bytes, bytes | None]) -> dict[bytes, bytes | None]:
    """A dict of its own of both. `{**settled}` would put in key by key what has lost keys before."""
    both = settled.copy()
    if recent:
        both.update(recent)
    return both


class TableInfo(NamedTuple):
    """One table of a snapshot.

    root_count  entries in the tree at the root, without the overlay
    rows        those of this root that were asked for again; None: not kept
    """

    tree_id: int
    root: int
    root_count: int
    codecs: tuple[KeyCodec, Codec]
    overlay: Overlay | None = None
    rows: RowCache | None = None

    @property
    def key(self) -> KeyCodec:
        """The codec of the keys."""
        return self.codecs[0]

    @property
    def value(self) -> Codec:
        """The codec of the values."""
        return self.codecs[1]


class Tree(Protocol):
    """What a table needs of a tree. Keys and values are encoded; stored values may be Overflow.

    CorruptError from `get` lacks the name of the table; the others add it.

    known  stored values of some keys; what is in here is what `get` would give, only sooner
    """

    name: str
    version: int  # changes whenever the content does
    codecs: tuple[KeyCodec, Codec] | None  # None: the table does not exist
    max_key_size: int
    known: Mapping[bytes, bytes]

    def get(self, key: bytes) -> bytes | None: ...
    def has(self, key: bytes) -> bool: ...
    def scan(self, low: bytes | None, high: bytes | None, *, reverse: bool = False) -> Iterator[Batch]: ...
    def load(self, stored: bytes) -> bytes: ...
    def entry_count(self) -> int: ...
    def set(self, key: bytes, value: bytes) -> None: ...
    def set_many(self, keys: list[bytes], values: list[bytes], size: int, longest: int) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def delete_range(self, low: bytes | None, high: bytes | None) -> int: ...
    def clear(self) -> None: ...
    def create(self, codecs: tuple[KeyCodec, Codec]) -> None: ...


class SnapshotTree:
    """A tree of a snapshot. Stateless: the transactions on one snapshot share it.

    get    is a function with the tree's place bound to it, made in C: one call less for each look-up
    known  is asked first, by whoever asks
    """

    __slots__ = (
        "_count",
        "_overlay",
        "_pager",
        "_root",
        "_rows",
        "_tree_id",
        "codecs",
        "get",
        "known",
        "max_key_size",
        "name",
    )
    version = 0

    def __init__(self, name: str, pager: Pager, info: TableInfo | None) -> None:
        self.name = name
        self._pager = pager
        self.max_key_size = pager.max_key_size
        self.codecs: tuple[KeyCodec, Codec] | None = None
        self._overlay: Overlay | None = None
        self._tree_id = self._root = self._count = 0
        self._rows: RowCache | None = None
        if info is not None:
            self._tree_id, self._root, self._count = info.tree_id, info.root, info.root_count
            self.codecs = info.codecs
            self._overlay, self._rows = info.overlay, info.rows
        self.get: Callable[[bytes], bytes | None]
        self.known: Mapping[bytes, bytes]
        if self._overlay is None:
            self.get = partial(btree.find, pager, self._root, self._tree_id, self._rows)
            self.known = NOTHING_KNOWN if self._rows is None else self._rows.rows
        else:
            overlay = self._overlay
            self.get = partial(
                _get_above, overlay.recent, overlay.settled, pager, self._root, self._tree_id, self._rows
            )
            self.known = NOTHING_KNOWN

    def has(self, key: bytes) -> bool:
        try:
            return key in self.known or self.get(key) is not None
        except CorruptError as error:
            raise named(error, self.name) from None

    def scan(self, low: bytes | None, high: bytes | None, *, reverse: bool = False) -> Iterator[Batch]:
        try:
            if self._overlay is not None:
                changes, keys = self._overlay.changes, self._overlay.keys()
                yield from _scan_above(self._pager, self._root, self._tree_id, changes, keys, low, high, reverse)
            elif self._root and (low is None or high is None or low < high):
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
        if self._overlay is None:
            return self._count
        try:
            return self._overlay.count(self._count, partial(_is_in, self._pager, self._root, self._tree_id, self._rows))
        except CorruptError as error:
            raise named(error, self.name) from None

    def set(self, key: bytes, value: bytes) -> None:
        self._refuse()

    def set_many(self, keys: list[bytes], values: list[bytes], size: int, longest: int) -> None:
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


_NOTHING = object()  # what a dict without the key has for it
_UNCHANGED: Changed = {}.items()

NOTHING_KNOWN: Mapping[bytes, bytes] = MappingProxyType({})


def _get_above(
    recent: dict[bytes, bytes | None],
    settled: dict[bytes, bytes | None],
    pager: Pager,
    root: int,
    tree_id: int,
    rows: RowCache | None,
    key: bytes,
) -> bytes | None:
    changes = recent if key in recent else settled
    if key in changes:
        if pager.failure is not None:  # closed, or inherited by a fork; the tree would say so itself
            raise ClosedError(pager.failure)
        return changes[key]
    return btree.get(pager, root, tree_id, rows, key)


def _is_in(pager: Pager, root: int, tree_id: int, rows: RowCache | None, key: bytes) -> bool:
    return btree.get(pager, root, tree_id, rows, key) is not None


def _scan_above(
    pager: Pager,
    root: int,
    tree_id: int,
    changes: dict[bytes, bytes | None],
    changed: list[bytes],
    low: bytes | None,
    high: bytes | None,
    reverse: bool,
) -> Iterator[Batch]:
    """The entries of a tree with changes on top; `changed` are their keys in order."""
    if pager.failure is not None:
        raise ClosedError(pager.failure)
    if low is not None and high is not None and low >= high:
        return
    first = bisect_left(changed, low) if low is not None else 0
    last = bisect_left(changed, high) if high is not None else len(changed)
    if root:
        for keys, values in btree.scan(pager, root, tree_id, low, high, reverse=reverse):
            if reverse:
                at = bisect_left(changed, keys[0], first, last)
                yield from _merged(keys, values, changes, changed, at, last, reverse)
                last = at
            else:
                at = bisect_left(changed, keys[-1] + b"\0", first, last)
                yield from _merged(keys, values, changes, changed, first, at, reverse)
                first = at
    yield from _merged([], [], changes, changed, first, last, reverse)


def _merged(
    keys: list[bytes],
    values: list[bytes],
    changes: dict[bytes, bytes | None],
    changed: list[bytes],
    first: int,
    last: int,
    reverse: bool,
) -> Iterator[Batch]:
    """A batch with the changes [first, last) on top; first a few, then more at a time: the caller may want but one."""
    if first == last:
        if keys:
            yield keys, values
        return
    if changed[first:last] == keys and [changes[key] for key in keys].count(None) == len(keys):
        return  # all deleted, as behind the head of a queue: 2 us a leaf instead of 10
    start, stop, step = last if reverse else first, last if reverse else first, _MERGED_FIRST
    while (start > first) if reverse else (stop < last):
        if reverse:
            start, stop = max(first, start - step), start
        else:
            start, stop = stop, min(stop + step, last)
        step = min(step * 4, _MERGED)
        low = 0 if start == first else bisect_left(keys, changed[start])
        high = len(keys) if stop == last else bisect_left(keys, changed[stop])
        entries: dict[bytes, bytes | None] = dict(zip(keys[low:high], values[low:high], strict=True))
        entries.update((key, changes[key]) for key in changed[start:stop])
        merged = [(key, value) for key in sorted(entries) if (value := entries[key]) is not None]
        if merged:
            yield [key for key, _ in merged], [value for _, value in merged]


class WorkingState(NamedTuple):
    """The state of a working tree, to go back to."""

    codecs: tuple[KeyCodec, Codec] | None
    tree_id: int
    root: int
    entry_count: int
    rows: RowCache | None
    above: Overlay | None
    overlay: dict[bytes, bytes | None] | None
    own: dict[bytes, bytes | None]
    rebuilt: bool
    delta: int
    unresolved: set[bytes]


T = TypeVar("T")
LOOKING, CHANGING = 1, 2  # what a step is at; 0: there is none


class Owner(Protocol):
    """What a working tree needs of its transaction.

    in_step  what the step is at that is under way: one of the three below
    step     runs a function as a step, which may be a change: it says so by setting `in_step`
    spoil    told when an exception stops a change half-way
    refusal  what to tell who wants to begin another step meanwhile
    """

    undo: list[tuple[Callable[..., None], tuple[Any, ...]]] | None
    in_step: int

    def step(self, function: Callable[..., T], *arguments: Any) -> T: ...
    def spoil(self, error: BaseException) -> None: ...
    def refusal(self) -> Exception: ...
    def new_tree_id(self) -> int: ...
    def grown(self, size: int) -> None: ...
    def free_tree(self, root: int, tree_id: int) -> None: ...


# Bytes of Python objects beside the bytes of key and value: two headers, a slot and a half in the
# dict, an entry in the set of unresolved keys.
_ENTRY_OVERHEAD = 33 + 33 + 150 + 50
_MERGED = 128  # changes merged at a time by a scan,
_MERGED_FIRST = 8  # and by its first steps: the head of a queue takes 3 us so, and 10 otherwise
_RECENT = 32  # keys of the upper dict of an overlay, before it is settled
_UNASKED = 64  # keys that may come before their order is given up
_REPORTED = 64 << 10  # bytes of overlay at a time; telling the transaction of each costs a call of 0.1 us


class WorkingTree:
    """A tree of the write transaction. Only the transaction's thread uses it.

    above    what was on top of the root before
    own      what the transaction changed, on top of that
    overlay  both in one dict; None as long as nobody needs it: a transaction that sets a few keys and
             looks up others does not. The same dict as `own` if nothing was on top before, and nothing that
             the log has to hear of
    """

    # No slots: what most trees of a small commit never need costs nothing as a default of the class.
    has_large = False  # whether a value was set that belongs on overflow pages
    version = 0
    changed = False  # since the transaction began
    rebuilt = False  # whether it did more than to change entries
    delta = 0
    _grown = 0  # bytes of overlay that the transaction has not been told of
    _sorted: list[bytes] | None = None
    _unasked = 0  # keys that came since somebody asked for their order
    known = NOTHING_KNOWN  # it would change with every change

    def __init__(self, name: str, pager: Pager, owner: Owner, info: TableInfo | None) -> None:
        self.name = name
        self._pager = pager
        self.max_key_size = pager.max_key_size
        self._owner = owner
        self._inline_limit = pager.max_inline_entry
        self.base = info  # what the transaction began with
        self.above: Overlay | None = None
        self.own: dict[bytes, bytes | None] = {}
        self.overlay: dict[bytes, bytes | None] | None = self.own
        self.unresolved: set[bytes] = set()
        self.codecs: tuple[KeyCodec, Codec] | None
        self.rows: RowCache | None
        if info is None:
            self.tree_id = self.root = self.count = 0
            self.codecs = self.rows = None
            return
        self.tree_id = info.tree_id
        self.root = info.root
        self.count = info.root_count
        self.rows = info.rows
        self.codecs = info.codecs
        if info.overlay is not None:
            self.above = info.overlay
            self.overlay = None
            self.has_large = True  # perhaps; it costs a look when it is wrong

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        changes = self.overlay
        if changes is None:
            changes = self.own
            if key not in changes and self.above is not None:
                changes = self.above.recent
                if key not in changes:
                    changes = self.above.settled
        if key in changes:
            if self._pager.failure is not None:  # see _get_above
                raise ClosedError(self._pager.failure)
            return changes[key]
        return btree.get(self._pager, self.root, self.tree_id, self.rows, key)

    def has(self, key: bytes) -> bool:
        try:
            return self.get(key) is not None
        except CorruptError as error:
            raise named(error, self.name) from None

    def _is_below(self, key: bytes) -> bool:
        if not self.root:
            return False
        try:
            return btree.get(self._pager, self.root, self.tree_id, self.rows, key) is not None
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
        batches = self._scan(low, high, reverse)
        step = self._owner.step
        while (
            batch := step(next, batches, None)
        ) is not None:  # merging looks at what a change may be in the middle of
            yield batch

    def _scan(self, low: bytes | None, high: bytes | None, reverse: bool) -> Iterator[Batch]:
        self._unasked = 0
        overlay, above = self.overlay, self.above
        if overlay is None and above is not None and not self.own:
            changes, keys = above.changes, above.keys()
        else:
            changes = self._merge() if overlay is None else overlay
            if self._sorted is None:
                self._sorted = sorted(changes)
            keys = self._sorted  # kept up to date as long as somebody asks for them
        try:
            yield from _scan_above(self._pager, self.root, self.tree_id, changes, keys, low, high, reverse)
        except CorruptError as error:
            raise named(error, self.name) from None

    def changes(self) -> dict[bytes, bytes | None]:
        """All that is on top of the root; not to be changed."""
        if self.overlay is not None:
            return self.overlay
        if self.above is not None and not self.own:
            return self.above.changes
        return self._merge()

    def _merge(self) -> dict[bytes, bytes | None]:
        """Put what was on top before, and what is the transaction's own, into one dict: the overlay."""
        above = self.above
        assert above is not None
        if above.sorted is not None and not self.own:
            self._sorted = above.sorted.copy()
        overlay = self.overlay = _together(above.settled, above.recent)
        overlay.update(self.own)
        return overlay

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
        if not self.unresolved:
            return self._count_below() + self.delta
        return self._owner.step(self._resolved_count)

    def _count_below(self) -> int:
        return self.count if self.above is None else self.above.count(self.count, self._is_below)

    def _resolved_count(self) -> int:
        if self.unresolved:
            delta = self.delta + sum(not self._is_below(key) for key in self.unresolved)
            self._owner.in_step = CHANGING
            if self._owner.undo is not None:
                self._owner.undo.append((self._undo_resolution, (self.delta, self.unresolved)))
            self.delta, self.unresolved = delta, set()
        return self._count_below() + self.delta

    def added(self) -> int:
        """How many entries more there are than at the beginning. Part of a step; looks up each key that was set."""
        self._resolved_count()
        return self.delta

    # -- writing ---------------------------------------------------------------------------------
    #
    # Each change is a step of the transaction, see there.

    def create(self, codecs: tuple[KeyCodec, Codec]) -> None:
        """Begin a table that does not exist."""
        self._owner.step(self._create, codecs)

    def _create(self, codecs: tuple[KeyCodec, Codec]) -> None:
        if self.codecs is None:
            tree_id = self._owner.new_tree_id()
            self.remember_state()
            self.codecs, self.tree_id, self.changed = codecs, tree_id, True

    def set(self, key: bytes, value: bytes) -> None:
        owner = self._owner
        if owner.in_step:
            raise owner.refusal()
        try:  # as `step` does it, without its calls: 0.2 us of 0.8
            owner.in_step = CHANGING
            own, overlay = self.own, self.overlay
            undo = owner.undo
            above = self.above
            # Once somebody has asked for the order of the keys, it is kept up to date, for which they have to be in
            # one dict.
            if overlay is None and undo is None and above is not None and above.sorted is None:
                before = own.get(key, _NOTHING)
                if before is _NOTHING:
                    before = above.recent.get(key, _NOTHING)
                    if before is _NOTHING:
                        before = above.settled.get(key, _NOTHING)
            else:
                if overlay is None:
                    overlay = self._merge()
                before = overlay.get(key, _NOTHING)
                if undo is not None:
                    note = key, before, own.get(key, _NOTHING), self.delta, key in self.unresolved
                    undo.append((self._undo_key, note))
                if overlay is not own:
                    overlay[key] = value
            if before is _NOTHING:
                if self.root:
                    self.unresolved.add(key)
                else:
                    self.delta += 1
                if self._sorted is not None:
                    self._keep_sorted(key)
            elif before is None:
                self.delta += 1
            own[key] = value
            self.version += 1
            self.changed = True
            size = len(key) + len(value)
            if size > self._inline_limit:
                self.has_large = True
            self._grown += size + _ENTRY_OVERHEAD
            if self._grown > _REPORTED:
                self._report()
            owner.in_step = 0
        except BaseException as error:
            owner.in_step = 0
            owner.spoil(error)
            raise

    def set_many(self, keys: list[bytes], values: list[bytes], size: int, longest: int) -> None:
        """As `set` for each, at half the cost.

        size     bytes of all keys and values
        longest  bytes of the largest entry, or more
        """
        if self._owner.undo is not None:
            for key, value in zip(keys, values, strict=True):
                self.set(key, value)
            return
        self._owner.step(self._set_many, keys, values, size, longest)

    def _set_many(self, keys: list[bytes], values: list[bytes], size: int, longest: int) -> None:
        self._owner.in_step = CHANGING
        overlay = self._merge() if self.overlay is None else self.overlay
        if overlay is not self.own:
            self.own.update(zip(keys, values, strict=True))
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
        if longest > self._inline_limit:
            self.has_large = True  # perhaps: it costs a look when it is wrong
        self._grown += size + _ENTRY_OVERHEAD * len(keys)
        if self._grown > _REPORTED:
            self._report()

    def _report(self) -> None:
        grown, self._grown = self._grown, 0
        self._owner.grown(grown)

    def delete(self, key: bytes) -> bool:
        return self._owner.step(self._delete, key)

    def _delete(self, key: bytes) -> bool:
        overlay = self._merge() if self.overlay is None else self.overlay
        before = overlay.get(key, _NOTHING)
        if before is None:
            return False
        below = self._is_below(key)
        if before is _NOTHING and not below:
            return False
        self._owner.in_step = CHANGING
        undo = self._owner.undo
        if undo is not None:
            note = key, before, self.own.get(key, _NOTHING), self.delta, key in self.unresolved
            undo.append((self._undo_key, note))
        if overlay is not self.own:
            if below or key in self._before():
                self.own[key] = None
            else:
                self.own.pop(key, None)
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
        self._owner.step(self._clear)

    def _clear(self) -> None:
        if self.codecs is None or not (self.root or self.changes()):
            return
        self._owner.in_step = CHANGING
        self.remember_state()
        if self.root:
            try:
                self._owner.free_tree(self.root, self.tree_id)
            except CorruptError as error:
                raise named(error, self.name) from None
            self.replace_content(0, 0)
        else:  # the log still has what was on top
            rebuilt = self.rebuilt
            self.replace_content(0, 0)
            self.own, self.rebuilt = dict.fromkeys(self._before()), rebuilt
        self.changed = True

    def drop(self) -> None:
        """The table does not exist any more. Part of a step of the transaction."""
        self._owner.in_step = CHANGING
        self._clear()
        self.remember_state()
        self.restore(self.state()._replace(codecs=None, tree_id=0))
        self.changed = True

    def move_to(self, target: WorkingTree) -> None:
        """Give everything, none of which is in the overlay, to the tree of another name. Part of a step."""
        self._owner.in_step = CHANGING
        for each in (self, target):
            each.remember_state()
            each.changed = True
        self.replace_content(self.root, self.count, self.rows)  # nothing is on top; the dict for that may be shared
        target.restore(self.state())
        self.replace_content(0, 0)
        self.restore(self.state()._replace(codecs=None, tree_id=0))

    def info(self) -> TableInfo | None:
        """The table as the next snapshot has it; None if there is none. The tree must not be changed after this."""
        return None if self.codecs is None else self.changed_info()

    def changed_info(self) -> TableInfo:
        """As `info`, of a table that exists."""
        codecs = self.codecs
        assert codecs is not None
        overlay = None
        merged, above = self.overlay, self.above
        if merged or merged is None:
            count = None
            counted = above is not None and above.counted
            if counted or (not self.unresolved and (above is None or above.entry_count is not None)):
                count = self._resolved_count()
            if merged is not None:
                overlay = Overlay(merged, {}, self._sorted, count, counted)
            else:
                assert above is not None
                settled, recent = above.settled, {**above.recent, **self.own}
                if len(recent) > _RECENT:
                    settled, recent = _together(settled, recent), {}
                overlay = _new_overlay(Overlay)  # and no __init__, as for a TableView
                overlay.settled, overlay.recent = settled, recent
                overlay.entry_count, overlay.counted = count, counted
                overlay.sorted = overlay._changes = None
        # A NamedTuple's own __new__ is a function of Python that calls this one: 0.2 us.
        return tuple.__new__(TableInfo, (self.tree_id, self.root, self.count, codecs, overlay, self.rows))

    def own_changes(self) -> Changed | None:
        """What the transaction changed, as (key, value; None: deleted).

        returns  None if it did more than to change entries of a table that was there before
        """
        base = self.base
        if base is None and self.codecs is None:
            return _UNCHANGED
        if base is None or self.codecs is None or self.rebuilt or self.tree_id != base.tree_id:
            return None
        return self.own.items()

    def _before(self) -> dict[bytes, bytes | None]:
        """The overlay that the transaction began with."""
        base = self.base
        return {} if base is None or base.overlay is None else base.overlay.changes

    def replace_content(self, root: int, count: int, rows: RowCache | None = None) -> None:
        """Stand at another root, with nothing on top. The old overlay is left as it is, for an undo."""
        self.root, self.count, self.rows, self.above = root, count, rows, None
        self.overlay = self.own = {}
        self.delta, self.unresolved, self._sorted = 0, set(), None
        self.has_large = False
        self.rebuilt = True
        self.version += 1

    def state(self) -> WorkingState:
        """Everything that `restore` needs."""
        return WorkingState(
            self.codecs,
            self.tree_id,
            self.root,
            self.count,
            self.rows,
            self.above,
            self.overlay,
            self.own,
            self.rebuilt,
            self.delta,
            self.unresolved,
        )

    def restore(self, state: WorkingState) -> None:
        """Go back to an earlier state, or take over that of another tree."""
        (
            self.codecs,
            self.tree_id,
            self.root,
            self.count,
            self.rows,
            self.above,
            self.overlay,
            self.own,
            self.rebuilt,
            self.delta,
            self.unresolved,
        ) = state
        self.has_large = True  # not part of the state; it costs a look when it is wrong
        self._sorted = None
        self.version += 1

    def remember_state(self) -> None:
        """Inside a savepoint: leave a note of how to come back to where the tree is now."""
        if self._owner.undo is not None:
            self._owner.undo.append((self.restore, (self.state(),)))

    def _undo_resolution(self, delta: int, unresolved: AbstractSet[bytes]) -> None:
        self.delta, self.unresolved = delta, set(unresolved)

    def _undo_key(self, key: bytes, before: Any, own: Any, delta: int, was_unresolved: bool) -> None:
        assert self.overlay is not None  # what leaves a note has merged
        for changes, value in ((self.overlay, before), (self.own, own)):
            if value is _NOTHING:
                changes.pop(key, None)
            else:
                changes[key] = value
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
    known = NOTHING_KNOWN
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
