"""Any code may run between two lines of the engine and use the same database: it works completely or is told BusyError.

A commit from a signal handler ran inside the flush of the commit under way, took a stale predecessor for its record,
and the file then broke off or lost both rows; a finalizer that only read hung on a lock of its own thread. So every
line of a call is visited here, with every other call made at it. fuzz/f18_reentry.py goes on where this has no time to.
"""

import errno
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import limpet

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the fuzzers are not installed; they lie beside the tests

from fuzz.f18_reentry import (  # noqa: E402 the path comes first
    Account,
    exhaust,
    one,
    steady,
)
from fuzz.harness import quiet  # noqa: E402 the path comes first
from fuzz.interruptions import INNERS  # noqa: E402 the path comes first
from fuzz.oracle import PATH, open_sim, read_all, tuned  # noqa: E402 the path comes first
from fuzz.reentry import Folder, Helper, outer_spots  # noqa: E402 the path comes first
from fuzz.scenarios import OUTERS  # noqa: E402 the path comes first
from fuzz.spots import VisitNumber, Watch, is_still, tracing  # noqa: E402 the path comes first

from limpet.testing import Call, Fault, SimDisk  # noqa: E402 the path comes first

# What a failed state leaves behind is found by the collector during the next test, which it should not fail.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PLAIN = [name for name in INNERS if name != "other thread"]  # that one waits for a thread each time
# Others come to the same lines in much the same way: a third of the lines is enough for these.
SIMILAR = {"commit os", "hold reader", "stats", "trim", "finalizer that reads", "forgotten reader", "MemoryError"}


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    with quiet(), steady():
        yield


@pytest.mark.parametrize("inner", PLAIN)
def test_at_every_line_of_a_commit(inner: str, seed: int) -> None:
    account = Account()
    every = 3 if inner in SIMILAR else 1
    exhaust("commit sync", [inner], account, every=every, first=seed)
    print(account, f"seed {seed}")
    assert account.states > 200 // every
    assert account.missed == 0


@pytest.mark.parametrize("outer", [name for name in OUTERS if name != "commit sync"])
def test_at_lines_of_every_call(outer: str, seed: int) -> None:
    """One of the inner calls at each line of the short calls, and at one line of eight of the long ones."""
    account = Account()
    share = OUTERS[outer].share
    exhaust(outer, PLAIN, account, every=len(PLAIN) * share, first=seed)
    print(account, f"seed {seed}")
    assert account.states >= account.lines[outer] // (share * 2)
    assert account.missed <= account.states // 50


@pytest.mark.parametrize("outer", ["commit sync", "large value", "compact", "read"])
def test_at_lines_of_calls_on_real_files(outer: str, tmp_path: Path, seed: int) -> None:
    account = Account()
    exhaust(outer, PLAIN, account, every=len(PLAIN) * 12, first=seed, folder=Folder(str(tmp_path)))
    print(account, f"seed {seed}")
    assert account.states > 20


@pytest.mark.parametrize("outer", ["commit sync", "commit none", "abort"])
def test_the_next_writer_is_known_as_soon_as_it_has_the_writer(outer: str) -> None:
    """A thread that gives the writer back erased the mark of the thread that had taken it since.

    A nested `write()` of that thread was then not refused, but waited for itself.
    """
    spots = outer_spots(OUTERS[outer], opcodes=True)
    low, high = len(spots) // 3, len(spots) - 1  # the outer call has the writer at the first, and not at the last
    while one(outer, spots[low], "other thread") != ["busy"]:
        low += 7
    assert one(outer, spots[high], "other thread") == ["works"]
    while high - low > 1:
        middle = (low + high) // 2
        if one(outer, spots[middle], "other thread") == ["busy"]:
            low = middle
        else:
            high = middle
    for spot in spots[max(0, low - 20) : high + 40]:
        one(outer, spot, "other thread")


def test_a_poisoned_database_stays_so() -> None:
    """A flush that ended published its commit after another thread had poisoned the database.

    Readers then went on, and writers were told to close it.
    """
    kinds = set()
    for number in range(400):
        kind, reached = _interrupted_beside_a_flush(number)
        kinds.add(kind)
        if not reached:
            break
    print(f"another thread interrupted at {number} lines: {sorted(kinds)}")
    assert number > 50


def _interrupted_beside_a_flush(number: int) -> tuple[str, bool]:
    """While this thread syncs, another one's commit is interrupted at its line `number`."""
    disk = SimDisk()
    main = threading.get_ident()
    visits: list[VisitNumber] = []
    helpers: list[Helper] = []

    def fail() -> None:
        raise MemoryError

    def other() -> None:
        visits.append(VisitNumber(number, fail, clean=True))
        try:
            with tracing(visits[0]), db.write(durability="none") as transaction:
                transaction.table("t")[b"other"] = b"1"
        except (MemoryError, limpet.PoisonedError):
            pass

    def gate(call: Call) -> None:
        if call.kind in ("sync", "sync_range") and threading.get_ident() == main and not helpers:
            helpers.append(Helper(other))
            while helpers[0].is_alive() and not is_still(helpers[0].ident or 0):
                pass

    with tuned(2048), Watch(10.0):
        db = open_sim(disk)
        with db.write() as transaction:
            transaction.table("t")[b"first"] = b"1"
        disk.before.append(gate)
        try:
            with db.write() as transaction:
                transaction.table("t")[b"main"] = b"1"
        except limpet.PoisonedError:
            acknowledged = False
        else:
            acknowledged = True
        helpers[0].finish()
        told = {name: _state_of_life(call) for name, call in _calls(db, disk).items()}
        if told["write"] == "busy":
            return "busy", True
        db.close()
        disk.kill()
        with open_sim(SimDisk.of({PATH: disk.content(PATH)}), create=False) as db:
            rows = read_all(db)["t"]
            assert b"first" in rows
            assert not acknowledged or b"main" in rows
            assert db.check().ok
    assert len(set(told.values())) == 1, told
    return told["write"], visits[0].lines > number


def _calls(db: limpet.Database, disk: SimDisk) -> dict[str, Callable[[], object]]:
    return {
        "write": lambda: db.write(timeout=1).abort(),
        "read": lambda: db.read().close(),
        "flush": db.flush,
        "stats": db.stats,
        "check": db.check,
        "backup": lambda: db.backup("/sim/copy", overwrite=True),
    }


def _state_of_life(call: Callable[[], object]) -> str:
    try:
        call()
    except limpet.PoisonedError:
        return "poisoned"
    except limpet.BusyError:  # the interrupt came where nothing can give the writer back; see test_at_every_line
        return "busy"
    return "open"


def test_undone_commits_do_not_fill_the_log() -> None:
    """Changes of commits that a full disk undid went on being counted, so that a log with room became a checkpoint."""
    disk = SimDisk()
    db = open_sim(disk, page_size=4096)
    with db.write() as transaction:
        transaction.table("t")[b"a"] = b"1"
    for number in range(60):
        disk.fault = Fault(0, errno.ENOSPC, forever=True, kinds=frozenset({"write"}))
        transaction = db.write()
        for key in range(100):
            transaction.table("t")[b"%d" % key] = b"%d" % number
        with pytest.raises(OSError, match="space"):
            transaction.commit()
        disk.fault = None
    checkpoints = db.stats().checkpoints
    with db.write() as transaction:
        for key in range(100):
            transaction.table("t")[b"%d" % key] = b"1"
    assert db.stats().checkpoints == checkpoints
    assert read_all(db) == {"t": {b"a": b"1"} | {b"%d" % key: b"1" for key in range(100)}}
    assert db.check().ok
    db.close()
