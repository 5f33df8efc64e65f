"""No flipped bit gives a wrong value: what is read is right, or raises; where it does not matter, nothing happens.

F10: every bit of both metas and of the header, and one random bit of every byte of a file of about 16 pages. A flip in
the newest meta of a file that was not closed looks like a torn commit: the one before may then be shown.
"""

from __future__ import annotations

import random

from limpet.format import BRANCH, FREE_SPACE, LEAF
from limpet.testing import layout_of

from .damage import Sample, probe, sample
from .harness import Budget, Case, FaultClass, told_as
from .oracle import Wrong

_RECORD = 96  # bytes of a meta, and more than those of the header


def flips(whole: Sample, rng: random.Random) -> list[int]:
    """The bits to flip, by their number in the file: all of the metas' and the header's, then one of each byte."""
    bits: list[int] = []
    for pgno in range(3):
        start = pgno * whole.page_size * 8
        bits += range(start, start + _RECORD * 8)
    return bits + [at * 8 + rng.randrange(8) for at in range(len(whole.image))]


def run(budget: Budget) -> None:
    """All flips of one file after the other; after the first, in files of other page sizes too."""
    turn = 0
    while budget.more():
        seed, clean = budget.rng.randrange(1 << 30), bool(turn % 2)
        page_size = (512, 512, 1024, 4096)[turn % 4]
        whole = sample(random.Random(seed), clean=clean, page_size=page_size, commits=4)
        for bit in flips(whole, random.Random(seed)):
            if not budget.more():
                return
            flip(whole, bit, {"seed": seed, "clean": clean, "page_size": page_size, "bit": bit}, budget)
        turn += 1


def flip(whole: Sample, bit: int, case: Case, budget: Budget) -> None:
    """Flip one bit and look."""
    at, mask = bit >> 3, 1 << (bit & 7)
    image = bytearray(whole.image)
    image[at] ^= mask
    layout = layout_of(whole.image)
    assert layout is not None
    with told_as(case):
        newest = layout.commits(whole.image)[-1]
        twins = len({(commit.txid, commit.raw.nonce) for commit in layout.commits(whole.image)}) == 1
        in_newest = (layout.slot_of(at, 1) == newest.slot and not twins) or whole.is_in_last_record(
            at // whole.page_size
        )
        told = probe(whole, bytes(image), fallback=in_newest, check=not budget.states % 8)
        budget.count(told)
        page = at // whole.page_size
        own_checksum = at % whole.page_size < 4  # a copy: what counts is the one in the parent's reference
        if page >= 4 and told == "right" and not own_checksum and page in _needed_and_read(whole):
            raise Wrong(f"a flipped bit in page {page}, which the commit needs, was not noticed")


def _needed_and_read(whole: Sample) -> set[int]:
    """The pages that reading everything has to touch: not those of the map of free space.

    Nor those of large values, if there is a log, which may have later ones.
    """
    if whole.touched is None:
        kinds = {pgno: whole.image[pgno * whole.page_size + 4] for pgno in whole.needed()}
        if whole.records():
            whole.touched = {pgno for pgno, kind in kinds.items() if kind in (LEAF, BRANCH)}
        else:
            whole.touched = {pgno for pgno, kind in kinds.items() if kind != FREE_SPACE}
    return whole.touched


def _replay(case: Case) -> None:
    whole = sample(
        random.Random(case["seed"]), clean=case["clean"], page_size=case["page_size"], commits=case.get("commits", 4)
    )
    flip(whole, case["bit"], case, Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F10", "flipped bits", run, _replay)
