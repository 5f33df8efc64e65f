"""opening: how long it takes to open a file and read a key, after a clean close and after SIGKILL; and an empty file.

After SIGKILL also for a file of a thousand times the size: what there is to do should not depend on it.

A child process commits until it is killed:

    python -m benchmarks.opening PEER FOLDER
"""

from __future__ import annotations

import contextlib
import signal
import sys
from functools import partial
from pathlib import Path
from random import Random

from .calls import counted_calls
from .measure import OURS, Result, Run, child, random_rows, timed
from .peers import opened

COMMITS_BEFORE_KILL = 50
VALUE = bytes(range(150))


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    rounds = run.size(60, quick=3)
    kills = run.size(8, quick=1)
    result = Result(
        "opening",
        f"open a database of {rows:,} rows",
        {"rows": rows, "rounds": rounds, "kills": kills, "commits before a kill, at least": COMMITS_BEFORE_KILL},
    )
    content = random_rows(run.random(), rows)
    folder, empty = run.folder("opening"), run.folder("empty")
    with opened(folder) as peers:
        run.progress(f"loading {rows:,} rows into {', '.join(peers)}")
        for peer in peers.values():
            peer.load(content)
    with opened(empty):
        pass
    sizes = {name: [_on_disk(empty / name)] for name in peers}
    result.add_numbers("size of an empty database", sizes, "KiB")

    alone, read, killed = "open", "open and read one key", "open and read one key after SIGKILL"
    run.progress("open after a clean close")
    first: dict[str, list[int]] = {name: [] for name in peers}
    both: dict[str, list[int]] = {name: [] for name in peers}
    order = list(peers)
    for number in range(rounds):
        for name in order:
            begun, done = _open_and_read(folder, name, content[number][0])
            first[name].append(begun)
            both[name].append(done)
        order.append(order.pop(0))
    result.add(alone, first, "ms")
    result.add(read, both, "ms")

    recovered: dict[str, list[int]] = {name: [] for name in peers}
    for number in range(kills):
        run.progress(f"open after SIGKILL, {number + 1} of {kills}")
        for name in order:
            _commit_until_killed(name, folder)
            recovered[name].append(_open_and_read(folder, name, content[number][0])[1])
        order.append(order.pop(0))
    result.add(killed, recovered, "ms")

    _sizes(run, result)
    result.aim("open after a clean close, in the process, median", result.median(alone), 5.0, "ms")
    result.aim("empty database on disk", result.median("size of an empty database"), 32.0, "KiB")
    result.note(
        "An empty database is what opening and closing leaves behind: for SQLite with the one table that all "
        "peers use, for LMDB with its lock file. Space that the file system has allocated counts, not the length."
    )
    result.note(
        "SQLite and LMDB verify nothing when they are opened, and SQLite opens the file with the first statement "
        "(here: the pragmas). After SIGKILL Limpet verifies the log of the newest commits."
    )
    return result


def _sizes(run: Run, result: Result) -> None:
    """Opening after SIGKILL, for a small file and a large one."""
    small, large = "1 MB", "1 GB"
    counts = {small: run.size(5_000, quick=500), large: run.size(5_000_000, quick=2_000)}
    folders = {size: run.folder(f"opening {size}") for size in counts}
    for size, count in counts.items():
        run.progress(f"a file of {size}: loading {count:,} rows into it")
        with opened(folders[size], only={OURS}) as peers:
            peers[OURS].load((number.to_bytes(24), VALUE) for number in range(count))
            file_size = peers[OURS].file_size()
        result.add_numbers(f"size of the file of {size}", {OURS: [file_size / 1e6]}, "MB")
    times: dict[str, list[int]] = {size: [] for size in counts}
    reads: dict[str, list[int]] = {size: [] for size in counts}
    pages: dict[str, list[float]] = {size: [] for size in counts}
    for number in range(run.size(12, quick=1)):
        run.progress(f"a small and a large file after SIGKILL, {number + 1}")
        for size, folder in folders.items():
            _commit_until_killed(OURS, folder)
            with counted_calls() as calls, contextlib.ExitStack() as stack:
                times[size].append(timed(partial(stack.enter_context, opened(folder, only={OURS}))))
                found = calls.take()
                reads[size].append(found.reads)
                pages[size].append(found.read_size / 4096)
    for size in counts:
        result.add(f"open after SIGKILL, {size}", {OURS: times[size]}, "ms")
        result.add_numbers(f"reads of that, {size}", {OURS: reads[size]}, "reads")
        result.add_numbers(f"pages in these reads, {size}", {OURS: pages[size]}, "pages")
    ratio = _over(result.median(f"open after SIGKILL, {large}"), result.median(f"open after SIGKILL, {small}"))
    result.aim(f"open after SIGKILL, a file of {large} over one of {small}", ratio, 5.0, "x")
    result.note(
        "The log is read in one piece; the larger file has the larger log, up to 2 MiB. Opening also makes what it "
        "found durable and reads it again from the disk. What follows, the first read of a key, is not in it."
    )


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _open_and_read(folder: Path, name: str, key: bytes) -> tuple[int, int]:
    """Nanoseconds of opening, and of opening and reading."""
    with contextlib.ExitStack() as stack:
        found = {}

        def begin() -> None:
            found.update(stack.enter_context(opened(folder, only={name})))

        begun = timed(begin)
        value: list[bytes | None] = []
        done = begun + timed(lambda: value.append(found[name].get(key)))
        assert value[0] is not None
    return begun, done


def _on_disk(folder: Path) -> float:
    """KiB that the files of a folder occupy."""
    found = [path.stat() for path in folder.iterdir()]
    return sum(getattr(stat, "st_blocks", -(-stat.st_size // 512)) for stat in found) / 2


def _commit_until_killed(name: str, folder: Path) -> None:
    with child("opening", name, folder) as process:
        assert process.stdout is not None
        for _ in range(COMMITS_BEFORE_KILL):
            if not process.stdout.readline():
                raise RuntimeError(f"{name}: the committing process ended by itself")
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.communicate()


def _commit_forever(name: str, folder: Path) -> None:
    random = Random()
    with opened(folder, only={name}) as peers:
        while True:
            peers[name].put(random.randbytes(24), random.randbytes(150))
            print("committed", flush=True)


if __name__ == "__main__":
    _commit_forever(sys.argv[1], Path(sys.argv[2]))
