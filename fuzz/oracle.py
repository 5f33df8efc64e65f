"""What must be true after anything: the content is that of a commit that may be there, whole, and the database goes on.

A Run carries out the steps of a workload on a simulated disk and knows at each moment which commits
have begun, which were acknowledged, and how strongly. `verify` opens a disk after a fault and demands:

    the content equals one of the states that may be there: after the last acknowledged commit, or
    plus exactly the one in flight; after weaker commits, any prefix not older than the last durable
    the structure is whole, by the engine's own check and by the harness's
    three more commits and a reopening succeed, with all monitors watching
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import limpet
from limpet import (
    CorruptError,
    Database,
    LimpetError,
    ReadTransaction,
    books,  # the modules: steps of growth and the size of the log are tuned
    log,
)
from limpet.database import open_on
from limpet.testing import Monitor, SimDisk, layout_of

from .harness import Hang, no_hang
from .workloads import Model, Step, apply_to_model, apply_to_transaction, key_bytes, value_bytes

PATH = "/sim/test.limpet"
BACKUP = "/sim/backup.limpet"
PAGE_SIZE = 512
CACHE_SIZE = 1 << 16  # small, so that pages are read again and verified
LOG_PAGES = 8  # the engine's own log would hold all that a workload does
GROWTH = 2048  # bytes; the engine's own step would hide the growth of such small files


class Wrong(AssertionError):
    """The oracle's verdict."""


def open_sim(
    disk: SimDisk,
    *,
    page_size: int = PAGE_SIZE,
    create: bool = True,
    read_only: bool = False,
    durability: str = "sync",
    path: str = PATH,
) -> Database:
    """Open the test's database on a simulated disk."""
    return open_on(
        disk.file_system(),
        path,
        create=create,
        read_only=read_only,
        page_size=page_size,
        cache_size=CACHE_SIZE,
        durability=durability,
        lock_timeout=0.0,
    )


def content_of(transaction: ReadTransaction) -> Model:
    """Everything that a snapshot holds; every table is read by a scan, and its length compared."""
    content: Model = {}
    for name in transaction.tables():
        table = transaction.table(name)
        content[name] = dict(table.items())
        if len(table) != len(content[name]):
            raise Wrong(f"table {name}: len() is {len(table)}, a scan finds {len(content[name])}")
    return content


def read_all(db: Database) -> Model:
    """The content of the newest commit."""
    with db.read() as transaction:
        return content_of(transaction)


def compare_points(db: Database, model: Model) -> None:
    """Look up every key on its own, and some that are not there."""
    with db.read() as transaction:
        for name, entries in model.items():
            table = transaction.table(name)
            for key, value in entries.items():
                if table.get(key) != value:
                    raise Wrong(f"table {name}: {key!r} is found by a scan, and otherwise by a look-up")
                if table.get(key + b"!") is not None:
                    raise Wrong(f"table {name}: a key that was never there is found")


