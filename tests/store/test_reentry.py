"""A handler or a finalizer that uses the store while the store is in a call: it works, or is told BusyError at once.

`Store.messages.append` with `Store.kv.set` in a signal handler lost rows and broke the file within a second. Here the
handler comes at lines of the store and of the engine under it, for `Store` and for the sync store beneath `AsyncStore`.
"""

import asyncio
import functools
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import limpet
import limpet_store
from limpet import BusyError, ClosedError
from limpet_store import AsyncStore, MemoryTier, QueuedMessage, QueuedTask, Store, TaskStatus

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the fuzzers are not installed; they lie beside the tests

from fuzz import spots  # noqa: E402 the path comes first
from fuzz.f18_reentry import steady  # noqa: E402 the path comes first
from fuzz.harness import quiet  # noqa: E402 the path comes first
from fuzz.reentry import same_luck  # noqa: E402 the path comes first
from fuzz.s01_store import _PATH, open_store  # noqa: E402 the path comes first
from fuzz.spots import Visit, VisitNumber, Watch, spots_of, tracing  # noqa: E402 the path comes first

from limpet.testing import SimDisk  # noqa: E402 the path comes first

KEY = "agent:main"
PATIENCE_S = 5.0
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    spots.include(str(limpet_store.__file__))
    with quiet(), steady():
        yield


@dataclass(frozen=True)
class Call:
    """Something that a store does, and whether it is seen afterwards; None: it leaves nothing."""

    name: str
    act: Callable[[Store], object]
    is_there: Callable[[Store], bool] | None = None
    closes: bool = False


def a_task(name: str) -> QueuedTask:
    message = QueuedMessage(text=name, sender="u", channel="c", chat_id="d", timestamp=1)
    return QueuedTask(id=name, session_key=f"{KEY}:{name}", messages=[message], content_hash=name)


def together(store: Store) -> None:
    with store.write() as tx:
        tx.messages.append(KEY, {"n": "together"})
        tx.kv.set("together", "1")


def clean(store: Store) -> None:
    report = store.check()
    assert report.ok, report.errors[:2]


def has_message(text: str) -> Callable[[Store], bool]:
    return lambda store: {"n": text} in store.messages.load(KEY)


def has_task(name: str, status: TaskStatus) -> Callable[[Store], bool]:
    return lambda store: any(task.id == name for task in store.tasks.list(status))


OUTERS = [
    Call("append", lambda store: store.messages.append(KEY, {"n": "outer"}), has_message("outer")),
    Call("set", lambda store: store.kv.set("outer", "1"), lambda store: store.kv.get("outer") == "1"),
    Call("submit", lambda store: store.tasks.submit(a_task("outer")), has_task("outer", TaskStatus.PENDING)),
    Call("dequeue", lambda store: store.tasks.dequeue(), has_task("first", TaskStatus.RUNNING)),
    Call(
        "finish turn",
        lambda store: store.tasks.finish_turn("running", 1, "reply", None, TaskStatus.DONE),
        has_task("running", TaskStatus.DONE),
    ),
    Call("together", together, lambda store: has_message("together")(store) and store.kv.get("together") == "1"),
    Call("load", lambda store: store.messages.load(KEY)),
    Call("retention", lambda store: store.retention(sessions_s=10**6)),
]
INNERS = [
    Call("set", lambda store: store.kv.set("inner", "1"), lambda store: store.kv.get("inner") == "1"),
    Call("append", lambda store: store.messages.append(KEY, {"n": "inner"}), has_message("inner")),
    Call("submit", lambda store: store.tasks.submit(a_task("inner")), has_task("inner", TaskStatus.PENDING)),
    Call("load", lambda store: store.messages.load(KEY)),
    Call("check", clean),
    Call("close", lambda store: store.close(), closes=True),
]
_image: list[bytes] = []


def fresh() -> tuple[SimDisk, Store]:
    if not _image:
        disk = SimDisk()
        store = open_store(disk)
        store.tasks.submit(a_task("running"))
        assert store.tasks.dequeue() is not None
        store.tasks.submit(a_task("first"))
        for number in range(3):
            store.messages.append(KEY, {"n": str(number)})
        store.close()
        _image.append(disk.content(_PATH))
    disk = SimDisk.of({_PATH: _image[0]})
    store = open_store(disk)
    store.kv.set("before", "1")
    return disk, store


