"""One database that is called while it is in the middle of a call: what was under way, and what came between.

    World    the database on its simulated disk, its ledger, and what the calls under way have left open
    Outer    what is under way: scenarios.py has them
    Inner    what comes between two lines of it: interruptions.py has them
    play     one state: one outer, one or more inners at one spot each, and all that must be true afterwards

The rule (engine/DESIGN.md, "Re-entry"): an inner call works completely or raises BusyError at once, an outer call does
not notice; nothing acknowledged is lost, nobody waits for himself, no handle is poisoned, every file opens.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import limpet
from limpet import BusyError, ClosedError, Database, ReadTransaction, WriteTransaction
from limpet.database import open_on
from limpet.file import FileSystem, OSFileSystem
from limpet.testing import SimDisk

from .aftermath import AT_ONCE_S, INJECTED, forget_frames, settle
from .ledger import KILLED, Choices, Effect, Ledger
from .oracle import GROWTH, PATH, Wrong, content_of, read_all, tuned
from .spots import Spot, Stuck, Visit, VisitNumber, Watch, spots_of, stack_of, traced_inside, tracing
from .workloads import Model, Step, apply_to_transaction

PATIENCE_S = 5.0  # what a state may take
JOIN_S = 5.0


@dataclass(frozen=True)
class Outer:
    """Something that a database does, to be disturbed.

    build       makes the file that it begins with; once
    ready       brings the opened database to where the action begins
    act         is disturbed
    closes      whether it closes the database
    writes      whether it needs the writer, and so fails while this thread has it
    share       the test suite tries one line of so many
    threads     whether another thread takes part, by way of the simulated disk
    """

    name: str
    build: Callable[[Database], None]
    act: Callable[[World], None]
    ready: Callable[[World], None] = lambda _: None
    closes: bool = False
    writes: bool = True
    cache_size: int = 1 << 16
    page_size: int = 512
    clean: bool = False  # the file was closed well; else its process has died
    share: int = 1
    threads: bool = False


@dataclass(frozen=True)
class Inner:
    """Something that comes between two lines.

    act         what it does; None: it raises `error`
    on_outer    it uses the transaction of the outer call, which may have ended
    leaves      it leaves a transaction open, which makes this thread's next `write()` BusyError
    """

    name: str
    act: Callable[[World], None] | None
    error: type[BaseException] | None = None
    on_outer: bool = False
    leaves: bool = False


class Skip(Exception):
    """An inner call has nothing to do here."""


@dataclass
class World:
    """A database and everything that is known about it."""

    outer: Outer
    path: str  # of the file
    disk: SimDisk | Folder
    db: Database
    ledger: Ledger
    transaction: WriteTransaction | None = None  # the outer call's, once it has one
    effect: Effect | None = None  # the outer call's
    said: bool = False  # whether all its changes are made
    undoing: bool = False  # whether a savepoint is open that will be undone
    held: WriteTransaction | None = None  # what an inner call left open
    held_effect: Effect | None = None
    readers: list[ReadTransaction] = field(default_factory=list)
    extras: list[tuple[Effect, bool]] = field(default_factory=list)  # its further changes, and whether they must last
    asked: set[str] = field(default_factory=set)  # what inner calls have done to the outer one
    keys: int = 900
    images: list[tuple[str, bytes, Choices]] = field(default_factory=list)
    threads: list[Helper] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    finishers: list[Callable[[], None]] = field(default_factory=list)

    def beside(self, name: str) -> str:
        """The path of another file."""
        return f"{self.path}.{name}"

    def begin(self, changes: list[Step], durability: str) -> WriteTransaction:
        """The outer call's transaction, with its changes made."""
        self.expect(changes, durability)
        transaction = self.transaction = self.db.write(durability=durability)
        try:
            apply_to_transaction(transaction, changes)
        except BaseException:
            self.leave(transaction)
            raise
        return transaction

    def expect(self, changes: list[Step], durability: str) -> None:
        """The outer call is about to begin this commit; before `committing` nobody may see it."""
        self.effect = self.ledger.begin(changes, durability)
        self.effect.made = False

    def committing(self) -> None:
        """The outer call has made all its changes, and commits now."""
        effect = self.effect
        assert effect is not None
        self.said = True
        if effect.made is False and "abort" not in self.asked:
            for each in (effect, *(extra for extra, _ in self.extras)):
                each.begun = self.ledger.tick()
                each.made = None

    def commit(self, changes: list[Step], durability: str) -> None:
        """The outer call is a commit."""
        transaction = self.begin(changes, durability)
        self.committing()
        try:
            transaction.commit()
        except BaseException:
            self.leave(transaction)
            raise
        self.done()

    def leave(self, transaction: WriteTransaction) -> None:
        """As the end of a `with` block after an exception."""
        try:
            transaction.abort()
        except ClosedError:
            pass

    def done(self) -> None:
        """The outer commit has returned."""
        assert self.effect is not None
        if "abort" not in self.asked:
            self.acknowledge()

    def acknowledge(self) -> None:
        """The outer call's commit was acknowledged, with what inner calls have added to it."""
        assert self.effect is not None
        self.ledger.acknowledge(self.effect)
        for extra, is_sure in self.extras:
            if is_sure:
                self.ledger.acknowledge(extra)
            else:
                extra.made = None

    def hardened(self, begun: int) -> None:
        """A flush that began then has returned."""
        self.ledger.harden(begun)

    def new_changes(self) -> list[Step]:
        """What the next inner commit writes: two keys, so that half of it would be seen."""
        self.keys += 2
        return [["put", "t", self.keys, 20, self.keys], ["put", "t", self.keys + 1, 9, self.keys]]

    def photograph(self, when: str) -> None:
        """Keep the file as it is now, and what it may hold, for the end of the state."""
        image = self.disk.content(self.path)
        if not self.images or self.images[-1][1] != image:
            self.images.append((when, image, self.ledger.choices(KILLED)))


