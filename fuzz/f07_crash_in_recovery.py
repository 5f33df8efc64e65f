"""A power cut during recovery costs nothing either, nor does one during the recovery from that.

F7: disks after a power cut are opened, and the power fails again at each call of the opening and of the first
commit after it; disks after that, once more. Opening twice leaves the same bytes as opening once. Compaction and
backup are part of the workloads, so their calls are cut into as well.
"""

from __future__ import annotations

import random
from itertools import islice

from limpet.testing import MUTATIONS, Call, SimDisk, choices_for, layout_of

from .crashes import explore, replay, workloads
from .f02_unsynced_subsets import _subsets
from .harness import Budget, Case, FaultClass
from .oracle import PATH, Run, Wrong, abandon, open_sim, verify
from .workloads import Model, apply_to_model

_DEPTH = 2
_CHANGE = [["put", "recovered", 1, 60, 7]]


def run(budget: Budget) -> None:
    """Power cuts in workloads, and in what follows them."""
    for _, steps in workloads(budget, 8):

        def deeper(disk: SimDisk, run: Run) -> None:
            states = [run.states[index] for index in run.allowed()]
            again(disk, states, run.created, run.page_size, budget, random.Random(budget.states), 1)

        explore(steps, _subsets, budget, deeper=deeper)


def again(
    disk: SimDisk, states: list[Model], must_exist: bool, page_size: int, budget: Budget, rng: random.Random, depth: int
) -> None:
    """Open a disk after a fault, commit once, and cut the power at each call of that."""
    _same_twice(disk, page_size)
    begun = False
    acknowledged = False
    created = must_exist

    def observe(call: Call) -> None:
        if call.kind not in MUTATIONS or not budget.more():
            return
        allowed = [after] if acknowledged else [*states, after] if begun else states
        units = disk.units()
        for choices in islice(choices_for(len(units), rng), 10 if depth == 1 else 4):
            budget.count(f"depth {depth}")
            cut = disk.crash(units, choices, rng.randrange(1 << 20))
            if depth < _DEPTH and rng.random() < 0.1:
                copy = SimDisk.of(cut.image(), sector=cut.sector)
                again(copy, allowed, created, page_size, budget, rng, depth + 1)
            verify(cut, allowed, must_exist=created, page_size=page_size, monitored=False, more=1)

    after = apply_to_model(states[-1], _CHANGE)
    disk.after.append(observe)
    db = open_sim(disk, page_size=page_size)
    try:
        created = True
        transaction = db.write()
        with db.read() as snapshot:
            found = {name: dict(snapshot.table(name).items()) for name in snapshot.tables()}
        if found not in states:
            raise Wrong("the recovered content is none of the states that may be there")
        states = [found]
        after = apply_to_model(found, _CHANGE)
        transaction.table("recovered")[b"key-000001"] = after["recovered"][b"key-000001"]
        begun = True
        transaction.commit()
        acknowledged = True
    finally:
        disk.after.remove(observe)
        abandon(db)


def _same_twice(disk: SimDisk, page_size: int) -> None:
    """Recovery is idempotent: opened twice, the file is what it was after the first time, the advisory note aside."""
    copy = SimDisk.of(disk.image(), sector=disk.sector)
    images = []
    for _ in range(2):
        abandon(open_sim(copy, page_size=page_size))
        copy.kill()
        image = bytearray(copy.content(PATH))
        layout = layout_of(image)
        assert layout is not None
        for at in range(0, len(image), layout.page_size):
            if layout.is_advisory(at, layout.page_size):
                image[at : at + layout.page_size] = bytes(layout.page_size)
        images.append(bytes(image))
    if images[0] != images[1]:
        raise Wrong("opening a second time changed the file")


def _replay(case: Case) -> None:
    replay(case, _subsets)


CLASS: FaultClass = FaultClass("F7", "power cut during recovery, to depth two", run, _replay)
