"""queue: taking a task from a long queue costs what it costs from a short one.

Measured with durable commits, where the disk takes most of the time, and with commits that do not wait for the disk,
where a difference would show.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from pathlib import Path

from limpet_store import MemoryTier, QueuedMessage, QueuedTask, Store, TaskStatus

from .measure import OURS, Result, Run
from .sqlite_store import SQLiteStore

TIER = MemoryTier.STANDARD
SHORT = 10


def run(run: Run) -> Result:
    """Measure."""
    long = run.size(10_000, quick=200)
    count = run.size(300, quick=10)
    result = Result(
        "queue",
        f"dequeue with {SHORT} and with {long:,} tasks waiting",
        {"short queue": SHORT, "long queue": long, "dequeues": count, "cache MiB": TIER.cache_size >> 20},
    )
    names = {"sync": "durable commits", "none": "commits that do not wait for the disk"}
    for durability, text in names.items():
        run.progress(text)
        with contextlib.ExitStack() as stack:
            folder = run.folder(durability)
            queues: dict[tuple[str, int], _Queue] = {}
            filled: dict[tuple[str, int], int] = {}
            for length in (SHORT, long):
                for make in (_LimpetQueue, _SQLiteQueue):
                    queue = make(folder / f"{make.name}-{length}", durability)
                    stack.callback(queue.close)
                    began = time.perf_counter_ns()
                    queue.fill(length)
                    filled[make.name, length] = time.perf_counter_ns() - began
                    queues[make.name, length] = queue
            samples = _take_turns(queues, count)
        if durability == "sync":
            what = f"enqueue {long:,} tasks in one transaction"
            result.add(what, {name: [filled[name, long]] for name in (OURS, "sqlite3")}, "ms")
        for length in (SHORT, long):
            of_length = {name: samples[name, length] for name in (OURS, "sqlite3")}
            result.add(_what(length, durability), of_length)
    for durability, text in names.items():
        short, longer = (result.median(_what(length, durability)) for length in (SHORT, long))
        ratio = longer / short if longer and short else None
        result.aim(f"dequeue from {long:,} over dequeue from {SHORT}, {text}", ratio, 1.5, "x")
    result.note(
        "Between two dequeues the task is finished and another one enqueued, untimed, so that the queue stays as long."
    )
    result.note("Not waiting for the disk is durability none for Limpet, synchronous=OFF for SQLite.")
    return result


class _Queue:
    name = ""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def fill(self, count: int) -> None:
        raise NotImplementedError

    def dequeue(self) -> str:
        raise NotImplementedError

    def replace(self, task_id: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _LimpetQueue(_Queue):
    name = OURS

    def __init__(self, path: Path, durability: str) -> None:
        super().__init__()
        self._store = Store.open(path, tier=TIER, durability=durability)

    def _task(self) -> QueuedTask:
        number = next(self._ids)
        message = QueuedMessage(text=f"question {number}", sender="user", channel="bench", chat_id=str(number))
        return QueuedTask(session_key=f"agent:main:bench:direct:{number}", messages=[message])

    def fill(self, count: int) -> None:
        with self._store.write() as tx:
            for _ in range(count):
                tx.tasks.enqueue(self._task())

    def dequeue(self) -> str:
        task = self._store.tasks.dequeue()
        assert task is not None
        return task.id

    def replace(self, task_id: str) -> None:
        with self._store.write() as tx:
            tx.tasks.finish_turn(task_id, 1, "answer", None, TaskStatus.DONE)
            tx.tasks.enqueue(self._task())

    def close(self) -> None:
        self._store.close()


class _SQLiteQueue(_Queue):
    name = "sqlite3"

    def __init__(self, path: Path, durability: str) -> None:
        super().__init__()
        synchronous = "FULL" if durability == "sync" else "OFF"
        self._store = SQLiteStore(path, cache_size=TIER.cache_size, synchronous=synchronous)

    def _enqueue(self) -> None:
        number = next(self._ids)
        text = f"question {number}"
        message = {"text": text, "sender": "user", "channel": "bench", "chat_id": str(number)}
        content_hash = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        self._store.enqueue(f"task-{number}", f"agent:main:bench:direct:{number}", message, content_hash)

    def fill(self, count: int) -> None:
        with self._store.write():
            for _ in range(count):
                self._enqueue()

    def dequeue(self) -> str:
        task = self._store.dequeue()
        assert task is not None
        return task[0]

    def replace(self, task_id: str) -> None:
        with self._store.write():
            self._store.finish_turn(task_id, 1, "answer")
            self._enqueue()

    def close(self) -> None:
        self._store.close()


def _take_turns(queues: dict[tuple[str, int], _Queue], count: int) -> dict[tuple[str, int], list[int]]:
    samples: dict[tuple[str, int], list[int]] = {name: [] for name in queues}
    order = list(queues)
    for _ in range(count):
        for name in order:
            queue = queues[name]
            began = time.perf_counter_ns()
            task_id = queue.dequeue()
            samples[name].append(time.perf_counter_ns() - began)
            queue.replace(task_id)
        order.append(order.pop(0))
    return samples


def _what(length: int, durability: str) -> str:
    return f"dequeue, {length:,} waiting, {'durable' if durability == 'sync' else 'without the disk'}"