class Helper(threading.Thread):
    """Another thread of the same program; keeps what it ended with."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._action = action
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Carry out the action."""
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 looked at by whoever waits
            self.error = error

    def finish(self) -> None:
        """Wait for the end, and raise what it ended with."""
        self.join(JOIN_S)
        if self.is_alive():
            raise Wrong(f"another thread never ends: {stack_of(self.ident or 0)}")
        if self.error is not None:
            raise self.error


# -- the files that states begin with ------------------------------------------------------------

_images: dict[str, tuple[bytes, Model]] = {}


class Folder:
    """Real files, in place of a simulated disk. No power cuts there."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0

    def file_system(self) -> FileSystem:
        """The machine's own."""
        return OSFileSystem()

    def new(self, image: bytes) -> str:
        """A file with this content; the one before is removed."""
        for name in os.listdir(self._folder):
            os.remove(os.path.join(self._folder, name))
        self._count += 1
        path = os.path.join(self._folder, f"{self._count}.limpet")
        Path(path).write_bytes(image)
        return path

    def content(self, path: str) -> bytes:
        """What the file holds now."""
        return Path(path).read_bytes()

    def kill(self) -> None:
        """Nothing to do: the database was closed, or its file is left to the collector."""


def _opened(disk: SimDisk | Folder, path: str, outer: Outer) -> Database:
    return open_on(disk.file_system(), path, page_size=outer.page_size, cache_size=outer.cache_size, lock_timeout=0.0)


def new_world(outer: Outer, folder: Folder | None = None) -> World:
    """The database of an outer call, ready for it; on real files in a folder, or on a simulated disk."""
    if outer.name not in _images:
        disk = SimDisk()
        db = _opened(disk, PATH, outer)
        outer.build(db)
        content = read_all(db)
        if outer.clean:
            db.close()
        else:
            db.flush()
        _images[outer.name] = disk.content(PATH), content
    image, content = _images[outer.name]
    place: SimDisk | Folder = SimDisk.of({PATH: image})
    path = PATH
    if folder is not None:
        place, path = folder, folder.new(image)
    world = World(outer, path, place, _opened(place, path, outer), Ledger(content))
    outer.ready(world)
    return world


