"""Whatever part of the unsynced writes a power cut leaves, in whatever order, the last acknowledged commit is there.

F2: at each call, subsets of the sectors, sizes and names that were not synced: all of them up to ten units; beyond
that every prefix, all but one, only one, and random ones with garbage and zeros among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice

from limpet.testing import Unit, choices_for

from .crashes import Machine, explore, replay, workloads
from .harness import Budget, Case, FaultClass

_MACHINES = (Machine(), Machine(), Machine(growth=512), Machine(4096, 4096, 16384))


def run(budget: Budget) -> None:
    """All workloads, at every call, on small and on large sectors."""
    for number, (_, steps) in enumerate(workloads(budget, 8)):
        machine = _MACHINES[number % len(_MACHINES)]
        explore(steps, _subsets, budget, machine=machine)


def _subsets(units: list[Unit], rng: random.Random) -> Iterable[tuple[int, ...]]:
    count = len(units)
    every = list(islice(choices_for(count, rng), 4 * count + 2 + (1 << count if count <= 6 else 0) + 12 * bool(count)))
    if len(every) > 48:
        every = every[:8] + rng.sample(every[8:], 40)
    return every


def _replay(case: Case) -> None:
    replay(case, _subsets)


CLASS: FaultClass = FaultClass("F2", "any subset of unsynced sectors, sizes, names", run, _replay)
