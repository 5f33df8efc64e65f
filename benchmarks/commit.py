"""commit: one key in a transaction of its own, on stable storage before the call returns.

One thread is the latency of a durable commit, beside what the disk alone takes. Several threads show group commit:
committers that wait for the disk at the same time can share a sync. Weaker durabilities show what is left when nobody
waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from .calls import counted_calls
from .measure import OURS, Result, Run, in_threads, random_rows, take_turns
from .peers import LMDB, Limpet, Peer, Row, SQLite, opened

DISK = "disk alone"
FLOOR = "one 4 KiB block, overwritten, and fdatasync"
GROWING = "sqlite3, log growing"
UNQUEUED = "sqlite3, own waiting"
SUSTAINED = " for longer"
EXISTING, NEW = "one thread, a new value for a key that is there", "one thread, a new key"
PLACES, SYNCS = "places of the file that a commit writes", "syncs of a commit"
PROCESSOR = "processor time of a commit, durability"
THREADS = (1, 4, 16)
BATCH = 20  # commits of one peer in a row: strict turns would measure how cold its neighbours leave the caches

Peers = Mapping[str, Limpet | SQLite | LMDB]
Put = Callable[[bytes, bytes], None]


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    commits = run.size(4_000, quick=40)
    grouped = run.size(1_600, quick=32)
    result = Result(
        "commit",
        f"durable commit of one key into a table of {rows:,} rows",
        {
            "rows": rows,
            "key bytes": 24,
            "value bytes": 150,
            "commits": commits,
            "commits in a row": BATCH,
            "commits a round in threads": grouped,
        },
    )
    content = random_rows(run.random(), rows)
    folder = run.folder("sync")
    with opened(folder) as peers:
        run.progress(f"loading {rows:,} rows into {', '.join(peers)}")
        for peer in peers.values():
            peer.load(content)
        _one_thread(run, result, peers, content, commits)
        _counted(run, result, peers)
        _threads(run, result, peers, grouped)
    for durability in ("os", "none"):
        run.progress(f"durability {durability!r}")
        _weaker(run, result, durability, content)
    _judge(result)
    _explain(result)
    return result


def _one_thread(run: Run, result: Result, peers: Peers, content: Sequence[Row], commits: int) -> None:
    """The latency of a commit, and of the disk in the same turns."""
    random = run.random()
    warm_up = max(commits // 20, BATCH)
    changes = random_rows(random, commits + warm_up)
    updates = [(random.choice(content)[0], value) for _, value in changes]
    floors: list[int] = []
    with _growing(run.folder("growing"), content) as growing, _block(run.folder("disk") / "block") as write_block:
        operations = {**_puts({**peers, GROWING: growing}), DISK: write_block}
        for what, some in ((EXISTING, updates), (NEW, changes)):
            run.progress(what)
            samples = take_turns(operations, some, batch=BATCH, warm_up=warm_up)
            floors += samples.pop(DISK)
            result.add(what, samples)
    result.add(FLOOR, {DISK: floors})


def _counted(run: Run, result: Result, peers: Peers) -> None:
    """What a commit asks of the disk and of the processor."""
    run.progress("counting calls and processor time")
    changes = random_rows(run.random(), run.size(1_000, quick=40))
    places, syncs = [], []
    with counted_calls() as calls:
        for key, value in changes:
            peers[OURS].put(key, value)
            found = calls.take()
            places.append(found.places)
            syncs.append(found.syncs)
    result.add_numbers(PLACES, {OURS: places}, "places")
    result.add_numbers(SYNCS, {OURS: syncs}, "syncs")
    samples = take_turns(_puts(peers), changes, batch=BATCH, warm_up=BATCH, clock=time.thread_time_ns)
    result.add(f"{PROCESSOR} sync", samples)


def _threads(run: Run, result: Result, peers: Peers, grouped: int) -> None:
    """Commits of several threads at once."""
    random = run.random()
    for count in THREADS:
        run.progress(f"{count} threads")
        _round_robin(result, peers, count, "", run.size(5, quick=2), grouped, random)
    run.progress(f"{THREADS[-1]} threads, for longer")
    _round_robin(result, peers, THREADS[-1], SUSTAINED, run.size(3, quick=2), run.size(6_144, quick=32), random)


def _round_robin(result: Result, peers: Peers, count: int, how: str, rounds: int, commits: int, random: Random) -> None:
    """Several threads, one peer after the other; so many commits of all threads a round."""
    ways: dict[str, tuple[Limpet | SQLite | LMDB, Put]] = {name: (peer, peer.put) for name, peer in peers.items()}
    sqlite = peers["sqlite3"]
    if count > 1 and isinstance(sqlite, SQLite):
        ways[UNQUEUED] = sqlite, sqlite.put_unqueued
    rates: dict[str, list[float]] = {name: [] for name in ways}
    times: dict[str, list[int]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        changes = random_rows(random, commits)
        for name in order:
            peer, put = ways[name]
            rate, found = in_threads(count, commits // count, partial(_put_one, put, changes), around=peer.thread)
            rates[name].append(rate)
            times[name] += found
        order.append(order.pop(0))
    result.add_numbers(_rate(count, how), rates, "/s")
    result.add(f"{count} thread{'s' * (count > 1)}{how}, one commit", times)


def _weaker(run: Run, result: Result, durability: str, content: Sequence[Row]) -> None:
    commits = run.size(3_000, quick=50)
    changes = random_rows(run.random(), 2 * commits)
    only = {OURS} if durability == "none" else None
    with opened(run.folder(durability), only=only, durability=durability) as peers:
        for peer in peers.values():
            peer.load(content)
        puts = _puts(peers)
        result.add(f"durability {durability}, one thread", take_turns(puts, changes[:commits], batch=BATCH))
        samples = take_turns(puts, changes[commits:], batch=BATCH, clock=time.thread_time_ns)
        result.add(f"{PROCESSOR} {durability}", samples)


def _judge(result: Result) -> None:
    """The targets."""
    floor = result.median(FLOOR, DISK)
    for what in (EXISTING, NEW):
        ours = result.median(what)
        result.aim(f"{what}, Limpet's median over LMDB's", result.ratio(what, "lmdb"), 0.60, "x")
        result.aim(f"{what}, over SQLite's with its log growing", result.ratio(what, GROWING), 0.75, "x")
        result.aim(f"{what}, over SQLite's with its log filled", result.ratio(what, "sqlite3"), 1.0, "x")
        result.aim(f"{what}, over the disk alone", ours / floor if ours and floor else None, 1.6, "x")
    result.aim("places of the file that a commit writes, median", result.median(PLACES), 1)
    result.aim("syncs of a commit, median", result.median(SYNCS), 1)
    result.aim("processor time of a commit, durability os, median", result.median(f"{PROCESSOR} os"), 40, "us")
    most = _rate(THREADS[-1])
    several = f"{THREADS[-1]} threads, Limpet's commits a second over SQLite's"
    result.aim(f"{several}, which waits by itself", result.ratio(most, UNQUEUED), 4.0, "x", at_least=True)
    result.aim(f"{several} behind a lock", result.ratio(most, "sqlite3"), 4.0, "x", at_least=True)
    longer = f"{THREADS[-1]} threads{SUSTAINED}, Limpet's commits a second over SQLite's"
    most = _rate(THREADS[-1], SUSTAINED)
    result.aim(f"{longer}, which waits by itself", result.ratio(most, UNQUEUED), 4.0, "x", at_least=True)
    result.aim(f"{longer} behind a lock", result.ratio(most, "sqlite3"), 4.0, "x", at_least=True)
    most = _rate(THREADS[-1])
    one, all_of_them = result.median(_rate(1)), result.median(most)
    over_one = all_of_them / one if one and all_of_them else None
    result.aim(f"{THREADS[-1]} threads, over Limpet's with one thread", over_one, 2.0, "x", at_least=True)


def _explain(result: Result) -> None:
    """What has to be known to judge the numbers."""
    result.note(
        "The disk alone is the least that a commit can take. Every peer makes 20 commits in a row before the next one "
        "has its turn. Limpet's bulk load leaves full pages behind. Threads insert new keys, weaker durabilities too."
    )
    result.note(
        "SQLite copies its log into the database now and then, inside a commit; that is part of its p99 and max, and "
        "from then on it writes over the old log ('filled'). 'log growing' never copies: each commit makes the log "
        "longer. Limpet makes a checkpoint now and then, likewise inside a commit."
    )
    result.note(
        "SQLite's threads have a connection each. They queue at a lock of the process; 'own waiting' is without it, "
        "and SQLite sleeps and tries again. LMDB queues writers itself. Neither shares a sync among committers."
    )
    result.note(
        "Threads make a burst of 1,600 commits a round: in some rounds Limpet makes a checkpoint, in others none, so "
        "its median may be either. 'for longer' has 6,144 and two checkpoints in each round; SQLite's sleepers, for "
        "whom the last of a burst wait, matter less there."
    )
    result.note(
        "Durability os: SQLite with synchronous=NORMAL, LMDB with sync=False, which unlike the other two may leave a "
        "damaged file after a power cut. none: only Limpet keeps commits in memory until the next stronger one. "
        "Processor time is that of the committing thread, the kernel's work for it included."
    )


def _rate(threads: int, how: str = "") -> str:
    return f"{threads} thread{'s' * (threads > 1)}{how}, commits a second"


def _puts(peers: Mapping[str, Peer]) -> dict[str, Callable[[Row], None]]:
    def put_of(peer: Peer) -> Callable[[Row], None]:
        put = peer.put
        return lambda row: put(*row)

    return {name: put_of(peer) for name, peer in peers.items()}


def _put_one(put: Put, rows: Sequence[Row], number: int) -> None:
    put(*rows[number])


@contextlib.contextmanager
def _growing(folder: Path, content: Sequence[Row]) -> Iterator[SQLite]:
    """SQLite whose log is empty at first and is never copied into the database."""
    peer = SQLite(folder)
    try:
        peer.load(content)
        execute = peer.connection().execute
        execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        execute("PRAGMA wal_autocheckpoint=0").fetchone()
        yield peer
    finally:
        peer.close()


@contextlib.contextmanager
def _block(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that writes the same block again and syncs it."""
    sync = getattr(os, "fdatasync", os.fsync)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def write(row: Row) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, row[1].ljust(4096, b"\0"))
        sync(file)

    try:
        write((b"", b""))
        os.fsync(file)
        yield write
    finally:
        os.close(file)
