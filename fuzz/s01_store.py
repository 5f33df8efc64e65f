"""The store keeps its promises through every fault: indexes agree with rows, and nothing that was acknowledged is lost,
done twice or half done.

S1: a gateway's operations (messages, texts, tasks with their idempotency keys) run on a simulated disk. At each call
of each of them the power is cut, or the disk is full, or a sync fails. Then the store opens, its own check is clean,
every acknowledged operation is there and the one in flight wholly or not at all, no finished task is handed out again,
and a reply is marked as delivered exactly if its task knows of it.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import limpet
from limpet.database import open_on
from limpet.testing import MUTATIONS, Call, Fault, Monitor, SimDisk, SyncFailure, choices_for
from limpet_store import MemoryTier, QueuedMessage, QueuedTask, Store, TaskStatus
from limpet_store.work import Context

from .harness import Budget, Case, FaultClass, no_hang, told_as
from .oracle import Wrong, abandon

_PATH = "/sim/store.limpet"
_SESSIONS = ("agent:a", "agent:b", "agent:c")
_NOW = 1_780_000_000.0
_OPERATIONS = 10
Content = dict[str, dict[bytes, bytes]]


def run(budget: Budget) -> None:
    """Operations at random, with faults at every call of each."""
    while budget.more():
        case: Case = {"seed": budget.rng.randrange(1 << 30), "faults": budget.rng.random() < 0.3}
        with told_as(case):
            (_with_failing_calls if case["faults"] else _with_power_cuts)(case["seed"], budget)


def open_store(disk: SimDisk, monitor: Monitor | None = None) -> Store:
    """A store on a simulated disk."""
    if monitor is None:
        database = open_on(disk.file_system(), _PATH, lock_timeout=0.0, cache_size=1 << 18)
    else:
        with monitor.opening():
            database = open_on(disk.file_system(), _PATH, lock_timeout=0.0, cache_size=1 << 18)
    store = Store(database, Context(lambda: _NOW), MemoryTier.LOW)
    store._prepare(_PATH, read_only=False)
    return store


class Gateway:
    """What a gateway does, and which tasks it has finished."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self.rng = rng
        self.running: list[str] = []
        self.finished: set[str] = set()
        self.number = 0

    def step(self) -> str:
        """One operation, one transaction or none; returns its name."""
        choices = (self.append, self.append_many, self.set_text, self.submit, self.mixed, self.dequeue, self.dequeue)
        operation: Callable[[], object] = self.rng.choice(choices)
        if self.running and self.rng.random() < 0.4:
            operation = self.finish
        self.number += 1
        operation()
        return operation.__name__

    def append(self) -> None:
        """One message."""
        self.store.messages.append(
            self.rng.choice(_SESSIONS), {"n": self.number, "text": "x" * self.rng.randrange(300)}
        )

    def append_many(self) -> None:
        """Some messages at once."""
        self.store.messages.append_many(self.rng.choice(_SESSIONS), [{"n": n} for n in range(self.rng.randint(1, 9))])

    def set_text(self) -> None:
        """A text under a key."""
        self.store.kv.set(f"key-{self.rng.randrange(4)}", str(self.number))

    def submit(self) -> None:
        """A task, or its messages to one that waits."""
        self.store.tasks.submit(self._task())

    def _task(self) -> QueuedTask:
        session = self.rng.choice(_SESSIONS)
        text = f"do {self.rng.randrange(6)}"
        message = QueuedMessage(text=text, sender="u", channel="c", chat_id="d", timestamp=int(_NOW))
        identity = f"task-{self.number}"
        return QueuedTask(id=identity, session_key=session, messages=[message], content_hash=text)

    def dequeue(self) -> None:
        """Take a task."""
        task = self.store.tasks.dequeue()
        if task is not None:
            if task.id in self.finished:
                raise Wrong(f"task {task.id} was finished, and is handed out again")
            self.running.append(task.id)

    def finish(self) -> None:
        """Record the last turn of a task, with the mark that its reply is delivered."""
        if self.running:
            identity = self.running.pop()
            self.store.tasks.finish_turn(identity, 1, f"reply to {identity}", None, TaskStatus.DONE)
            self.finished.add(identity)

    def mixed(self) -> None:
        """Several families in one transaction."""
        with self.store.write() as transaction:
            transaction.messages.append(self.rng.choice(_SESSIONS), {"n": self.number})
            transaction.kv.set("last", str(self.number))
            transaction.tasks.submit(self._task())


