"""Bytes behind the end of the data, from a copier or a lost truncation, harm nobody; a size that was lost neither.

F8: 1 to 8192 bytes of junk or zeros are appended to closed and to crashed files. (Sizes that a power cut did not keep
are units of F2.)
"""

from __future__ import annotations

import random

from limpet.testing import SimDisk

from .damage import sample
from .harness import Budget, Case, FaultClass, told_as
from .oracle import PATH, verify


def run(budget: Budget) -> None:
    """Sizes of all kinds, for as long as there is time."""
    sizes = [1, 95, 96, 511, 512, 513, 2048, 4095, 4096, 8192]
    while budget.more():
        for size in [*sizes, budget.rng.randint(1, 8192)]:
            if budget.more():
                case = {"seed": budget.rng.randrange(1 << 30), "size": size, "clean": bool(budget.rng.randrange(2))}
                budget.count()
                _replay(case)


def _replay(case: Case) -> None:
    rng = random.Random(case["seed"])
    with told_as(case):
        whole = sample(rng, clean=case["clean"])
        for junk in (rng.randbytes(case["size"]), bytes(case["size"])):
            disk = SimDisk.of({PATH: whole.image + junk})
            verify(disk, [whole.by_txid[whole.newest]], must_exist=True)


CLASS: FaultClass = FaultClass("F8", "junk behind the end", run, _replay)
