"""A page that is whole but not the one that belongs there is noticed: its parent knows its number and its checksum.

F11: lost writes (an earlier version of a page is put back) and misdirected ones (a page lies where another belongs).
"""

from __future__ import annotations

import random

from .damage import Sample, probe, sample
from .harness import Budget, Case, FaultClass, told_as


def run(budget: Budget) -> None:
    """Every page with every earlier version, and with every other page."""
    while budget.more():
        seed = budget.rng.randrange(1 << 30)
        whole = _whole(seed)
        cases: list[Case] = [
            {"seed": seed, "page": pgno, "version": index}
            for pgno, versions in whole.history.items()
            for index in range(len(versions))
        ]
        count = len(whole.image) // whole.page_size
        cases += [{"seed": seed, "page": a, "other": b} for a in range(4, count) for b in range(4, count) if a != b]
        budget.rng.shuffle(cases)
        for case in cases:
            if not budget.more():
                return
            _one(whole, case, budget)


def _whole(seed: int) -> Sample:
    return sample(random.Random(seed), commits=10, clean=bool(seed & 1))


def _one(whole: Sample, case: Case, budget: Budget) -> None:
    size = whole.page_size
    at = case["page"] * size
    if "other" in case:
        other = whole.image[case["other"] * size : (case["other"] + 1) * size]
    else:
        other = whole.history[case["page"]][case["version"]]
    image = whole.image[:at] + other + whole.image[at + size :]
    last = whole.is_in_last_record(case["page"])
    with told_as(case):
        budget.count(probe(whole, image[: len(whole.image)], fallback=last, check=not budget.states % 16))


def _replay(case: Case) -> None:
    _one(_whole(case["seed"]), case, Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F11", "lost and misdirected writes", run, _replay)
