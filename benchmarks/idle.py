"""idle: an hour of a gateway's ticks with nothing to do must commit nothing and scan nothing.

The clock is simulated: every tick is five seconds. What a tick costs is counted in calls (of functions, in Python and
in C), which does not depend on the machine: if a large store needs as many as a small one, nothing was scanned.

    every 5 s    take a task, claim jobs that are due
    every 60 s   delete expired tasks and old jobs, look at the scheduled jobs (20 in every store)
    once         forget old idempotency keys, retention
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import FrameType

from limpet_store import (
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    ExternalJobStatus,
    MemoryTier,
    QueuedMessage,
    QueuedTask,
    Store,
    TaskStatus,
)

from .measure import OURS, Result, Run
from .sqlite_store import SQLiteStore

TIER = MemoryTier.LOW
TICK_S = 5
START = 1_780_000_000
DAY_S = 86_400
CRON_JOBS = 20


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def run(run: Run) -> Result:
    """Measure."""
    small = 10
    large = run.size(10_000, quick=300)
    ticks = run.size(3_600, quick=600) // TICK_S
    result = Result(
        "idle",
        f"an hour of ticks with nothing to do, {small} and {large:,} rows a family",
        {"small": small, "large": large, "ticks": ticks, "cache MiB": TIER.cache_size >> 20},
    )
    calls: dict[int, float] = {}
    commits = page_reads = 0
    for rows in (small, large):
        run.progress(f"{rows:,} rows")
        folder = run.folder(str(rows))
        clock = Clock()
        with Store.open(folder / "store.limpet", tier=TIER, clock=clock) as store:
            _fill_limpet(store, rows)
            tick = _limpet_tick(store, clock)
            sqlite = SQLiteStore(folder / "store.sqlite", cache_size=TIER.cache_size, clock=clock)
            _fill_sqlite(sqlite, rows)
            sqlite_tick = _sqlite_tick(sqlite)
            before, sqlite_commits = store.database.stats(), sqlite.commits
            # The first minute fills the cache; after it there is nothing more to read.
            times: dict[str, list[int]] = {OURS: [], "sqlite3": []}
            reads = 0
            for number in range(ticks):
                if number == 60 // TICK_S + 1:
                    reads = store.database.stats().page_reads
                clock.now = START + number * TICK_S
                for name, each in ((OURS, tick), ("sqlite3", sqlite_tick)):
                    began = time.perf_counter_ns()
                    each(number)
                    times[name].append(time.perf_counter_ns() - began)
            after = store.database.stats()
            result.add(f"one tick, {rows:,} rows", times)
            result.add_numbers(
                f"commits in all ticks, {rows:,} rows",
                {OURS: [after.commits - before.commits], "sqlite3": [sqlite.commits - sqlite_commits]},
                "commits",
            )
            commits += after.commits - before.commits + after.flushes - before.flushes + after.syncs - before.syncs
            page_reads += after.page_reads - reads
            calls[rows] = _calls(tick, range(60 // TICK_S, 2 * 60 // TICK_S)) / (60 / TICK_S)
            result.add_numbers(f"calls a tick, {rows:,} rows", {OURS: [calls[rows]]}, "calls")
            sqlite.close()
    result.aim("commits, flushes and syncs", commits, 0)
    result.aim("pages read after the first minute", page_reads, 0)
    result.aim("calls a tick in the large store over the small one", calls[large] / calls[small], 1.5, "x")
    result.note(
        "Tasks are done and notified or wait for nobody, jobs are delivered, keys are younger than a day; "
        f"{CRON_JOBS} scheduled jobs are read every minute whatever the store holds."
    )
    result.note("A scan of the large store would take thousands of calls a tick. A deeper tree takes a few more.")
    return result


def _limpet_tick(store: Store, clock: Clock) -> Callable[[int], None]:
    def tick(number: int) -> None:
        assert store.tasks.dequeue() is None
        assert not store.jobs.claim_due(int(clock.now), 8, 60)
        if number * TICK_S % 60 == 0:
            assert not store.tasks.cleanup_expired()
            assert not store.jobs.cleanup_finished(DAY_S)
            assert len(store.cron.items()) == CRON_JOBS
        if number == 1:
            assert not store.idempotency.cleanup(DAY_S)
            store.retention(sessions_s=30 * DAY_S, archive_s=365 * DAY_S)

    return tick


def _sqlite_tick(store: SQLiteStore) -> Callable[[int], None]:
    def tick(number: int) -> None:
        assert store.dequeue() is None
        assert not store.claim_due(8, 60)
        if number * TICK_S % 60 == 0:
            assert not store.cleanup_expired()
            assert not store.cleanup_jobs(DAY_S)
            assert len(store.cron_items()) == CRON_JOBS
        if number == 1:
            assert not store.cleanup_idempotency(DAY_S)

    return tick


def _calls(tick: Callable[[int], None], numbers: range) -> int:
    """How many functions are called, in Python and in C."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for number in numbers:
            tick(number)
    finally:
        sys.setprofile(before)
    return count


def _fill_limpet(store: Store, rows: int) -> None:
    with store.write() as tx:
        for number in range(rows):
            key = f"agent:main:bench:direct:{number}"
            message = QueuedMessage(text=f"question {number}", sender="user", channel="bench", chat_id=key)
            task = QueuedTask(
                session_key=key, messages=[message], ttl_secs=2 * 3600, status=TaskStatus.DONE, notified=True
            )
            tx.tasks.enqueue(task)
            tx.messages.append(key, {"role": "user", "content": f"question {number}"})
            tx.idempotency.mark_delivered(f"task:{task.id}:turn:1")
            tx.jobs.enqueue(
                ExternalJob(
                    session_key=key,
                    delivery=ExternalJobDelivery(channel="bench", target_id=key),
                    origin=ExternalJobOrigin.AGENT,
                    provider="nobody",
                    external_task_id=str(number),
                    kind=ExternalJobKind.VIDEO_GEN,
                    prompt=f"question {number}",
                    status=ExternalJobStatus.DONE,
                    delivered_at=START,
                    delivery_attempts=1,
                )
            )
        for number in range(CRON_JOBS):
            tx.cron.put(f"job-{number}", json.dumps({"every_s": 60, "text": "is it time?"}))


def _fill_sqlite(store: SQLiteStore, rows: int) -> None:
    with store.write() as execute:
        for number in range(rows):
            key, text = f"agent:main:bench:direct:{number}", f"question {number}"
            message = {"text": text, "sender": "user", "channel": "bench", "chat_id": key}
            store.enqueue(f"task-{number}", key, message, text, ttl_secs=2 * 3600)
            store.append(key, {"role": "user", "content": text})
            store.mark_delivered(f"task:task-{number}:turn:1")
            store.add_finished_job(str(number), json.dumps({"id": str(number), "prompt": text}))
        execute("UPDATE tasks SET status = 'Done', notified = 1")
        for number in range(CRON_JOBS):
            store.put_cron(f"job-{number}", json.dumps({"every_s": 60, "text": "is it time?"}))
