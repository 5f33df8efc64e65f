"""What comes between two lines of the engine: the inner calls of F18."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

from limpet import BusyError, ClosedError
from limpet.database import open_on
from limpet.testing import SimDisk

from .aftermath import AT_ONCE_S
from .ledger import SEEN
from .oracle import Wrong, difference, read_all
from .reentry import Helper, Inner, Skip, World
from .spots import is_still
from .workloads import Model, Step, apply_to_transaction, key_bytes, value_bytes

_BACKUP = "/sim/inner.limpet"


def _commit(world: World, durability: str, changes: list[Step] | None = None) -> None:
    effect = world.ledger.begin(changes or world.new_changes(), durability)
    try:
        with world.db.write(durability=durability) as transaction:
            apply_to_transaction(transaction, list(effect.changes))
            effect.begun = world.ledger.tick()
    except (BusyError, ClosedError):
        effect.made = False
        raise
    world.ledger.acknowledge(effect)


def _committing(durability: str) -> Callable[[World], None]:
    return lambda world: _commit(world, durability)


def _checkpoint(world: World) -> None:
    """A commit that brings everything into the trees."""
    changes = world.new_changes()
    _commit(world, "sync", [*changes, ["put", f"inner-{world.keys}", 1, 900, world.keys]])


def _hold(world: World) -> None:
    """A transaction that stays open until the outer call has ended."""
    if world.held is not None:
        raise Skip
    effect = world.ledger.begin(world.new_changes(), "sync")
    effect.made = False
    held = world.db.write()
    world.held, world.held_effect = held, effect
    apply_to_transaction(held, list(effect.changes))


def _read(world: World) -> None:
    _look(world, lambda: read_all(world.db))


def _look(world: World, read: Callable[[], Model], what: str = "") -> None:
    """What is read is what was there before, or after: something may have come between the lines of reading too."""
    before = world.ledger.allowed(SEEN)
    found = read()
    after = world.ledger.allowed(SEEN)
    if found not in after and found not in before:
        raise Wrong(f"{what}{difference(found, after[0])}")


def _hold_reader(world: World) -> None:
    world.readers.append(world.db.read())


def _flush(world: World) -> None:
    begun = world.ledger.tick()
    world.db.flush()
    world.hardened(begun)


def _stats(world: World) -> None:
    world.db.stats()


def _check(world: World) -> None:
    report = world.db.check()
    if not report.ok:
        raise Wrong(f"check: {'; '.join(map(str, report.errors[:2]))}")


def _backup(world: World) -> None:
    path = world.beside("inner")

    def copied() -> Model:
        world.db.backup(path, overwrite=True)
        copy = SimDisk.of({_BACKUP: world.disk.content(path)})
        with open_on(copy.file_system(), _BACKUP, create=False, lock_timeout=0.0) as db:
            return read_all(db)

    _look(world, copied, "the backup: ")


def _compact(world: World) -> None:
    begun = world.ledger.tick()
    world.db.compact()
    world.hardened(begun)


def _trim(world: World) -> None:
    world.db.trim()


def _close(world: World) -> None:
    begun = world.ledger.tick()
    world.asked.add("closing")  # what comes between its lines may find it closed
    world.db.close()
    world.asked.add("close")
    world.hardened(begun)


# -- on the outer call's transaction ---------------------------------------------------------------


def _abort_outer(world: World) -> None:
    if world.transaction is None or world.effect is None:
        raise Skip
    world.transaction.abort()
    if world.effect.made:
        raise Wrong("an acknowledged commit lets itself be aborted")
    world.asked.add("abort")
    world.effect.made = False


def _commit_outer(world: World) -> None:
    if world.transaction is None or world.effect is None:
        raise Skip
    world.effect.begun = world.ledger.tick()
    before, world.effect.made = world.effect.made, None
    world.effect.partial = world.effect.partial or not world.said
    try:
        world.transaction.commit()
    except (BusyError, ClosedError):
        world.effect.made = before
        raise
    except RuntimeError as error:
        if "savepoint" not in str(error):
            raise
        world.asked.add("abort")  # inside a savepoint it is refused, and that ends the transaction
        world.effect.made = False
        raise Skip from error
    world.asked.add("commit")
    world.acknowledge()


def _set_outer(world: World) -> None:
    """One more row in the outer commit."""
    if world.transaction is None or world.effect is None:
        raise Skip
    world.keys += 2
    number = world.keys  # another call may come between, and take the next
    change: Step = ["put", "t", number, 20, number]
    undone = world.undoing
    world.transaction.table("t")[key_bytes(number)] = value_bytes(20, number)
    _also(world, change, undone)


def _delete_outer(world: World) -> None:
    """One row less."""
    if world.transaction is None or world.effect is None:
        raise Skip
    change: Step = ["del", "t", 1]
    if any(extra.changes == [change] for extra, _ in world.extras):
        raise Skip
    undone = world.undoing
    found = world.transaction.table("t").pop(key_bytes(1), None)
    if found is None:
        raise Wrong("the outer transaction does not see a row that is there")
    _also(world, change, undone)


def _also(world: World, change: Step, undone: bool) -> None:
    """The outer commit has one more change from now on; inside a savepoint that will be undone, perhaps."""
    effect = world.effect
    assert effect is not None
    if effect.made:
        raise Wrong("an acknowledged commit lets itself be changed")
    extra = world.ledger.begin([change], effect.durability)
    extra.made = effect.made
    world.extras.append((extra, not undone))


# -- errors, finalizers, other threads -------------------------------------------------------------


class _Cycle:
    """An object that only the collector finds; its finalizer uses the database."""

    def __init__(self, final: Callable[[], None]) -> None:
        self.final = final
        self.itself = self

    def __del__(self) -> None:
        self.final()


def _collected(world: World, final: Callable[[], None]) -> None:
    """Have a finalizer run by the collector, and hand on what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            final()
        except BaseException as error:  # noqa: BLE001 a finalizer's errors go nowhere
            errors.append(error)

    _Cycle(run)
    gc.collect(0)
    for error in errors:
        raise error


