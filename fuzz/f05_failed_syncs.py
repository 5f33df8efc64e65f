"""A sync that fails is told to whoever committed, ends all writing on that handle, and costs no acknowledged commit.

F5: each sync of a workload fails in each of the ways in which file systems fail; then the power is cut, or the
database is opened again in the same boot, where the cache may show bytes that are not on the disk, and then cut.

One exception, which no program can mend: in the mode "ext4-data" the sync of a meta succeeds although it lost it.
That commit was acknowledged and may be missing; or its meta is there and its pages are not, and then the database
says CorruptError, while the commit before is still whole on the disk.
"""

from __future__ import annotations

import random
from itertools import islice

from limpet import CorruptError, LimpetError
from limpet.testing import MUTATIONS, SYNC_FAILURES, Call, SimDisk, SyncFailure, choices_for, layout_of

from .crashes import workloads
from .harness import Budget, Case, FaultClass, told_as
from .oracle import PATH, Run, Wrong, tuned, verify
from .workloads import Step

_AFTERWARDS = 3  # commits after the reopening, with a power cut at each call


def run(budget: Budget) -> None:
    """Every sync of every workload, in every mode."""
    for _, steps in workloads(budget, 8):
        with told_as({"steps": steps}):
            count = _sync_count(steps)
        ways = [(at, mode, reopen) for at in range(count) for mode in SYNC_FAILURES for reopen in (False, True)]
        budget.rng.shuffle(ways)
        for at, mode, reopen in ways[:64]:
            if not budget.more():
                return
            case: Case = {"steps": steps, "at": at, "mode": mode, "reopen": reopen}
            case["seed"] = budget.rng.randrange(1 << 20)
            with told_as(case):
                _one(case, budget)


def _sync_count(steps: list[Step]) -> int:
    """How many syncs a workload makes."""
    disk = SimDisk()
    disk.failure = SyncFailure(-1, "eio")
    run = Run(disk, monitored=False)
    run.go(steps)
    return disk.failure.seen


def _one(case: Case, budget: Budget) -> bool:
    """One failing sync; returns whether the workload has that many."""
    rng = random.Random(case["seed"])
    disk = SimDisk()
    failure = disk.failure = SyncFailure(case["at"], case["mode"], case["seed"])
    late = case["mode"] == "ext4-data"
    run = Run(disk, monitored=not late)  # what the engine was told to be durable is not, and the monitor would see it
    with tuned(run.growth):
        error = _until_it_fails(run, case["steps"])
        if not failure.fired:
            run.abandon()
            return False
        if late and not failure.late and error is None:
            raise Wrong("a sync reported an error, and nobody heard of it")
        if error is not None and run.db is not None:
            _must_refuse(run)
        lowest = min(run.durable_before, run.durable) if late else run.durable
        states = run.states[lowest : run.begun + 1]

        def accept(found: Exception) -> bool:
            return late and isinstance(found, CorruptError) and _previous_is_whole(disk_now)

        if not case["reopen"]:
            units = disk.units()
            for choices in islice(choices_for(len(units), rng), 6):
                budget.count(case["mode"])
                after = disk.crash(units, choices, rng.randrange(1 << 20))
                disk_now = SimDisk.of(after.image())
                verify(after, states, must_exist=run.created, accept=accept)
            run.abandon()
            return True
        run._forget_readers()
        if run.db is not None:
            run.db.close()
            run.db = None
        disk.failure = None
        disk.kill()
        disk_now = SimDisk.of({path: inode.on_disk() for path, inode in disk.names.items()})
        created = run.created
        try:
            run.open()
            if created:
                run._adopt(range(lowest, run.begun + 1))
            run.durable = run.begun  # the disk was read, not the cache: what it showed stays
            _commit_and_cut(run, rng, budget, case["mode"])
        except CorruptError as found:
            run.abandon()
            if not accept(found):
                raise
    return True


def _until_it_fails(run: Run, steps: list[Step]) -> Exception | None:
    try:
        run.open()
        for step in steps:
            run.step(step)
        run.close()
    except (OSError, LimpetError) as error:
        return error
    return None


def _must_refuse(run: Run) -> None:
    """After the failure: a commit either goes nowhere, or starts from a state that is sound."""
    db = run.db
    assert db is not None
    if db._chain.failure is None:
        return  # the failure was in a backup or a copy, which the database itself does not depend on
    for attempt in (db.write, db.read, db.flush):
        try:
            attempt()
        except LimpetError:
            continue
        raise Wrong(f"{attempt.__name__}() works after a failed sync")


def _previous_is_whole(disk: SimDisk) -> bool:
    image = disk.content(PATH)
    layout = layout_of(image)
    if layout is None:
        return False
    return any(not layout.problems(image, commit) for commit in layout.commits(image))


def _commit_and_cut(run: Run, rng: random.Random, budget: Budget, mode: str) -> None:
    """Go on in the same boot, and cut the power at each call."""
    disk = run.disk

    def observe(call: Call) -> None:
        if call.kind not in MUTATIONS:
            return
        units = disk.units()
        for choices in islice(choices_for(len(units), rng), 4):
            budget.count(mode)
            after = disk.crash(units, choices, rng.randrange(1 << 20))
            verify(after, [run.states[index] for index in run.allowed()], must_exist=True, monitored=False, more=1)

    disk.after.append(observe)
    try:
        for number in range(_AFTERWARDS):
            run.step(
                ["commit", "sync", [["put", "later", number, 30, 900 + number], ["put", "kv", number, 200, number]]]
            )
        run.close()
    finally:
        disk.after.remove(observe)
        run.abandon()


def _replay(case: Case) -> None:
    with told_as(case):
        _one(case, Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F5", "failed syncs, four ways", run, _replay)
