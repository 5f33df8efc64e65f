"""Transactions: a snapshot to read, or a snapshot with changes on top that become the next one.

    ReadTransaction    pins a snapshot until it ends
    WriteTransaction   one at a time; its changes are invisible to all others until it commits
    Savepoint          undoes the changes made inside it when an exception leaves it

States of a write transaction, and what may be trusted in each:

    open       trees hold roots and overlays; `_pages` lists every page taken from free space
    ended      committed or aborted; its tables answer with ClosedError; the writer is released

An overlay that has grown past its share of memory is applied early: its pages get places in free
space, where only this transaction knows them, so a crash or an abort forgets them.

Undo. Inside a savepoint every change leaves a note of how to take it back. An undone savepoint
plays its notes in reverse order. Outside of savepoints nothing is noted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import btree
from .errors import ClosedError, CorruptError, LimitError, NoSuchTableError, ReadOnlyError
from .format import (
    CATALOGUE_ENTRY,
    FIRST_TABLE_TREE,
    make_stamp,
    max_inline_entry,
    max_key_size,
    overflow_page_count,
    ref_pgno,
)
from .node import Overflow, encode_overflow, overflow_record
from .overlay import ENDED, NOTHING_KNOWN, Changed, SnapshotTree, TableInfo, WorkingTree
from .pager import Pager
from .table import Table, TableView

if TYPE_CHECKING:
    from .committer import Committer

Undo = list[tuple[Callable[..., None], tuple[Any, ...]]]


_REMEMBERED_TABLES = 256  # look-ups that a snapshot keeps; definitions made anew each time would pile up


class Snapshot:
    """One commit, as readers see it: the tables and where they are. Immutable, but for a memory of look-ups."""

    __slots__ = ("next_tree_id", "pager", "tables", "trees", "txid")

    def __init__(self, txid: int, tables: dict[str, TableInfo], next_tree_id: int, pager: Pager) -> None:
        self.txid = txid
        self.tables = tables
        self.next_tree_id = next_tree_id
        self.pager = pager
        self.trees: dict[Table | str, tuple[Table, SnapshotTree]] = {}

    def tree(self, table: Table | str) -> tuple[Table, SnapshotTree]:
        """The definition and the tree of a table. TableTypeError if the file records other codecs."""
        found = self.trees.get(table)
        if found is None:
            definition = table if isinstance(table, Table) else Table(table, raw=True)
            tree = SnapshotTree(definition.name, self.pager, self.tables.get(definition.name))
            definition.check(tree.codecs)
            if len(self.trees) >= _REMEMBERED_TABLES:
                self.trees.clear()
            found = self.trees[table] = definition, tree
        return found


_new_view = TableView.__new__


class ReadTransaction:
    """A snapshot: it does not change while others commit, and never waits or makes them wait.

    Use it as a context manager. While it is open, the pages of its snapshot cannot be reused, so a
    forgotten reader makes the file grow. Threads: one at a time.
    """

    __slots__ = ("__weakref__", "_first", "_open", "_others", "_pins", "_snapshot", "_view", "txid")

    # `db.read()` fills it in: an __init__ would be called by way of the type, and take 0.1 us of a transaction's 0.6.
    # The first table has places of its own, because a dict for one view would take as much again.
    txid: int  # the number of the commit that the snapshot shows
    _pins: dict[int, int]  # id of a read transaction -> txid of its snapshot
    _snapshot: Snapshot  # until the end: an ended transaction keeps nothing alive
    _open: bool
    _first: Table | str | None  # the table asked for first, and its view
    _view: TableView | None
    _others: dict[Table | str, TableView] | None

    def __getitem__(self, table: Table | str) -> TableView:
        view = self._view
        if view is not None and table is self._first:
            return view
        if not self._open:
            raise _ended()
        if self._others is not None and (other := self._others.get(table)) is not None:
            return other
        snapshot = self._snapshot
        definition, tree = snapshot.trees.get(table) or snapshot.tree(table)
        new = _new_view(TableView)  # and no __init__, as above
        new._table = definition
        new._tree = tree
        new._met = tree.codecs
        new._known = tree.known
        if view is None:
            self._first = table
            self._view = new
        elif self._others is None:
            self._others = {table: new}
        else:
            self._others[table] = new
        return new

    def table(self, table: Table | str) -> TableView:
        """The table as a mapping; a table that does not exist reads as empty.

        table    a Table, or a bare name: the raw bytes of any table
        raises   TableTypeError if the file records other codecs; ClosedError after the end
        """
        return self[table]

    def tables(self) -> list[str]:
        """The names of all tables, in order."""
        if not self._open:
            raise _ended()
        return sorted(self._snapshot.tables)

    def drop(self, table: Table | str) -> None:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def rename(self, table: Table | str, new_name: str) -> None:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def savepoint(self) -> Savepoint:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def commit(self) -> None:
        """End the transaction. There is nothing to commit; it is here so that both kinds end alike."""
        if not self._open:
            raise _ended()
        self.close()

    def abort(self) -> None:
        """End the transaction."""
        self.commit()

    def close(self) -> None:
        """End the transaction and let go of the snapshot. May be called twice."""
        if self._open:
            self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        if not self._open:
            raise _ended()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            view = self._view
            if view is not None:
                self._view = None
                view._tree = ENDED  # `_end` without the call: short transactions are many
                view._known = NOTHING_KNOWN
                if self._others is not None:
                    for other in self._others.values():
                        other._end()
            del self._pins[id(self)]
            del self._snapshot

    def __reduce__(self) -> NoReturn:
        raise _not_copied(self)

    def __del__(self) -> None:
        if self._open:
            path = self._snapshot.pager.file.path
            self._pins.setdefault(id(self), 0)  # an interrupt may have come before it was pinned
            self.close()
            warnings.warn(
                f"a read transaction on {path} was never closed; use `with db.read() as txn:`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class PageWork:
    """What a transaction has done to the pages of the file. Most do nothing: they end in the log.

    allocated   pages taken from free space: one set for each savepoint that was entered since there are any, and
                the first for all before
    held        first page numbers of new pages that are still to be written
    freed       pages that are not needed any more: the base's, and those taken before the innermost savepoint
    stale       references of nodes that the new trees do not use
    spilled     whether some of the new pages were written already
    """

    __slots__ = ("allocated", "freed", "held", "spilled", "stale")

    def __init__(self) -> None:
        self.allocated: list[set[int]] = [set()]
        self.held: set[int] = set()
        self.freed: list[int] = []
        self.stale: list[int] = []
        self.spilled = False


class WriteTransaction:
    """The changes that will be the next commit. Commits when the `with` block ends, aborts on an exception.

    One at a time for each database. Threads: one at a time.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_broken",
        "_database",
        "_durability",
        "_grown",
        "_next_tree_id",
        "_open",
        "_pager",
        "_pages",
        "_savepoint",
        "_stamp",
        "_trees",
        "_txid",
        "_views",
        "undo",
    )

    def __init__(self, database: Committer, base: Snapshot, txid: int, durability: str) -> None:
        self._database = database
        self._base = base
        self._pager = base.pager
        self._txid = txid
        self._stamp = 0  # see `stamp`
        self._durability = durability
        self._next_tree_id = base.next_tree_id
        self._trees: dict[str, WorkingTree] = {}
        self._views: dict[Table | str, TableView] = {}
        self._pages: PageWork | None = None  # None as long as it has not taken or freed any
        self._grown = 0  # bytes of overlays since the last apply
        self._savepoint: Savepoint | None = None  # the innermost that is open
        self._broken: BaseException | None = None  # what stopped a change half-way; it cannot commit after that
        self.undo: Undo | None = None
        self._open = True

    @property
    def txid(self) -> int:
        """The number that the commit will have."""
        return self._txid

    @property
    def stamp(self) -> int:
        """What marks the pages of this attempt at the commit; one that ends in the log has none. Not for users."""
        if not self._stamp:
            self._stamp = make_stamp(self._txid, self._database.new_nonce())
        return self._stamp

    # -- tables ----------------------------------------------------------------------------------

    def __getitem__(self, table: Table | str) -> TableView:
        if not self._open:
            raise _ended()
        view = self._views.get(table)
        if view is None:
            definition = table if isinstance(table, Table) else Table(table, raw=True)
            name = definition.name
            info = self._base.tables.get(name)
            if info is None:
                self._check_name(definition)
            tree = self._trees.get(name)
            if tree is None:
                tree = self._trees[name] = WorkingTree(name, self._pager, self, info)
            codecs = tree.codecs
            if codecs != definition.codecs:
                definition.check(codecs)
            view = self._views[table] = _new_view(TableView)  # and no __init__, as in a ReadTransaction
            view._table = definition
            view._tree = tree
            view._met = codecs
            view._known = NOTHING_KNOWN
        return view

    def table(self, table: Table | str) -> TableView:
        """The table as a mapping; it is created by the first write.

        table    a Table, or a bare name: the raw bytes of any table
        raises   TableTypeError if the file records other codecs; ClosedError after the end
        """
        return self[table]

    def create(self, table: Table) -> TableView:
        """The table, which exists from now on even if nothing is written to it."""
        view = self.table(table)
        tree = self._tree(table.name)
        if tree.codecs is None:
            tree.create(table.codecs)
        return view

    def tables(self) -> list[str]:
        """The names of all tables, in order, with the changes made so far."""
        if not self._open:
            raise _ended()
        names = {name for name in self._base.tables if name not in self._trees}
        return sorted(names | {name for name, tree in self._trees.items() if tree.codecs is not None})

    def drop(self, table: Table | str) -> None:
        """Remove a table with all it holds.

        raises   NoSuchTableError
        cost     reads the branches and leaves of the table, to free their pages
        """
        tree = self._existing(table)
        tree.clear()
        tree._remember_state()
        tree.restore(tree.state()._replace(codecs=None, tree_id=0))
        tree.changed = True

    def rename(self, table: Table | str, new_name: str) -> None:
        """Give a table another name; what it holds stays where it is.

        raises   NoSuchTableError; ValueError if the new name is taken
        """
        tree = self._existing(table)
        definition = Table(new_name)
        self._check_name(definition)
        if new_name == tree.name:
            return
        target = self._tree(new_name)
        if target.codecs is not None:
            raise ValueError(f"cannot rename table {tree.name!r}: there is a table {new_name!r} already")
        try:
            self._apply(tree)  # the overlay moves as pages; a rename is too rare for anything cleverer
        except BaseException as error:
            self._broken = error
            raise
        for each in (tree, target):
            each._remember_state()
            each.changed = True
        tree.replace_content(tree.root, tree.count, tree.rows)  # nothing is on top; the dict that says so may be shared
        target.restore(tree.state())
        tree.replace_content(0, 0)
        tree.restore(tree.state()._replace(codecs=None, tree_id=0))

    def _existing(self, table: Table | str) -> WorkingTree:
        if not self._open:
            raise _ended()
        definition = table if isinstance(table, Table) else Table(table)
        tree = self._tree(definition.name)
        if tree.codecs is None:
            raise NoSuchTableError(f"there is no table {definition.name!r} in {self._database.path}")
        if isinstance(table, Table):
            self.table(table)  # checks the codecs
        return tree

    def _tree(self, name: str) -> WorkingTree:
        tree = self._trees.get(name)
        if tree is None:
            tree = WorkingTree(name, self._pager, self, self._base.tables.get(name))
            self._trees[name] = tree
        return tree

    def _check_name(self, table: Table) -> None:
        encoded = len(table.name.encode())
        size = encoded + CATALOGUE_ENTRY.size + (len(table.key) if isinstance(table.key, tuple) else 1)
        limit = max_inline_entry(self._pager.page_size)
        if encoded > max_key_size(self._pager.page_size) or size > limit:
            raise LimitError(
                f"the name and the key codecs of table {table.name[:40]!r} take {size} bytes in the catalogue "
                f"(the name alone {encoded}); at most {limit} (the name {max_key_size(self._pager.page_size)}) fit",
                size=size,
                limit=limit,
            )

    # -- the end ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the changes the newest commit and wait until it is as durable as was asked for.

        raises   OSError: nothing of this transaction remains, the database can be used further;
                 PoisonedError or OSError after a failed sync: reopen the database, which then has
                 the commit or has it not; ClosedError. A KeyboardInterrupt while waiting for the
                 disk leaves it open as well whether the commit happens
        """
        if not self._open:
            raise _ended()
        self._database._commit(self)

    def abort(self) -> None:
        """Forget the changes."""
        if not self._open:
            raise _ended()
        self._database._abort(self)

    def savepoint(self) -> Savepoint:
        """A context manager: an exception that leaves it undoes what was changed inside, and goes on.

        The transaction can go on as if the block had never begun. Savepoints nest.
        """
        if not self._open:
            raise _ended()
        return Savepoint(self)

    def __enter__(self) -> Self:
        if not self._open:
            raise _ended()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            if kind is None:
                self._database._commit(self)
            else:
                self._database._abort(self)

    def __del__(self) -> None:
        try:
            if not self._open:
                return
        except AttributeError:
            return  # it was interrupted while it was made
        self._database._abort(self)
        warnings.warn(
            f"a write transaction on {self._database.path} was never ended and is aborted; "
            "use `with db.write() as txn:`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    def __reduce__(self) -> NoReturn:
        raise _not_copied(self)

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        for view in self._views.values():
            view._tree = ENDED
        # The trees know the transaction. Left to the collector of cycles, each commit would keep what it began with
        # in memory until that runs, and make it run more often.
        self._trees.clear()
        del self._base, self._pager

    # -- what the trees ask for (overlay.Owner) --------------------------------------------------

    def new_tree_id(self) -> int:
        """A number for a new table; none is used twice in a file."""
        self._next_tree_id = max(self._next_tree_id, FIRST_TABLE_TREE) + 1
        return self._next_tree_id - 1

    def grown(self, size: int) -> None:
        """Note `size` bytes more of overlay; apply all overlays when they take too much memory."""
        self._grown += size
        if self._grown > self._database._overlay_limit:
            try:
                self._apply_all()
                self._spill()
            except BaseException as error:
                self._broken = error
                raise

    def free_tree(self, root: int, tree_id: int) -> None:
        """Free all pages of a tree."""
        for page in list(btree.page_refs(self._pager, root, tree_id)):
            if isinstance(page, Overflow):
                self._free(page.pgnos(self._pager.page_size))
            else:
                self._free((page,))

    # -- applying --------------------------------------------------------------------------------

    def _own_changes(self) -> list[tuple[WorkingTree, Changed]] | None:
        """What a log record of this transaction would say; None: it did more than to change entries."""
        if self._pages is not None:
            return None
        found = []
        for tree in self._trees.values():
            if tree.changed:
                changes = tree.own_changes()
                if changes is None:
                    return None
                if changes:
                    found.append((tree, changes))
        return found

    def _apply_snapshot(self) -> None:
        """As `_apply_all`, the changes of earlier commits to other tables too: after that nothing is in overlays."""
        for name, info in self._base.tables.items():
            if info.overlay is not None:
                self._tree(name).changed = True
        self._apply_all()

    def _apply_all(self) -> None:
        for tree in self._trees.values():
            self._apply(tree)
        self._grown = 0

    def _apply(self, tree: WorkingTree) -> None:
        if not tree.changes():
            return
        pager = self._pager
        changes = self._with_overflow(tree)
        try:
            edit = btree.apply(partial(pager.node, tree_id=tree.tree_id), pager.page_size, tree.root, changes)
        except CorruptError as error:
            error.table = error.table or tree.name
            raise
        pgnos = self._allocate(edit.drafts)
        root, pages = btree.seal(pager, edit, tree.tree_id, self.stamp, pgnos)
        self._hold(pages)
        self._page_work().stale += edit.freed
        self._free(ref_pgno(ref) for ref in edit.freed)
        for record in edit.dropped:
            self._free(record.pgnos(pager.page_size))
        tree._remember_state()
        tree.replace_content(root, tree.count + edit.delta, pager.row_cache(tree.rows, changes))

    def _with_overflow(self, tree: WorkingTree) -> btree.Changes:
        """The overlay, with large values moved to overflow pages."""
        changes = tree.changes()
        if not tree.has_large:
            return changes
        limit = max_inline_entry(self._pager.page_size)
        large = [key for key, value in changes.items() if value is not None and len(key) + len(value) > limit]
        if not large:
            return changes
        changes = changes.copy()
        pages: dict[int, bytes] = {}
        page_size = self._pager.page_size
        values = [value for key in large if (value := changes[key]) is not None]
        runs = self._database._allocate_runs([overflow_page_count(len(value), page_size) for value in values])
        self._page_work().allocated[-1].update(*runs)
        for key, value, run in zip(large, values, runs, strict=True):
            body = encode_overflow(value, ref_pgno(run[0]), tree.tree_id, self.stamp, page_size)
            ref, pages[run[0]] = self._pager.seal(body, run[0])
            changes[key] = overflow_record(len(value), ref)
        self._hold(pages)
        return changes

    def _allocate(self, count: int) -> list[int]:
        pgnos = self._database._allocate(count)
        self._page_work().allocated[-1].update(pgnos)
        return pgnos

    def _page_work(self) -> PageWork:
        work = self._pages
        if work is None:
            work = self._pages = PageWork()
        return work

    def _hold(self, pages: dict[int, bytes]) -> None:
        self._pager.hold(pages)
        self._page_work().held.update(pages)

    def _free(self, pgnos: Iterable[int]) -> None:
        """Free pages; those that this transaction took since the last savepoint can be taken again."""
        work = self._page_work()
        own = work.allocated[-1]
        if isinstance(pgnos, range) and pgnos.stop > self._database.high_water:  # a length may lie, and be huge
            raise CorruptError("an overflow run reaches behind the end", pgno=pgnos.start)
        for pgno in pgnos:
            if pgno in own:
                own.discard(pgno)
                work.held.discard(pgno)
                self._pager.release((pgno,))
                self._database._give_back((pgno,))
            else:
                work.freed.append(pgno)

    def _spill(self) -> None:
        """Write held pages now, so that a large transaction does not live in memory. No sync."""
        work = self._page_work()
        pages = {pgno: self._pager.held[pgno] for pgno in work.held}
        work.spilled = True
        self._pager.write(pages)
        self._pager.release(pages)
        work.held.clear()


class Savepoint(AbstractContextManager["Savepoint"]):
    """Part of a write transaction that can be undone on its own. Made by `txn.savepoint()`."""

    __slots__ = ("_broken", "_freed_count", "_next_tree_id", "_outer", "_outer_undo", "_transaction")

    _outer: Savepoint | None

    def __init__(self, transaction: WriteTransaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> Self:
        txn = self._transaction
        if not txn._open:
            raise _ended()
        outer = txn._savepoint
        while outer is not None:
            if outer is self:
                raise RuntimeError("this savepoint is open already; make another one with txn.savepoint()")
            outer = outer._outer
        self._outer, self._outer_undo = txn._savepoint, txn.undo
        self._broken = txn._broken
        self._next_tree_id = txn._next_tree_id
        self._freed_count: int | None = None  # no pages were taken or freed so far
        if txn._pages is not None:
            self._freed_count = len(txn._pages.freed)
            txn._pages.allocated.append(set())
        txn.undo = []
        txn._savepoint = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        txn = self._transaction
        if not txn._open:
            return
        if txn._savepoint is not self:
            raise RuntimeError("savepoints have to end in the reverse order of their beginning")
        txn._savepoint = self._outer
        notes = txn.undo or []
        if kind is None:
            if self._outer_undo is not None:
                self._outer_undo.extend(notes)
            if txn._pages is not None and self._freed_count is not None:
                allocated = txn._pages.allocated.pop()
                txn._pages.allocated[-1] |= allocated
        else:
            for take_back, arguments in reversed(notes):
                take_back(*arguments)
            txn._next_tree_id = self._next_tree_id
            txn._broken = self._broken
            if txn._pages is not None:
                self._give_back(txn, txn._pages)
        txn.undo = self._outer_undo

    def _give_back(self, txn: WriteTransaction, work: PageWork) -> None:
        """Undo what was done to pages since the savepoint began."""
        allocated = work.allocated.pop()
        if self._freed_count is not None:
            del work.freed[self._freed_count :]
            work.held -= allocated
        elif not work.spilled:
            txn._pages = None
        else:
            work.freed.clear()
            work.held.clear()
            work.allocated.append(set())
        txn._pager.release(allocated)
        txn._database._give_back(allocated)


def _not_copied(transaction: object) -> TypeError:
    return TypeError(f"a {type(transaction).__name__} can be neither copied nor pickled; begin another one")


def _ended() -> ClosedError:
    return ClosedError("the transaction has ended; begin another with db.read() or db.write()")


def _read_only(is_open: bool) -> Exception:
    return ReadOnlyError("a read transaction changes nothing; use `with db.write() as txn:`") if is_open else _ended()