def _finalizer_that_writes(world: World) -> None:
    _collected(world, lambda: _commit(world, "os"))


def _finalizer_that_reads(world: World) -> None:
    _collected(world, lambda: _read(world))


def _forgotten_reader(world: World) -> None:
    holder: list[Any] = [world.db.read()]
    holder[0].table("t").get(key_bytes(0))
    holder.append(holder)
    del holder
    gc.collect(0)


def _forgotten_writer(world: World) -> None:
    holder: list[Any] = [world.db.write()]
    apply_to_transaction(holder[0], world.new_changes())
    holder.append(holder)
    del holder
    gc.collect(0)


def _other_thread(world: World) -> None:
    """Another thread begins to write, if it can; its own nested `write()` is refused at once, then and later."""
    if world.threads:
        raise Skip
    main, begun, over = threading.get_ident(), threading.Event(), threading.Event()
    effect = world.ledger.begin(world.new_changes(), "sync")
    effect.made = False
    refused: list[Exception] = []

    def nested(when: str) -> None:
        started = time.monotonic()
        try:
            world.db.write(timeout=2 * AT_ONCE_S).abort()
        except BusyError:
            if time.monotonic() - started < AT_ONCE_S:
                return
            raise Wrong(f"a nested write() {when} waits for its own thread") from None
        except ClosedError:
            return
        raise Wrong(f"a nested write() {when} is given a second transaction")

    def other() -> None:
        try:
            transaction = world.db.write(timeout=0)
        except (BusyError, ClosedError) as error:
            refused.append(error)
            begun.set()
            return
        effect.made = None
        try:
            apply_to_transaction(transaction, list(effect.changes))
            nested("at once")
            begun.set()
            while not over.is_set() and not is_still(main):
                pass
            nested("later")
            effect.begun = world.ledger.tick()
            transaction.commit()
        except ClosedError:
            return
        finally:
            begun.set()
        world.ledger.acknowledge(effect)

    world.finishers.append(over.set)
    world.threads.append(Helper(other))
    if not begun.wait(5.0):
        raise Wrong("another thread's write() waits, although it was told not to")
    if refused:
        raise refused[0]


INNERS: dict[str, Inner] = {
    inner.name: inner
    for inner in (
        Inner("commit sync", _committing("sync")),
        Inner("commit os", _committing("os")),
        Inner("commit none", _committing("none")),
        Inner("checkpoint", _checkpoint),
        Inner("hold", _hold, leaves=True),
        Inner("read", _read),
        Inner("hold reader", _hold_reader),
        Inner("flush", _flush),
        Inner("stats", _stats),
        Inner("check", _check),
        Inner("backup", _backup),
        Inner("compact", _compact),
        Inner("trim", _trim),
        Inner("close", _close),
        Inner("abort outer", _abort_outer, on_outer=True),
        Inner("commit outer", _commit_outer, on_outer=True),
        Inner("set outer", _set_outer, on_outer=True),
        Inner("delete outer", _delete_outer, on_outer=True),
        Inner("finalizer that writes", _finalizer_that_writes),
        Inner("finalizer that reads", _finalizer_that_reads),
        Inner("forgotten reader", _forgotten_reader),
        Inner("forgotten writer", _forgotten_writer),
        Inner("other thread", _other_thread),
        Inner("KeyboardInterrupt", None, KeyboardInterrupt),
        Inner("MemoryError", None, MemoryError),
    )
}
