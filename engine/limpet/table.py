"""Tables: what a transaction gives for a name. A mapping from typed keys to typed values, in key order.

A `Table` is a definition, made once at import time. A `TableView` is the table in one transaction;
it encodes and decodes, and leaves the rest to the tree below it.

Iteration is lazy and runs a leaf at a time. In a write transaction it is defined while the table
changes: it goes on from the next key in order, wherever that then is.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from itertools import islice
from operator import length_hint
from typing import Any, NoReturn

from .codecs import BYTES, STR, Codec, KeyCodec, check_key_codec, describe, key_functions, mismatch
from .errors import ClosedError, CorruptError, LimitError
from .format import MAX_VALUE_SIZE
from .node import Overflow
from .overlay import ENDED, NOTHING_KNOWN, Tree, named


class Table:
    """The definition of a table: its name and its codecs.

    name     text, not empty; its UTF-8 must fit into a key (a quarter page, 1024 bytes by default)
    key      a codec, or a tuple of codecs for keys that are tuples; not JSON
    value    a codec
    raises   TypeError, ValueError
    """

    __slots__ = (
        "_raw",
        "codecs",
        "decode_key",
        "decode_value",
        "encode_bound",
        "encode_key",
        "encode_value",
        "key",
        "name",
        "plain_key",
        "plain_value",
        "value",
    )

    def __init__(self, name: str, key: KeyCodec = BYTES, value: Codec = BYTES, *, raw: bool = False) -> None:
        """Define a table. raw: show the bytes of a table whatever its codecs are; a bare name does that."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a table is a str, not {type(name).__name__}")
        if not name:
            raise ValueError("the name of a table cannot be empty")
        name.encode()  # a lone surrogate is a ValueError here rather than at the first use
        if not isinstance(value, Codec):
            raise TypeError(f"{value!r} is not a codec")
        self.name = name
        self.key: KeyCodec = check_key_codec(key)
        self.value = value
        self.encode_key, self.encode_bound, self.decode_key = key_functions(self.key)
        self.encode_value, self.decode_value = value.encode_value, value.decode_value
        self.plain_key = key is BYTES  # nothing to encode: saves a call of 0.1 us, twice an entry
        self.plain_value = value is BYTES
        self.codecs: tuple[KeyCodec, Codec] = self.key, value  # as the catalogue records them
        self._raw = raw

    def check(self, recorded: tuple[KeyCodec, Codec] | None) -> None:
        """TableTypeError if the file records other codecs for the table; None: it does not exist yet."""
        if recorded is not None and recorded != self.codecs and not self._raw:
            raise mismatch(self.name, recorded, self.codecs)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, key={describe(self.key)}, value={self.value.name})"


