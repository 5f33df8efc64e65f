"""Whenever the power fails, the last acknowledged commit is there, whole, and the database goes on from it.

F1: after each call of each workload, with nothing, with all, and with the first half of what was not synced on
the disk; and with the process dead and the cache alive.
"""

from __future__ import annotations

import random

from limpet.testing import NEW, OLD, Unit

from .crashes import explore, replay, workloads
from .harness import Budget, Case, FaultClass


def run(budget: Budget) -> None:
    """All workloads, at every call."""
    for _, steps in workloads(budget, 24):
        explore(steps, _plain, budget, kills=True)


def _plain(units: list[Unit], _: random.Random) -> list[tuple[int, ...]]:
    count, half = len(units), len(units) // 2
    return [(OLD,) * count, (NEW,) * count, (NEW,) * half + (OLD,) * (count - half)]


def _replay(case: Case) -> None:
    replay(case, _plain)


CLASS: FaultClass = FaultClass("F1", "power cut after every call", run, _replay)
