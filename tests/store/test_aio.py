"""AsyncStore: shared commits, separate outcomes, cancellation, groups, and an end that loses nothing."""

import asyncio
import contextlib
import io
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from limpet import ClosedError, ReadOnlyError
from limpet_store import AsyncStore, MemoryTier, NotFoundError, QueuedTask, Store, TaskStatus
from limpet_store.aio import SWITCH_INTERVAL_S

KEY = "agent:main:telegram:direct:u1"
Scenario = Callable[[AsyncStore], Coroutine[Any, Any, None]]


@pytest.fixture
def play(db_path: Path, clock: Any) -> Callable[..., None]:
    """Runs a scenario on an AsyncStore, and checks the file afterwards."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            async with AsyncStore.open(
                db_path, **({"tier": MemoryTier.LOW, "durability": "os", "clock": clock} | options)
            ) as store:
                await asyncio.wait_for(scenario(store), 30)

        asyncio.run(main())
        with Store.open(db_path) as store:
            assert store.check().errors == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("limpet")]

    return run


async def newest(store: AsyncStore) -> int:
    def txid() -> int:
        with store.database.read() as txn:
            return txn.txid

    return await asyncio.to_thread(txid)


@contextlib.asynccontextmanager
async def writer_held(store: AsyncStore) -> AsyncIterator[None]:
    """Keeps the writer's thread busy with a group of another task, so that what is asked for has to wait."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.write():
            entered.set()
            await leave.wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    try:
        yield
    finally:
        leave.set()
        await task


def test_open_can_be_awaited_or_entered(db_path: Path) -> None:
    async def main() -> None:
        store = await AsyncStore.open(db_path)
        assert await store.messages.append(KEY, {"n": 0}) == 0
        assert store.tier is MemoryTier.detect()
        await store.aclose()
        await store.aclose()
        async with AsyncStore.open(db_path) as store:
            assert await store.messages.load(KEY) == [{"n": 0}]
            assert (await store.check()).ok
        with pytest.raises(ValueError):
            AsyncStore.open(db_path, max_pending=0)
        async with await AsyncStore.open(db_path, read_only=True) as store:
            with pytest.raises(ReadOnlyError):
                await store.kv.set("a", "b")
            with pytest.raises(ReadOnlyError):
                async with store.write():
                    pass

    asyncio.run(main())