class Run:
    """A workload on a simulated disk, and what may be asked of it at any moment.

    states     the content after each commit, the empty database first
    durable    index of the newest state that survives a power cut for certain
    durable_before  the one that was so before that
    survives   the same for the death of the process
    begun      index of the newest state that might be there
    created    whether `open` has returned once
    strength   of the newest commit
    """

    def __init__(
        self,
        disk: SimDisk,
        *,
        page_size: int = PAGE_SIZE,
        growth: int = GROWTH,
        monitored: bool = True,
        tolerant: bool = False,
    ) -> None:
        self.disk = disk
        self.page_size = page_size
        self.growth = growth
        self.tolerant = tolerant
        self.monitor = Monitor(disk) if monitored else None
        self.db: Database | None = None
        self.states: list[Model] = [{}]
        self.durable = self.survives = self.begun = self.durable_before = 0
        self.created = False
        self.strength = "sync"
        self.readers: list[tuple[ReadTransaction, Model, int]] = []  # and the checkpoint that the snapshot stands on
        self.errors: list[BaseException] = []
        self.poisoned = False

    def allowed(self, *, process_only: bool = False) -> range:
        """Indexes of the states that may be there after a power cut, or after the death of the process."""
        return range(self.survives if process_only else self.durable, self.begun + 1)

    def go(self, steps: Sequence[Step]) -> None:
        """Open, carry out the steps, close."""
        with tuned(self.growth):
            self.open()
            for step in steps:
                self.step(step)
            self.close()

    def open(self) -> None:
        """Open the database; a tolerant run tries twice."""
        for attempt in range(3):
            try:
                self._open()
                return
            except (OSError, LimpetError) as error:
                if not self.tolerant or attempt == 2:
                    raise
                self._note(error)

    def _open(self) -> None:
        if self.monitor is not None:
            with self.monitor.opening():
                self.db = open_sim(self.disk, page_size=self.page_size)
        else:
            self.db = open_sim(self.disk, page_size=self.page_size)
        self.created = True
        self.poisoned = False

    def step(self, step: Step) -> None:
        """Carry out one step; a tolerant run notes errors, and opens the database again where it has to."""
        if not self.tolerant:
            self._step(step)
            return
        count = len(self.states)
        try:
            self._step(step)
        except (OSError, LimpetError) as error:
            self._note(error)
            self._recover(count)

    def _step(self, step: Step) -> None:
        kind, *rest = step
        db = self.db
        assert db is not None
        if kind == "commit":
            self._commit(db, rest[0], rest[1])
        elif kind == "abort":
            transaction = db.write()
            apply_to_transaction(transaction, rest[0])
            transaction.abort()
        elif kind == "read":
            reader = db.read()
            self.readers.append((reader, self.states[-1], db._committer.books.ledger.base.snapshot.txid))
            if self.monitor is not None:
                self.monitor.pin(db._committer.books.ledger.base.snapshot.txid)
        elif kind == "unread":
            self.end_reader()
        elif kind == "flush":
            db.flush()
            self._made_durable()
        elif kind == "compact":
            db.compact()
            self._made_durable()
        elif kind == "backup":
            db.backup(BACKUP, overwrite=True)
        elif kind == "reopen":
            self.close()
            self.open()
        elif kind == "die":
            self._forget_readers()
            self.disk.kill()
            self.db = None
            lowest = self.survives
            self.open()
            self._adopt(range(lowest, self.begun + 1))
        else:
            raise ValueError(f"unknown step {kind!r}")

    def _commit(self, db: Database, durability: str, changes: list[Step]) -> None:
        transaction = db.write(durability=durability)
        try:
            apply_to_transaction(transaction, changes)
            self.strength = durability
            after = apply_to_model(self.states[-1], changes)
            self.states.append(after)
            self.begun = len(self.states) - 1
            transaction.commit()
        except BaseException:
            if transaction.is_open:
                transaction.abort()
            raise
        if after == self.states[self.begun - 1]:
            return  # nothing changed, so nothing was committed, and weaker commits before are as weak as they were
        if durability != "none":
            self.survives = self.begun
        if durability == "sync":
            self._made_durable()

    def _made_durable(self) -> None:
        """The newest state was acknowledged as durable."""
        if self.durable != len(self.states) - 1:
            self.durable_before = self.durable
        self.durable = self.survives = len(self.states) - 1

    def end_reader(self) -> None:
        """Compare the oldest snapshot that is open with its state, and close it."""
        if self.readers:
            reader, model, base = self.readers.pop(0)
            try:
                if content_of(reader) != model:
                    raise Wrong(f"the snapshot of commit {reader.txid} has changed while it was open")
            finally:
                self._unpin(reader, base)

    def _unpin(self, reader: ReadTransaction, base: int) -> None:
        if self.monitor is not None:
            self.monitor.unpin(base)
        reader.close()

    def _forget_readers(self) -> None:
        while self.readers:
            reader, _, base = self.readers.pop()
            self._unpin(reader, base)

    def close(self) -> None:
        """Close the database."""
        db, self.db = self.db, None
        if db is None:
            return
        while self.readers:
            self.end_reader()
        try:
            db.close()
        except (OSError, LimpetError) as error:
            if not self.tolerant:
                raise
            self._note(error)
            return
        self._made_durable()

    def abandon(self) -> None:
        """Let go of the database without closing it well; faults are over."""
        self._forget_readers()
        db, self.db = self.db, None
        if db is not None:
            self.disk.fault = self.disk.failure = None
            db._chain.failure = db._chain.failure or LimpetError("abandoned by the test")
            db.close()

    def _note(self, error: BaseException) -> None:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise Wrong(f"an OSError without the name of the file: {error!r}") from error
        self.errors.append(error)

    def _recover(self, count: int) -> None:
        """After a failed step: a usable database is as it was, with `count` states; a poisoned one is opened again."""
        db = self.db
        if db is None:
            self.open()
            self._adopt(self.allowed())
            return
        found: Model = {}
        try:
            found = read_all(db)
        except limpet.PoisonedError:
            self.poisoned = True
        except OSError:  # the disk cannot be read now; but the handle is not poisoned, so the commit was undone
            del self.states[count:]
            self.begun = len(self.states) - 1
            return
        if not self.poisoned:
            lowest = self.survives
            self._adopt_content(found, range(lowest, self.begun + 1))
            return
        try:
            with db.write():
                raise Wrong("a poisoned database lets itself be written")
        except limpet.PoisonedError:
            pass
        lowest = self.durable
        self._forget_readers()
        db.close()
        self.db = None
        self.open()
        self._adopt(range(lowest, self.begun + 1))

    def _adopt(self, allowed: range) -> None:
        assert self.db is not None
        self._adopt_content(read_all(self.db), allowed)

    def _adopt_content(self, found: Model, allowed: range) -> None:
        """Take what is there for the newest state, if it is one that may be."""
        for index in reversed(allowed):
            if self.states[index] == found:
                del self.states[index + 1 :]
                self.begun = len(self.states) - 1
                self.survives = self.begun
                self.durable = min(self.durable, self.begun)
                return
        raise Wrong(f"the content is none of the states {list(allowed)}: {difference(found, self.states[allowed[-1]])}")


