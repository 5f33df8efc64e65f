"""The store for asyncio: the same families with `await`, and commits that never block the event loop.

Everything that writes is done by one thread. It takes what is waiting, runs each piece in a savepoint of one
transaction, and commits once; whoever awaits gets the result when the commit is durable. Under load the pieces that
arrive during one sync share the next one. Rules:

  - Each piece keeps its own outcome. One that raises is undone by itself; a commit that fails fails all of its pieces.
  - Cancelling an await that has not been started takes it out; one that has been started is carried out whole, only
    nobody waits for it. There is nothing in between.
  - At most `max_pending` pieces wait; the next caller waits for room.
  - Reads run in a few threads of their own, each on its own snapshot, beside the writer.

A group (`async with store.write() as tx`) has a transaction of its own, and the other writers wait for its end: keep
slow things out of it. Waiting inside a group for a write outside of it would be waiting for oneself, and is refused:
to the task that opened the group, and to the tasks that it makes inside, as `gather` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Self

import limpet

from . import retention
from .check import CheckReport
from .families import Families
from .family import Awaited
from .store import DAY_S, Store
from .tier import MemoryTier
from .transfer import ImportReport
from .work import Work

MAX_PENDING = 1024  # pieces that may wait before callers have to
MAX_STEPS = 64  # pieces in one commit: more of them save little of the sync, and hold the interpreter for longer
SWITCH_INTERVAL_S = 0.001  # after which a thread lets others have the interpreter, while a store is open
READERS = 4  # threads; reads are short, and the interpreter runs one at a time anyway


class _SwitchInterval:
    """Has the threads of this process hand over the interpreter sooner while a store is open.

    By default a thread that computes keeps it for 5 ms when another one wants it, and the event loop is late by that
    much whenever a commit takes longer: 1 % of the time with sixteen sessions, where 1 ms makes it 1.9 ms at no loss of
    throughput. An interval that is shorter already stays, and what others set meanwhile is left as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores = 0
        self._before = 0.0

    def enter(self) -> None:
        """A store was opened."""
        with self._lock:
            self._stores += 1
            if self._stores == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_INTERVAL_S))

    def leave(self) -> None:
        """A store was closed; the last one puts things back."""
        with self._lock:
            self._stores -= 1
            if not self._stores and sys.getswitchinterval() == SWITCH_INTERVAL_S:
                sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


class _Step:
    """A piece of work for the writer's thread, a function of a Work, and the future that its caller awaits."""

    __slots__ = ("function", "arguments", "future", "outcome", "error")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future
        self.outcome: Any = None
        self.error: BaseException | None = None

    def run(self, work: Work) -> None:
        try:
            with work.savepoint():
                self.outcome = self.function(work, *self.arguments)
        except StopIteration as error:  # a future cannot carry it, nor a coroutine
            self.error = RuntimeError("the operation raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:  # noqa: BLE001  # it belongs to the caller, whatever it is
            self.error = error

    def resolve(self) -> None:
        """Hand the outcome over; runs in the event loop."""
        if self.future.done():  # cancelled meanwhile
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.outcome)


