"""Power cuts, walked through: a workload runs once, and at each call the disk is asked what might have survived.

Shared by F1, F2, F3, F4 and F7. A case is

    steps      of the workload
    point      number of the call after which the power fails
    choices    what becomes of each unit that was not synced (see limpet.testing.disk)
    garbage    seed of the garbage
    kill       the process dies instead: the cache survives
    page_size, sector
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from limpet.testing import MUTATIONS, Call, SimDisk, Unit, Violation

from .harness import Budget, Case, Failure, told_as
from .oracle import PAGE_SIZE, PATH, Run, verify
from .workloads import WORKLOADS, Step

Chooser = Callable[[list[Unit], random.Random], Iterable[tuple[int, ...]]]


class Enough(BaseException):
    """Leaves a workload: the budget is spent, or the point of a case has been tried."""


@dataclass(frozen=True)
class Machine:
    """What is used for a run."""

    page_size: int = PAGE_SIZE
    sector: int = 512
    growth: int = 2048


def explore(
    steps: list[Step],
    chooser: Chooser,
    budget: Budget,
    *,
    machine: Machine = Machine(),
    kills: bool = False,
    point: int | None = None,
    deeper: Callable[[SimDisk, Run], None] | None = None,
) -> None:
    """Run the steps; after each call that changes something, try the power cuts that `chooser` names.

    kills    also let the process die at each point
    point    only at this one
    deeper   gets some of the disks, for what is to be done to them besides
    raises   Failure
    """
    disk = SimDisk(machine.sector)
    run = Run(disk, page_size=machine.page_size, growth=machine.growth)
    case: Case = {"steps": steps, "page_size": machine.page_size, "sector": machine.sector, "growth": machine.growth}
    seen: set[int] = set()
    number = -1

    def observe(call: Call) -> None:
        nonlocal number
        if call.kind not in MUTATIONS:
            return
        number += 1
        if point is not None and number != point:
            return
        units = disk.units()
        rng = random.Random(budget.seed * 1_000_003 + number)
        here = {**case, "point": number, "call": call.kind}
        if kills:
            try_one(disk, run, units, None, 0, here, seen, budget)
        for choices in chooser(units, rng):
            if not budget.more():
                raise Enough
            try_one(disk, run, units, choices, rng.randrange(1 << 30), here, seen, budget, deeper)
        if point is not None:
            raise Enough

    disk.after.append(observe)
    try:
        with told_as(case):
            run.go(steps)
    except Enough:
        pass
    finally:
        disk.after.clear()
        run.abandon()
    if run.monitor is not None and run.monitor.violations:
        raise Failure(run.monitor.violations[0], case)


def try_one(
    disk: SimDisk,
    run: Run,
    units: list[Unit],
    choices: tuple[int, ...] | None,
    garbage: int,
    case: Case,
    seen: set[int],
    budget: Budget,
    deeper: Callable[[SimDisk, Run], None] | None = None,
) -> None:
    """One crash state: build it, unless it was seen before, and hand it to the oracle. choices None: a kill."""
    if choices is None:
        after = SimDisk.of(disk.image(), sector=disk.sector)
        allowed = run.allowed(process_only=True)
    else:
        after = disk.crash(units, choices, garbage)
        allowed = run.allowed()
    fingerprint = hash((allowed, run.created, *((path, bytes(inode.cache)) for path, inode in after.names.items())))
    if fingerprint in seen:
        return
    seen.add(fingerprint)
    budget.count()
    here = {**case, "kill": True} if choices is None else {**case, "choices": list(choices), "garbage": garbage}
    with told_as(here):
        if deeper is not None and not budget.states % 16:
            deeper(SimDisk.of(after.image(), sector=after.sector), run)
        verify(
            after,
            [run.states[index] for index in allowed],
            must_exist=run.created,
            page_size=run.page_size,
            monitored=not budget.states & 3,
        )


def machine_of(case: Case) -> Machine:
    """What a case was found on."""
    return Machine(case.get("page_size", PAGE_SIZE), case.get("sector", 512), case.get("growth", 2048))


def replay(case: Case, chooser: Chooser) -> None:
    """Run a case again. Without a point, or without choices: everywhere, in all ways that `chooser` names."""
    choices = case.get("choices")

    def exactly(units: list[Unit], _: random.Random) -> list[tuple[int, ...]]:
        assert choices is not None
        return [tuple((choices + [0] * len(units))[: len(units)])]

    budget = Budget(60.0, case.get("garbage", 0))
    exact = choices is not None and "point" in case
    explore(
        case["steps"],
        exactly if exact else chooser,
        budget,
        machine=machine_of(case),
        kills=bool(case.get("kill")) or not exact,
        point=case.get("point"),
    )


def workloads(budget: Budget, length: int = 12) -> Iterable[tuple[str, list[Step]]]:
    """All workloads, again and again, until the budget is spent."""
    while budget.more():
        for name, make in WORKLOADS.items():
            if not budget.more():
                return
            if budget.workload and budget.workload != name:
                continue
            yield name, make(random.Random(budget.rng.randrange(1 << 30)), length)


__all__ = ["PATH", "Chooser", "Machine", "Violation", "explore", "replay", "workloads"]
