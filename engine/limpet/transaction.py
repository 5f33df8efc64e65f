"""Write transactions: a snapshot with changes on top that become the next one.

    WriteTransaction   one at a time; its changes are invisible to all others until it commits
    Savepoint          undoes the changes made inside it when an exception leaves it

States of a write transaction, and what may be trusted in each:

    open       trees hold roots and overlays; `pages` lists every page taken from free space
    ended      committed or aborted; its tables answer with ClosedError; the seat of the writer is free

Steps. What changes a transaction, or looks at what a change may be in the middle of, is a step. A signal
handler or a finalizer that comes in the middle of one, and wants to change, commit or abort the same
transaction, gets a BusyError; what it does besides that works. A step that an exception ends half-way
spoils the transaction: it cannot commit after that, unless a savepoint around it is undone.

Undo. Inside a savepoint every change leaves a note of how to take it back. An undone savepoint
plays its notes in reverse order. Outside of savepoints nothing is noted.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from .chain import Commit
from .errors import BusyError, ClosedError, LimitError, LimpetError, NoSuchTableError
from .format import CATALOGUE_ENTRY, FIRST_TABLE_TREE, make_stamp, max_inline_entry, max_key_size
from .log import encode_changes
from .overlay import CHANGING, ENDED, LOOKING, NOTHING_KNOWN, T, TableInfo, WorkingTree
from .paging import PageSource, PageWork
from .reader import ended, not_copied
from .table import Table, TableView

# The tables that it changes, as the next snapshot has them; the changes, encoded for the log; how many they are.
Logged = tuple[dict[str, TableInfo], bytes, int]
Undo = list[tuple[Callable[..., None], tuple[Any, ...]]]

_new_view = TableView.__new__


class Host(Protocol):
    """What a write transaction asks of the database that began it."""

    @property
    def path(self) -> str: ...
    @property
    def overlay_limit(self) -> int: ...
    @property
    def pages(self) -> PageSource: ...
    def new_nonce(self) -> int: ...
    def commit(self, transaction: WriteTransaction) -> None: ...
    def abort(self, transaction: WriteTransaction) -> None: ...


class WriteTransaction:
    """The changes that will be the next commit. Commits when the `with` block ends, aborts on an exception.

    One at a time for each database. Threads: one at a time.
    """

    # No slots: what most transactions never need costs nothing as a default of the class.
    in_step = 0  # what is under way: see overlay.Owner
    is_open = False  # as long as this holds, it has the writer's seat, if it took it
    is_forsaken = False  # aborted by the closing of the database
    page_work: PageWork | None = None  # None as long as it has not taken or freed any
    undo: Undo | None = None
    _grown = 0  # bytes of overlays since the last apply
    _inserted = False  # whether anything that was set is in pages already
    _savepoint: Savepoint | None = None  # the innermost that is open
    _spoilt: BaseException | None = None  # what stopped a step half-way; it cannot commit after that
    _stamp = 0  # see `stamp`
    txid: int  # the number that the commit will have

    def __init__(self, host: Host, durability: str, base: Commit, txid: int) -> None:
        """Not for users: `db.write()` makes it.

        base     the commit that it begins at; None at its end
        txid     its number
        """
        self.base: Commit | None = base
        self.txid = txid
        self._next_tree_id = base.snapshot.next_tree_id
        self.thread = threading.get_ident()  # that began it
        self._host = host
        self.durability = durability
        self._trees: dict[str, WorkingTree] = {}
        self._views: dict[Table | str, TableView] = {}
        self.is_open = True  # at last: from now on it has to be ended

    def placed(self) -> Commit:
        """The commit that it begins at. ClosedError after the end. Not for users."""
        base = self.base
        if base is None:
            raise ended()
        return base

    def place(self, base: Commit, txid: int) -> None:
        """Let it begin at a commit, and give it its number."""
        self._next_tree_id = base.snapshot.next_tree_id
        self.txid = txid
        self.base = base

    @property
    def next_tree_id(self) -> int:
        """The number that the next new table will have. Not for users."""
        return self._next_tree_id

    @property
    def stamp(self) -> int:
        """What marks the pages of this attempt at the commit; one that ends in the log has none. Not for users."""
        if not self._stamp:
            self._stamp = make_stamp(self.txid, self._host.new_nonce())
        return self._stamp

    # -- tables ----------------------------------------------------------------------------------

    def __getitem__(self, table: Table | str) -> TableView:
        if not self.is_open:
            raise ended()
        view = self._views.get(table)
        if view is None:
            definition = table if isinstance(table, Table) else Table(table, raw=True)
            name = definition.name
            tree = self._trees.get(name)
            if tree is None:
                base = self.base
                if base is None:  # somebody has ended it meanwhile
                    raise ended()
                if self.in_step:  # which may go through the trees just now
                    raise self.refusal()
                snapshot = base.snapshot
                new = WorkingTree(name, snapshot.pager, self, snapshot.tables.get(name))
                tree = self._trees.setdefault(name, new)  # somebody may have come between
            if tree.base is None:
                self._check_name(definition)
            codecs = tree.codecs
            if codecs != definition.codecs:
                definition.check(codecs)
            view = _new_view(TableView)  # and no __init__, as in a ReadTransaction
            view._table = definition
            view._tree = tree
            view._met = codecs
            view._known = NOTHING_KNOWN
            view = self._views.setdefault(table, view)
            if not self.is_open:  # somebody has ended it meanwhile, and does not know of this one
                raise ended()
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
        if not self.is_open:
            raise ended()
        trees = self._trees.copy()
        names = {name for name in self.placed().snapshot.tables if name not in trees}
        return sorted(names | {name for name, tree in trees.items() if tree.codecs is not None})

    def drop(self, table: Table | str) -> None:
        """Remove a table with all it holds.

        raises   NoSuchTableError
        cost     reads the branches and leaves of the table, to free their pages
        """
        self.step(self._drop, table)

    def _drop(self, table: Table | str) -> None:
        self._existing(table).drop()

    def rename(self, table: Table | str, new_name: str) -> None:
        """Give a table another name; what it holds stays where it is.

        raises   NoSuchTableError; ValueError if the new name is taken
        """
        self.step(self._rename, table, new_name)

    def _rename(self, table: Table | str, new_name: str) -> None:
        tree = self._existing(table)
        definition = Table(new_name)
        self._check_name(definition)
        if new_name == tree.name:
            return
        target = self._tree(new_name)
        if target.codecs is not None:
            raise ValueError(f"cannot rename table {tree.name!r}: there is a table {new_name!r} already")
        self.in_step = CHANGING
        self._inserted = self.inserts()
        self.work().apply(tree)  # the overlay moves as pages; a rename is too rare for anything cleverer
        tree.move_to(target)

    def _existing(self, table: Table | str) -> WorkingTree:
        if not self.is_open:
            raise ended()
        definition = table if isinstance(table, Table) else Table(table)
        tree = self._tree(definition.name)
        if tree.codecs is None:
            raise NoSuchTableError(f"there is no table {definition.name!r} in {self._host.path}")
        if isinstance(table, Table):
            self.table(table)  # checks the codecs
        return tree

    def _tree(self, name: str) -> WorkingTree:
        tree = self._trees.get(name)
        if tree is None:
            snapshot = self.placed().snapshot
            tree = self._trees.setdefault(name, WorkingTree(name, snapshot.pager, self, snapshot.tables.get(name)))
        return tree

    def _check_name(self, table: Table) -> None:
        encoded = len(table.name.encode())
        size = encoded + CATALOGUE_ENTRY.size + (len(table.key) if isinstance(table.key, tuple) else 1)
        page_size = self.placed().snapshot.pager.page_size
        limit = max_inline_entry(page_size)
        if encoded > max_key_size(page_size) or size > limit:
            raise LimitError(
                f"the name and the key codecs of table {table.name[:40]!r} take {size} bytes in the catalogue "
                f"(the name alone {encoded}); at most {limit} (the name {max_key_size(page_size)}) fit",
                size=size,
                limit=limit,
            )

    # -- the end ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the changes the newest commit and wait until it is as durable as was asked for.

        raises   OSError: nothing of this transaction remains, the database can be used further;
                 PoisonedError or OSError after a failed sync: reopen the database, which then has
                 the commit or has it not; ClosedError; BusyError inside a signal handler or a
                 finalizer that came in the middle of a commit: it can be tried again later. A
                 KeyboardInterrupt while waiting for the disk leaves it open as well whether the
                 commit happens
        """
        if not self.is_open:
            raise ended()
        self._host.commit(self)

    def abort(self) -> None:
        """Forget the changes. BusyError in the middle of a step of this transaction."""
        if not self.is_open:
            raise ended()
        self.refuse_in_step()
        self._host.abort(self)

    def savepoint(self) -> Savepoint:
        """A context manager: an exception that leaves it undoes what was changed inside, and goes on.

        The transaction can go on as if the block had never begun. Savepoints nest.
        """
        if not self.is_open:
            raise ended()
        return Savepoint(self)

    def __enter__(self) -> Self:
        if not self.is_open:
            raise ended()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_open:
            if kind is None:
                self._host.commit(self)
            else:
                self._host.abort(self)
        elif self.is_forsaken and kind is None:
            raise ClosedError("the database was closed inside the transaction; nothing of it was committed")

    def __del__(self) -> None:
        if not self.is_open:
            return
        self._host.abort(self)
        warnings.warn(
            f"a write transaction on {self._host.path} was never ended and is aborted; use `with db.write() as txn:`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def end(self) -> None:
        """It is over: nothing can be done with it or its tables any more. Not for users; may be called twice."""
        self.is_open = False
        self.in_step = CHANGING  # for ever: who has a tree at hand still is refused
        for view in list(self._views.values()):
            view._tree = ENDED
        # The trees know the transaction. Left to the collector of cycles, each commit would keep what it began with
        # in memory until that runs, and make it run more often.
        self._trees.clear()
        self.base = self._spoilt = None

    def step(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function as a step: BusyError for who comes in the middle of another one. Not for users."""
        if self.in_step:
            raise self.refusal()
        try:
            self.in_step = LOOKING
            result = function(*arguments)
            self.in_step = 0
        except BaseException as error:
            stage, self.in_step = self.in_step, 0
            if stage == CHANGING:
                self.spoil(error)
            raise
        return result

    def spoil(self, error: BaseException) -> None:
        """A step was stopped half-way. Not for users."""
        if self._spoilt is None:
            self._spoilt = error

    def _check_whole(self) -> None:
        if self._savepoint is not None:
            raise RuntimeError("a savepoint is still open; leave its `with` block before the commit")
        error = self._spoilt
        if isinstance(error, OSError | LimpetError):
            raise error
        if error is not None:
            raise LimpetError(
                f"a change of this transaction was stopped half-way ({type(error).__name__}), so it cannot be "
                "committed. Begin another one"
            ) from error

    def refuse_in_step(self) -> None:
        """BusyError if this thread is in the middle of changing it. Not for users."""
        if self.in_step:
            raise self.refusal()

    def refusal(self) -> Exception:
        """What to tell who wants to begin a step while there is another one. Not for users."""
        if not self.is_open:
            return ended()
        return BusyError(
            "this thread is in the middle of a change of the same transaction, which a signal handler or a finalizer "
            "has interrupted; do it after that"
        )

    # -- what the trees ask for (overlay.Owner) --------------------------------------------------

    def new_tree_id(self) -> int:
        """A number for a new table; none is used twice in a file."""
        self._next_tree_id = max(self._next_tree_id, FIRST_TABLE_TREE) + 1
        return self._next_tree_id - 1

    def grown(self, size: int) -> None:
        """Note `size` bytes more of overlay; apply all overlays when they take too much memory."""
        self._grown += size
        if self._grown > self._host.overlay_limit:
            self._inserted = self.inserts()
            self._apply_all()
            self.work().spill()

    def free_tree(self, root: int, tree_id: int) -> None:
        """Free all pages of a tree."""
        self.work().free_tree(root, tree_id)

    # -- the result ------------------------------------------------------------------------------

    def work(self) -> PageWork:
        """What it does to pages, from now on."""
        work = self.page_work
        if work is None:
            work = self.page_work = PageWork(self._host.pages, self.placed().snapshot.pager, self.txid, self.stamp)
        return work

    def logged(self) -> Logged | None:
        """What the log would hear of this transaction; None: it did more than to change entries.

        raises   what stands in the way of a commit
        """
        if self._savepoint is not None or self._spoilt is not None:
            self._check_whole()
        if self.page_work is not None:
            return None
        infos: dict[str, TableInfo] = {}
        encoded = b""
        count = 0
        for name, tree in self._trees.items():
            if tree.changed:
                changes = tree.own_changes()
                if changes is None:
                    return None
                if changes:
                    info = infos[name] = tree.changed_info()
                    encoded += encode_changes(info.tree_id, changes)  # costs nothing for the first, and few have more
                    count += len(changes)
        return infos, encoded, count

    def inserts(self) -> bool:
        """Whether it sets any entry: then the file may be fuller after it."""
        return self._inserted or any(map(_sets, self._trees.values()))

    def adds_entries(self) -> bool:
        """Whether there are more entries in all than before it. Cost: a look-up for each key that was set."""
        return self._inserted or sum([tree.added() for tree in self._trees.values()]) > 0

    def attempt(self, function: Callable[[], None]) -> None:
        """Do a part of the commit; an exception takes back what that has changed."""
        savepoint = Savepoint(self)
        savepoint._begin(self)
        try:
            function()
        except BaseException:
            savepoint._undo(self)
            raise
        else:
            savepoint._keep(self)
        finally:
            self._savepoint, self.undo = savepoint._outer, savepoint._outer_undo

    def apply_snapshot(self, *, join_thin: bool = True) -> None:
        """As `_apply_all`, the changes of earlier commits to other tables too: after that nothing is in overlays."""
        for name, info in self.placed().snapshot.tables.items():
            if info.overlay is not None:
                self._tree(name).changed = True
        self._apply_all(join_thin=join_thin)

    def _apply_all(self, *, join_thin: bool = True) -> None:
        work = self.work()
        for tree in self._trees.values():
            work.apply(tree, join_thin=join_thin)
        self._grown = 0

    def tables_after(self) -> dict[str, TableInfo] | None:
        """The tables of the new snapshot, or None if nothing has changed."""
        base = self.placed().snapshot.tables
        tables: dict[str, TableInfo] | None = None
        for name in self.changed_tables():
            info = self._trees[name].info()
            if info != base.get(name):
                if tables is None:
                    tables = dict(base)
                if info is None:
                    del tables[name]
                else:
                    tables[name] = info
        return tables

    def changed_tables(self) -> list[str]:
        """The names of the tables that were changed, and perhaps back again."""
        return [name for name, tree in self._trees.items() if tree.changed]


class Savepoint(AbstractContextManager["Savepoint"]):
    """Part of a write transaction that can be undone on its own. Made by `txn.savepoint()`."""

    __slots__ = ("_freed_count", "_next_tree_id", "_outer", "_outer_undo", "_spoilt", "_transaction")

    _outer: Savepoint | None

    def __init__(self, transaction: WriteTransaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> Self:
        txn = self._transaction
        if not txn.is_open:
            raise ended()
        txn.step(self._begin, txn)
        return self

    def _begin(self, txn: WriteTransaction) -> None:
        outer = txn._savepoint
        while outer is not None:
            if outer is self:
                raise RuntimeError("this savepoint is open already; make another one with txn.savepoint()")
            outer = outer._outer
        txn.in_step = CHANGING
        self._outer, self._outer_undo = txn._savepoint, txn.undo
        self._spoilt = txn._spoilt
        self._next_tree_id = txn._next_tree_id
        # None: no pages were taken or freed so far
        self._freed_count = None if txn.page_work is None else txn.page_work.enter_savepoint()
        txn.undo = []
        txn._savepoint = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        txn = self._transaction
        if not txn.is_open:
            return
        if txn._savepoint is not self:
            raise RuntimeError("savepoints have to end in the reverse order of their beginning")
        try:
            txn.step(self._keep if kind is None else self._undo, txn)
        finally:
            if not txn.in_step:  # of somebody whom we have interrupted
                txn._savepoint, txn.undo = self._outer, self._outer_undo

    def _keep(self, txn: WriteTransaction) -> None:
        txn.in_step = CHANGING
        if self._outer_undo is not None:
            self._outer_undo.extend(txn.undo or [])
        if txn.page_work is not None and self._freed_count is not None:
            txn.page_work.keep_savepoint()

    def _undo(self, txn: WriteTransaction) -> None:
        txn.in_step = CHANGING
        for take_back, arguments in reversed(txn.undo or []):
            take_back(*arguments)
        txn._next_tree_id = self._next_tree_id
        txn._spoilt = self._spoilt
        work = txn.page_work
        if work is None:
            return
        if self._freed_count is not None:
            work.undo_savepoint(self._freed_count)
            return
        txn.page_work = None
        if work.spilled:  # its number may stand in the file by now
            txn.work().spilled = True
        work.give_all_back()


def _sets(tree: WorkingTree) -> bool:
    """Whether the transaction set any entry of the tree that is not in pages yet."""
    return any(value is not None for value in tree.own.values())