def _write(work: Work, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return work.write(type(family)(work), body, args, kwargs)


def _run(
    work: Work, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
) -> Any:
    return work.run(type(family)(work), body, args, kwargs, writes)


class _Aborted(Exception):
    """Ends the transaction of a group that is not to be committed."""


class _Group:
    """A group in the writer's thread: its steps arrive one by one while its transaction is open."""

    __slots__ = ("steps", "ready", "done", "options", "ended")

    COMMIT, ABORT = "commit", "abort"

    def __init__(self, loop: asyncio.AbstractEventLoop, options: dict[str, Any]) -> None:
        self.steps: queue.SimpleQueue[_Step | str] = queue.SimpleQueue()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.options = options
        self.ended = False

    def end(self, how: str) -> None:
        if not self.ended:
            self.ended = True
            self.steps.put(how)


class _Writer:
    """The thread that does all the writing.

    Steps that are asked for in one turn of the event loop are handed over together, when the turn is over. The thread
    would wake at the first one otherwise, and get hold of the interpreter at some point before the last: with sixteen
    sessions that made eight steps a commit instead of fifteen.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._asked_for: list[_Step] = []  # in this turn of the loop
        self._waiting: queue.SimpleQueue[list[_Step] | _Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="limpet-writer", daemon=True)
        self.stopped: asyncio.Future[None] = loop.create_future()
        self._thread.start()

    def put(self, step: _Step) -> None:
        """Have a step done; for the event loop, as all the methods up to `stop`."""
        if not self._asked_for:
            self._loop.call_soon(self._hand_over)
        self._asked_for.append(step)

    def put_group(self, group: _Group) -> None:
        """Have a group begun when everything that was asked for before has been done."""
        self._hand_over()
        self._waiting.put(group)

    def stop(self) -> None:
        """Let the thread end when everything that is waiting now has been done."""
        self._hand_over()
        self._waiting.put(None)

    def _hand_over(self) -> None:
        if self._asked_for:
            self._waiting.put(self._asked_for)
            self._asked_for = []

    def _run(self) -> None:
        item = self._waiting.get()
        while item is not None:
            steps: list[_Step] = []
            while isinstance(item, list) and item:
                steps += item
                item = self._next_at_once()
            for start in range(0, len(steps), MAX_STEPS):
                self._run_batch(steps[start : start + MAX_STEPS])
            if isinstance(item, _Group):
                self._run_group(item)
            if item is not None:
                item = self._waiting.get()
        self._call(_finish, self.stopped)

    def _next_at_once(self) -> list[_Step] | _Group | None:
        """What is waiting; an empty list when nothing is."""
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return []

    def _run_batch(self, batch: list[_Step]) -> None:
        started: list[_Step] = []
        try:
            with self._store.writing() as work:
                for step in batch:
                    if not step.future.cancelled():
                        started.append(step)
                        step.run(work)
        except BaseException as error:  # noqa: BLE001  # the commit failed: that is everybody's outcome
            started = started or batch  # none was, when the transaction could not begin
            for step in started:
                step.error = step.error or error
        self._call(_resolve_all, started)

    def _run_group(self, group: _Group) -> None:
        error: BaseException | None = None
        try:
            if group.ready.cancelled():
                raise _Aborted
            with self._store.writing(**group.options) as work:
                self._call(_finish, group.ready)
                while isinstance(step := group.steps.get(), _Step):
                    if not step.future.cancelled():
                        step.run(work)
                        self._call(step.resolve)
                if step == _Group.ABORT:
                    raise _Aborted
        except _Aborted:
            pass
        except BaseException as failure:  # noqa: BLE001  # it is the group's outcome
            error = failure
        self._call(_finish, group.ready, error)
        self._call(_finish, group.done, error)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        # The loop may be closed already, and then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def _resolve_all(steps: list[_Step]) -> None:
    for step in steps:
        step.resolve()


def _finish(future: asyncio.Future[None], error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # somebody else may have been told already; it is not lost


# The groups, of any store, that the running code is inside of. A task inherits them from the one that made it, and has
# them still when they are over; whether one is open is for its store to say.
_groups_around: contextvars.ContextVar[tuple[_Group, ...]] = contextvars.ContextVar("limpet_groups", default=())


class AsyncTransaction(Families[Awaited]):
    """What `async with store.write()` and `store.read()` give: every family with `await`, in one transaction."""


class _WriteGroup:
    """The asynchronous context manager behind `AsyncStore.write`; also the scope of its families."""

    def __init__(self, store: AsyncStore, options: dict[str, Any]) -> None:
        self._store = store
        self._options = options
        self._group: _Group | None = None

    async def __aenter__(self) -> AsyncTransaction:
        self._store._check_writable_here()
        group = _Group(asyncio.get_running_loop(), self._options)
        self._group = group
        self._store._groups.add(group)
        self._store._writer.put_group(group)
        try:
            await group.ready
        except BaseException:
            self._leave(_Group.ABORT)
            raise
        _groups_around.set((*_open_groups_around(), group))
        return AsyncTransaction(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group = self._group
        assert group is not None
        closed = group.ended
        self._leave(_Group.COMMIT if kind is None else _Group.ABORT)
        _groups_around.set(_open_groups_around())
        if kind is None:
            await group.done
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
        group = self._group
        if group is None or group.ended:
            raise limpet.ClosedError("the group has ended")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        group.steps.put(_Step(_run, (family, body, args, kwargs, writes), future))
        return await future


def _open_groups_around() -> tuple[_Group, ...]:
    return tuple(group for group in _groups_around.get() if not group.ended)


class _Snapshot:
    """The scope of a group of reads: one snapshot, used by one reader's thread at a time."""

    def __init__(self, store: AsyncStore, work: Work) -> None:
        self._store = store
        self._work = work
        self._one_at_a_time = asyncio.Lock()

    async def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Run a family's method on the snapshot; see `family.Scope`."""
        async with self._one_at_a_time:
            return await self._store._in_reader(self._work.run, type(family)(self._work), body, args, kwargs, writes)


class _Opening:
    """What `AsyncStore.open` gives: to be awaited, or to be entered with `async with`."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, AsyncStore]]) -> None:
        self._open = opening
        self._store: AsyncStore | None = None

    def __await__(self) -> Generator[Any, None, AsyncStore]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncStore:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._store is not None
        await self._store.aclose()


class AsyncStore(Families[Awaited]):
    """The named tables of an agent gateway, for asyncio.

    Belongs to the event loop in which it was opened; use it from that loop only. The families and their methods are
    those of `Store`, with `await`.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, max_pending: int) -> None:
        """Use `AsyncStore.open`."""
        super().__init__(self)
        self._store = store
        self._loop = loop
        self._room = asyncio.Semaphore(max_pending)
        self._pending = 0
        _switch_interval.enter()
        self._writer = _Writer(store, loop)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="limpet-reader")
        self._groups: set[_Group] = set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tier: MemoryTier | None = None,
        lock_timeout: float = 10.0,
        durability: str = "sync",
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        import_from: str | os.PathLike[str] | None = None,
        max_pending: int = MAX_PENDING,
    ) -> _Opening:
        """Open a store in a thread; `await` what this gives, or enter it: `async with AsyncStore.open(path) as store`.

        max_pending  how many writes may wait for a commit, 1 or more; further callers wait for room
        others       as for `Store.open`, which also says what is raised
        """
        if max_pending < 1:
            raise ValueError(f"max_pending is 1 or more, not {max_pending}")
        open_store = functools.partial(
            Store.open,
            path,
            tier=tier,
            lock_timeout=lock_timeout,
            durability=durability,
            clock=clock,
            read_only=read_only,
            import_from=import_from,
        )

        async def opening() -> AsyncStore:
            loop = asyncio.get_running_loop()
            thread = loop.run_in_executor(None, open_store)
            try:
                store = await asyncio.shield(thread)
            except asyncio.CancelledError:
                thread.add_done_callback(_close_unwanted)
                raise
            return cls(store, loop, max_pending)

        return _Opening(opening)

    @property
    def database(self) -> limpet.Database:
        """The engine's database under the store."""
        return self._store.database

    @property
    def tier(self) -> MemoryTier:
        """The memory tier that the store was opened with."""
        return self._store.tier

    @property
    def pending(self) -> int:
        """How many writes are waiting for a commit now; at most `max_pending`."""
        return self._pending

    async def aclose(self) -> None:
        """Finish what was asked for, end the threads, close the file; calling it again waits for the same end.

        New calls raise limpet.ClosedError from now on; an open group is aborted.
        """
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for group in list(self._groups):
            group.end(_Group.ABORT)
        self._writer.stop()
        try:
            await self._writer.stopped
            await self._loop.run_in_executor(None, self._readers.shutdown)
            await self._loop.run_in_executor(None, self._store.close)
        finally:
            _switch_interval.leave()

    # --- transactions ------------------------------------------------------------------------------------------------

    def write(self, *, durability: str | None = None) -> contextlib.AbstractAsyncContextManager[AsyncTransaction]:
        """One commit for several steps: `async with store.write() as tx: await tx.messages.append(...)`.

        Committed when the block ends, unless nothing has changed; aborted when it raises or is cancelled. Other writers
        wait until then.

        durability  of this commit; the store's by default
        """
        return _WriteGroup(self, {"durability": durability})

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncTransaction]:
        """One snapshot for several reads: `async with store.read() as tx: ...`."""
        stack = contextlib.ExitStack()
        opening = asyncio.ensure_future(self._in_reader(stack.enter_context, self._store.reading()))
        try:
            yield AsyncTransaction(_Snapshot(self, await asyncio.shield(opening)))
        finally:
            await asyncio.wait([opening])  # also when cancelled: the snapshot must not stay behind
            stack.close()

    def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Coroutine[Any, Any, Any]:
        """Run a family's method, in a shared commit or on a snapshot of its own; see `family.Scope`."""
        if not writes:
            return self._in_reader(self._store.run, family, body, args, kwargs, writes)
        return self._in_writer(_write, family, body, args, kwargs)

    async def _in_writer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._check_writable_here()
        await self._room.acquire()
        self._pending += 1
        try:
            self._check_open()
            future: asyncio.Future[Any] = self._loop.create_future()
            self._writer.put(_Step(function, arguments, future))
            return await future
        finally:
            self._pending -= 1
            self._room.release()

    async def _in_reader(self, function: Callable[..., Any], *args: Any) -> Any:
        self._check_open()
        return await self._loop.run_in_executor(self._readers, functools.partial(function, *args))

    def _check_open(self) -> None:
        if self._closing is not None:
            raise limpet.ClosedError("the store has been closed")

    def _check_writable_here(self) -> None:
        self._check_open()
        if not self._groups.isdisjoint(_groups_around.get()):
            raise RuntimeError("this task has a group open: a write outside of it would wait for the group's end")

    # --- care --------------------------------------------------------------------------------------------------------

    async def check(self) -> CheckReport:
        """Verify everything; see `Store.check`."""
        report: CheckReport = await self._in_reader(self._store.check)
        return report

    async def retention(
        self,
        *,
        sessions_s: int | None = None,
        archive_s: int | None = None,
        idempotency_s: int | None = DAY_S,
        jobs_s: int | None = DAY_S,
        limit: int = 1000,
        dry_run: bool = False,
    ) -> dict[str, int]:
        """Delete what is older, a small step at a time; see `Store.retention`."""
        options: dict[str, Any] = {
            "sessions_s": sessions_s,
            "archive_s": archive_s,
            "idempotency_s": idempotency_s,
            "jobs_s": jobs_s,
            "limit": limit,
            "dry_run": dry_run,
        }
        removed: dict[str, int] = (
            await self._in_reader(functools.partial(self._store.retention, **options))
            if dry_run
            else await self._in_writer(functools.partial(retention.apply, **options))
        )
        return removed

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store to a new file while it is used; see `Store.backup`."""
        await self._in_reader(self._store.backup, path)

    async def export_jsonl(self, stream: IO[str] | IO[bytes]) -> int:
        """Write everything as JSON lines; see `Store.export_jsonl`. The stream is written by a reader's thread."""
        count: int = await self._in_reader(self._store.export_jsonl, stream)
        return count

    async def import_jsonl(self, stream: Iterable[str] | Iterable[bytes]) -> ImportReport:
        """Add what `export_jsonl` wrote; see `Store.import_jsonl`. The stream is read by a reader's thread."""
        self._check_writable_here()
        report: ImportReport = await self._in_reader(self._store.import_jsonl, stream)
        return report

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _close_unwanted(opened: asyncio.Future[Store]) -> None:
    """Close a store whose opening nobody waits for any more."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
