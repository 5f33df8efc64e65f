"""Read transactions: a snapshot, pinned until they end.

A pin says that the pages of a snapshot are still read. It is a number in a dict that all read
transactions of a database share; who wants to use pages again looks for the lowest.
"""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import NoReturn, Self

from .errors import ClosedError, ReadOnlyError
from .overlay import ENDED, NOTHING_KNOWN
from .snapshot import Snapshot
from .table import Table, TableView

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
    _snapshot: Snapshot | None  # until the end: an ended transaction keeps nothing alive
    _open: bool
    _first: Table | str | None  # the table asked for first, and its view
    _view: TableView | None
    _others: dict[Table | str, TableView] | None

    def __getitem__(self, table: Table | str) -> TableView:
        view = self._view
        if view is not None and table is self._first:
            return view
        snapshot = self._snapshot
        if not self._open or snapshot is None:
            raise ended()
        if self._others is not None and (other := self._others.get(table)) is not None:
            return other
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
        snapshot = self._snapshot
        if not self._open or snapshot is None:
            raise ended()
        return sorted(snapshot.tables)

    def drop(self, table: Table | str) -> None:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def rename(self, table: Table | str, new_name: str) -> None:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def savepoint(self) -> NoReturn:
        """Not here: raises ReadOnlyError."""
        raise _read_only(self._open)

    def commit(self) -> None:
        """End the transaction. There is nothing to commit; it is here so that both kinds end alike."""
        if not self._open:
            raise ended()
        self.close()

    def abort(self) -> None:
        """End the transaction."""
        self.commit()

    def close(self) -> None:
        """End the transaction and let go of the snapshot. May be called twice."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        if not self._open:
            raise ended()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            view = self._view
            if view is not None:
                self._view = None
                view._tree = ENDED  # `_end` without the call: short transactions are many
                view._known = NOTHING_KNOWN
                if self._others is not None:
                    for other in self._others.values():
                        other._end()
            # Open until the pin is gone: an interrupt before that leaves it to a later end, or to the finalizer.
            self._pins.pop(id(self), None)
            self._open = False
            self._snapshot = None

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def __del__(self) -> None:
        snapshot = self._snapshot
        if not self._open or snapshot is None:
            return
        keeper = _Keeper(self._pins, snapshot)
        views = [view for view in (self._view, *(self._others or {}).values()) if view is not None]
        self._view = self._others = None
        for view in views:  # somebody may still hold one, as in `list(db.read()[TABLE])`
            view._keeper = keeper
        self.close()


class _Keeper:
    """What a read transaction that was never closed leaves to its tables: its pin, until the last of them goes."""

    __slots__ = ("_pins", "_snapshot")

    def __init__(self, pins: dict[int, int], snapshot: Snapshot) -> None:
        self._pins = pins
        self._snapshot = snapshot
        pins[id(self)] = snapshot.txid

    def __del__(self) -> None:
        self._pins.pop(id(self), None)
        warnings.warn(
            f"a read transaction on {self._snapshot.pager.file.path} was never closed; use `with db.read() as txn:`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )


def not_copied(transaction: object) -> TypeError:
    """Why a transaction cannot be copied."""
    return TypeError(f"a {type(transaction).__name__} can be neither copied nor pickled; begin another one")


def ended() -> ClosedError:
    """What a transaction answers after its end."""
    return ClosedError("the transaction has ended; begin another with db.read() or db.write()")


def _read_only(is_open: bool) -> Exception:
    return ReadOnlyError("a read transaction changes nothing; use `with db.write() as txn:`") if is_open else ended()