def content_of(store: Store) -> Content:
    """Everything in all tables, as bytes."""
    with store.database.read() as transaction:
        return {name: dict(transaction.table(name).items()) for name in transaction.tables()}


def _with_power_cuts(seed: int, budget: Budget) -> None:
    """What each operation leaves is read off the running store, so that the oracle needs no model of it."""
    rng = random.Random(seed)
    disk = SimDisk()
    monitor = Monitor(disk)
    store = open_store(disk, monitor)
    gateway = Gateway(store, rng)
    before = content_of(store)
    cuts: list[SimDisk] = []
    turn = 0

    def observe(call: Call) -> None:
        nonlocal turn
        if call.kind in MUTATIONS:
            turn += 1
            units = disk.units()
            cuts.extend(
                disk.crash(units, choices, turn) for choices in islice(choices_for(len(units), rng), 3 + turn % 4)
            )

    disk.after.append(observe)
    try:
        for _ in range(_OPERATIONS):
            finished = set(gateway.finished)
            name = gateway.step()
            after = content_of(store)
            for number, cut in enumerate(cuts):
                if not budget.more():
                    return
                budget.count(name)
                verify(cut, [before, after], finished, thorough=number % 5 == 0)
            cuts.clear()
            if monitor.violations:
                raise Wrong(monitor.violations[0])
            before = after
    finally:
        disk.after.clear()
        abandon(store.database)


def _with_failing_calls(seed: int, budget: Budget) -> None:
    """A call fails, or a sync, in one of the operations; the store is opened again where it has to be."""
    rng = random.Random(seed)
    disk = SimDisk()
    store = open_store(disk)
    gateway = Gateway(store, rng)
    try:
        for _ in range(_OPERATIONS):
            if not budget.more():
                return
            before, finished = content_of(store), set(gateway.finished)
            running = list(gateway.running)
            if rng.random() < 0.5:
                disk.fault = Fault(
                    rng.randrange(4), rng.choice((errno.EIO, errno.ENOSPC)), kinds=frozenset({"write", "grow"})
                )
            else:
                disk.failure = SyncFailure(rng.randrange(2), rng.choice(("eio", "ext4-ordered", "btrfs")), seed)
            try:
                budget.count(gateway.step())
                disk.fault = disk.failure = None
            except (OSError, limpet.LimpetError):
                disk.fault = disk.failure = None
                gateway.finished, gateway.running = finished, running
                # What the operation would have left: done again, on a disk that holds what there was before.
                abandon(store.database)
                disk.kill()
                store = gateway.store = open_store(disk)
                after = content_of(store)
                if after != before:
                    gateway.finished |= _finished(store)
                report = store.check()
                if not report.ok:
                    raise Wrong(f"the store's check: {report.errors[:2]}") from None
    finally:
        disk.fault = disk.failure = None
        abandon(store.database)
    verify(SimDisk.of(disk.image()), [], gateway.finished, thorough=True)


def _finished(store: Store) -> set[str]:
    return {task.id for task in store.tasks.list(TaskStatus.DONE)}


def verify(disk: SimDisk, states: list[Content], finished: set[str], *, thorough: bool) -> None:
    """What must be true of a store after a fault. states: the contents that may be there; empty: any that is sound."""
    with no_hang(4.0):
        store = open_store(disk)
        try:
            if states and content_of(store) not in states:
                raise Wrong("the store holds neither the state before the operation nor the one after it")
            if not thorough:
                return
            report = store.check()
            if not report.ok:
                raise Wrong(f"the store's check: {report.errors[:2]}")
            for task in store.tasks.list():
                delivered = store.idempotency.is_delivered(f"task:{task.id}:turn:1")
                if delivered != (task.status == TaskStatus.DONE):
                    raise Wrong(f"task {task.id} is {task.status}, and its reply marked as delivered: {delivered}")
            store.tasks.requeue_running()
            _drain(store, finished)
            if not store.check().ok:
                raise Wrong("the store's check complains after the queue was emptied")
        finally:
            abandon(store.database)


def _drain(store: Store, finished: set[str]) -> None:
    seen: set[str] = set()
    while (task := store.tasks.dequeue()) is not None:
        if task.id in finished or task.id in seen:
            raise Wrong(f"task {task.id} is handed out again")
        seen.add(task.id)


def _replay(case: Case) -> None:
    budget: Any = Budget(60.0, 0)
    with told_as(case):
        (_with_failing_calls if case["faults"] else _with_power_cuts)(case["seed"], budget)


CLASS: FaultClass = FaultClass("S1", "the store under power cuts and failing calls", run, _replay)
