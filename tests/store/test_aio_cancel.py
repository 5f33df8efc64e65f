"""Cancelling an await of AsyncStore, at every point where it can be cancelled.

A `wait_for` around `store.tasks.dequeue()` that ran out of time left tasks Running that nobody had: the dequeue had
been committed by the time its caller was cancelled, and its result was thrown away (20 of 300).
"""

import asyncio
import contextlib
import io
import operator
import random
import re
import threading
from collections.abc import Callable, Coroutine, Generator
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from limpet_store import AsyncStore, AsyncTransaction, MemoryTier, QueuedMessage, QueuedTask, Store, TaskStatus
from limpet_store.aio.writer import Step

KEY = "agent:main:telegram:direct:u1"
Operation = Callable[[AsyncStore], Coroutine[Any, Any, Any]]
POINTS_MAX = 40  # no operation here has as many


class CancelledAt:
    """Runs a coroutine and cancels its task when it waits for the nth time, counted from 1.

    turns  of the event loop to let pass between that moment and the cancelling
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], point: int, turns: int) -> None:
        self.coroutine, self.point, self.turns = coroutine, point, turns
        self.reached = False
        self.task: asyncio.Task[Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        steps = 0
        while True:
            try:
                waits_for = self.coroutine.send(value) if error is None else self.coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            steps += 1
            if steps == self.point:
                self.reached = True
                self._cancel_later(self.turns)
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as thrown:  # noqa: BLE001  # handed on to the coroutine
                error = thrown

    def _cancel_later(self, turns: int) -> None:
        assert self.task is not None
        if turns:
            asyncio.get_running_loop().call_soon(self._cancel_later, turns - 1)
        else:
            self.task.cancel()

    async def run(self) -> Any:
        self.task = asyncio.current_task()
        return await self


async def append(store: AsyncStore) -> None:
    await store.messages.append(KEY, {"n": 2})


async def dequeue(store: AsyncStore) -> None:
    await owned(store.tasks.dequeue())


async def submit(store: AsyncStore) -> None:
    await store.tasks.submit(new_task("new"))


async def finish_turn(store: AsyncStore) -> None:
    await store.tasks.finish_turn("running", 1, "reply", None, TaskStatus.DONE)


async def claim_due(store: AsyncStore) -> None:
    await owned(store.jobs.claim_due(2**40))


async def group(store: AsyncStore) -> None:
    async with store.write() as tx:
        await tx.messages.append(KEY, {"n": 2})
        await tx.messages.append(KEY, {"n": 3})


async def group_of_dequeue(store: AsyncStore) -> None:
    async with store.write() as tx:
        taken = await tx.tasks.dequeue()
        await tx.messages.append(KEY, {"n": 2})
    owned_by_now.append(taken)


async def group_that_goes_on(store: AsyncStore) -> None:
    """One whose dequeue is cancelled, and which commits all the same."""
    taken = []
    async with store.write() as tx:
        with contextlib.suppress(asyncio.CancelledError):
            taken.append(await tx.tasks.dequeue())
        if not taken:
            waiting = await tx.tasks.get("waiting")
            assert waiting is not None
            assert waiting.status is TaskStatus.PENDING, "it is given back in the same transaction"
        await tx.messages.append(KEY, {"n": 2})
    owned_by_now.extend(taken)


async def read(store: AsyncStore) -> None:
    assert await store.messages.count(KEY) >= 2


async def reads(store: AsyncStore) -> None:
    async with store.read() as tx:
        assert await tx.messages.count(KEY) >= 2
        assert len(await asyncio.gather(*[tx.messages.load(KEY) for _ in range(3)])) == 3


async def close(store: AsyncStore) -> None:
    await store.aclose()


OPERATIONS: list[Operation] = [
    append,
    dequeue,
    submit,
    finish_turn,
    claim_due,
    group,
    group_of_dequeue,
    group_that_goes_on,
    read,
    reads,
    close,
]

TAKING = (dequeue, claim_due, group_of_dequeue, group_that_goes_on)
owned_by_now: list[Any] = []  # what callers got


async def owned(call: Coroutine[Any, Any, Any]) -> None:
    owned_by_now.append(await call)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # what a thread does sets no event
        await asyncio.sleep(0)


def new_task(id: str) -> QueuedTask:  # noqa: A002  # the name of the field
    message = QueuedMessage(text=id, sender="u1", channel="telegram", chat_id="u1")
    return QueuedTask(id=id, session_key=f"s:{id}", messages=[message])


class Contents(NamedTuple):
    """What a store holds, line by line: what can be taken, and the rest."""

    takeable: tuple[str, ...]
    rest: tuple[str, ...]


def contents(path: Path, clock: Any) -> Contents:
    """Everything in a store, once it has been verified."""
    stream = io.StringIO()
    with Store.open(path, tier=MemoryTier.LOW, durability="none", clock=clock) as store:
        assert store.check().errors == []
        store.export_jsonl(stream)
    lines = stream.getvalue().splitlines()
    takeable = [line.startswith(('{"table":"tasks"', '{"table":"jobs"')) for line in lines]
    # Giving a job back is a write like any other, which its version counts.
    counted = [re.sub(r'^(\{"table":"jobs".*"row":\[)3,', r"\g<1>1,", line) for line in lines]
    return Contents(tuple(compress(counted, takeable)), tuple(compress(counted, map(operator.not_, takeable))))


def prepare(path: Path, clock: Any, make_job: Callable[..., Any]) -> None:
    with Store.open(path, tier=MemoryTier.LOW, durability="none", clock=clock) as store:
        store.messages.append_many(KEY, [{"n": 0}, {"n": 1}])
        store.tasks.enqueue(new_task("running"))
        store.tasks.dequeue()
        store.tasks.enqueue(new_task("waiting"))
        store.jobs.enqueue(make_job(id="job"))


async def play(path: Path, clock: Any, operation: Operation, point: int, turns: int) -> bool:
    """Run an operation, cancelled at a point; returns whether it came to that point."""
    async with AsyncStore.open(path, tier=MemoryTier.LOW, durability="none", clock=clock) as store:
        clock.advance(5)
        cancelled = CancelledAt(operation(store), point, turns)
        task = asyncio.ensure_future(cancelled.run())
        outcome = (await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20))[0]
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), repr(outcome)
        if operation is not close:
            assert store.pending == 0
            await asyncio.wait_for(store.kv.set("after", "x"), 20)
            assert await store.kv.get("after") == "x"
            async with store.write() as tx:
                await tx.kv.delete("after")
            # A read that goes on in its thread keeps its snapshot to its end.
            await until(lambda: not store.database.stats().readers)
        assert not store._groups
    return cancelled.reached


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_cancelled_at_any_point_it_is_as_before_or_as_after(
    tmp_path: Path, clock: Any, make_job: Callable[..., Any], operation: Operation
) -> None:
    number = 0

    def fresh() -> Path:
        nonlocal number
        number += 1
        path = tmp_path / f"{number}.limpet"
        path.write_bytes(template)
        clock.now = began
        return path

    source = tmp_path / "source.limpet"
    prepare(source, clock, make_job)
    template, began = source.read_bytes(), clock.now
    before = contents(fresh(), clock)
    path = fresh()
    asyncio.run(play(path, clock, operation, 10**9, 0))
    after = contents(path, clock)
    seen = set()
    for turns in range(4):
        for point in range(1, POINTS_MAX):
            owned_by_now.clear()
            path = fresh()
            reached = asyncio.run(play(path, clock, operation, point, turns))
            if not reached:
                break
            found = contents(path, clock)
            assert found.rest in (before.rest, after.rest), (point, turns)
            if operation in TAKING:  # what nobody has got is not taken, and the other way round
                assert found.takeable == (after if owned_by_now else before).takeable, (point, turns)
            else:
                assert found in (before, after), (point, turns)
            seen.add(found)
        else:
            pytest.fail("it has more points than were tried")
    assert before in seen


def test_whatever_times_out_every_task_is_done_once(db_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    done: dict[str, int] = {}

    async def main() -> None:
        async with AsyncStore.open(db_path, tier=MemoryTier.LOW, durability="os") as store:
            for number in range(300):
                await store.tasks.enqueue(new_task(f"t{number}"))
            timeouts = 0

            async def worker() -> None:
                nonlocal timeouts
                while len(done) < 300:
                    try:
                        task = await asyncio.wait_for(store.tasks.dequeue(), rng.uniform(0, 0.002))
                    except TimeoutError:
                        timeouts += 1
                        continue
                    if task is None:
                        await asyncio.sleep(0)
                        continue
                    assert task.status is TaskStatus.RUNNING
                    done[task.id] = done.get(task.id, 0) + 1
                    await store.tasks.finish_turn(task.id, 1, None, None, TaskStatus.DONE)

            await asyncio.gather(*[worker() for _ in range(4)])
            assert timeouts > 10
            found = await store.tasks.list()
            assert {(task.status, task.attempts) for task in found} == {(TaskStatus.DONE, 0)}

    asyncio.run(asyncio.wait_for(main(), 100))
    assert set(done.values()) == {1}
    assert len(done) == 300


def test_a_task_that_is_given_back_keeps_its_place_and_its_times(db_path: Path, clock: Any) -> None:
    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os", clock=clock) as store:
            for name in ("first", "second"):
                await store.tasks.enqueue(new_task(name))
            before = await store.tasks.list()
            clock.advance(10)
            dequeue = asyncio.ensure_future(store.tasks.dequeue())
            await until(lambda: bool(store._writer._taking))
            dequeue.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dequeue
            task = await store.tasks.dequeue()
            assert task is not None
            assert task.id == "first"
            await store.tasks.set_status("first", TaskStatus.PENDING)
            assert [task.attempts for task in await store.tasks.list()] == [0, 0]
            assert [task.created_at for task in await store.tasks.list()] == [task.created_at for task in before]

    asyncio.run(main())


def test_a_task_that_others_have_changed_meanwhile_is_left_to_them(db_path: Path) -> None:
    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.tasks.enqueue(new_task("t"))
            # All three in one turn of the loop, so in one commit, in this order.
            dequeue = asyncio.ensure_future(store.tasks.dequeue())
            requeue = asyncio.ensure_future(store.tasks.requeue_running())
            again = asyncio.ensure_future(store.tasks.dequeue())
            await until(lambda: bool(store._writer._taking))
            dequeue.cancel()
            count, task = await asyncio.gather(requeue, again)
            assert task is not None
            assert (count, task.id, task.attempts) == (1, "t", 1)
            await store.kv.set("next", "commit")
            found = await store.tasks.get("t")
            assert found is not None
            assert found.status is TaskStatus.RUNNING, "the second worker has it"

    asyncio.run(main())


def test_what_could_not_be_given_back_is_given_back_at_the_end(
    db_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Store.writing
    broken = False

    @contextlib.contextmanager
    def full_disk(self: Store, **options: Any) -> Any:
        with real(self, **options) as work:
            yield work
            if broken:
                raise OSError(28, "No space left on device")

    async def main() -> None:
        nonlocal broken
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.tasks.enqueue(new_task("t"))
            monkeypatch.setattr(Store, "writing", full_disk)
            dequeue = asyncio.ensure_future(store.tasks.dequeue())
            await until(lambda: bool(store._writer._taking))
            while not store.store.tasks.list(TaskStatus.RUNNING):
                pass  # the loop stands still meanwhile, so that nobody gets the task
            broken = True
            dequeue.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dequeue
            with pytest.raises(OSError, match="space"):
                await store.kv.set("a", "b")
            assert "could not be given back: [Errno 28]" in caplog.text
            broken = False

    asyncio.run(main())
    with Store.open(db_path) as store:
        assert [task.status for task in store.tasks.list()] == [TaskStatus.PENDING]


def test_a_task_whose_caller_is_cancelled_after_it_was_handed_over_is_given_back(
    db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the moment when a result is there and the one when the coroutine goes on with it."""
    real = Step.resolve
    dequeues: list[asyncio.Task[Any]] = []

    def resolve(self: Step) -> None:
        real(self)
        if dequeues and isinstance(self.outcome, QueuedTask):
            assert self.future is not None
            assert self.future.done()
            dequeues.pop().cancel()

    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.tasks.enqueue(new_task("t"))
            monkeypatch.setattr(Step, "resolve", resolve)
            dequeue = asyncio.ensure_future(store.tasks.dequeue())
            dequeues.append(dequeue)
            with pytest.raises(asyncio.CancelledError):
                await dequeue
            task = await store.tasks.dequeue()
            assert task is not None

    asyncio.run(main())