@pytest.mark.parametrize("outer", OUTERS, ids=lambda call: call.name)
def test_at_lines_of_the_store_and_the_engine(outer: Call, seed: int) -> None:
    """Every call of the list at lines of every other; so many of them that each line gets one in a few runs."""
    counts = {"works": 0, "busy": 0, "missed": 0}
    with same_luck():
        _, store = fresh()
        found = spots_of(lambda: outer.act(store))
        store.close()
        pairs = list(itertools.product(found, INNERS))
        for spot, inner in random.Random(seed).sample(pairs, min(220, len(pairs))):
            counts[one(outer, inner, spot)] += 1
    print(f"{len(found)} spots, {sum(counts.values())} states compared, {counts}, seed {seed}")
    assert counts["works"] > 5
    assert counts["missed"] * 20 <= sum(counts.values())


def one(outer: Call, inner: Call, spot: spots.Spot) -> str:
    """One state; returns how the inner call ended."""
    disk, store = fresh()
    outcome, problems = "", []
    where = f"{outer.name}, at {spot}: {inner.name}"

    def act() -> None:
        nonlocal outcome
        started = time.monotonic()
        try:
            inner.act(store)
            outcome = "works"
        except BusyError:
            outcome = "busy"
            if time.monotonic() - started > 1.0:
                problems.append("waited")
        except BaseException as error:  # noqa: BLE001 it is what is looked for
            outcome = "wrong"
            problems.append(repr(error))

    with Watch(PATIENCE_S) as watch:
        try:
            with tracing(Visit(spot, act)):
                outer.act(store)
            made = True
        except ClosedError:
            assert inner.closes, where
            made = False
        assert not problems, f"{where}: {problems}"
        if not (inner.closes and outcome == "works"):
            clean(store)
            compare(store, outer, inner, outcome, where, made=made)
            store.kv.set("after", "1")
            killed = disk.image()
            store.close()
            look(SimDisk.of(killed), outer, inner, outcome, where, made=made)
        look(SimDisk.of(disk.image()), outer, inner, outcome, where, made=made)
    assert not watch.fired, f"{where}: {watch.fired}"
    return outcome or "missed"  # what the process remembers of earlier pages (node.py) leads past some lines


def compare(store: Store, outer: Call, inner: Call, outcome: str, where: str, *, made: bool) -> None:
    assert store.kv.get("before") == "1", where
    if outer.is_there is not None and made:
        assert outer.is_there(store), f"{where}: the outer call is lost"
    if inner.is_there is not None:
        assert inner.is_there(store) == (outcome == "works"), f"{where}: the inner call: {outcome}"


def look(disk: SimDisk, outer: Call, inner: Call, outcome: str, where: str, *, made: bool) -> None:
    """The file that is left opens, and holds what was acknowledged."""
    store = open_store(disk)
    compare(store, outer, inner, outcome, where, made=made)
    clean(store)
    store.close()


# -- AsyncStore --------------------------------------------------------------------------------------------------------


def beneath(store: AsyncStore) -> Store:
    """The sync store that an AsyncStore works on."""
    return store.store


class Handler:
    """Writes through the sync store beneath, wherever it is called."""

    def __init__(self, store: AsyncStore) -> None:
        self.store = beneath(store)
        self.written: list[int] = []
        self.busy = self.calls = 0
        self.errors: list[BaseException] = []

    def __call__(self, *_: object) -> None:
        self.calls += 1
        number = self.calls
        try:
            self.store.kv.set(f"handler-{number}", "1")
            self.written.append(number)
        except BusyError:
            self.busy += 1
        except BaseException as error:  # noqa: BLE001 it is what is looked for
            self.errors.append(error)


def run_async(scenario: Callable[[AsyncStore], Any], path: Path) -> Any:
    async def main() -> Any:
        async with AsyncStore.open(path, tier=MemoryTier.LOW, durability="os") as store:
            return await asyncio.wait_for(scenario(store), 60)

    with Watch(30.0) as watch:
        result = asyncio.run(main())
    assert not watch.fired, watch.fired
    return result


def check_file(path: Path, handler: Handler, appended: int) -> None:
    assert not handler.errors, handler.errors[0]
    with Store.open(path, tier=MemoryTier.LOW) as store:
        clean(store)
        assert [message["n"] for message in store.messages.load(KEY)] == list(range(appended))
        assert {key for key, _ in store.kv.items("handler-")} == {f"handler-{n}" for n in handler.written}


def test_a_handler_at_every_line_of_the_event_loops_thread(db_path: Path) -> None:
    """A plain signal handler, between two lines of what the loop's thread runs, writes through the sync store."""
    count = 0

    async def scenario(store: AsyncStore) -> Handler:
        nonlocal count
        handler = Handler(store)
        for number in itertools.count():
            visit = VisitNumber(number, handler)
            with tracing(visit):
                await store.messages.append(KEY, {"n": count})
            count += 1
            if visit.lines <= number:
                return handler
        raise AssertionError

    handler = run_async(scenario, db_path)
    print(f"{handler.calls} lines, {len(handler.written)} written, {handler.busy} busy")
    assert handler.calls > 15
    check_file(db_path, handler, count)


