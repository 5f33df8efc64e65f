"""AsyncStore; the package says how it works."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Self

import limpet

from .. import retention
from ..check import CheckReport
from ..errors import LoopError
from ..families import Families
from ..family import Awaited
from ..store import Store
from ..tier import MemoryTier
from ..transfer import ImportReport
from ..work import DAY_S, Work
from .groups import AsyncTransaction, ReadGroup, WriteGroup, open_groups_around
from .writer import Group, Step, Writer

MAX_PENDING = 1024  # pieces that may wait before callers have to
SWITCH_INTERVAL_S = 0.001  # after which a thread lets others have the interpreter, while a store is open
READERS = 4  # threads; reads are short, and the interpreter runs one at a time anyway
SEARCHERS = 2  # threads for reads that wait for a process (archive.grep with regex): the others must not wait as well


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

    Belongs to the event loop in which it was opened; from another one every call is LoopError (to hand it a call from
    another thread: `asyncio.run_coroutine_threadsafe`). The families and their methods are those of `Store`, with
    `await`. In a forked child everything is limpet.ClosedError, as with `Store`.

    Cancelling: a write that has not been started is taken out, any other is carried out whole. A task or a job that a
    cancelled caller had taken is given back in the next commit. `check`, `backup`, `export_jsonl` and `import_jsonl`
    are not ended by it: their threads go on, and only their result is lost.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, max_pending: int) -> None:
        """Use `AsyncStore.open`."""
        super().__init__(self)
        self._store = store
        self._loop = loop
        self._pid = os.getpid()
        self._room = asyncio.Semaphore(max_pending)
        self._pending = 0
        _switch_interval.enter()
        self._writer = Writer(store, loop)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="limpet-reader")
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="limpet-search")
        self._groups: set[Group] = set()
        self._closing: asyncio.Task[None] | None = None
        self._closed = False  # or closing
        self._ended = False
        self._ending = threading.Lock()
        store.before_waiting = self._check_not_waiting_for_itself

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
    def store(self) -> Store:
        """The store beneath, for code that cannot await: a signal handler, another thread.

        Its writes wait for the writer's thread, and the event loop with them when they are made there. While a group is
        open in the loop, that would be for ever: they are limpet.BusyError then.
        """
        return self._store

    @property
    def database(self) -> limpet.Database:
        """The engine's database under the store. In the event loop write to `store` rather than to this."""
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

        New calls raise limpet.ClosedError from now on; an open group is aborted. It can be awaited in another event
        loop when the store's own does not run any more.

        raises  LoopError in another event loop while the store's own runs; what Store.close raises
        """
        if self._is_forked():
            self._store.close()
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._check_loop_has_ended()
            self._begin_closing()
            await loop.run_in_executor(None, self._end)
            return
        if self._closing is None or self._closing.cancelled():  # as the end of `asyncio.run` does with all tasks
            self._closing = loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def close(self) -> None:
        """Close a store whose event loop runs no longer, as `aclose` does; for code that is in no event loop.

        raises  LoopError while the loop runs: await `aclose()` there
        """
        if self._is_forked():
            self._store.close()
            return
        self._check_loop_has_ended()
        self._begin_closing()
        self._end()

    def _begin_closing(self) -> None:
        self._closed = True
        for group in list(self._groups):
            group.end(Group.ABORT)
        self._writer.stop()

    async def _close(self) -> None:
        self._begin_closing()
        # Outcomes are handed over before that, and whoever was cancelled has given back what it had taken.
        await asyncio.shield(self._writer.stopped)
        await self._loop.run_in_executor(None, self._end)

    def _end(self) -> None:
        """Wait for the threads and close the file; in any thread but that of the event loop while it runs."""
        with self._ending:
            if self._ended:
                return
            self._writer.finish()
            self._readers.shutdown()
            self._searchers.shutdown()
            self._ended = True
            try:
                self._store.close()
            finally:
                _switch_interval.leave()

    # --- transactions ------------------------------------------------------------------------------------------------

    def write(self, *, durability: str | None = None) -> contextlib.AbstractAsyncContextManager[AsyncTransaction]:
        """One commit for several steps: `async with store.write() as tx: await tx.messages.append(...)`.

        Committed when the block ends, unless nothing has changed; aborted when it raises or is cancelled. Other writers
        wait until then.

        durability  of this commit; the store's by default
        """
        return WriteGroup(self, {"durability": durability})

    def read(self) -> contextlib.AbstractAsyncContextManager[AsyncTransaction]:
        """One snapshot for several reads: `async with store.read() as tx: ...`."""
        return ReadGroup(self)

    def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Coroutine[Any, Any, Any]:
        """Run a family's method, in a shared commit or on a snapshot of its own; see `family.Scope`."""
        if not writes:
            return self._in_reader(self._store.run, family, body, args, kwargs, writes, search=kwargs)
        return self._in_writer(_write, family, body, args, kwargs)

    async def _in_writer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._check_writable_here()
        await self._room.acquire()
        self._pending += 1
        try:
            self._check_here()
            return await self._writer.do(Step(function, arguments, self._loop.create_future()))
        finally:
            self._pending -= 1
            self._room.release()

    async def _in_reader(
        self, function: Callable[..., Any], *args: Any, search: Mapping[str, Any] | None = None
    ) -> Any:
        return await self._start_reading(function, *args, search=search)

    def _start_reading(
        self, function: Callable[..., Any], *args: Any, search: Mapping[str, Any] | None = None
    ) -> asyncio.Future[Any]:
        """Have a reader's thread call a function.

        search  the arguments of a method that waits for a process if `regex` is among them
        """
        self._check_here()
        threads = self._searchers if search and search.get("regex") else self._readers
        return self._loop.run_in_executor(threads, functools.partial(function, *args))

    # --- who may call, and from where --------------------------------------------------------------------------------

    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _check_loop(self) -> None:
        """Raise LoopError unless the event loop is the store's, and in a forked child what the engine raises there."""
        if self._is_forked():
            self._store.database.tables()
        if asyncio.get_running_loop() is not self._loop:
            raise LoopError(
                f"this AsyncStore of {self._store.database.path} was opened in another event loop, "
                + (
                    "which is running: hand the call to it with asyncio.run_coroutine_threadsafe(call, loop)"
                    if self._loop.is_running()
                    else "which runs no longer: close it with close() or `await aclose()`, and open another one here"
                )
                + ". Nothing was done"
            )

    def _check_here(self) -> None:
        self._check_loop()
        if self._closed:
            raise limpet.ClosedError("the store has been closed")

    def _check_writable_here(self) -> None:
        self._check_here()
        if not self._groups.isdisjoint(open_groups_around()):
            raise RuntimeError("this task has a group open: a write outside of it would wait for the group's end")

    def _check_loop_has_ended(self) -> None:
        if self._loop.is_running():
            raise LoopError(
                f"the event loop of this AsyncStore of {self._store.database.path} is running: await aclose() there"
            )

    def _check_not_waiting_for_itself(self) -> None:
        """Raise BusyError in the event loop while a group is open: it would wait for what only the loop can end."""
        if self._groups and asyncio._get_running_loop() is self._loop:
            raise limpet.BusyError(
                "a group (`async with store.write()`) is open in this event loop, which has to go on for the group to "
                "end: try again later, await the AsyncStore instead, or write in another thread"
            )

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
        force: bool = False,
    ) -> dict[str, int]:
        """Delete what is older, a small step at a time; see `Store.retention`."""
        options: dict[str, Any] = {
            "sessions_s": sessions_s,
            "archive_s": archive_s,
            "idempotency_s": idempotency_s,
            "jobs_s": jobs_s,
            "limit": limit,
            "dry_run": dry_run,
            "force": force,
        }
        if dry_run:
            counted: dict[str, int] = await self._in_reader(functools.partial(self._store.retention, **options))
            return counted
        while True:
            try:
                removed: dict[str, int] = await self._in_writer(functools.partial(retention.apply, **options))
            except OSError as error:
                options["limit"] = retention.smaller_step(options["limit"], error)
            else:
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


def _write(work: Work, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return work.write(type(family)(work), body, args, kwargs)


def _close_unwanted(opened: asyncio.Future[Store]) -> None:
    """Close a store whose opening nobody waits for any more."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