class TableView(MutableMapping[Any, Any]):
    """A table in one transaction: the whole of MutableMapping, and ranges.

    Valid until the transaction ends; after that everything raises ClosedError. Values are
    the caller's own: changing one does not change the table. Used by the transaction's thread.

    Errors: KeyError for a missing key; TypeError for a wrong Python type and ValueError for a value
    that the codec cannot hold, both before anything changes; LimitError for a key or value that is
    too large; ReadOnlyError for a change through a read transaction; CorruptError for damage.
    """

    __slots__ = ("_keeper", "_known", "_met", "_table", "_tree")

    _keeper: object  # set when its transaction was forgotten: what keeps the snapshot for it (reader.py)

    def __init__(self, table: Table, tree: Tree) -> None:
        """Not for users: `txn[TABLE]` makes it."""
        self._table = table
        self._tree = tree
        self._known = tree.known
        self._met = tree.codecs  # when they were last checked; they change if the table is dropped and made anew

    @property
    def name(self) -> str:
        """The table's name."""
        return self._table.name

    def __repr__(self) -> str:
        state = "of an ended transaction" if self._tree is ENDED else f"{len(self)} entries"
        return f"<{self._table!r}, {state}>"

    # -- single entries --------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`. Cost: the depth of the tree, about 1 us when cached."""
        table = self._table
        encoded = key if table.plain_key and type(key) is bytes else table.encode_key(key)
        stored = self._known.get(encoded)
        try:
            if stored is None:
                if self._tree.codecs is not self._met:
                    self._meet()
                stored = self._tree.get(encoded)
                if stored is None:
                    return default
                if type(stored) is Overflow:
                    stored = self._tree.load(stored)
            return stored if table.plain_value else table.decode_value(stored)
        except CorruptError as error:
            raise named(error, table.name) from None

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        self._meet()
        return self._tree.has(self._table.encode_key(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        table = self._table
        encoded_key = key if table.plain_key and type(key) is bytes else table.encode_key(key)
        encoded_value = value if table.plain_value and type(value) is bytes else table.encode_value(value)
        tree = self._tree
        if len(encoded_key) > tree.max_key_size or len(encoded_value) > MAX_VALUE_SIZE:
            raise self._too_large(encoded_key, encoded_value)
        if self._met is None or tree.codecs is not self._met:
            self._writable()
        tree.set(encoded_key, encoded_value)

    def _too_large(self, key: bytes, value: bytes) -> LimitError:
        what, size, limit = "value", len(value), MAX_VALUE_SIZE
        if len(key) > self._tree.max_key_size:
            what, size, limit = "key", len(key), self._tree.max_key_size
        why = " (a quarter page)" if what == "key" else ""
        return LimitError(
            f"table {self.name!r}: the {what} takes {size} bytes, at most {limit} fit{why}", size=size, limit=limit
        )

    def update(self, other: Any = (), /, **entries: Any) -> None:
        """Set many entries, as dict.update does. Twice as fast as one by one.

        other    a mapping, or (key, value) pairs; they are taken 1,000 at a time
        raises   as setting them one by one, and whatever `other` raises; as in a dict, the entries before that are set
        """
        pairs = iter(other.items() if isinstance(other, Mapping) else _pairs(other))
        while True:
            keys: list[Any] = []
            values: list[Any] = []
            try:
                for key, value in islice(pairs, _UPDATE_BATCH):
                    keys.append(key)
                    values.append(value)
            finally:
                if keys:
                    self._set_many(keys, values)
            if not keys:
                break
        if entries:
            self.update(entries)

    def _set_many(self, keys: list[Any], values: list[Any]) -> None:
        """Set entries at once; when one of them cannot be set, those before it are, and its error is raised."""
        table = self._table
        encoded_keys, encoded_values = keys, values
        try:
            if not (table.plain_key and set(map(type, keys)) == {bytes}):
                encoded_keys = list(map(table.encode_key, keys))
            if not (table.plain_value and set(map(type, values)) == {bytes}):
                encoded_values = list(map(table.encode_value, values))
            key_sizes, value_sizes = list(map(len, encoded_keys)), list(map(len, encoded_values))
            longest_key, longest_value = max(key_sizes), max(value_sizes)
            if longest_key > self._tree.max_key_size or longest_value > MAX_VALUE_SIZE:
                raise self._too_large(max(encoded_keys, key=len), max(encoded_values, key=len))
        except BaseException:
            for key, value in zip(keys, values, strict=True):
                self[key] = value
            raise
        # Everything is measured once, here: a tenth of the time of a bulk load up to its commit.
        size = sum(key_sizes) + sum(value_sizes)
        self._writable().set_many(encoded_keys, encoded_values, size, longest_key + longest_value)

    def __delitem__(self, key: Any) -> None:
        self._meet()
        if not self._tree.delete(self._table.encode_key(key)):
            raise KeyError(key)

    def __len__(self) -> int:
        return self._tree.entry_count()

    def __bool__(self) -> bool:
        return self._tree.entry_count() > 0

    # -- in order --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(None, None, reverse=False, part=_KEYS)

    def __reversed__(self) -> Iterator[Any]:
        return self._iterate(None, None, reverse=True, part=_KEYS)

    def keys(self) -> _Keys:
        """A view of the keys, in order; also `reversed()`."""
        return _Keys(self)

    def items(self) -> _Items:
        """A view of the (key, value) pairs, in key order; also `reversed()`."""
        return _Items(self)

    def values(self) -> _Values:
        """A view of the values, in key order; also `reversed()`."""
        return _Values(self)

    def range(
        self,
        start: Any = None,
        stop: Any = None,
        *,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """The (key, value) pairs between two keys, lazily.

        start, stop    keys, or beginnings of tuple keys (which sort before their extensions); None:
                       no bound; start > stop: nothing
        reverse        the same pairs from the last to the first
        include_start, include_stop  whether a key equal to the bound belongs to the range
        """
        low, high = self._bounds(start, stop, include_start=include_start, include_stop=include_stop)
        return self._iterate(low, high, reverse=reverse, part=_PAIRS)

    def key_range(
        self,
        start: Any = None,
        stop: Any = None,
        *,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
    ) -> Iterator[Any]:
        """As `range`, the keys only: large values are not read."""
        low, high = self._bounds(start, stop, include_start=include_start, include_stop=include_stop)
        return self._iterate(low, high, reverse=reverse, part=_KEYS)

    def prefix(self, prefix: Any, *, reverse: bool = False) -> Iterator[tuple[Any, Any]]:
        """The (key, value) pairs whose key begins with `prefix`, lazily.

        prefix   for tuple keys a shorter (or whole) tuple, for STR and BYTES keys their beginning;
                 an empty one is everything
        raises   TypeError for a table whose keys have no beginnings (INT and others)
        """
        low, high = self._prefix_bounds(prefix)
        return self._iterate(low, high, reverse=reverse, part=_PAIRS)

    def first(self) -> tuple[Any, Any] | None:
        """The pair with the lowest key, or None."""
        return next(self._iterate(None, None, reverse=False, part=_PAIRS), None)

    def last(self) -> tuple[Any, Any] | None:
        """The pair with the highest key, or None."""
        return next(self._iterate(None, None, reverse=True, part=_PAIRS), None)

    def pop_first(self) -> tuple[Any, Any] | None:
        """Remove and return the pair with the lowest key; None if the table is empty."""
        return self._removed(self.first())

    def pop_last(self) -> tuple[Any, Any] | None:
        """Remove and return the pair with the highest key; None if the table is empty."""
        return self._removed(self.last())

    def delete_range(self, start: Any = None, stop: Any = None) -> int:
        """Delete the entries with start <= key < stop; returns how many there were.

        start, stop  as in `range`
        cost         reads and rewrites the leaves concerned; without bounds, only frees them
        """
        low, high = self._bounds(start, stop, include_start=True, include_stop=False)
        self._meet()
        return self._tree.delete_range(low, high)

    def clear(self) -> None:
        """Delete all entries. The table goes on to exist."""
        self._tree.clear()

    # -- inside ----------------------------------------------------------------------------------

    def __reduce__(self) -> NoReturn:
        raise TypeError("a table of a transaction can be neither copied nor pickled; take dict(table)")

    def _end(self) -> None:
        """The transaction has ended."""
        self._tree = ENDED
        self._known = NOTHING_KNOWN

    def _writable(self) -> Tree:
        """The tree, which exists from now on."""
        tree = self._tree
        if tree.codecs is None:
            tree.create(self._table.codecs)
        self._meet()
        return tree

    def _meet(self) -> None:
        """TableTypeError if the table has come into being with other codecs since the view was given out."""
        codecs = self._tree.codecs
        if codecs is not self._met:
            self._table.check(codecs)
            self._met = codecs

    def _removed(self, pair: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
        if pair is not None:
            del self[pair[0]]
        return pair

    def _bounds(
        self, start: Any, stop: Any, *, include_start: bool, include_stop: bool
    ) -> tuple[bytes | None, bytes | None]:
        """Any range as low <= key < high: the successor of a key is the key and a zero byte."""
        encode = self._table.encode_bound
        low = None if start is None else encode(start) + (b"" if include_start else b"\0")
        high = None if stop is None else encode(stop) + (b"\0" if include_stop else b"")
        return low, high

    def _prefix_bounds(self, prefix: Any) -> tuple[bytes | None, bytes | None]:
        key = self._table.key
        if isinstance(key, Codec) and key is not STR and key is not BYTES:
            raise TypeError(f"table {self.name!r} has {key.name} keys, which have no prefixes; use range()")
        low = self._table.encode_bound(prefix)
        stem = low.rstrip(b"\xff")
        return low, stem[:-1] + bytes([stem[-1] + 1]) if stem else None

    def _iterate(self, low: bytes | None, high: bytes | None, *, reverse: bool, part: int) -> Iterator[Any]:
        tree = self._tree
        done = False
        while not done:
            self._meet()
            version = tree.version
            done = True
            for keys, values in tree.scan(low, high, reverse=reverse):
                if reverse:
                    keys, values = keys[::-1], values[::-1]
                has_large = part != _KEYS and Overflow in set(map(type, values))
                rest_of_keys, rest_of_values = iter(keys), iter(values)
                try:
                    for item in self._decoded(tree, rest_of_keys, rest_of_values, part, has_large):
                        yield item
                        if self._tree.version != version:  # that of a tree that ended is one no other has
                            done = False
                            break
                except CorruptError as error:
                    raise named(error, self._table.name) from None
                if not done:
                    if self._tree is not tree:
                        raise ClosedError("the transaction has ended; iterators are valid inside it only")
                    # The table changed: go on from the next key in what it is now. To take each key along would be
                    # surer to read, and a tenth of the time of a scan.
                    key = keys[-1 - length_hint(rest_of_values if part == _VALUES else rest_of_keys)]
                    if reverse:
                        high = key
                    else:
                        low = key + b"\0"
                    break

    def _decoded(
        self, tree: Tree, keys: Iterator[bytes], values: Iterator[bytes], part: int, has_large: bool
    ) -> Iterable[Any]:
        table = self._table
        decoded_keys: Iterable[Any] = keys if table.decode_key is BYTES.decode_key else map(table.decode_key, keys)
        if part == _KEYS:
            return decoded_keys
        if has_large:
            values = map(tree.load, values)  # lazily: each may be megabytes
        decoded_values: Iterable[Any] = (
            values if table.decode_value is BYTES.decode_value else map(table.decode_value, values)
        )
        return decoded_values if part == _VALUES else zip(decoded_keys, decoded_values, strict=True)


_UPDATE_BATCH = 1000  # entries that `update` encodes before it sets them
_MISSING = object()
_KEYS, _VALUES, _PAIRS = range(3)  # what an iteration gives


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """What dict.update takes: something with keys(), or pairs."""
    return ((key, other[key]) for key in other.keys()) if hasattr(other, "keys") else other  # noqa: SIM118 as dict does


class _Keys(KeysView[Any]):
    __slots__ = ()
    _mapping: TableView

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._mapping)


class _Items(ItemsView[Any, Any]):
    __slots__ = ()
    _mapping: TableView

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._iterate(None, None, reverse=False, part=_PAIRS)

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._iterate(None, None, reverse=True, part=_PAIRS)


class _Values(ValuesView[Any]):
    __slots__ = ()
    _mapping: TableView

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._iterate(None, None, reverse=False, part=_VALUES)

    def __reversed__(self) -> Iterator[Any]:
        return self._mapping._iterate(None, None, reverse=True, part=_VALUES)
