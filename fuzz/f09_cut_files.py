"""A file that was cut short gives what is still there and says so where it is not; it never kills the process.

F9: a file is cut at every length in its head and at the edges of its sectors, before it is opened, and, on a real
disk with a real map, while it is open. The latter runs in a child, which has to exit by itself.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import tempfile
from pathlib import Path

import limpet

from .damage import Sample, probe, sample
from .harness import Budget, Case, FaultClass, told_as
from .oracle import Wrong


def run(budget: Budget) -> None:
    """Every length, then again with another file."""
    while budget.more():
        seed = budget.rng.randrange(1 << 30)
        whole = sample(random.Random(seed), clean=bool(seed & 1))
        lengths = list(range(4 * whole.page_size + 1))
        lengths += [at + delta for at in range(0, len(whole.image), 512) for delta in (-1, 0, 1) if at + delta > 2048]
        budget.rng.shuffle(lengths)
        with told_as({"seed": seed, "open": True}):
            _while_open(whole, sorted(lengths[-60:]), budget)
        for length in lengths:
            if not budget.more():
                return
            with told_as({"seed": seed, "length": length}):
                budget.count(probe(whole, whole.image[:length]))


def _while_open(whole: Sample, lengths: list[int], budget: Budget) -> None:
    """Cut a real file below an open database, in a child."""
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = 1
            try:
                faulthandler.disable()  # the parent tells of a signal in one line
                code = _in_child(whole, lengths, Path(folder) / "cut.limpet")
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise Wrong(f"a cut file killed the process with signal {os.WTERMSIG(status)}")
        if os.WEXITSTATUS(status):
            raise Wrong(f"a cut file: wrong values or errors (exit code {os.WEXITSTATUS(status)})")
        for _ in lengths:
            budget.count("while open")


def _in_child(whole: Sample, lengths: list[int], path: Path) -> int:
    model = whole.by_txid[whole.newest]
    for length in lengths:
        path.write_bytes(whole.image)
        db = limpet.open(path, read_only=True, cache_size=0)
        with db.read() as transaction:
            for name in model:  # maps the file
                list(transaction.table(name).items())
        os.truncate(path, length)
        with db.read() as transaction:
            for name, entries in model.items():
                for key, value in entries.items():
                    try:
                        if transaction.table(name).get(key) != value:
                            return 2
                    except limpet.CorruptError:
                        pass
        db.close()
        try:
            with limpet.open(path, create=False) as db, db.read() as transaction:
                if transaction.txid != whole.newest:
                    return 3
        except (limpet.CorruptError, limpet.FormatError):
            pass
    return 0


def _replay(case: Case) -> None:
    whole = sample(random.Random(case["seed"]), clean=bool(case["seed"] & 1))
    with told_as(case):
        if case.get("open"):
            _while_open(whole, list(range(0, len(whole.image), 511)), Budget(60.0, 0))
        else:
            probe(whole, whole.image[: case["length"]])


CLASS: FaultClass = FaultClass("F9", "cut files, before and while they are open", run, _replay)