def test_a_task_taken_in_a_group_whose_end_was_not_waited_for_is_given_back(db_path: Path) -> None:
    """Also when the group had been committed by then: nobody goes on with what was taken inside."""

    async def take_and_note(store: AsyncStore) -> None:
        async with store.write() as tx:
            await tx.tasks.dequeue()
            await tx.kv.set("taken", "yes")
            leaving.set()

    leaving = asyncio.Event()

    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.tasks.enqueue(new_task("t"))
            group = asyncio.ensure_future(take_and_note(store))
            await leaving.wait()
            while not store.store.tasks.list(TaskStatus.RUNNING):
                pass  # the loop stands still until the group is committed
            group.cancel()
            with pytest.raises(asyncio.CancelledError):
                await group
            assert await store.tasks.dequeue() is not None
            assert await store.kv.get("taken") == "yes"

    asyncio.run(main())


def test_a_group_whose_end_is_cancelled_in_time_is_aborted(db_path: Path) -> None:
    go_on = threading.Event()

    def slowly(text: str) -> str:
        go_on.wait(20)
        return text.upper()

    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.cron.put("a", "b")
            update: list[asyncio.Future[str]] = []

            async def change() -> None:
                async with store.write() as tx:
                    update.append(asyncio.ensure_future(tx.cron.update("a", slowly)))
                    await asyncio.sleep(0)

            group = asyncio.ensure_future(change())
            await until(lambda: bool(update) and not store._groups)
            group.cancel()
            with pytest.raises(asyncio.CancelledError):
                await group
            go_on.set()
            assert await update[0] == "B"
            assert await store.cron.get("a") == "b"
            await store.cron.put("c", "d")
            assert await store.cron.items() == [("a", "b"), ("c", "d")]

    asyncio.run(main())


def test_a_cancelled_read_keeps_its_snapshot_to_itself_until_its_thread_is_done(db_path: Path) -> None:
    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.messages.append(KEY, {"content": "a" * 64_000 + "!"})

            async def cancelled_search(tx: AsyncTransaction) -> asyncio.Future[Any]:
                scope: Any = tx.archive._scope
                search = asyncio.ensure_future(tx.archive.grep(KEY, "(a+)+$", regex=True, timeout=0.5))
                await until(lambda: scope._reading is not None and not scope._reading.done())
                search.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await search
                reading: asyncio.Future[Any] = scope._reading
                assert not reading.done()
                return reading

            async with store.read() as tx:
                reading = await cancelled_search(tx)
                assert await tx.messages.count(KEY) == 1
                assert reading.done(), "two threads at a time would have used the snapshot"
                reading = await cancelled_search(tx)
            assert store.database.stats().readers == 1, "it is still being read"
            await until(reading.done)
            await asyncio.sleep(0)
            assert store.database.stats().readers == 0

    asyncio.run(main())
