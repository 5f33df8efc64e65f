"""An upgrade leaves the old file or the new one, whole, whenever it is cut off, and can be done again.

F17: files that format 1 wrote are upgraded on a simulated disk; the power is cut at each call, the upgrade done again
and cut again. Calls fail, too. In the end the file has all its entries, and what was kept of the original is it.
"""

from __future__ import annotations

import errno
import json
import lzma
import random
from itertools import islice
from pathlib import Path

from limpet import CorruptError
from limpet.testing import MUTATIONS, Call, Fault, SimDisk, choices_for
from limpet.upgrade import upgrade_on

from .harness import Budget, Case, FaultClass, no_hang, told_as
from .oracle import PATH, Wrong, abandon, open_sim

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "v1"
KEPT = f"{PATH}.v1.bak"
NAMES = ("512-crc32c-compacted", "512-crc32-unsynced", "512-crc32c-left-open", "1024-crc32-closed")
_DEPTH = 2

Content = list[list[str]]


def run(budget: Budget) -> None:
    """Every call of an upgrade, of several files, again and again."""
    while budget.more():
        for name in NAMES:
            seed = budget.rng.randrange(1 << 30)
            with told_as({"name": name, "seed": seed}):
                _one(name, seed, budget)


def _load(name: str) -> tuple[bytes, Content]:
    image = lzma.decompress((FIXTURES / f"{name}.limpet.xz").read_bytes())
    lines = lzma.decompress((FIXTURES / f"{name}.jsonl.xz").read_bytes()).decode().splitlines()
    return image, [json.loads(line) for line in lines]


def _one(name: str, seed: int, budget: Budget) -> None:
    original, content = _load(name)
    rng = random.Random(seed)
    _fail_once(original, content, rng, budget)
    _cut(SimDisk.of({PATH: original}), original, content, rng, budget, 1)


def _cut(disk: SimDisk, original: bytes, content: Content, rng: random.Random, budget: Budget, depth: int) -> None:
    """Upgrade, with a power cut at each call; each time, do it again."""

    def observe(call: Call) -> None:
        if call.kind not in MUTATIONS or not budget.more():
            return
        units = disk.units()
        for choices in islice(choices_for(len(units), rng), 5 if depth == 1 else 2):
            budget.count(f"depth {depth}")
            after = disk.crash(units, choices, rng.randrange(1 << 20))
            if depth < _DEPTH and rng.random() < 0.2:
                _cut(SimDisk.of(after.image(), sector=after.sector), original, content, rng, budget, depth + 1)
            verify(after, original, content)

    disk.after.append(observe)
    try:
        with no_hang(60.0):
            upgrade_on(disk.file_system(), PATH, lock_timeout=0.0)
    finally:
        disk.after.remove(observe)
    verify(disk, original, content)


def _fail_once(original: bytes, content: Content, rng: random.Random, budget: Budget) -> None:
    """One call fails: the old file stays as it is, and the next upgrade goes through."""
    disk = SimDisk.of({PATH: original})
    code = rng.choice((errno.EIO, errno.ENOSPC))
    disk.fault = Fault(rng.randrange(40), code, False, frozenset(MUTATIONS | {"read"}))
    budget.count(errno.errorcode[code])
    try:
        upgrade_on(disk.file_system(), PATH, lock_timeout=0.0)
    except OSError:
        renamed = disk.content(PATH) != original  # only the sync of the directory failed
        if not renamed and any(path not in (PATH, KEPT) for path in disk.names) and not disk.fault.fired > 1:
            raise Wrong(f"a failed upgrade left {sorted(disk.names)}") from None
    except CorruptError as error:
        raise Wrong(f"a call failed, and the file is called damaged: {error}") from error
    disk.fault = None
    disk.kill()
    verify(disk, original, content)


def verify(disk: SimDisk, original: bytes, content: Content) -> None:
    """The old file or the new one is there; upgraded, it has everything; what was kept is the original."""
    with no_hang():
        if PATH not in disk.names:
            raise Wrong("the file is gone")
        if KEPT in disk.names and disk.content(KEPT) != original:
            raise Wrong("what is kept is not the original")
        upgrade_on(disk.file_system(), PATH, lock_timeout=0.0)
        if disk.content(KEPT) != original:
            raise Wrong("what is kept is not the original")
        db = open_sim(disk, create=False)
        try:
            with db.read() as txn:
                found = [[name, k.hex(), v.hex()] for name in txn.tables() for k, v in txn.table(name).items()]
        finally:
            abandon(db)
        if found != content:
            raise Wrong(f"{len(found)} entries after the upgrade, {len(content)} before, or others")


def _replay(case: Case) -> None:
    with told_as(case):
        _one(case["name"], case["seed"], Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F17", "upgrades cut off, to depth two, and failing calls in them", run, _replay)
