"""A process may be killed at any moment: what it had acknowledged is there, its lock is gone, and nobody has to wait.

F13: a small program commits to a real file and writes a line for each commit it begins and each that is acknowledged.
It dies by SIGKILL at a random moment, or kills itself before, after or half-way through a given call. The parent is a
small program too, so that forking is cheap: `python -m fuzz.f13_kills`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import limpet
from limpet.database import open_on
from limpet.testing import KillSwitch

from .harness import Budget, Case, Failure, FaultClass, told_as
from .oracle import Wrong, check_image, difference, read_all, tuned
from .workloads import WORKLOADS, Model, Step, apply_to_model, apply_to_transaction

_LENGTH = 10
_DEEPEST = 70  # calls of a workload of this length; later points simply do not fire
_BATCH = 50


def run(budget: Budget) -> None:
    """Kills in batches, each by one small parent."""
    while budget.more():
        count = min(_BATCH, budget.most - budget.states) if budget.most else _BATCH
        case: Case = {"seed": budget.rng.randrange(1 << 30), "count": count}
        for outcome in _batch(case):
            budget.count(outcome)


def _batch(case: Case) -> list[str]:
    """Run a batch in a process of its own; returns how each of its children died."""
    root = Path(__file__).resolve().parent.parent
    with told_as(case):
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.f13_kills", json.dumps(case)],
            capture_output=True,
            text=True,
            cwd=root,
            timeout=100,
            check=False,  # what it said on its way out is the failure
        )
        if done.returncode:
            message = done.stderr.strip().splitlines()
            raise Failure(f"F13: {message[-1] if message else done.returncode}\n{done.stderr[-2000:]}", case)
    return done.stdout.split()


def main(case: Case) -> None:
    """The small parent."""
    rng = random.Random(case["seed"])
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a killed process leaves the cache alone
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for number in range(case["count"]):
            print(_kill_once(Path(folder), number, rng))


def _kill_once(folder: Path, number: int, rng: random.Random) -> str:
    """One child, from its birth to the check of what it left."""
    name = rng.choice(sorted(WORKLOADS))
    steps = WORKLOADS[name](random.Random(rng.randrange(1 << 30)), _LENGTH)
    at, when = rng.randrange(_DEEPEST), rng.choice(("before", "half", "after"))
    by_clock = rng.random() < 0.3
    path = folder / f"{number}.limpet"
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(receiver)
            _child(path, steps, KillSwitch(-1 if by_clock else at, when), sender)
            code = 0
        finally:
            os._exit(code)
    os.close(sender)
    if by_clock:
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(receiver) as lines:
        told = [json.loads(line) for line in lines if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise Wrong(f"the child failed by itself: {told[-1:]} ({name})")
    _verify(path, steps, told)
    return "lived" if os.WIFEXITED(status) else "clock" if by_clock else when


def _child(path: Path, steps: list[Step], switch: KillSwitch, sender: int) -> None:
    def tell(*line: Any) -> None:
        os.write(sender, (json.dumps(line) + "\n").encode())

    try:
        with tuned(2048):
            db = open_on(switch, str(path), page_size=512, cache_size=1 << 16, lock_timeout=0)
            tell("opened")
            for index, step in enumerate(steps):
                tell("begin", index)
                db = _do(db, step, switch, path)
                tell("end", index)
            db.close()
    except BaseException as error:
        tell("error", repr(error))
        raise


def _do(db: limpet.Database, step: Step, switch: KillSwitch, path: Path) -> limpet.Database:
    kind, *rest = step
    if kind == "commit":
        with db.write(durability=rest[0]) as transaction:
            apply_to_transaction(transaction, rest[1])
    elif kind == "compact":
        db.compact()
    elif kind == "backup":
        db.backup(path.with_suffix(".backup"), overwrite=True)
    elif kind == "flush":
        db.flush()
    elif kind == "reopen":
        db.close()
        return open_on(switch, str(path), cache_size=1 << 16, lock_timeout=0)
    return db


def _verify(path: Path, steps: list[Step], told: list[list[Any]]) -> None:
    """What the killed child left behind."""
    begun = max((line[1] for line in told if line[0] == "begin"), default=-1)
    ended = max((line[1] for line in told if line[0] == "end"), default=-1)
    model: Model = {}
    states = [model]
    lowest = 0
    for index, (kind, *rest) in enumerate(steps[: begun + 1]):
        if kind == "commit":
            model = apply_to_model(model, rest[1])
            states.append(model)
            if index <= ended and rest[0] != "none" and model != states[-2]:
                lowest = len(states) - 1
        elif kind in ("flush", "compact", "reopen") and index <= ended:
            lowest = len(states) - 1
    if not path.exists():
        if ["opened"] in told:
            raise Wrong("the file is gone")
        return
    with limpet.open(path, lock_timeout=0) as db:  # the lock of the dead is free at once
        found = read_all(db)
        if found not in states[lowest:]:
            raise Wrong(f"after a kill: {difference(found, states[-1])} ({lowest}..{len(states) - 1})")
        report = db.check()
        if not report.ok:
            raise Wrong(f"after a kill: {report.errors[:2]}")
        with db.write() as transaction:
            transaction.table("after")[b"k"] = b"v"
    check_image(path.read_bytes())


def kills(count: int, seed: int) -> Iterator[str]:
    """For tests: so many kills, and how each came."""
    while count > 0:
        batch = _batch({"seed": seed, "count": min(count, _BATCH)})
        count -= len(batch)
        seed += 1
        yield from batch


def _replay(case: Case) -> None:
    _batch(case)


CLASS: FaultClass = FaultClass("F13", "processes killed by SIGKILL", run, _replay)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
