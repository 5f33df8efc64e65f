"""Any call to the system may fail, once or from then on: the caller hears of it, and no acknowledged commit is lost.

F6: the Nth call of a workload fails with EIO, ENOSPC, EDQUOT or EINTR, reads and locks included; a failing write
leaves half of its bytes behind in every other case. Where there is no space for new pages the transaction is
undone and the handle stays good. Real files besides: the system reads and writes less than it was asked to. And
whole lives on a disk that is full (full_disk.py).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import limpet
from limpet.testing import Fault, ShortCalls, SimDisk

from . import full_disk
from .crashes import workloads
from .harness import Budget, Case, FaultClass, no_hang, told_as
from .oracle import Run, Wrong, read_all, tuned, verify
from .workloads import Model, Step, apply_to_model, apply_to_transaction

_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR)
_FULL = frozenset({"write", "grow"})  # the calls that a full disk refuses
_TURNS_PER_LIFE = 4


def run(budget: Budget) -> None:
    """Every call of every workload, with errors in turn."""
    turn = 0
    for _, steps in workloads(budget, 6):
        with told_as({"steps": steps, "short": budget.seed}):
            _short_calls(steps, random.Random(budget.seed), budget)
        stride, at = budget.rng.randint(1, 3), 0
        while budget.more():
            turn += 1
            if turn % _TURNS_PER_LIFE == 1:
                _full_disk(budget)
            case: Case = {"steps": steps, "at": at, "error": _ERRORS[turn % 4], "forever": turn % 3 == 0}
            case["partial"] = turn % 2 == 0
            case["leave"] = turn % 5 < 2  # the process dies in the end, and what it logged is replayed
            if _replayed(case, budget) == 0:
                break
            at += stride


_LIFE_S = 30.0  # of processor time; most take 0.3, a full disk makes each delete a checkpoint


def _full_disk(budget: Budget) -> None:
    budget.count("full disk")
    seed = budget.rng.randrange(1 << 30)
    with told_as({"full_disk": seed}), no_hang(_LIFE_S):
        full_disk.live(seed)


def _replayed(case: Case, budget: Budget) -> int:
    with told_as(case), no_hang():
        return _one(case, budget)


def _one(case: Case, budget: Budget) -> int:
    """One failing call; returns how often it failed."""
    disk = SimDisk()
    full = case["error"] in (errno.ENOSPC, errno.EDQUOT)
    fault = disk.fault = Fault(
        case["at"], case["error"], case["forever"], _FULL if full else frozenset(), partial=case["partial"]
    )
    run = Run(disk, tolerant=True)
    budget.count(errno.errorcode[case["error"]])
    with tuned(run.growth), _warnings() as warnings:
        try:
            run.open()
            for step in case["steps"]:
                poisoned = run.poisoned
                run.step(step)
                if run.db is None:
                    break
                if full and run.poisoned and not poisoned and not _was_record(run):
                    raise Wrong("a full disk poisoned the database, where undoing the transaction is enough")
            if not case.get("leave"):
                run.close()
        except (OSError, limpet.LimpetError) as error:
            if not case["forever"]:
                raise
            run._note(error)
        if fault.fired and not run.errors and not warnings and not _is_harmless(fault):
            raise Wrong("a call failed and nobody heard of it")
        disk.fault = None
        run.abandon()
        disk.kill()
        lowest = min(run.durable, run.survives)
        verify(disk, run.states[lowest : run.begun + 1], must_exist=run.created, monitored=False)
    return fault.fired


def _was_record(run: Run) -> bool:
    """Whether the poison came from the writing of a meta, after which nothing is known."""
    return True if run.db is None else bool(run.errors and "poison" not in str(run.errors[-1]).lower())


class _Heard(logging.Handler):
    """Keeps what was logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _warnings() -> Iterator[list[logging.LogRecord]]:
    """What the engine warns of meanwhile: a close that cannot bring the log into the trees raises nothing else."""
    handler = _Heard(logging.WARNING)
    logger = logging.getLogger("limpet")
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


def _is_harmless(fault: Fault) -> bool:
    """The advisory note may fail, and what is removed after a failure may stay."""
    return fault.fired <= 2


def _short_calls(steps: list[Step], rng: random.Random, budget: Budget) -> None:
    """The workload on a real file whose reads and writes are cut short."""
    budget.count("short calls")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.limpet"
        model: Model = {}
        with ShortCalls(rng), limpet.open(path, page_size=512, cache_size=0, durability="os") as db:
            for kind, *rest in steps:
                if kind == "commit":
                    with db.write() as transaction:
                        apply_to_transaction(transaction, rest[1])
                    model = apply_to_model(model, rest[1])
            if read_all(db) != model:
                raise Wrong("short reads and writes changed the content")
        with limpet.open(path) as db:
            if read_all(db) != model or not db.check().ok:
                raise Wrong("short reads and writes changed the file")


def _replay(case: Case) -> None:
    if "full_disk" in case:
        with told_as(case), no_hang(_LIFE_S):
            full_disk.live(case["full_disk"])
    elif "short" in case:
        with told_as(case):
            _short_calls(case["steps"], random.Random(case["short"]), Budget(60.0, 0))
    else:
        _replayed(case, Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F6", "failing calls: EIO, full disk, quota, EINTR, short", run, _replay)
