"""AsyncStore and other event loops, loops that have ended, forked children, and signal handlers.

A call from another event loop raised "attached to a different loop" after the message had been stored, so that whoever
tried again stored it twice.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet import BusyError, ClosedError
from limpet_store import (
    AsyncStore,
    AsyncTransaction,
    LoopError,
    MemoryTier,
    QueuedMessage,
    QueuedTask,
    Store,
    TaskStatus,
)

KEY = "agent:main:telegram:direct:u1"
Call = Callable[[AsyncStore], Coroutine[Any, Any, Any]]


async def enter_write(store: AsyncStore) -> None:
    async with store.write():
        pass


async def enter_read(store: AsyncStore) -> None:
    async with store.read():
        pass


CALLS: dict[str, Call] = {
    "append": lambda store: store.messages.append(KEY, {"n": 1}),
    "load": lambda store: store.messages.load(KEY),
    "dequeue": lambda store: store.tasks.dequeue(),
    "write": enter_write,
    "read": enter_read,
    "check": lambda store: store.check(),
    "retention": lambda store: store.retention(sessions_s=0),
    "backup": lambda store: store.backup("nowhere/x"),
    "import": lambda store: store.import_jsonl(['{"table":"kv","key":"a","row":"b"}']),
}


def new_task(id: str) -> QueuedTask:  # noqa: A002  # the name of the field
    return QueuedTask(id=id, session_key="s", messages=[QueuedMessage(text=id, sender="u", channel="c", chat_id="u")])


@contextlib.contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def in_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)


async def opened(path: Path, **options: Any) -> AsyncStore:
    return await AsyncStore.open(path, tier=MemoryTier.LOW, durability="os", **options)


@contextlib.contextmanager
def no_room(loop: asyncio.AbstractEventLoop, store: AsyncStore) -> Iterator[None]:
    """While a group of another task is open, as many writes wait as may, and one more for room."""
    leave = asyncio.Event()

    async def hold() -> None:
        async with store.write():
            await leave.wait()

    async def begin() -> list[asyncio.Future[Any]]:
        held = asyncio.ensure_future(hold())
        while not store._groups:  # noqa: ASYNC110  # the group sets no event
            await asyncio.sleep(0)
        return [held, *(asyncio.ensure_future(store.kv.delete(name)) for name in ("x", "y"))]

    async def end(tasks: list[asyncio.Future[Any]]) -> None:
        leave.set()
        await asyncio.gather(*tasks)

    tasks = in_loop(loop, begin())
    try:
        yield
    finally:
        in_loop(loop, end(tasks))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("full", [False, True], ids=["room", "no-room"])
def test_a_call_from_another_loop_is_refused_and_nothing_is_stored(db_path: Path, call: Call, full: bool) -> None:
    with loop_in_a_thread() as loop:
        store: AsyncStore = in_loop(loop, opened(db_path, max_pending=1))
        in_loop(loop, store.messages.append(KEY, {"n": 0}))
        in_loop(loop, store.tasks.enqueue(new_task("t")))
        before = store.database.stats().commits
        for _ in range(2):
            with no_room(loop, store) if full else contextlib.nullcontext():
                refusal = r"another event loop.*run_coroutine_threadsafe.*Nothing was done"
                with pytest.raises(LoopError, match=refusal) as caught:
                    asyncio.run(asyncio.wait_for(call(store), 10))
                assert isinstance(caught.value, RuntimeError)
        in_loop(loop, store.messages.append(KEY, {"n": "after"}))
        assert store.database.stats().commits == before + 1
        assert store.pending == 0
        with pytest.raises(LoopError, match="aclose"):
            asyncio.run(store.aclose())
        with pytest.raises(LoopError, match="aclose"):
            store.close()
        in_loop(loop, store.aclose())
    with Store.open(db_path) as sync:
        assert sync.messages.load(KEY) == [{"n": 0}, {"n": "after"}]
        assert [task.status for task in sync.tasks.list()] == [TaskStatus.PENDING]
        assert sync.kv.items() == []
        assert sync.check().errors == []


def test_what_a_group_gave_is_refused_in_another_loop(db_path: Path) -> None:
    async def use(tx: AsyncTransaction) -> None:
        with pytest.raises(LoopError):
            await tx.messages.load(KEY)
        with pytest.raises(LoopError):
            await tx.messages.append(KEY, {"n": 0})

    async def main() -> None:
        async with AsyncStore.open(db_path) as store:
            async with store.write() as tx:
                await asyncio.to_thread(asyncio.run, use(tx))
                await tx.kv.set("a", "b")
            async with store.read() as tx:
                await asyncio.to_thread(asyncio.run, use(tx))
                assert await tx.messages.load(KEY) == []
                assert await tx.kv.get("a") == "b"

    asyncio.run(main())


async def close_in_a_loop(store: AsyncStore) -> None:
    await store.aclose()


@pytest.mark.parametrize(
    "close",
    [lambda store: store.close(), lambda store: asyncio.run(close_in_a_loop(store))],
    ids=["close", "aclose-in-another-loop"],
)
@pytest.mark.parametrize("left", ["nothing", "group", "snapshot", "closing"])
def test_a_store_whose_loop_has_ended_can_be_closed(
    db_path: Path, close: Callable[[AsyncStore], None], left: str
) -> None:
    stores: list[AsyncStore] = []

    async def leave_group_open(store: AsyncStore) -> None:
        group = store.write()
        tx = await group.__aenter__()
        await tx.kv.set("group", "x")

    async def main() -> None:
        store = await opened(db_path)
        stores.append(store)
        await store.kv.set("a", "b")
        if left == "group":
            await leave_group_open(store)
        elif left == "snapshot":
            await store.read().__aenter__()
        elif left == "closing":
            asyncio.ensure_future(store.aclose())  # noqa: RUF006  # it is cancelled by the end of the loop
            await asyncio.sleep(0)

    asyncio.run(main())
    (store,) = stores
    with pytest.raises((LoopError, ClosedError)) as caught:
        asyncio.run(CALLS["append"](store))
    if left != "closing":
        assert "runs no longer" in str(caught.value)
    close(store)
    close(store)
    store.close()
    with pytest.raises(ClosedError):
        store.store.kv.get("a")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("limpet")]
    with Store.open(db_path) as sync:
        assert sync.kv.items() == [("a", "b")]
        assert sync.messages.load(KEY) == []


def test_closing_that_was_cancelled_can_be_taken_up_again(db_path: Path) -> None:
    """As by a program that cancels all of its tasks before it ends."""

    async def main() -> None:
        store = await opened(db_path)
        write = asyncio.ensure_future(store.kv.set("a", "b"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.aclose())
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), write}:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await store.aclose()
        await write
        with pytest.raises(ClosedError):
            await store.kv.get("a")

    asyncio.run(main())
    with Store.open(db_path) as sync:
        assert sync.kv.items() == [("a", "b")]


def test_a_task_that_the_end_of_a_loop_took_from_its_caller_is_given_back(db_path: Path) -> None:
    stores: list[AsyncStore] = []

    async def main() -> None:
        store = await opened(db_path)
        stores.append(store)
        await store.tasks.enqueue(new_task("t"))
        asyncio.ensure_future(store.tasks.dequeue())  # noqa: RUF006  # left behind on purpose
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while not store.store.tasks.list(TaskStatus.RUNNING):
            pass  # the loop stands still until it is committed

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    (store,) = stores
    store.close()
    with Store.open(db_path) as sync:
        assert [task.status for task in sync.tasks.list()] == [TaskStatus.PENDING]
    for task in asyncio.all_tasks(loop):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_the_closed_error_of_the_engine_and_leaves_the_store_alone(db_path: Path) -> None:
    def child(store: AsyncStore) -> int:
        for call in CALLS.values():
            with pytest.raises(ClosedError, match="fork"):
                asyncio.run(call(store))
        with pytest.raises(ClosedError, match="fork"):
            store.store.kv.get("a")
        asyncio.run(close_in_a_loop(store))
        store.close()
        return 0

    async def main() -> None:
        store = await opened(db_path)
        await store.kv.set("a", "b")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = in_child(child, store)
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await store.messages.append(KEY, {"n": 0})
        await store.aclose()

    asyncio.run(main())
    with Store.open(db_path) as sync:
        assert (sync.kv.items(), sync.messages.load(KEY)) == ([("a", "b")], [{"n": 0}])


def in_child(child: Callable[[AsyncStore], int], store: AsyncStore) -> int:
    """Run it, and say what went wrong where the parent's reader sees it."""
    try:
        return child(store)
    except BaseException:  # noqa: BLE001  # nobody else can say it
        traceback.print_exc(file=sys.__stderr__)
        return 1


