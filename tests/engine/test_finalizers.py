"""Finalizers run wherever the collector comes by: in the middle of a commit, of a look-up, of a finalizer.

A `__del__` that only read hung on the lock of the page cache, which its own thread held; one that wrote had its record
written by the flush it had interrupted, and poisoned the database or freed pages twice. Every threshold moves the
moments at which the collector comes by to others.
"""

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import limpet

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the fuzzers are not installed; they lie beside the tests

from fuzz.harness import quiet  # noqa: E402 the path comes first
from fuzz.oracle import PATH, difference, read_all, tuned  # noqa: E402 the path comes first
from fuzz.spots import Watch  # noqa: E402 the path comes first

from limpet.database import open_on  # noqa: E402 the path comes first
from limpet.testing import SimDisk  # noqa: E402 the path comes first

THRESHOLDS = (1, 37, 61, 101, 700)  # the last one is CPython's own
COMMITS = 60
KEYS = 40


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    """Only what the test makes is looked at by the collector, at the thresholds that it sets."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    try:
        with quiet():
            yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Forgotten:
    """Part of a cycle; its finalizer uses the database."""

    def __init__(self, final: Callable[[], None]) -> None:
        self.final = final
        self.itself = self

    def __del__(self) -> None:
        self.final()


class Program:
    """Commits whose finalizers use the same database."""

    def __init__(self, kind: str, durability: str, rng: random.Random) -> None:
        self.kind = kind
        self.durability = durability
        self.rng = rng
        self.disk = SimDisk()
        self.db = open_on(self.disk.file_system(), PATH, page_size=512, cache_size=1 << 11, lock_timeout=0.0)
        self.rows: dict[bytes, bytes] = {}
        self.errors: list[BaseException] = []
        self.finalized = self.busy = self.number = 0

    def commit(self) -> None:
        self.number += 1
        number, key = self.number, b"%d" % self.rng.randrange(1, KEYS)
        value = b"%d " % number + b"x" * self.rng.choice((5, 30, 200, 900))
        with self.db.write(durability=self.durability) as transaction:
            rows = transaction.table("rows")
            rows[key + b"/%d" % number] = value
            doomed = [each for each in self.rows if each.startswith(key + b"/")][:2]
            for each in doomed:
                del rows[each]
        self.rows[key + b"/%d" % number] = value
        for each in doomed:
            self.rows.pop(each, None)

    def look(self) -> None:
        """Look up more than the cache holds."""
        with self.db.read() as transaction:
            rows = transaction.table("rows")
            for key in self.rng.sample(sorted(self.rows), min(20, len(self.rows))):
                rows.get(key)

    def final(self) -> None:
        """What a finalizer does."""
        self.finalized += 1
        try:
            if self.kind == "reads":
                with self.db.read() as transaction:
                    found = dict(transaction.table("rows").items())
                    for key in list(found)[:3]:
                        assert transaction.table("rows").get(key) == found[key]
            elif self.kind == "forgets":
                holder: list[Any] = [self.db.read()]
                holder[0].table("rows").get(b"1")
                holder.append(holder)
            else:
                self.commit_in_finalizer()
        except limpet.BusyError:
            self.busy += 1
        except BaseException as error:  # noqa: BLE001 a finalizer's errors go nowhere by themselves
            self.errors.append(error)

    def commit_in_finalizer(self) -> None:
        self.number += 1
        key, value = b"final/%d" % self.number, b"%d" % self.number
        with self.db.write(durability=self.durability) as transaction:
            transaction.table("rows")[key] = value
        self.rows[key] = value


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["reads", "forgets", "writes"])
@pytest.mark.parametrize("durability", ["sync", "os", "none"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_finalizers_lose_nothing_and_wait_for_nobody(threshold: int, durability: str, kind: str, seed: int) -> None:
    program = Program(kind, durability, random.Random(seed))
    with tuned(2048), Watch(8.0) as watch:
        gc.set_threshold(threshold, 10, 10)
        for _ in range(COMMITS):
            Forgotten(program.final)
            program.commit()
            Forgotten(program.final)
            program.look()
        gc.set_threshold(700, 10, 10)
        gc.collect()
        assert not watch.fired, watch.fired
        assert not program.errors, program.errors[0]
        assert program.finalized == 2 * COMMITS
        if program.busy:
            print(f"{program.busy} of {2 * COMMITS} finalizers were told BusyError")
        _compare(program.db, program.rows)
        program.db.close()
    with tuned(2048), open_on(SimDisk.of({PATH: program.disk.content(PATH)}).file_system(), PATH) as db:
        _compare(db, program.rows)


def _compare(db: limpet.Database, rows: dict[bytes, bytes]) -> None:
    found = read_all(db)
    assert found == {"rows": rows}, difference(found, {"rows": rows})
    report = db.check()
    assert report.ok, report.errors[:3]


def test_threads_that_nest_writes_are_refused_and_never_wait(tmp_path: Path) -> None:
    """The mark of the thread that writes was cleared after the writer had been given away, and could be another's."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    waited: list[float] = []
    counts = [0] * 4
    over = time.monotonic() + 2.0
    with limpet.open(tmp_path / "nested.limpet", durability="none") as db:

        def work(index: int) -> None:
            while time.monotonic() < over:
                with db.write() as transaction:
                    started = time.monotonic()
                    with pytest.raises(limpet.BusyError):
                        db.write(timeout=5.0)
                    waited.append(time.monotonic() - started)
                    if not counts[index] % 5:
                        transaction.table("t")[b"%d" % index] = b"%d" % counts[index]
                counts[index] += 1

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(4)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30.0)
                assert not thread.is_alive(), "a thread waits for itself"
        finally:
            sys.setswitchinterval(before)
        assert max(waited) < 4.0
        print(f"{sum(counts)} transactions, the longest refusal took {max(waited) * 1000:.1f} ms")
        assert db.check().ok
