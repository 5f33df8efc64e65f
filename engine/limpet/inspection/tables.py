"""Tables and their entries, in trees that may be damaged, with what the log says on top.

A page that cannot be read is an error, or is passed over if the caller wants that; the rest of its
tree is read all the same. Whatever is wrong is believed only while the commit is still in the file
(commit.py): each call tries again on the newest commit before it gives up with BusyError.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, TypeVar

from .. import btree
from ..check import RecordedCodecs, recorded_codecs, shown_range
from ..codecs import describe
from ..errors import BusyError, CorruptError, FormatError, NoSuchTableError
from ..format import (
    CATALOGUE_TREE,
    META_PGNOS,
    CatalogueEntry,
    decode_catalogue_entry,
    decode_page_header,
    ref_pgno,
)
from ..node import Branch, Node, Overflow, decode_node
from ..overlay import named
from ..recovery import Choice
from .commit import TRIES, Logged, ShownCommit
from .raw import RawFile
from .results import Step, TableSummary

OnDamage = Callable[[CorruptError], None]
Entries = Iterator[tuple[bytes, bytes]]
_T = TypeVar("_T")


class TableReader:
    """Reads the tables of the commit that is shown."""

    def __init__(self, raw: RawFile, commit: ShownCommit) -> None:
        self._raw = raw
        self._commit = commit
        self._known: tuple[Choice | None, dict[int, TableSummary]] | None = None  # of which choice, the tables by id

    def tables(self, on_damage: OnDamage | None = None) -> list[TableSummary]:
        """The tables, in the order of their names; `Inspection.tables` says more."""
        return self._tried(lambda: self._tables(on_damage))

    def table(self, name: str) -> TableSummary:
        """One table. NoSuchTableError if there is none of that name."""
        return self._tried(lambda: self._table(name))

    def by_id(self) -> dict[int, TableSummary]:
        """Tree id -> table, as far as the catalogue can be read; nothing is raised."""
        if self._known is None or self._known[0] is not self._commit.choice:
            try:
                tables = self.tables(lambda _: None)
            except (CorruptError, FormatError, BusyError):
                tables = []
            self._known = self._commit.choice, {table.tree_id: table for table in tables}
        return self._known[1]

    def get(self, name: str, key: Any, default: Any) -> Any:
        """The value of a key; `Inspection.get` says more."""

        def look_up() -> Any:
            try:
                with self._commit.believing_damage():
                    table = self._table(name)
                    codecs = table.known_codecs()
                    value = self._value(table, codecs.encode_key(key))
                    return default if value is None else codecs.decode_value(value)
            except CorruptError as error:
                raise named(error, name) from None

        return self._tried(look_up)

    def items(self, name: str, on_damage: OnDamage | None) -> Iterator[tuple[Any, Any]]:
        """The entries of a table; `Inspection.items` says more."""
        for attempt in range(TRIES):
            has_begun = False
            try:
                for pair in self._items(self._table(name), on_damage):
                    has_begun = True
                    yield pair
            except BusyError:
                if has_begun or attempt == TRIES - 1:
                    raise
                self._commit.refresh()
            else:
                return

    def path(self, name: str, key: Any) -> list[Step]:
        """The pages on which an entry depends; `Inspection.path` says more."""
        return self._tried(lambda: self._path(name, key))

    def _tried(self, call: Callable[[], _T]) -> _T:
        """Try again on the newest commit when a writer has overtaken us."""
        for _ in range(TRIES - 1):
            try:
                return call()
            except BusyError:
                self._commit.refresh()
        return call()

    # -- the catalogue ---------------------------------------------------------------------------

    def _tables(self, on_damage: OnDamage | None) -> list[TableSummary]:
        tables: list[TableSummary] = []
        if on_damage is not None:
            for error in self._commit.undecodable:
                on_damage(error)
        for key, value in self._scan(self._commit.meta.catalogue_root, CATALOGUE_TREE, on_damage):
            name = key.decode(errors="backslashreplace")
            try:
                entry = decode_catalogue_entry(value, name)
            except CorruptError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                continue
            tables.append(summarize(name, entry, self._added_by_log(entry)))
        if on_damage is not None:
            for tree_id in self._commit.changes.keys() - {table.tree_id for table in tables}:
                count = len(self._commit.changes[tree_id])
                on_damage(CorruptError(f"the log has {count} changes of tree {tree_id}, for which no table is found"))
        return tables

    def _table(self, name: str) -> TableSummary:
        damage: list[CorruptError] = []
        for table in self._tables(damage.append):
            if table.name == name:
                return table
        if damage:
            raise damage[0]
        raise NoSuchTableError(f"there is no table {name!r} in commit {self._commit.txid}")

    def _added_by_log(self, entry: CatalogueEntry) -> int:
        """How many entries the log adds to a table; where its tree cannot be read, a change counts as none."""
        added = 0
        for key, logged in self._commit.changes.get(entry.tree_id, {}).items():
            try:
                with self._commit.believing_damage():
                    is_below = btree.get(self._raw.pager, entry.root, entry.tree_id, None, key) is not None
            except CorruptError:
                continue
            added += (logged.value is not None) - is_below
        return added

    # -- entries ---------------------------------------------------------------------------------

    def _value(self, table: TableSummary, key: bytes) -> bytes | None:
        logged = self._commit.changes.get(table.tree_id, {}).get(key)
        if logged is not None:
            return logged.value
        stored = btree.get(self._raw.pager, table.entry.root, table.tree_id, None, key)
        return None if stored is None else self._load(stored, table.tree_id)

    def _load(self, stored: bytes, tree_id: int) -> bytes:
        if type(stored) is not Overflow:
            return stored
        with self._commit.believing_damage():
            return self._raw.pager.overflow_value(stored, tree_id)

    def _items(self, table: TableSummary, on_damage: OnDamage | None) -> Iterator[tuple[Any, Any]]:
        codecs = table.known_codecs()
        below = self._scan(table.entry.root, table.tree_id, on_damage, table.name)
        for key, value in _merged(below, self._commit.changes.get(table.tree_id, {})):
            try:
                pair = codecs.decode_key(key), codecs.decode_value(value)
            except CorruptError as error:
                error.table = table.name
                if on_damage is None:
                    raise
                on_damage(error)
                continue
            yield pair

    def _scan(self, root: int, tree_id: int, on_damage: OnDamage | None, name: str | None = None) -> Entries:
        """The entries of a tree in order, values loaded; damage is passed over if the caller wants that."""

        def damaged(error: CorruptError) -> None:
            if name is not None:
                named(error, name)
            if on_damage is None:
                raise error
            on_damage(error)

        branches: set[int] = set()  # a branch that is met again would multiply what is below it

        def walk(ref: int, level: int | None) -> Entries:
            try:
                with self._commit.believing_damage():
                    if ref in branches:
                        raise CorruptError("the page is referred to a second time", pgno=ref_pgno(ref))
                    node = _decoded(self._raw.pager.page(ref), ref, tree_id, level)
                    pairs = [] if isinstance(node, Branch) else list(zip(node.keys(), node.values(), strict=True))
            except CorruptError as error:
                damaged(error)
                return
            if isinstance(node, Branch):
                branches.add(ref)
                for child in node.children:
                    yield from walk(child, node.level - 1)
            for key, stored in pairs:
                try:
                    value = self._load(stored, tree_id)
                except CorruptError as error:
                    damaged(error)
                    continue
                yield key, value

        return walk(root, None) if root else iter(())

    # -- the way to an entry ---------------------------------------------------------------------

    def _path(self, name: str, key: Any) -> list[Step]:
        commit, pager = self._commit, self._raw.pager
        meta = commit.meta
        assert commit.choice is not None
        assert commit.choice.slot is not None
        steps = [Step(META_PGNOS[commit.choice.slot], "meta", "meta", txid=meta.txid)]
        stored = self._descend(steps, meta.catalogue_root, CATALOGUE_TREE, "catalogue", name.encode(), None)
        if stored is None:
            if steps[-1].problem is not None:
                return steps
            raise NoSuchTableError(f"there is no table {name!r} in commit {commit.txid}")
        table = summarize(name, decode_catalogue_entry(stored, name))
        codecs = table.known_codecs()
        encoded, tree = codecs.encode_key(key), repr(name)
        stored = self._descend(steps, table.entry.root, table.tree_id, tree, encoded, codecs)
        logged = commit.changes.get(table.tree_id, {}).get(encoded)
        if logged is not None:
            what = "deletes the key" if logged.value is None else "has the newest value"
            steps.append(Step(logged.pgno, "log", tree, index=None if logged.value is None else 0, keys=what))
        elif type(stored) is Overflow:
            problem = None
            try:
                self._load(stored, table.tree_id)
            except CorruptError as error:
                problem = error.message
            pgnos = stored.pgnos(pager.page_size)
            steps.append(Step(pgnos[0], "overflow", tree, count=len(pgnos), problem=problem))
        return steps

    def _descend(
        self, steps: list[Step], ref: int, tree_id: int, tree: str, key: bytes, codecs: RecordedCodecs | None
    ) -> bytes | None:
        """Go from a root to the leaf of a key, adding the steps; the last has a problem if the way is cut off.

        returns  the stored value, None if it is not there or cannot be reached
        """
        low: bytes | None = None
        high: bytes | None = None
        level: int | None = None
        codec = None if codecs is None else codecs.key
        what = "tables" if tree_id == CATALOGUE_TREE else "keys"
        while ref:
            pgno = ref_pgno(ref)
            keys = shown_range(codec, low, high, what)
            try:
                with self._commit.believing_damage():
                    page = self._raw.pager.page(ref)
                    node = _decoded(page, ref, tree_id, level)
                    leaf_keys = [] if isinstance(node, Branch) else node.keys()
            except CorruptError as error:
                steps.append(Step(pgno, "unreadable", tree, level, keys=keys, problem=error.message))
                return None
            txid = decode_page_header(page).txid
            if not isinstance(node, Branch):
                at = leaf_keys.index(key) if key in leaf_keys else None
                steps.append(Step(pgno, "leaf", tree, 0, len(leaf_keys), at, keys, txid))
                return None if at is None else node.value(at)
            index = bisect_right(node.keys, key)
            steps.append(Step(pgno, "branch", tree, node.level, len(node.children), index, keys, txid))
            low = node.keys[index - 1] if index else low
            high = node.keys[index] if index < len(node.keys) else high
            ref, level = node.children[index], node.level - 1
        return None


def summarize(name: str, entry: CatalogueEntry, added: int = 0) -> TableSummary:
    """A table, from its entry in the catalogue. added: entries that the log adds."""
    codecs: RecordedCodecs | None = None
    problem = None
    key = value = "?"
    try:
        codecs = recorded_codecs(entry, name)
        key, value = describe(codecs.key), codecs.value.name
    except CorruptError as error:
        problem = str(error)
    root = int(ref_pgno(entry.root)) or None
    return TableSummary(name, key, value, entry.entry_count + added, entry.tree_id, root, problem, entry, codecs)


def _decoded(page: bytes, ref: int, tree_id: int, level: int | None) -> Node:
    """A node that has to have this level; None: any."""
    node = decode_node(page, ref_pgno(ref), tree_id)
    if level is not None and node.level != level:
        raise btree.wrong_level(ref, level, node.level)
    return node


def _merged(below: Entries, changes: dict[bytes, Logged]) -> Entries:
    """Entries in key order with changes on top."""
    above = ((key, changes[key].value) for key in sorted(changes))
    kept = (entry for entry in below if entry[0] not in changes)
    for key, value in heapq.merge(kept, above, key=itemgetter(0)):
        if value is not None:
            yield key, value
