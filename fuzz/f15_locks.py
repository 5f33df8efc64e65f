"""Nobody writes without the lock: it is waited for, for a bounded time, and whoever holds it is named.

F15: a lock that is taken n times and then free, or never; file systems that cannot lock; two opens in one process,
by other names of the file too; a fork with the database open, whose child must not touch the parent's file.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import limpet
from limpet.database import open_on
from limpet.testing import SimDisk

from .damage import sample
from .harness import Budget, Case, FaultClass, told_as
from .oracle import PATH, Wrong, read_all


def run(budget: Budget) -> None:
    """All of it, again and again."""
    while budget.more():
        case: Case = {"seed": budget.rng.randrange(1 << 30)}
        _all(case, budget)


def _all(case: Case, budget: Budget) -> None:
    with told_as(case):
        rng = random.Random(case["seed"])
        for attempt in (_busy, _cannot_lock, _twice, _forked):
            attempt(rng, budget)


def _busy(rng: random.Random, budget: Budget) -> None:
    for tries, timeout in ((rng.randint(1, 4), 1.0), (1 << 30, 0.0), (1 << 30, rng.random() * 0.05)):
        budget.count("busy")
        whole = sample(rng, commits=2)
        disk = SimDisk.of({PATH: whole.image})
        disk.refuse_locks = tries
        started = time.monotonic()
        try:
            with open_on(disk.file_system(), PATH, lock_timeout=timeout):
                if tries > 4:
                    raise Wrong("opened although the lock was never free")
        except limpet.LockedError as error:
            if tries <= 4:
                raise
            if time.monotonic() - started > timeout + 1.0:
                raise Wrong("waited much longer than asked to") from error
            if disk.content(PATH) != whole.image:
                raise Wrong("written without the lock") from error


def _cannot_lock(rng: random.Random, budget: Budget) -> None:
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO):
        budget.count("cannot lock")
        whole = sample(rng, commits=2)
        disk = SimDisk.of({PATH: whole.image})
        disk.lock_error = number
        try:
            with open_on(disk.file_system(), PATH, lock_timeout=0):
                raise Wrong("opened without a lock")
        except OSError as error:
            if error.errno != number or disk.content(PATH) != whole.image:
                raise Wrong(f"{error!r} in place of {os.strerror(number)}, or the file was changed") from error


def _twice(rng: random.Random, budget: Budget) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, symbolic, hard = (Path(folder) / name for name in ("a.limpet", "b.limpet", "c.limpet"))
        with limpet.open(path) as db:
            symbolic.symlink_to(path)
            os.link(path, hard)
            for other in (path, symbolic, hard):
                budget.count("twice")
                for read_only in (False, True):
                    try:
                        limpet.open(other, read_only=read_only, lock_timeout=rng.random() * 0.01)
                    except limpet.LockedError:
                        continue
                    raise Wrong(f"opened a second time, as {other.name}")
            with db.write() as transaction:
                transaction.table("t")[b"k"] = b"v"


def _forked(rng: random.Random, budget: Budget) -> None:
    """The child gets errors and touches nothing; the parent goes on; the lock lasts as long as the parent."""
    budget.count("forked")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forked.limpet"
        with limpet.open(path, page_size=512) as db:
            with db.write() as transaction:
                transaction.table("t")[b"k"] = b"v"
            before = path.read_bytes()
            reader = db.read()
            sys.stdout.flush()
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = _child(db, path)
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            if status:
                raise Wrong(f"in a forked child: {_CODES.get(os.waitstatus_to_exitcode(status), status)}")
            if path.read_bytes() != before:
                raise Wrong("a forked child changed the file")
            if reader.table("t")[b"k"] != b"v":
                raise Wrong("the parent's snapshot is gone")
            reader.close()
            with db.write() as transaction:
                transaction.table("t")[b"l"] = rng.randbytes(10)
            expected = read_all(db)
        with limpet.open(path) as db:
            if read_all(db) != expected:
                raise Wrong("after a fork the parent's commits are not there")


_CODES = {2: "it can write", 3: "it can read", 4: "it got the lock", 5: "close() raises"}


def _child(db: limpet.Database, path: Path) -> int:
    try:
        with db.write() as transaction:
            transaction.table("t")[b"child"] = b"1"
        return 2
    except limpet.ClosedError:
        pass
    try:
        with db.read() as snapshot:
            dict(snapshot.table("t").items())
        return 3
    except limpet.ClosedError:
        pass
    try:
        limpet.open(path, lock_timeout=0)
        return 4
    except limpet.LockedError:
        pass
    try:
        db.close()
    except limpet.LimpetError:
        return 5
    return 0


def _replay(case: Case) -> None:
    _all(case, Budget(60.0, 0))


CLASS: FaultClass = FaultClass("F15", "locks, double opens, forks", run, _replay)
