"""opening: how long it takes to open a file and read a key, after a clean close and after SIGKILL; and an empty file.

A child process commits until it is killed:

    python -m benchmarks.opening PEER FOLDER
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from random import Random

from .measure import Result, Run, child, random_rows, timed
from .peers import opened

COMMITS_BEFORE_KILL = 50


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

    result.aim("open after a clean close, in the process, median", result.median(alone), 5.0, "ms")
    result.aim("empty database on disk", result.median("size of an empty database"), 32.0, "KiB")
    result.note(
        "An empty database is what opening and closing leaves behind: for SQLite with the one table that all "
        "peers use, for LMDB with its lock file. Space that the file system has allocated counts, not the length."
    )
    result.note(
        "SQLite and LMDB verify nothing when they are opened, and SQLite opens the file with the first statement "
        "(here: the pragmas). After SIGKILL Limpet verifies the pages of the newest commits."
    )
    return result


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
