"""history: a store that has seen a lot. Lists, recent messages, the archive; and the memory that reading them takes.

The shape comes from field reports: thousands of sessions, 1,400 bytes a message on average, of which 1.3 % of the
messages (tool output, images) hold 80 %. Memory is measured in a fresh process that does nothing but read:

    python -m benchmarks.history STORE SESSIONS MESSAGES READS SEED NUMBER
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from limpet_store import MemoryTier, Store

from .measure import MIB, OURS, Result, Run, anonymous_memory, answer_of, child, take_turns, timed
from .sqlite_store import Message, SQLiteStore

TIER = MemoryTier.LOW
SESSIONS = 5_000
MESSAGES = 400_000
MEAN_SIZE = 1_400  # 560 MB in all
LARGE_PART = 0.013  # of the messages
LARGE_SHARE = 0.8  # of the bytes
SMALL_SIZE = MEAN_SIZE * (1 - LARGE_SHARE) / (1 - LARGE_PART)
LARGE_SIZE = MEAN_SIZE * LARGE_SHARE / LARGE_PART
MAX_SIZE = 1 << 20
BATCH_SIZE = 4 * MIB  # of messages in a transaction while loading

Operation = Callable[[str], object]


def run(run: Run) -> Result:
    """Measure."""
    sessions = run.size(SESSIONS, quick=50)
    count = run.size(MESSAGES // 5, quick=500, full=MESSAGES)
    reads = run.size(600, quick=20)
    folder = run.folder("history")
    path = folder / "store.limpet"
    counts = _messages_of(sessions, count, Random(run.seed))
    run.progress(f"{sum(counts):,} messages in {sessions:,} sessions")
    with Store.open(path, tier=TIER, durability="os") as store:
        sqlite = SQLiteStore(folder / "store.sqlite", cache_size=TIER.cache_size, synchronous="OFF")
        loaded = {OURS: [0], "sqlite3": [0]}
        size = large = large_size = 0
        for number, batch in enumerate(_batches(counts, Random(run.seed)), 1):
            for _, messages in batch:
                sizes = [len(message["content"]) for message in messages]
                size += sum(sizes)
                large += sum(found > 8192 for found in sizes)
                large_size += sum(found for found in sizes if found > 8192)
            loaded[OURS][0] += timed(partial(_load_limpet, store, batch))
            loaded["sqlite3"][0] += timed(partial(_load_sqlite, sqlite, batch))
            if number % 10 == 0:
                run.progress(f"loaded {size / 1e6:.0f} MB")
        used = {OURS: [store.database.stats().live_size / 1e6], "sqlite3": [sqlite.used_size() / 1e6]}
    sqlite.close()
    result = Result(
        "history",
        f"{sessions:,} sessions, {sum(counts):,} messages, {size / 1e6:.0f} MB; cache of {TIER.cache_size // MIB} MiB",
        {
            "sessions": sessions,
            "messages": sum(counts),
            "message bytes": size,
            "largest session": max(counts),
            "part of the messages above 8 KiB": f"{large / sum(counts):.1%}",
            "their share of the bytes": f"{large_size / size:.0%}",
            "reads": reads,
            "cache MiB": TIER.cache_size // MIB,
        },
    )
    result.add("load everything, every message twice (active and archive), not durable", loaded, "s")
    files = {OURS: path, "sqlite3": folder / "store.sqlite"}
    result.add_numbers("size of the file", {name: [file.stat().st_size / 1e6] for name, file in files.items()}, "MB")
    result.add_numbers("of that, in use", used, "MB")
    _read(run, result, files, _visits(counts, reads, Random(run.seed)))
    growth: dict[str, list[float]] = {OURS: []}
    for number in range(run.size(3, quick=1)):
        run.progress(f"memory of a reading process, {number + 1}")
        found = json.loads(answer_of(child("history", path, sessions, count, reads, run.seed, number)))
        if found is not None:
            growth[OURS].append(found / MIB)
    if growth[OURS]:
        result.add_numbers("growth of anonymous memory of a reading process", growth, "MiB")
    for what in ("list the keys of all sessions", "list all sessions with everything known"):
        result.aim(f"{what}, median", result.median(what), 50.0, "ms")
    result.aim("load recent 50, median", result.median("load recent 50"), 2.0, "ms")
    result.aim("archive stat, median", result.median("archive stat"), 1.0, "ms")
    result.aim("largest growth of anonymous memory", max(growth[OURS], default=None), 30.0, "MiB")
    if not run.full:
        result.note(
            f"The full size (--full) is {MESSAGES:,} messages of {MESSAGES * MEAN_SIZE / 1e6:.0f} MB in {SESSIONS:,} "
            "sessions. The size is not the same here, the number of sessions is."
        )
    result.note(
        "Sessions are read at random, long ones more often (as often as they have messages), from the operating "
        "system's cache after the stores were closed and opened again. "
        "Random text does not compress; nothing here compresses anything."
    )
    result.note(
        "limpet_store decodes every row into a record (sessions with everything known) or a dict; sqlite3 gives tuples "
        "for sessions, and its messages are decoded with json, too."
    )
    return result


def _read(run: Run, result: Result, files: dict[str, Path], keys: list[str]) -> None:
    reads = len(keys)
    sqlite = SQLiteStore(files["sqlite3"], cache_size=TIER.cache_size)
    with Store.open(files[OURS], tier=TIER) as store:
        compared: list[tuple[str, Operation, Operation, int]] = [
            ("load recent 50", lambda k: store.messages.load_recent(k, 50), lambda k: sqlite.load_recent(k, 50), reads),
            ("archive stat", store.archive.stat, sqlite.archive_stat, reads),
            ("archive tail 20", lambda k: store.archive.tail(k, 20), lambda k: sqlite.archive_tail(k, 20), reads),
            (
                "list the keys of all sessions",
                lambda _: store.sessions.list(),
                lambda _: sqlite.list_sessions(),
                max(10, reads // 20),
            ),
            (
                "list all sessions with everything known",
                lambda _: store.sessions.items(),
                lambda _: sqlite.session_items(),
                max(5, reads // 60),
            ),
        ]
        assert store.messages.load_recent(keys[0], 50) == sqlite.load_recent(keys[0], 50)
        assert store.sessions.list() == sqlite.list_sessions()
        for what, ours, theirs, count in compared:
            run.progress(what)
            samples = take_turns({OURS: ours, "sqlite3": theirs}, keys[:count], batch=1 if "list" in what else 10)
            result.add(what, samples, "ms")
    sqlite.close()


def _key(number: int) -> str:
    return f"agent:main:telegram:direct:{number * 7919 % 100_003:06d}"


def _messages_of(sessions: int, count: int, random: Random) -> list[int]:
    """How many messages each session has: a few have very many. At least 2 each."""
    weights = [random.paretovariate(1.2) for _ in range(sessions)]
    scale = (count - 2 * sessions) / sum(weights)
    return [2 + int(weight * scale) for weight in weights]


def _visits(counts: list[int], reads: int, random: Random) -> list[str]:
    """Which sessions are read: those with many messages more often, as users do."""
    return [_key(number) for number in random.choices(range(len(counts)), weights=counts, k=reads)]


def _batches(counts: list[int], random: Random) -> Iterator[list[tuple[str, list[Message]]]]:
    """The messages in the order in which they come: a little of this session, a little of that."""
    text = base64.b64encode(random.randbytes(MAX_SIZE)).decode()
    left = {number: count for number, count in enumerate(counts) if count}
    batch: list[tuple[str, list[Message]]] = []
    batch_size = 0
    while left:
        for number in list(left):
            some = min(left[number], random.randint(2, 20))
            left[number] -= some
            if not left[number]:
                del left[number]
            messages = [_message(random, text) for _ in range(some)]
            batch.append((_key(number), messages))
            batch_size += sum(len(message["content"]) for message in messages)
            if batch_size > BATCH_SIZE:
                yield batch
                batch, batch_size = [], 0
    if batch:
        yield batch


def _message(random: Random, text: str) -> Message:
    if random.random() < LARGE_PART:
        size = min(MAX_SIZE, int(8192 + random.expovariate(1 / (LARGE_SIZE - 8192))))
    else:
        size = int(random.expovariate(1 / SMALL_SIZE))
    start = random.randrange(len(text) - size)
    return {"role": random.choice(("user", "assistant")), "content": text[start : start + size]}


def _load_limpet(store: Store, batch: list[tuple[str, list[Message]]]) -> None:
    with store.write() as tx:
        for key, messages in batch:
            tx.messages.append_many(key, messages)


def _load_sqlite(store: SQLiteStore, batch: list[tuple[str, list[Message]]]) -> None:
    with store.write():
        for key, messages in batch:
            store.append_many(key, messages)


def _measure(path: Path, sessions: int, count: int, reads: int, seed: int, number: int) -> int | None:
    """Growth of anonymous memory while everything that is measured above is done, in bytes."""
    keys = _visits(_messages_of(sessions, count, Random(seed)), reads * 3, Random(seed + number))
    before = anonymous_memory()
    if before is None:
        return None
    largest = before
    with Store.open(path, tier=TIER) as store:
        operations: tuple[Callable[[str], Any], ...] = (
            lambda key: store.messages.load_recent(key, 50),
            store.archive.stat,
            lambda key: store.archive.tail(key, 20),
        )
        for at, key in enumerate(keys):
            operations[at % len(operations)](key)
            largest = max(largest, anonymous_memory() or 0)
            if at % 300 == 0:
                store.sessions.list()
                largest = max(largest, anonymous_memory() or 0)
    return largest - before


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), *map(int, sys.argv[2:7]))))