@pytest.mark.skipif(sys.platform == "win32", reason="event loops have no signal handlers there")
def test_a_signal_handler_of_the_loop_may_write_to_the_store_beneath(db_path: Path) -> None:
    """It waits for the writer's thread, which needs nothing from the loop; only a group does, and then it is told."""
    stored: list[int] = []
    refused: list[str] = []

    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            count = 0

            def handler() -> None:
                nonlocal count
                count += 1
                try:
                    with store.store.write(timeout=10) as tx:  # for ever, if it were not refused
                        tx.kv.set(f"{count:04}", "x")
                    assert store.store.kv.get(f"{count:04}") == "x"
                except BusyError as error:
                    refused.append(str(error))
                else:
                    stored.append(count)

            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, handler)
            try:

                async def session(number: int) -> None:
                    for n in range(30):
                        if n % 3:
                            await store.messages.append(f"s{number}", {"n": n})
                        else:
                            async with store.write() as tx:
                                await tx.messages.append(f"s{number}", {"n": n})
                                os.kill(os.getpid(), signal.SIGUSR1)
                                await asyncio.sleep(0)
                        os.kill(os.getpid(), signal.SIGUSR1)

                await asyncio.wait_for(asyncio.gather(*[session(number) for number in range(4)]), 60)
                async with store.write() as tx:
                    await tx.kv.set("group", "x")
                    with pytest.raises(BusyError, match="group"), store.store.write(timeout=10):
                        pass
                    for call in (lambda: store.store.kv.set("a", "b"), store.store.close, store.store.retention):
                        with pytest.raises(BusyError, match="group"):
                            call()
                    assert store.store.kv.get("a") is None
                    await asyncio.to_thread(store.store.kv.get, "a")
            finally:
                loop.remove_signal_handler(signal.SIGUSR1)

    asyncio.run(main())
    assert stored
    assert refused
    assert all("group" in message for message in refused)
    with Store.open(db_path) as sync:
        assert [key for key, _ in sync.kv.items()] == [*(f"{n:04}" for n in stored), "group"]
        for number in range(4):
            assert [message["n"] for message in sync.messages.load(f"s{number}")] == list(range(30))
        assert sync.check().errors == []
