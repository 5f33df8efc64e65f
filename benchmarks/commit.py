"""commit: one key in a transaction of its own, on stable storage before the call returns.

One thread is the latency of a durable commit. Several threads show group commit: committers that wait for the disk at
the same time can share a sync. Weaker durabilities show what is left when nobody waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from .measure import OURS, Result, Run, in_threads, random_rows, take_turns
from .peers import Peer, Row, opened

DISK = "disk alone"
THREADS = (1, 4, 16)


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    commits = run.size(2_000, quick=30)
    grouped = run.size(800, quick=32)
    rounds = run.size(5, quick=2)
    result = Result(
        "commit",
        f"durable commit of one key into a table of {rows:,} rows",
        {"rows": rows, "key bytes": 24, "value bytes": 150, "commits": commits, "commits a round in threads": grouped},
    )
    random = run.random()
    content = random_rows(random, rows)
    existing, new = "one thread, a new value for a key that is there", "one thread, a new key"
    with opened(run.folder("sync")) as peers:
        run.progress(f"loading {rows:,} rows into {', '.join(peers)}")
        for peer in peers.values():
            peer.load(content)
        run.progress("one thread")
        warm_up = commits // 20
        changes = random_rows(random, commits + warm_up)
        updates = [(random.choice(content)[0], value) for _, value in changes]
        with _block(run.folder("disk") / "block") as write_block:
            samples = take_turns({**_puts(peers), DISK: write_block}, updates, warm_up=warm_up)
        result.add("one 4 KiB block, overwritten, and fdatasync", {DISK: samples.pop(DISK)})
        result.add(existing, samples)
        result.add(new, take_turns(_puts(peers), changes, warm_up=warm_up))
        for count in THREADS:
            run.progress(f"{count} threads")
            rates: dict[str, list[float]] = {name: [] for name in peers}
            times: dict[str, list[int]] = {name: [] for name in peers}
            order = list(peers)
            for _ in range(rounds):
                changes = random_rows(random, grouped)
                for name in order:
                    peer = peers[name]
                    rate, found = in_threads(
                        count,
                        grouped // count,
                        partial(_put_one, peer, changes),
                        around=peer.thread,
                    )
                    rates[name].append(rate)
                    times[name] += found
                order.append(order.pop(0))
            result.add_numbers(_rate(count), rates, "/s")
            result.add(f"{count} thread{'s' * (count > 1)}, one commit", times)
    for durability in ("os", "none"):
        run.progress(f"durability {durability!r}")
        _weaker(run, result, durability, content)
    for what in (existing, new):
        result.aim(f"{what}, Limpet's median over LMDB's", result.ratio(what, "lmdb"), 1.0, "x")
        result.aim(f"{what}, Limpet's median over SQLite's", result.ratio(what, "sqlite3"), 1.0, "x")
    several = result.ratio(_rate(THREADS[-1]), "sqlite3")
    result.aim(f"{THREADS[-1]} threads, Limpet's commits a second over SQLite's", several, 1.0, "x", at_least=True)
    result.note(
        "The disk alone is the least that a commit can take. Limpet's bulk load leaves full pages behind, so that many "
        "of the new keys that come right after it split one. Threads insert new keys, weaker durabilities too."
    )
    result.note(
        "SQLite copies its log into the database now and then, inside a commit; that is part of its p99 and max."
    )
    result.note(
        "SQLite's threads have a connection each and queue at a lock of the process, which is faster than its own "
        "busy handler. LMDB queues writers itself. Neither shares a sync among committers."
    )
    result.note(
        "Durability os: SQLite with synchronous=NORMAL, LMDB with sync=False, which unlike the other two may leave a "
        "damaged file after a power cut. none: only Limpet keeps commits in memory until the next stronger one."
    )
    return result


def _rate(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}, commits a second"


def _weaker(run: Run, result: Result, durability: str, content: list[tuple[bytes, bytes]]) -> None:
    commits = run.size(3_000, quick=50)
    changes = random_rows(run.random(), commits)
    only = {OURS} if durability == "none" else None
    with opened(run.folder(durability), only=only, durability=durability) as peers:
        for peer in peers.values():
            peer.load(content)
        result.add(
            f"durability {durability}, one thread",
            take_turns(_puts(peers), changes, batch=10),
        )


def _puts(peers: Mapping[str, Peer]) -> dict[str, Callable[[Row], None]]:
    def put_of(peer: Peer) -> Callable[[Row], None]:
        put = peer.put
        return lambda row: put(*row)

    return {name: put_of(peer) for name, peer in peers.items()}


def _put_one(peer: Peer, rows: Sequence[Row], number: int) -> None:
    peer.put(*rows[number])


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
