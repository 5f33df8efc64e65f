"""A transaction of the store: the families on one open engine transaction."""

from __future__ import annotations

from contextlib import AbstractContextManager

from .families import Families
from .family import Direct
from .work import Work


class Transaction(Families[Direct]):
    """What `store.write()` and `store.read()` give: every family, all in one commit or all of one snapshot.

    It belongs to one thread at a time and ends with the `with` statement that made it. A method that raises leaves no
    trace in it, so that the caller may catch the error and go on.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._work = work

    @property
    def txid(self) -> int:
        """The number of the commit that this transaction reads, or will be."""
        return int(self._work.engine.txid)

    def now(self) -> int:
        """The store's time in Unix seconds."""
        return self._work.now()

    def savepoint(self) -> AbstractContextManager[None]:
        """A context manager: an exception inside undoes just what was done inside."""
        return self._work.savepoint()
