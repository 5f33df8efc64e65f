"""turn: one message and its answer, from the queue to the archive, by several sessions at once on one event loop.

A turn is five steps, each durable before the next begins: submit, dequeue, append the user's line (0.5 to 4 KiB),
append the assistant's (1 to 8 KiB), finish_turn. Limpet's asyncio store shares commits among the sessions; SQLite is
called through a pool of threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Protocol

from limpet_store import AsyncStore, MemoryTier, QueuedMessage, QueuedTask, TaskStatus

from .measure import OURS, Result, Run
from .sqlite_store import AsyncSQLiteStore, SQLiteStore

SESSIONS = (1, 4, 16)
POOL = 16  # threads for SQLite: as many as there are sessions at most
HEARTBEAT_S = 0.002
GROUPED = "limpet, grouped"

Turn = Callable[[str, str, str], Awaitable[None]]


class Peer(Protocol):
    """A store under test."""

    name: str

    async def turn(self, session_key: str, question: str, answer: str) -> None:
        """All five steps."""

    def commits(self) -> int:
        """How many commits there were so far."""


class LimpetTurns:
    """The asyncio store."""

    name = OURS

    def __init__(self, store: AsyncStore) -> None:
        self._store = store

    async def turn(self, session_key: str, question: str, answer: str) -> None:
        """See Peer."""
        store = self._store
        message = QueuedMessage(text=question, sender="user", channel="bench", chat_id=session_key)
        await store.tasks.submit(QueuedTask(session_key=session_key, messages=[message]))
        task = await store.tasks.dequeue()
        if task is None:  # the message joined one that was waiting, and another session has taken both
            return
        text = task.messages[0].text
        await store.messages.append(task.session_key, {"role": "user", "content": text})
        await store.messages.append(task.session_key, {"role": "assistant", "content": answer})
        await store.tasks.finish_turn(task.id, 1, answer, None, TaskStatus.DONE)

    def commits(self) -> int:
        """See Peer."""
        return self._store.database.stats().flushes


class LimpetGroupedTurns(LimpetTurns):
    """The same with the last three steps in one transaction, as the README recommends: three commits."""

    name = GROUPED

    async def turn(self, session_key: str, question: str, answer: str) -> None:
        """See Peer."""
        store = self._store
        message = QueuedMessage(text=question, sender="user", channel="bench", chat_id=session_key)
        await store.tasks.submit(QueuedTask(session_key=session_key, messages=[message]))
        task = await store.tasks.dequeue()
        if task is None:  # the message joined one that was waiting, and another session has taken both
            return
        async with store.write() as tx:
            await tx.messages.append(task.session_key, {"role": "user", "content": task.messages[0].text})
            await tx.messages.append(task.session_key, {"role": "assistant", "content": answer})
            await tx.tasks.finish_turn(task.id, 1, answer, None, TaskStatus.DONE)


class SQLiteTurns:
    """SQLite through a pool of threads."""

    name = "sqlite3"

    def __init__(self, store: SQLiteStore, threads: AsyncSQLiteStore) -> None:
        self._store = store
        self._call = threads.call
        self._ids = itertools.count(1)

    async def turn(self, session_key: str, question: str, answer: str) -> None:
        """See Peer."""
        store, call = self._store, self._call
        message = {"text": question, "sender": "user", "channel": "bench", "chat_id": session_key}
        content_hash = hashlib.md5(question.encode(), usedforsecurity=False).hexdigest()
        await call(store.submit, f"task-{next(self._ids)}", session_key, message, content_hash)
        task = await call(store.dequeue)
        if task is None:
            return
        task_id, key, messages = task
        await call(store.append, key, {"role": "user", "content": messages[0]["text"]})
        await call(store.append, key, {"role": "assistant", "content": answer})
        await call(store.finish_turn, task_id, 1, answer)

    def commits(self) -> int:
        """See Peer."""
        return self._store.commits


def run(run: Run) -> Result:
    """Measure."""
    return asyncio.run(_run(run))


async def _run(run: Run) -> Result:
    turns = run.size(192, quick=16)
    rounds = run.size(5, quick=1)
    result = Result(
        "turn",
        "a message and its answer: submit, dequeue, append, append, finish_turn",
        {
            "turns a round": turns,
            "rounds": rounds,
            "user's line": "0.5-4 KiB",
            "assistant's line": "1-8 KiB",
            "threads for sqlite3": POOL,
            "cache MiB": MemoryTier.STANDARD.cache_size >> 20,
        },
    )
    folder = run.folder("turn")
    random = run.random()
    sqlite = SQLiteStore(folder / "store.sqlite", cache_size=MemoryTier.STANDARD.cache_size)
    pool = AsyncSQLiteStore(sqlite, POOL)
    tier = MemoryTier.STANDARD
    async with (
        AsyncStore.open(folder / "store.limpet", tier=tier) as store,
        AsyncStore.open(folder / "grouped.limpet", tier=tier) as grouped,
    ):
        peers: list[Peer] = [LimpetTurns(store), SQLiteTurns(sqlite, pool), LimpetGroupedTurns(grouped)]
        for peer in peers:
            await _warm_up(peer, random)
        for sessions in SESSIONS:
            run.progress(f"{sessions} concurrent sessions")
            await _measure(result, peers, sessions, turns, rounds, random)
    pool.close()
    sqlite.close()
    sizes = {OURS: _size(folder / "store.limpet"), "sqlite3": _size(folder / "store.sqlite")}
    result.add_numbers("size of the file in the end", sizes, "MB")
    most = _what(SESSIONS[-1], "turns a second")
    result.aim("durable commits of a turn, one session", result.median(_what(1, "commits a turn")), 5)
    result.aim(
        f"{SESSIONS[-1]} sessions, Limpet's turns a second over SQLite's",
        result.ratio(most, "sqlite3"),
        4.0,
        "x",
        at_least=True,
    )
    lag = next(
        case
        for case in result.cases
        if (case.what, case.peer) == (_what(SESSIONS[-1], "delay of the event loop"), OURS)
    )
    result.aim("16 sessions, 99 % of the delays of the event loop", lag.p99, 5.0, "ms")
    result.note(
        "'limpet, grouped' is the same turn with the last three steps in one transaction. sqlite3 could group them, "
        "too; its line makes a commit of each step, as Limpet's does."
    )
    result.note(
        "The delay of the event loop is how much later than asked a sleep of 2 ms returns, while the sessions run; "
        "it contains the scheduling of the system and of Python's threads."
    )
    result.note("Both stores write each message twice (active and archive) and keep the same indexes and counters.")
    return result


async def _warm_up(peer: Peer, random: Random) -> None:
    for number in range(4):
        await peer.turn(f"agent:main:bench:direct:warm-{number}", _text(random, 512, 4096), _text(random, 1024, 8192))


async def _measure(result: Result, peers: list[Peer], sessions: int, turns: int, rounds: int, random: Random) -> None:
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    times: dict[str, list[int]] = {peer.name: [] for peer in peers}
    delays: dict[str, list[int]] = {peer.name: [] for peer in peers}
    commits: dict[str, list[float]] = {peer.name: [] for peer in peers}
    order = list(peers)
    for _ in range(rounds):
        lines = [(_text(random, 512, 4096), _text(random, 1024, 8192)) for _ in range(turns)]
        for peer in order:
            heart = asyncio.create_task(_heartbeat(delays[peer.name]))
            before = peer.commits()
            began = time.perf_counter_ns()
            async with asyncio.TaskGroup() as group:
                for session in range(sessions):
                    key = f"agent:main:bench:direct:user-{session}"
                    group.create_task(_session(peer.turn, key, lines[session::sessions], times[peer.name]))
            elapsed = time.perf_counter_ns() - began
            heart.cancel()
            rates[peer.name].append(turns / (elapsed / 1e9))
            commits[peer.name].append((peer.commits() - before) / turns)
        order.append(order.pop(0))
    result.add_numbers(_what(sessions, "turns a second"), rates, "/s")
    result.add(_what(sessions, "one turn"), times, "ms")
    result.add_numbers(_what(sessions, "commits a turn"), commits, "commits")
    result.add(_what(sessions, "delay of the event loop"), delays, "ms")


async def _session(turn: Turn, key: str, lines: list[tuple[str, str]], times: list[int]) -> None:
    for question, answer in lines:
        began = time.perf_counter_ns()
        await turn(key, question, answer)
        times.append(time.perf_counter_ns() - began)


async def _heartbeat(delays: list[int]) -> None:
    while True:
        began = time.perf_counter_ns()
        await asyncio.sleep(HEARTBEAT_S)
        delays.append(max(0, time.perf_counter_ns() - began - int(HEARTBEAT_S * 1e9)))


def _what(sessions: int, text: str) -> str:
    return f"{sessions} session{'s' * (sessions > 1)}, {text}"


def _text(random: Random, low: int, high: int) -> str:
    size = random.randint(low, high)
    return random.randbytes(size // 2 + 1).hex()[:size]


def _size(path: Path) -> list[float]:
    return [path.stat().st_size / 1e6]
