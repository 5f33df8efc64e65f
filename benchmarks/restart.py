"""restart: how long users wait when a gateway comes back, after a clean close and after SIGKILL.

From opening the store, through putting back the tasks that were running, to the first message answered: recorded, with
its reply. The gateway that dies is a child process:

    python -m benchmarks.restart PEER PATH
"""

from __future__ import annotations

import hashlib
import itertools
import signal
import sys
import time
from pathlib import Path

from limpet_store import MemoryTier, QueuedMessage, QueuedTask, Store, TaskStatus

from .measure import OURS, Result, Run, child
from .sqlite_store import SQLiteStore

TIER = MemoryTier.STANDARD
PEERS = (OURS, "sqlite3")
TURNS_BEFORE_KILL = 15
ANSWER = "an answer " * 100


def run(run: Run) -> Result:
    """Measure."""
    sessions = run.size(2_000, quick=50)
    rounds = run.size(10, quick=1)
    result = Result(
        "restart",
        f"reopen a store of {sessions:,} sessions, requeue, answer the first message",
        {
            "sessions": sessions,
            "rounds": rounds,
            "turns before a kill, at least": TURNS_BEFORE_KILL,
            "cache MiB": TIER.cache_size >> 20,
        },
    )
    folder = run.folder("restart")
    paths = {name: folder / f"store.{name}" for name in PEERS}
    gateways: dict[str, type[_LimpetGateway | _SQLiteGateway]] = {OURS: _LimpetGateway, "sqlite3": _SQLiteGateway}
    for name in PEERS:
        run.progress(f"{name}: {sessions:,} sessions")
        gateway = gateways[name](paths[name])
        gateway.fill(sessions)
        gateway.close()
    parts = ("open", "requeue what was running", "answer the first message", "all of it")
    for way in ("after a clean close", "after SIGKILL"):
        times: dict[str, dict[str, list[int]]] = {part: {name: [] for name in PEERS} for part in parts}
        order = list(PEERS)
        for number in range(rounds):
            run.progress(f"{way}, {number + 1} of {rounds}")
            for name in order:
                if way == "after SIGKILL":
                    _kill(name, paths[name])
                else:
                    gateway = gateways[name](paths[name])
                    gateway.leave_running()
                    gateway.close()
                for part, ns in zip(parts, _come_back(gateways[name], paths[name]), strict=True):
                    times[part][name].append(ns)
            order.append(order.pop(0))
        for part in parts:
            result.add(f"{way}: {part}", times[part], "ms")
    result.aim("all of it after SIGKILL, median", result.median("after SIGKILL: all of it"), 1000.0, "ms")
    result.note(
        "Times are taken inside one process that is already running; starting Python and importing comes on top."
    )
    result.note(
        "Answering is dequeue, two appends and finish_turn, each durable. Limpet verifies what the killed process "
        "wrote last before it trusts it; SQLite reads its log."
    )
    result.note("The limit of a second is this benchmark's own: a restart should not be noticed.")
    return result


class _LimpetGateway:
    def __init__(self, path: Path) -> None:
        self._store = Store.open(path, tier=TIER)
        self._numbers = itertools.count()

    def fill(self, sessions: int) -> None:
        for start in range(0, sessions, 500):
            with self._store.write() as tx:
                for number in range(start, min(start + 500, sessions)):
                    lines = [{"role": role, "content": ANSWER} for role in ("user", "assistant") * 5]
                    tx.messages.append_many(f"agent:main:bench:direct:{number}", lines)

    def submit(self) -> None:
        key = f"agent:main:bench:direct:{time.time_ns()}-{next(self._numbers)}"
        message = QueuedMessage(text=f"hello from {key}", sender="user", channel="bench", chat_id=key)
        self._store.tasks.submit(QueuedTask(session_key=key, messages=[message]))

    def leave_running(self) -> None:
        self.submit()
        self._store.tasks.dequeue()

    def requeue(self) -> int:
        return self._store.tasks.requeue_running()

    def answer(self) -> None:
        store = self._store
        task = store.tasks.dequeue()
        assert task is not None
        store.messages.append(task.session_key, {"role": "user", "content": task.messages[0].text})
        store.messages.append(task.session_key, {"role": "assistant", "content": ANSWER})
        store.tasks.finish_turn(task.id, 1, ANSWER, None, TaskStatus.DONE)

    def close(self) -> None:
        self._store.close()


class _SQLiteGateway:
    def __init__(self, path: Path) -> None:
        self._store = SQLiteStore(path, cache_size=TIER.cache_size)
        self._numbers = itertools.count()

    def fill(self, sessions: int) -> None:
        for start in range(0, sessions, 500):
            with self._store.write():
                for number in range(start, min(start + 500, sessions)):
                    lines = [{"role": role, "content": ANSWER} for role in ("user", "assistant") * 5]
                    self._store.append_many(f"agent:main:bench:direct:{number}", lines)

    def submit(self) -> None:
        key = f"agent:main:bench:direct:{time.time_ns()}-{next(self._numbers)}"
        text = f"hello from {key}"
        message = {"text": text, "sender": "user", "channel": "bench", "chat_id": key}
        content_hash = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        self._store.submit(f"task-{key}", key, message, content_hash)

    def leave_running(self) -> None:
        self.submit()
        self._store.dequeue()

    def requeue(self) -> int:
        return self._store.requeue_running()

    def answer(self) -> None:
        store = self._store
        task = store.dequeue()
        assert task is not None
        task_id, key, messages = task
        store.append(key, {"role": "user", "content": messages[0]["text"]})
        store.append(key, {"role": "assistant", "content": ANSWER})
        store.finish_turn(task_id, 1, ANSWER)

    def close(self) -> None:
        self._store.close()


def _come_back(make: type[_LimpetGateway | _SQLiteGateway], path: Path) -> tuple[int, int, int, int]:
    """Nanoseconds of each part and of all."""
    clock = time.perf_counter_ns
    began = clock()
    gateway = make(path)
    is_open = clock()
    waiting = gateway.requeue()
    requeued = clock()
    assert waiting
    gateway.answer()
    answered = clock()
    gateway.close()
    return is_open - began, requeued - is_open, answered - requeued, answered - began


def _kill(name: str, path: Path) -> None:
    """Let a gateway work, and kill it."""
    with child("restart", name, path) as process:
        assert process.stdout is not None
        for _ in range(TURNS_BEFORE_KILL):
            if not process.stdout.readline():
                raise RuntimeError(f"{name}: the working process ended by itself")
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.communicate()


def _work_forever(name: str, path: Path) -> None:
    gateway: _LimpetGateway | _SQLiteGateway = _LimpetGateway(path) if name == OURS else _SQLiteGateway(path)
    gateway.leave_running()  # this one will wait for whoever comes back
    while True:
        gateway.submit()
        gateway.answer()
        print("answered", flush=True)


if __name__ == "__main__":
    _work_forever(sys.argv[1], Path(sys.argv[2]))