def test_a_finalizer_at_lines_of_the_writers_thread(db_path: Path, seed: int) -> None:
    """The collector runs in any thread: also in the one that has a commit of the AsyncStore in the making."""
    count = 0
    handlers: list[Handler] = []

    def here(visit: VisitNumber) -> Callable[..., Any]:
        def trace(*arguments: Any) -> Any:
            return visit(*arguments) if threading.current_thread().name == "limpet-writer" else None

        return trace

    async def scenario(store: AsyncStore) -> None:
        nonlocal count
        handlers.append(Handler(store))
        handlers[-1].calls = 1000 * len(handlers)
        armed.append(True)
        for _ in range(3):
            await store.messages.append(KEY, {"n": count})
            count += 1

    for number in range(seed % 60, 2400, 60):
        armed: list[bool] = []
        visit = VisitNumber(number, lambda: handlers[-1]() if armed else None)  # noqa: B023 used in this pass only
        threading.settrace(here(visit))
        try:
            run_async(scenario, db_path)
        finally:
            threading.settrace(None)
    first, *others = handlers
    for other in others:
        first.written += other.written
        first.busy += other.busy
        first.errors += other.errors
    print(f"{len(first.written)} written, {first.busy} busy")
    assert len(first.written) + first.busy > 10
    check_file(db_path, first, count)


@pytest.mark.parametrize("kind", ["signal.signal", "loop.add_signal_handler"])
def test_real_signals_while_coroutines_append(kind: str, db_path: Path) -> None:
    count = 0
    over = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def ring() -> None:
        while not over.wait(0.004):
            signal.pthread_kill(main, signal.SIGUSR1)

    async def append(store: AsyncStore) -> None:
        nonlocal count
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            number, count = count, count + 1
            await store.messages.append(KEY, {"n": number})

    async def scenario(store: AsyncStore) -> Handler:
        handler = Handler(store)
        if kind == "signal.signal":
            signal.signal(signal.SIGUSR1, handler)
        else:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, handler)
        ringer = threading.Thread(target=ring)
        ringer.start()
        try:
            await asyncio.gather(*(append(store) for _ in range(8)))
        finally:
            over.set()
            ringer.join()
        return handler

    before = signal.getsignal(signal.SIGUSR1)
    try:
        handler = run_async(scenario, db_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    print(f"{count} messages, {len(handler.written)} written by the handler, {handler.busy} busy")
    assert handler.written
    check_file(db_path, handler, count)


def test_a_handler_inside_of_a_group_does_not_wait_for_it(db_path: Path) -> None:
    """The loop's thread has a group open, which the writer's thread keeps; a handler there waited for both for ever."""

    async def scenario(store: AsyncStore) -> Handler:
        handler = Handler(store)
        async with store.write() as tx:
            await tx.messages.append(KEY, {"n": 0})
            started = time.monotonic()
            handler()
            assert time.monotonic() - started < 1.0
        handler()
        return handler

    handler = run_async(scenario, db_path)
    assert (handler.busy, handler.written) == (1, [2])
    check_file(db_path, handler, 1)


def test_a_handler_that_closes_the_store_beneath(db_path: Path, seed: int) -> None:
    """At lines of the loop's thread: it closes, and who awaits is told so, or it is refused; nothing told is lost."""
    told, outcomes = 0, {"closed": 0, "busy": 0}

    async def scenario(number: int, store: AsyncStore) -> None:
        nonlocal told

        def close() -> None:
            try:
                beneath(store).close()
                outcomes["closed"] += 1
            except BusyError:
                outcomes["busy"] += 1

        for _ in range(2):
            with tracing(VisitNumber(number, close)):
                await store.messages.append(KEY, {"n": told})
            told += 1

    for number in range(seed % 4, 40, 4):
        try:
            run_async(functools.partial(scenario, number), db_path)
        except ClosedError:
            pass
        with Store.open(db_path, tier=MemoryTier.LOW) as store:
            clean(store)
            found = [message["n"] for message in store.messages.load(KEY)]
            assert len(found) >= told
            store.messages.replace(KEY, [{"n": n} for n in range(len(found))])
            told = len(found)
    print(outcomes)
    assert outcomes["closed"] + outcomes["busy"] > 3


def test_limpet_is_the_engine_under_test() -> None:
    assert Path(str(limpet.__file__)).is_relative_to(ROOT)
