"""`python -m benchmarks.against CHECKOUT`: this code and another checkout of it, operation by operation in turns.

A machine whose speed changes within a minute cannot compare two runs. So each operation is done by the one and by the
other, thousands of times in alternation, in one process (a turn of the store: in two, which take turns), and the
medians are compared. The processor time of the thread is beside the time on the clock, because a disk hides much.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).resolve().parent / "results" / "against.txt"
ROWS = 20_000
TURN = """
import sys, time, tempfile
sys.path[:0] = [sys.argv[1] + "/engine", sys.argv[1] + "/store"]
from limpet_store import QueuedMessage, QueuedTask, Store, TaskStatus
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder, Store.open(folder + "/x.limpet") as store:
    def turn(number):
        key = f"agent:main:web:direct:u{number % 20}"
        message = QueuedMessage(text="x" * 800, sender="u1", channel="web", chat_id="u1")
        store.tasks.submit(QueuedTask(session_key=key, messages=[message]))
        task = store.tasks.dequeue()
        store.messages.append(key, {"role": "user", "content": "x" * 800})
        store.messages.append(key, {"role": "assistant", "content": "y" * 3000})
        store.tasks.finish_turn(task.id, 1, "y" * 200, f"task:{task.id}:turn:1", TaskStatus.DONE)
    for number in range(50):
        turn(number)
    times = []
    for number in range(200):
        clock, cpu = time.perf_counter(), time.thread_time()
        turn(number)
        times.append((time.perf_counter() - clock, time.thread_time() - cpu))
    for each in zip(*times):
        print(sorted(each)[len(each) // 2])
"""

Operation = Callable[[Any, int], None]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, help="the other checkout, such as a git worktree of an earlier commit")
    parser.add_argument("--rounds", type=int, default=2000, help="of each operation (2000)")
    parser.add_argument("--dir", type=Path, help="where to put the files; on the disk to be measured")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}"
    lines = [
        f"{machine}, Python {platform.python_version()}; {arguments.rounds} rounds, medians in us",
        f"other: {_commit(arguments.checkout)}, this: {_commit(ROOT)}",
        f"{'':24}{'clock':>22}{'':9}{'processor':>22}",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        names = {"limpet_other": arguments.checkout.resolve(), "limpet_this": ROOT}
        for name, root in names.items():
            (Path(folder) / name).symlink_to(root / "engine" / "limpet")
        sys.path.insert(0, folder)
        sides = [_opened(name, Path(folder)) for name in names]
        for title, operation, inner in OPERATIONS:
            lines.append(_line(title, _alternate(sides, operation, max(20, arguments.rounds // inner)), inner))
            print(lines[-1], flush=True)
        lines.append(_line("turn of the store, sync", _turns(list(names.values()), folder), 1))
    text = "\n".join(lines) + "\n"
    print(text)
    RESULT.write_text(text, "utf-8")
    return 0


def _commit(root: Path) -> str:
    done = subprocess.run(
        ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _opened(name: str, folder: Path) -> Any:
    engine = importlib.import_module(name)
    table = engine.Table("rows", key=engine.INT, value=engine.BYTES)
    db = engine.open(folder / f"{name}.limpet")
    with db.write() as txn:
        txn[table].update((number, b"y" * 100) for number in range(ROWS))
    return db, table


def _committing(durability: str) -> Operation:
    def commit(side: Any, number: int) -> None:
        db, table = side
        with db.write(durability=durability) as txn:
            txn[table][number % ROWS] = b"x" * 100

    return commit


def _get(side: Any, number: int) -> None:
    db, table = side
    for each in range(50):
        with db.read() as txn:
            txn[table].get((number * 50 + each) % ROWS)


def _get_inside(side: Any, number: int) -> None:
    db, table = side
    with db.read() as txn:
        rows = txn[table]
        for each in range(50):
            rows.get((number * 50 + each) % ROWS)


def _set_inside(side: Any, number: int) -> None:
    db, table = side
    txn = db.write()
    rows = txn[table]
    for each in range(50):
        rows[(number * 50 + each) % ROWS] = b"z" * 100
    txn.abort()


OPERATIONS: tuple[tuple[str, Operation, int], ...] = (
    ("commit, sync", _committing("sync"), 1),
    ("commit, os", _committing("os"), 1),
    ("commit, none", _committing("none"), 1),
    ("get, own transaction", _get, 50),
    ("get, inside", _get_inside, 50),
    ("set, inside", _set_inside, 50),
)
Times = tuple[list[float], list[float]]  # of the other, of this


def _alternate(sides: list[Any], operation: Operation, rounds: int) -> tuple[Times, Times]:
    clock: Times = [], []
    cpu: Times = [], []
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            began, began_cpu = time.perf_counter(), time.thread_time()
            operation(sides[which], number)
            cpu[which].append(time.thread_time() - began_cpu)
            clock[which].append(time.perf_counter() - began)
    return clock, cpu


def _turns(roots: list[Path], folder: str) -> tuple[Times, Times]:
    clock: Times = [], []
    cpu: Times = [], []
    for number in range(14):
        for which in (0, 1) if number % 2 else (1, 0):
            command = [sys.executable, "-c", TURN, str(roots[which]), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            wall, thread = map(json.loads, done.stdout.split())
            clock[which].append(wall)
            cpu[which].append(thread)
    return clock, cpu


def _line(title: str, times: tuple[Times, Times], inner: int) -> str:
    parts = []
    for other, this in times:
        before, after = statistics.median(other) * 1e6 / inner, statistics.median(this) * 1e6 / inner
        parts.append(f"{before:10.2f} -> {after:8.2f} {after / before - 1:+7.1%}")
    return f"{title:24}" + "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
