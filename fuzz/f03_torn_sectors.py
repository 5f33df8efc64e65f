"""A torn write is never mistaken for a commit: a meta that is not whole gives way to the commit before it.

F3: each sector that is being written becomes old, new, garbage, zero or half new, alone and with everything else
new; a meta is cut at each of its bytes, from the front and from the back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from limpet.testing import GARBAGE, HALF, NEW, SPLIT, ZERO, Unit, Write

from .crashes import explore, replay, workloads
from .harness import Budget, Case, FaultClass

_LONGEST_RECORD = 128  # bytes; a write of at most this size is cut everywhere


def run(budget: Budget) -> None:
    """All workloads, at every call."""
    for _, steps in workloads(budget, 6):
        explore(steps, _torn, budget)


def _torn(units: list[Unit], rng: random.Random) -> Iterable[tuple[int, ...]]:
    count = len(units)
    for index, unit in enumerate(units):
        if not unit.is_content or unit.inode is None:
            continue
        change = unit.inode.pending[unit.change]
        is_record = type(change) is Write and len(change.data) <= _LONGEST_RECORD
        if not is_record and rng.random() < 0.7:
            continue
        ways = [GARBAGE, ZERO, HALF]
        if is_record:
            ways += [SPLIT + at for at in range(1, unit.size)] + [-at for at in range(1, unit.size)]
        for way in ways:
            yield (NEW,) * index + (way,) + (NEW,) * (count - index - 1)


def _replay(case: Case) -> None:
    replay(case, _torn)


CLASS: FaultClass = FaultClass("F3", "torn, garbage and zero sectors", run, _replay)