def test_an_error_of_open_is_the_awaiters(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await AsyncStore.open(tmp_path / "nowhere" / "x.limpet")

    asyncio.run(main())


def test_every_family_has_the_same_methods_with_await(play: Callable[..., None], make_task: Any, make_job: Any) -> None:
    async def scenario(store: AsyncStore) -> None:
        await store.messages.append_many(KEY, [{"n": 0}, {"n": 1}])
        assert await store.messages.load_recent(KEY, 1) == [{"n": 1}]
        assert await store.sessions.new_generation(KEY) == 2
        assert (await store.archive.stat(KEY)).total_messages == 2
        assert (await store.tasks.submit(make_task(id="t"))).kind == "new"
        task = await store.tasks.dequeue()
        assert task is not None
        await store.tasks.finish_turn("t", 1, "r", None, TaskStatus.DONE)
        assert await store.idempotency.is_delivered("task:t:turn:1")
        job = make_job()
        await store.jobs.enqueue(job)
        job.poll_count = 1
        assert await store.jobs.update(job) == 2
        await store.kv.set("a", "b")
        await store.aliases.put("a", "b")
        await store.permissions.put("a", "b", "c")
        await store.cron.put("a", "b")
        assert await store.cron.update("a", str.upper) == "B"
        assert (await store.retention())["sessions"] == 0
        stream = io.StringIO()
        count = await store.export_jsonl(stream)
        report = await store.import_jsonl(stream.getvalue().splitlines())
        assert (report.lines, report.changed) == (count, 0)
        await store.backup(Path(store.database.path).with_name("backup.limpet"))

    play(scenario)


def test_concurrent_awaits_share_commits_and_keep_their_order(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        before = await newest(store)
        async with writer_held(store):
            waiting = [asyncio.create_task(store.messages.append(KEY, {"n": n})) for n in range(50)]
            await asyncio.sleep(0.02)
        assert await asyncio.gather(*waiting) == list(range(50))
        assert await newest(store) == before + 1
        assert [message["n"] for message in await store.messages.load(KEY)] == list(range(50))

    play(scenario)


def test_what_is_asked_for_in_one_turn_of_the_loop_shares_a_commit(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        for count, commits in ((1, 1), (64, 1), (65, 2)):
            before = await newest(store)
            await asyncio.gather(*(store.messages.append(KEY, {"n": n}) for n in range(count)))
            assert await newest(store) == before + commits

    play(scenario)


def test_a_group_and_the_end_come_after_what_was_asked_for_before_them(db_path: Path) -> None:
    async def main() -> None:
        seen: list[str | None] = []

        async def group() -> None:
            async with store.write() as tx:
                seen.append(await tx.kv.get("a"))

        store = await AsyncStore.open(db_path)
        await asyncio.gather(store.kv.set("a", "before"), group(), store.kv.set("a", "after"))
        assert seen == ["before"]
        last = asyncio.create_task(store.kv.set("b", "last"))
        await asyncio.sleep(0)
        await store.aclose()
        await last

    asyncio.run(main())
    with Store.open(db_path) as store:
        assert store.kv.items() == [("a", "after"), ("b", "last")]


def test_one_bad_operation_does_not_fail_its_neighbours(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async with writer_held(store):
            waiting = [
                asyncio.create_task(call)
                for call in (
                    store.messages.append(KEY, {"n": 0}),
                    store.messages.append(KEY, {"n": float("nan")}),
                    store.tasks.set_turn("nobody", 1),
                    store.messages.append_many("other", [{"n": 1}, {"n": "\ud800"}]),
                    store.messages.append(KEY, {"n": 2}),
                )
            ]
            await asyncio.sleep(0.02)
        first, nan, nobody, surrogate, last = await asyncio.gather(*waiting, return_exceptions=True)
        assert (first, last) == (0, 1)
        assert isinstance(nan, ValueError)
        assert isinstance(nobody, NotFoundError)
        assert isinstance(surrogate, ValueError)
        assert await store.sessions.list() == [KEY]
        assert [message["n"] for message in await store.messages.load(KEY)] == [0, 2]
        await store.cron.put("a", "b")
        with pytest.raises(RuntimeError, match="StopIteration"):
            await store.cron.update("a", lambda _: next(iter([])))

    play(scenario)


def test_a_commit_that_fails_fails_everything_in_it_and_the_next_one_works(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, make_job: Any
) -> None:
    async def scenario(store: AsyncStore) -> None:
        job = make_job()
        await store.jobs.enqueue(job)
        real = Store.writing

        @contextlib.contextmanager
        def full_disk(self: Store, **options: Any) -> Any:
            with real(self, **options) as work:
                yield work
                raise OSError(28, "No space left on device")

        async with writer_held(store):
            monkeypatch.setattr(Store, "writing", full_disk)
            job.poll_count = 1
            calls = (store.kv.set("a", "b"), store.tasks.set_turn("nobody", 1), store.jobs.update(job))
            waiting = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0.02)
        full, nobody, update = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(full, OSError)
        assert isinstance(nobody, NotFoundError)
        assert isinstance(update, OSError)
        assert job.version == 1, "the record does not claim a version that was not stored"
        monkeypatch.setattr(Store, "writing", real)
        assert await store.kv.items() == []
        await store.kv.set("a", "c")
        assert await store.jobs.update(job) == 2

    play(scenario)


def test_a_cancelled_await_that_has_not_started_does_nothing(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async with writer_held(store):
            kept, cancelled = (asyncio.create_task(store.kv.set(key, "x")) for key in ("kept", "cancelled"))
            await asyncio.sleep(0.02)
            cancelled.cancel()
        await kept
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await store.kv.items() == [("kept", "x")]

    play(scenario)


def test_cancelling_at_any_moment_leaves_whole_operations_only(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        for round_ in range(40):
            tasks = [
                asyncio.create_task(store.messages.append_many(KEY, [{"round": round_, "n": n}] * 3)) for n in range(4)
            ]
            await asyncio.sleep(0.0005 * (round_ % 5))
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, list) for outcome in outcomes[1::2])
        messages = await store.messages.load(KEY)
        counts = {(message["round"], message["n"]): 0 for message in messages}
        for message in messages:
            counts[message["round"], message["n"]] += 1
        assert set(counts.values()) == {3}
        assert {key for key in counts if key[1] % 2} == {(round_, n) for round_ in range(40) for n in (1, 3)}

    play(scenario)


def test_callers_wait_for_room_when_too_many_are_waiting(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async with writer_held(store):
            tasks = [asyncio.create_task(store.messages.append(KEY, {"n": n})) for n in range(10)]
            await asyncio.sleep(0.02)
            assert store.pending == 3
            tasks[5].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert store.pending == 0
        assert [message["n"] for message in await store.messages.load(KEY)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]

    play(scenario, max_pending=3)


def test_a_group_is_one_commit(play: Callable[..., None], make_task: Callable[..., QueuedTask]) -> None:
    async def scenario(store: AsyncStore) -> None:
        await store.tasks.enqueue(make_task(id="t"))
        before = await newest(store)
        async with store.write() as tx:
            seq = await tx.messages.append(KEY, {"n": 0})
            assert [message["n"] for message in await tx.messages.load(KEY)] == [0]
            await tx.tasks.finish_turn("t", 1, str(seq), None, TaskStatus.DONE)
            with pytest.raises(NotFoundError):
                await tx.tasks.set_turn("nobody", 1)
            assert await store.messages.load(KEY) == [], "the others do not see it yet"
        assert await newest(store) == before + 1
        assert await store.messages.count(KEY) == 1
        with pytest.raises(ClosedError):
            await tx.messages.append(KEY, {"n": 1})
        async with store.write() as tx:
            await tx.kv.delete("missing")
        assert await newest(store) == before + 1

    play(scenario)


def test_a_group_that_raises_or_is_cancelled_leaves_nothing(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async def fail() -> None:
            async with store.write() as tx:
                await tx.kv.set("a", "b")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        started = asyncio.Event()

        async def slow() -> None:
            async with store.write() as tx:
                await tx.kv.set("c", "d")
                started.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(slow())
        await started.wait()
        others = [asyncio.create_task(store.kv.set(str(n), "x")) for n in range(3)]
        await asyncio.sleep(0.01)
        assert not any(other.done() for other in others), "they wait for the group"
        task.cancel()
        await asyncio.gather(*others)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [key for key, _ in await store.kv.items()] == ["0", "1", "2"]

    play(scenario)


def test_a_group_cancelled_while_it_waits_for_its_turn_never_begins(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async def group() -> None:
            async with store.write() as tx:
                await tx.kv.set("a", "b")

        async with writer_held(store):
            task = asyncio.create_task(group())
            await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.kv.set("c", "d")
        assert await store.kv.items() == [("c", "d")]

    play(scenario)


def test_waiting_for_oneself_inside_a_group_is_refused(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async with store.write() as tx:
            await tx.kv.set("a", "b")
            with pytest.raises(RuntimeError, match="group"):
                await store.kv.set("c", "d")
            with pytest.raises(RuntimeError, match="group"):
                async with store.write():
                    pass
        assert await store.kv.items() == [("a", "b")]

    play(scenario)


def test_a_write_outside_of_a_group_is_refused_in_the_tasks_that_were_made_inside(play: Callable[..., None]) -> None:
    """Only the task that had opened the group was recognised. `gather`, and `wait_for` until Python 3.12, make tasks of
    their own, so that the group waited for a write that waited for the group: for ever."""

    async def scenario(store: AsyncStore) -> None:
        async def grandchild() -> None:
            await asyncio.gather(store.kv.set("e", "4"))

        async def nested() -> None:
            async with store.write():
                pass

        async with asyncio.timeout(10), store.write() as tx:
            await asyncio.gather(tx.kv.set("a", "1"), tx.kv.set("b", "2"))
            for call in (
                lambda: asyncio.gather(store.kv.set("e", "1")),
                lambda: asyncio.wait_for(store.kv.set("e", "2"), 5),
                lambda: asyncio.create_task(store.messages.append(KEY, {})),
                lambda: asyncio.create_task(grandchild()),
                lambda: asyncio.create_task(nested()),
                lambda: asyncio.create_task(store.retention()),
                lambda: asyncio.create_task(store.import_jsonl([])),
            ):
                with pytest.raises(RuntimeError, match="group"):
                    await call()
            assert await asyncio.create_task(store.kv.get("a")) is None, "reads outside of it go on"
        assert await store.kv.items() == [("a", "1"), ("b", "2")]

    play(scenario)


def test_a_task_that_outlives_the_group_it_was_made_in_may_write(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        over = asyncio.Event()

        async def later() -> None:
            await over.wait()
            await store.kv.set("a", "later")
            async with store.write() as tx:
                await tx.kv.set("b", "later")
                with pytest.raises(RuntimeError, match="group"):
                    await asyncio.gather(store.kv.set("c", "d"))

        async with store.write() as tx:
            await tx.kv.set("a", "first")
            task = asyncio.create_task(later())
        await store.kv.set("b", "first")
        with contextlib.suppress(ZeroDivisionError):
            async with store.write():
                aborted = asyncio.create_task(later())
                raise ZeroDivisionError
        over.set()
        await asyncio.wait_for(asyncio.gather(task, aborted), 10)
        assert await store.kv.items() == [("a", "later"), ("b", "later")]

    play(scenario)


def test_groups_of_other_tasks_and_of_other_stores_are_no_reason_to_refuse(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        async with AsyncStore.open(":memory:", tier=MemoryTier.LOW) as other:

            async def sibling(number: int) -> None:
                async with store.write() as tx:
                    await tx.kv.set(str(number), "x")
                await store.kv.set(f"after {number}", "x")

            await asyncio.gather(*map(sibling, range(4)))
            async with asyncio.timeout(10), store.write() as tx:
                await asyncio.gather(other.kv.set("a", "1"))
                async with other.write() as inner:
                    await asyncio.gather(inner.kv.set("b", "2"), tx.kv.set("c", "3"))
                    for outside in (store, other):
                        with pytest.raises(RuntimeError, match="group"):
                            await asyncio.gather(outside.kv.set("d", "4"))
                await asyncio.gather(other.kv.set("e", "5"))
                with pytest.raises(RuntimeError, match="group"):
                    await asyncio.gather(store.kv.set("d", "4"))
            assert [key for key, _ in await other.kv.items()] == ["a", "b", "e"]
        assert len(await store.kv.items()) == 9

    play(scenario)


def test_a_group_of_reads_is_one_snapshot(play: Callable[..., None]) -> None:
    async def scenario(store: AsyncStore) -> None:
        await store.kv.set("a", "1")
        async with store.read() as tx:
            await store.kv.set("a", "2")
            assert await asyncio.gather(*[tx.kv.get("a") for _ in range(5)]) == ["1"] * 5
            with pytest.raises(ReadOnlyError):
                await tx.kv.set("a", "3")
        assert await store.kv.get("a") == "2"

    play(scenario)


def test_aclose_finishes_what_was_asked_for_and_aborts_an_open_group(db_path: Path) -> None:
    async def main() -> None:
        store = await AsyncStore.open(db_path, durability="os")
        entered, closed = asyncio.Event(), asyncio.Event()

        async def group() -> None:
            async with store.write() as tx:
                await tx.kv.set("group", "x")
                entered.set()
                await closed.wait()

        task = asyncio.create_task(group())
        await entered.wait()
        waiting = [asyncio.create_task(store.kv.set(str(n), "x")) for n in range(5)]
        await asyncio.sleep(0.01)
        await store.aclose()
        closed.set()
        assert await asyncio.gather(*waiting) == [None] * 5
        with pytest.raises(ClosedError):
            await task
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: store.kv.get("a"),
            lambda: store.kv.set("a", "b"),
            store.check,
            store.retention,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                await call()
        with pytest.raises(ClosedError):
            async with store.read():
                pass

    asyncio.run(main())
    with Store.open(db_path) as store:
        assert [key for key, _ in store.kv.items()] == ["0", "1", "2", "3", "4"]


def test_cancelling_an_open_closes_what_it_opened(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Store] = []
    entered, leave = threading.Event(), threading.Event()
    real = Store.open

    def slow(*args: Any, **options: Any) -> Store:
        entered.set()
        assert leave.wait(20)
        opened.append(real(*args, **options))
        return opened[0]

    def is_closed() -> bool:
        try:
            opened[0].kv.items()
        except ClosedError:
            return True
        return False

    async def open_it() -> AsyncStore:
        return await AsyncStore.open(db_path)

    async def main() -> None:
        opening = asyncio.create_task(open_it())
        assert await asyncio.to_thread(entered.wait, 20)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        leave.set()
        async with asyncio.timeout(20):
            while not opened or not is_closed():  # noqa: ASYNC110 the closing is a callback, which sets no event
                await asyncio.sleep(0.001)

    monkeypatch.setattr(Store, "open", slow)
    asyncio.run(main())
    monkeypatch.undo()
    Store.open(db_path, lock_timeout=0).close()


def test_the_event_loop_goes_on_while_a_commit_is_made_durable(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long the loop is kept waiting, a benchmark shows; here only that it does not wait for the disk."""

    async def scenario(store: AsyncStore) -> None:
        await store.kv.set("a", "before")
        syncing, go_on = threading.Event(), threading.Event()
        file = store.database._committer.books.file
        write_synced = file.write_synced

        def slow_disk(offset: int, data: bytes) -> None:
            syncing.set()
            assert go_on.wait(20)
            write_synced(offset, data)

        with monkeypatch.context() as patch:
            patch.setattr(file, "write_synced", slow_disk)
            writing = asyncio.create_task(store.kv.set("a", "after"))
            try:
                assert await asyncio.to_thread(syncing.wait, 20)
                for _ in range(100):
                    await asyncio.sleep(0)
                assert await store.kv.get("a") == "before", "reads go on, and see what is on the disk"
                assert not writing.done()
            finally:
                go_on.set()
                await writing
        assert await store.kv.get("a") == "after"

    play(scenario, durability="sync")


def test_the_interpreter_changes_hands_sooner_while_a_store_is_open(tmp_path: Path) -> None:
    async def meanwhile(expected: float, then: float | None = None) -> None:
        async with AsyncStore.open(tmp_path / "a.limpet"):
            async with AsyncStore.open(tmp_path / "b.limpet"):
                assert sys.getswitchinterval() == expected
            assert sys.getswitchinterval() == expected
            if then is not None:
                sys.setswitchinterval(then)

    usual = sys.getswitchinterval()
    try:
        asyncio.run(meanwhile(SWITCH_INTERVAL_S))
        assert sys.getswitchinterval() == usual
        asyncio.run(meanwhile(SWITCH_INTERVAL_S, then=0.003))
        assert sys.getswitchinterval() == 0.003, "what others set stays"
        sys.setswitchinterval(0.0005)
        asyncio.run(meanwhile(0.0005))
        assert sys.getswitchinterval() == 0.0005, "one that is shorter already stays"
    finally:
        sys.setswitchinterval(usual)