def outer_spots(outer: Outer, *, opcodes: bool = False, depth: int = 0, folder: Folder | None = None) -> list[Spot]:
    """The spots of an outer call. The first run only fills what the process keeps for good."""
    found: list[Spot] = []
    for _ in range(2):
        with tuned(GROWTH), same_luck(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            world = new_world(outer, folder)
            with Watch(PATIENCE_S):
                found = spots_of(lambda: outer.act(world), opcodes=opcodes, depth=depth)  # noqa: B023 called at once
            for helper in world.threads:
                helper.finish()
            world.db.close()
            world.disk.kill()
    return found


@contextmanager
def same_luck() -> Iterator[None]:
    """Every state gets the same random numbers and times, so that states that should agree do so byte by byte."""
    urandom, time_ns = os.urandom, time.time_ns
    luck, now = random.Random(18), itertools.count(1_780_000_000_000_000_000, 1000)
    os.urandom = luck.randbytes
    time.time_ns = lambda: next(now)
    try:
        yield
    finally:
        os.urandom, time.time_ns = urandom, time_ns


# -- one state -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Second:
    """An inner call inside of the inner call: at its line with this number."""

    inner: Inner
    number: int


def play(
    outer: Outer, spot: Spot, inner: Inner, second: Second | None = None, folder: Folder | None = None
) -> list[str]:
    """One state.

    returns  how the inner calls ended: "works", "busy", "closed", "nothing to do"; [] if the spot was not reached
    raises   Wrong
    """
    with tuned(GROWTH), same_luck(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        world = new_world(outer, folder)
        problems: list[str] = []
        watch = Watch(PATIENCE_S)
        raised: BaseException | None = None

        def act() -> None:
            if inner.error is not None:
                raise inner.error(INJECTED)
            if second is None:
                _try(world, inner, problems)
            else:
                visit = VisitNumber(second.number, lambda: _try(world, second.inner, problems))
                traced_inside(visit, lambda: _try(world, inner, problems))

        visit = Visit(spot, act)
        try:
            with watch:
                try:
                    with tracing(visit):
                        outer.act(world)
                except BaseException as error:  # noqa: BLE001 judged below
                    raised = error
                forget_frames(raised)
                if not problems and not watch.fired:
                    problems += settle(world, inner, raised)
        except Stuck as stuck:
            problems.append(str(stuck))
        except (limpet.LimpetError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"afterwards: {error!r}")
        finally:
            for finish in world.finishers:
                finish()
            world.disk.kill()
        if watch.fired:
            raise Wrong(f"waits for ever: {watch.fired}")
        if problems:
            raise Wrong(problems[0])
        return world.outcomes if visit.reached and inner.error is None else ["raised"] if visit.reached else []


def _try(world: World, inner: Inner, problems: list[str]) -> None:
    """An inner call, and how it ended; nothing of that reaches the line that it came between."""
    started = time.monotonic()
    assert inner.act is not None
    try:
        inner.act(world)
        outcome = "works"
    except Skip:
        outcome = "nothing to do"
    except BusyError as error:
        outcome = "busy"
        if time.monotonic() - started > AT_ONCE_S:
            problems.append(f"{inner.name} waited for {time.monotonic() - started:.1f} s: {error}")
    except ClosedError as error:
        outcome = "closed"
        if not (inner.on_outer or world.outer.closes or world.asked & {"close", "closing"}):
            problems.append(f"{inner.name}: {error!r}, and nobody closed it")
    except BaseException as error:  # noqa: BLE001 it is what is looked for
        outcome = "wrong"
        problems.append(f"{inner.name}: {type(error).__name__}: {error}")
        forget_frames(error)
    world.outcomes.append(outcome)
    if outcome == "works":
        world.photograph(f"right after {inner.name}")


__all__ = ["Inner", "Outer", "Second", "Skip", "World", "content_of", "new_world", "outer_spots", "play"]
