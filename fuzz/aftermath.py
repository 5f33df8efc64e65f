"""What must be true after an outer call of F18 and all that came between its lines.

The handle goes on, or is closed if that was asked for; memory holds what the ledger says, and so does the file: as it
was right after each inner call, after the outer call, after a power cut, after closing.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import limpet
from limpet import BusyError, ClosedError, PoisonedError
from limpet.database import open_on
from limpet.testing import OLD, SimDisk

from .ledger import CUT, SEEN, contents
from .oracle import PATH, Wrong, check_image, difference, read_all
from .workloads import Model, apply_to_transaction

if TYPE_CHECKING:
    from .reentry import Inner, World

INJECTED = "injected between two lines"
AT_ONCE_S = 1.0  # what BusyError may take, on a machine with other things to do


def forget_frames(error: BaseException | None) -> None:
    """Frames keep transactions alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def settle(world: World, inner: Inner, raised: BaseException | None) -> list[str]:
    """Everything that must be true after the outer call; returns what is wrong."""
    problem = _judge(world, inner, raised)
    if problem:
        return [problem]
    if raised is not None:  # the frames that it came out of are gone, and what they knew
        world.transaction = None
        gc.collect(0)
    world.photograph("after the outer call")
    _check_power_cut(world)
    for finish in world.finishers:
        finish()
    _finish_held(world)  # which another thread may be waiting for
    for helper in world.threads:
        try:
            helper.finish()
        except (OSError, ClosedError) as error:
            if inner.error is None and not ("close" in world.asked or world.outer.closes):
                return [f"the other thread: {error!r}"]
    for reader in world.readers:
        reader.close()
    world.readers.clear()
    if world.outer.closes or "close" in world.asked:
        _check_closed(world, raised)
    gc.collect()  # what was forgotten while the collector ran is still there
    if not _is_closed(world):
        _check_usable(world)
    world.db.close()  # one that was interrupted can be done again
    if isinstance(world.disk, SimDisk) and world.disk.names[PATH].handles:
        return ["the file is still held after close()"]
    world.ledger.harden(world.ledger.tick())
    world.photograph("after closing")
    for when, image, choices in world.images:
        key = hash((world.outer.name, image, repr(choices)))
        if key in _sound:
            continue
        problem = _opens(image, contents(world.ledger.base, choices))
        if problem:
            return [f"{when}: {problem}"]
        _sound.add(key)
    return []


_sound: set[int] = set()  # files that were looked at, with what they may hold: most states leave the same ones


def _judge(world: World, inner: Inner, raised: BaseException | None) -> str | None:
    """Whether the outer call may end like this."""
    if raised is None:
        return None
    if inner.error is not None and INJECTED in repr(raised):
        return None
    if isinstance(raised, PoisonedError):
        return f"the outer call: {raised!r}"
    if isinstance(raised, ClosedError) and world.asked:
        return None
    if isinstance(raised, BusyError) and world.held is not None:
        return None
    return f"the outer call: {type(raised).__name__}: {raised}"


def _is_closed(world: World) -> bool:
    try:
        world.db.read().close()
    except ClosedError:
        return True
    return False


def _check_closed(world: World, raised: BaseException | None) -> None:
    """A close that returned has closed everything; one that raised can be repeated."""
    if raised is None or "close" in world.asked:
        if not _is_closed(world):
            raise Wrong("close() has returned, and the database is open")
        world.db.close()


def _finish_held(world: World) -> None:
    """An inner call left its transaction open; now it commits."""
    held, effect = world.held, world.held_effect
    if held is None or effect is None:
        return
    effect.begun, effect.made = world.ledger.tick(), None
    try:
        held.commit()
    except ClosedError:
        if not (world.outer.closes or "close" in world.asked):
            raise
        effect.made = False
    else:
        world.ledger.acknowledge(effect)
    world.held = None


def _check_usable(world: World) -> None:
    """The handle goes on: it holds what it must, commits, and gives everything back."""
    db, ledger = world.db, world.ledger
    _compare(read_all(db), ledger.allowed(SEEN), "in memory")
    effect = ledger.begin([["put", "t", 990, 30, 77]], "sync")
    try:
        with db.write(timeout=AT_ONCE_S) as transaction:
            apply_to_transaction(transaction, list(effect.changes))
    except BusyError as error:
        raise Wrong(f"the writer was never given back: {error}") from error
    ledger.acknowledge(effect)
    _compare(read_all(db), ledger.allowed(SEEN), "after another commit")
    report = db.check()
    if not report.ok:
        raise Wrong(f"check: {'; '.join(map(str, report.errors[:2]))}")
    readers = db.stats().readers
    if readers:
        raise Wrong(f"{readers} readers are counted, and none is open")


def _check_power_cut(world: World) -> None:
    """Without all that was not synced, what was acknowledged as durable is there."""
    if not isinstance(world.disk, SimDisk):
        return
    units = world.disk.units()
    after = world.disk.crash(units, [OLD] * len(units))
    if PATH not in after.names:
        raise Wrong("a power cut loses the file")
    world.images.append(("after a power cut", after.content(PATH), world.ledger.choices(CUT)))


def _opens(image: bytes, allowed: list[Model]) -> str | None:
    """What is wrong with a file that a dead process or a closed database leaves."""
    disk = SimDisk.of({PATH: image})
    try:
        db = open_on(disk.file_system(), PATH, create=False, read_only=True, cache_size=1 << 20, lock_timeout=0.0)
        found = read_all(db)
        report = db.check()
    except (limpet.LimpetError, OSError) as error:
        return f"the file does not open: {error!r}"
    disk.kill()
    if found not in allowed:
        return f"the file: {difference(found, allowed[0])}"
    if not report.ok:
        return f"check of the file: {'; '.join(map(str, report.errors[:2]))}"
    try:
        check_image(image)
    except Wrong as error:
        return str(error)
    return None


def _compare(found: Model, allowed: list[Model], when: str) -> None:
    if found not in allowed:
        raise Wrong(f"{when}: {difference(found, allowed[0])}")