class tuned:  # noqa: N801  # used like a function, as contextlib's own
    """While entered, files grow in steps of `growth` bytes and have a short log: small ones grow and fold it often."""

    def __init__(self, growth: int) -> None:
        self._growth = growth

    def __enter__(self) -> None:
        self._before = books._MIN_GROWTH, log._MIN_PAGES
        books._MIN_GROWTH, log._MIN_PAGES = self._growth, LOG_PAGES

    def __exit__(self, *_: object) -> None:
        books._MIN_GROWTH, log._MIN_PAGES = self._before


def difference(found: Model, wanted: Model) -> str:
    """Where two contents differ, in a few words."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            return f"table {name} is missing"
        if name not in wanted:
            return f"table {name} should not be there"
        for key in sorted(found[name].keys() | wanted[name].keys()):
            if found[name].get(key) != wanted[name].get(key):
                shown = [_shown(each.get(key)) for each in (found[name], wanted[name])]
                return f"table {name}, key {key!r}: found {shown[0]}, wanted {shown[1]}"
    return "no difference"


def _shown(value: bytes | None) -> str:
    return "nothing" if value is None else f"{value[:12]!r} ({len(value)} bytes)"


def check_structure(db: Database, disk: SimDisk, path: str = PATH) -> None:
    """The engine's own check, and the harness's, on a database that is open."""
    report = db.check()
    if not report.ok:
        raise Wrong(f"check: {'; '.join(map(str, report.errors[:3]))}")
    check_image(disk.content(path))


def check_image(image: bytes) -> None:
    """The harness's check of the newest commit of a file."""
    layout = layout_of(image)
    if layout is None:
        raise Wrong("the file has no header")
    commits = layout.commits(image)
    if not commits:
        raise Wrong("the file has no commit")
    problems = layout.problems(image, commits[-1])
    if problems:
        raise Wrong(f"structure of commit {commits[-1].txid}: {'; '.join(problems[:3])}")


def verify(
    disk: SimDisk,
    states: Sequence[Model],
    *,
    must_exist: bool,
    page_size: int = PAGE_SIZE,
    monitored: bool = True,
    more: int = 3,
    accept: Callable[[Exception], bool] | None = None,
) -> int:
    """Demand of a disk after a fault what the head of this file says.

    states      contents that may be there, the oldest first
    must_exist  whether the file has to be there
    accept      says whether a LimpetError is right in this case
    returns     the index of the state that is there, -1 if an error was accepted
    raises      Wrong, Hang, Violation, or what the engine raised
    """
    with no_hang():
        return _verify(disk, states, must_exist, page_size, monitored, more, accept)


def _verify(
    disk: SimDisk,
    states: Sequence[Model],
    must_exist: bool,
    page_size: int,
    monitored: bool,
    more: int,
    accept: Callable[[Exception], bool] | None,
) -> int:
    monitor = Monitor(disk) if monitored else None
    try:
        if monitor is None:
            db = open_sim(disk, page_size=page_size, create=not must_exist)
        else:
            with monitor.opening():
                db = open_sim(disk, page_size=page_size, create=not must_exist)
    except LimpetError as error:
        if accept is not None and accept(error):
            return -1
        raise
    found: Model = {}
    index = -1
    try:
        found = read_all(db)
        for index in range(len(states) - 1, -1, -1):
            if states[index] == found:
                break
        else:
            raise Wrong(f"the content is none of {len(states)} allowed states: {difference(found, states[-1])}")
        compare_points(db, found)
        if accept is not None and any(accept(CorruptError(str(error))) for error in db.check().errors):
            return -1
        check_structure(db, disk)
        for number in range(more):
            with db.write() as transaction:
                table = transaction.table("after")
                table[key_bytes(number)] = found.setdefault("after", {})[key_bytes(number)] = value_bytes(40, number)
                name = min(found)
                if name != "after" and found[name]:
                    key = min(found[name])
                    transaction.table(name)[key] = found[name][key] = value_bytes(30 + 300 * number, number)
        if more:
            check_image(disk.content(PATH))
            db.close()
            db = open_sim(disk, create=False, read_only=True)
            if read_all(db) != found:
                raise Wrong(f"after three more commits: {difference(read_all(db), found)}")
            if monitored:
                check_structure(db, disk)
            else:
                check_image(disk.content(PATH))  # the engine's own check costs as much as all the rest
    except LimpetError as error:
        if accept is not None and accept(error):
            return -1
        raise
    finally:
        abandon(db)
    if monitor is not None and monitor.violations:
        raise Wrong(monitor.violations[0])
    return index


def abandon(db: Database) -> None:
    """Release a database without writing anything more."""
    db._chain.failure = db._chain.failure or LimpetError("abandoned by the test")
    db.close()


__all__ = ["BACKUP", "PATH", "Any", "Hang", "Run", "Wrong", "verify"]
