"""Several steps in one transaction: `async with store.write()`, and `async with store.read()`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import limpet

from ..families import Families
from ..family import Awaited
from ..work import Work
from .writer import GiveBack, Group, Step, Taken, take

if TYPE_CHECKING:
    from .store import AsyncStore

# The groups, of any store, that the running code is inside of. A task inherits them from the one that made it, and has
# them still when they are over; whether one is open is for its store to say.
_groups_around: contextvars.ContextVar[tuple[Group, ...]] = contextvars.ContextVar("limpet_groups", default=())


def open_groups_around() -> tuple[Group, ...]:
    """The groups that the running code is inside of, and that have not ended."""
    return tuple(group for group in _groups_around.get() if not group.ended)


class AsyncTransaction(Families[Awaited]):
    """What `async with store.write()` and `store.read()` give: every family with `await`, in one transaction."""


class WriteGroup:
    """The asynchronous context manager behind `AsyncStore.write`; also the scope of its families."""

    def __init__(self, store: AsyncStore, options: dict[str, Any]) -> None:
        self._store = store
        self._options = options
        self._group: Group | None = None

    async def __aenter__(self) -> AsyncTransaction:
        self._store._check_writable_here()
        group = Group(asyncio.get_running_loop(), self._options)
        self._group = group
        self._store._groups.add(group)
        self._store._writer.put_group(group)
        try:
            await group.ready
        except BaseException:
            self._leave(Group.ABORT)
            raise
        _groups_around.set((*open_groups_around(), group))
        return AsyncTransaction(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group = self._group
        assert group is not None
        closed = group.ended
        self._leave(Group.COMMIT if kind is None else Group.ABORT)
        _groups_around.set(open_groups_around())
        if kind is None:
            try:
                await group.done
            except BaseException:
                # Aborted if there is time; if not, it is committed, but nobody goes on with what was taken inside.
                group.abandoned = True
                self._store._writer.give_back(group)
                raise
            if closed:
                raise limpet.ClosedError("the store was closed before the group could be committed")

    def _leave(self, how: str) -> None:
        assert self._group is not None
        self._group.end(how)
        self._store._groups.discard(self._group)

    async def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Run a family's method in the group's transaction; see `family.Scope`."""
        self._store._check_loop()
        group = self._group
        if group is None or group.ended:
            raise limpet.ClosedError("the group has ended")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        step = Step(_run, (family, body, args, kwargs, writes), future)
        group.steps.put(step)
        return await take(step, self._give_back)

    def _give_back(self, taken: Taken) -> None:
        """In the group's own transaction while it is open, else in a later one."""
        assert self._group is not None
        if self._group.ended:
            self._store._writer.give_back(taken)
        else:
            self._group.steps.put(GiveBack(taken))


class ReadGroup:
    """The asynchronous context manager behind `AsyncStore.read`."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._open = contextlib.ExitStack()
        self._snapshot: _Snapshot | None = None

    async def __aenter__(self) -> AsyncTransaction:
        opening = self._store._start_reading(self._open.enter_context, self._store.store.reading())
        try:
            self._snapshot = _Snapshot(self._store, await asyncio.shield(opening))
        except BaseException:
            _when_done(opening, self._open.close)  # the snapshot must not stay behind
            raise
        return AsyncTransaction(self._snapshot)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._snapshot is not None
        self._snapshot.end(self._open.close)


class _Snapshot:
    """The scope of a group of reads: one snapshot, used by one reader's thread at a time."""

    def __init__(self, store: AsyncStore, work: Work) -> None:
        self._store = store
        self._work = work
        self._one_at_a_time = asyncio.Lock()
        self._reading: asyncio.Future[Any] | None = None  # it goes on in its thread when its caller is cancelled
        self._ended = False

    async def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Run a family's method on the snapshot; see `family.Scope`."""
        self._store._check_loop()
        await self._one_at_a_time.acquire()
        try:
            if self._ended:
                raise limpet.ClosedError("the group of reads has ended")
            here = type(family)(self._work)
            self._reading = self._store._start_reading(self._work.run, here, body, args, kwargs, writes, search=kwargs)
        except BaseException:
            self._one_at_a_time.release()
            raise
        self._reading.add_done_callback(lambda _: self._one_at_a_time.release())
        return await asyncio.shield(self._reading)

    def end(self, close: Callable[[], None]) -> None:
        """Close the snapshot when no thread uses it any more."""
        self._ended = True
        _when_done(self._reading, close)


def _when_done(future: asyncio.Future[Any] | None, action: Callable[[], None]) -> None:
    if future is None or future.done():
        action()
    else:
        future.add_done_callback(lambda _: action())


def _run(
    work: Work, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
) -> Any:
    return work.run(type(family)(work), body, args, kwargs, writes)
