"""What a database does while it is called again: the outer calls of F18."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from limpet import Database
from limpet.testing import Call, SimDisk

from .oracle import Wrong, content_of
from .reentry import Helper, Outer, World
from .spots import is_still
from .workloads import Step, Undone, apply_to_transaction, key_bytes, value_bytes

_SYNCS = ("sync", "sync_all", "sync_range")


# -- files ---------------------------------------------------------------------------------------


def _few(db: Database) -> None:
    """A small table, and some records in the log."""
    with db.write() as transaction:
        for key in range(12):
            transaction.table("t")[key_bytes(key)] = value_bytes(30, key)
        transaction.table("old")[b"a"] = b"1"
        transaction.table("old")[b"b"] = value_bytes(900, 5)
    db.flush()
    for key in range(2):
        with db.write() as transaction:
            transaction.table("t")[key_bytes(key)] = value_bytes(31, key)


def _many(db: Database) -> None:
    """More leaves than the cache holds."""
    with db.write() as transaction:
        table = transaction.table("t")
        for key in range(150):
            table[key_bytes(key)] = value_bytes(40, key)
        table[key_bytes(30)] = value_bytes(1200, 30)
    with db.write() as transaction:
        transaction.table("t")[key_bytes(7)] = b"changed"


def _full_log(db: Database) -> None:
    """The next commit finds no room in the log."""
    _few(db)
    for number in range(100):
        stats = db.stats()
        if stats.log_used >= stats.log_size:
            return
        with db.write() as transaction:
            transaction.table("t")[key_bytes(number % 12)] = value_bytes(33, number)
    raise Wrong("the log never fills")


def _holes(db: Database) -> None:
    """Free space at the end and in the middle, for compact and trim."""
    _few(db)
    with db.write() as transaction:
        for key in range(60):
            transaction.table("bulk")[key_bytes(key)] = value_bytes(400, key)
    with db.write() as transaction:
        transaction.drop("bulk")


def _wide(db: Database) -> None:
    with db.write() as transaction:
        transaction.table("t")[key_bytes(0)] = b"0"
        transaction.table("t")[key_bytes(1)] = b"1"
        transaction.table("old")[b"a"] = b"1"


# -- getting ready -------------------------------------------------------------------------------


def _wrote_before(world: World) -> None:
    """The map of free space is loaded, the log has a record of this process."""
    _commit(world, [["put", "t", 3, 25, 3]], "sync")


def _unsynced(world: World) -> None:
    """Commits that are not on the disk yet."""
    _wrote_before(world)
    _commit(world, [["put", "t", 4, 25, 4]], "os")
    _commit(world, [["put", "t", 5, 25, 5]], "none")


def _commit(world: World, changes: list[Step], durability: str) -> None:
    effect = world.ledger.begin(changes, durability)
    with world.db.write(durability=durability) as transaction:
        apply_to_transaction(transaction, changes)
        effect.begun = world.ledger.tick()
    world.ledger.acknowledge(effect)


# -- commits -------------------------------------------------------------------------------------

_ONE: list[Step] = [["put", "t", 5, 30, 55]]
_TWO: list[Step] = [["put", "t", 5, 30, 55], ["del", "t", 6]]


def _committing(changes: list[Step], durability: str) -> Callable[[World], None]:
    return lambda world: world.commit(changes, durability)


def _with_block(world: World) -> None:
    """As most programs do it."""
    world.expect(_TWO, "sync")
    with world.db.write() as transaction:
        world.transaction = transaction
        apply_to_transaction(transaction, _TWO)
        world.committing()
    world.done()


def _abort(world: World) -> None:
    world.begin(_TWO, "sync").abort()


def _savepoint(undone: bool, world: World) -> None:
    """A savepoint's begin, and its end or its undoing, also around a change that takes pages."""
    inside: list[Step] = [["put", "t", 8, 12, 88], ["del", "t", 9], ["clear", "old"]]
    changes = [*_ONE, *([] if undone else inside), ["put", "t", 10, 10, 3]]
    world.expect(changes, "sync")
    with world.db.write() as transaction:
        world.transaction = transaction
        apply_to_transaction(transaction, _ONE)
        world.undoing = undone
        try:
            with transaction.savepoint():
                apply_to_transaction(transaction, inside)
                if undone:
                    raise Undone
        except Undone:
            pass
        world.undoing = False
        apply_to_transaction(transaction, changes[-1:])
        world.committing()
    world.done()


def _spill(world: World) -> None:
    """More than fits into memory: pages are written before the commit."""
    world.commit([["put", "t", key, 90_000, key] for key in range(30, 46)], "sync")


# -- together with another thread -----------------------------------------------------------------


def _behind_a_flush(world: World) -> None:
    """Another thread flushes until this one waits, or is done; then this one's commit is next, or served with it."""
    _wrote_before(world)
    main, entered, over = threading.get_ident(), threading.Event(), threading.Event()
    effect = world.ledger.begin([["put", "t", 700, 30, 7], ["put", "t", 701, 30, 7]], "sync")

    def gate(call: Call) -> None:
        if call.kind in _SYNCS and threading.get_ident() != main and not entered.is_set():
            entered.set()
            while not over.is_set() and not is_still(main):
                pass

    def other() -> None:
        with world.db.write() as transaction:
            apply_to_transaction(transaction, list(effect.changes))
            effect.begun = world.ledger.tick()
        world.ledger.acknowledge(effect)

    assert isinstance(world.disk, SimDisk)
    world.disk.before.append(gate)
    world.threads.append(Helper(other))
    entered.wait(5.0)
    world.finishers.append(over.set)


def _leading_a_flush(world: World) -> None:
    """While this thread syncs, another one commits and waits for its turn."""
    _wrote_before(world)
    main, started = threading.get_ident(), threading.Event()
    effect = world.ledger.begin([["put", "t", 700, 30, 7], ["put", "t", 701, 30, 7]], "sync")

    def other() -> None:
        with world.db.write() as transaction:
            apply_to_transaction(transaction, list(effect.changes))
            effect.begun = world.ledger.tick()
        world.ledger.acknowledge(effect)

    def gate(call: Call) -> None:
        if call.kind in _SYNCS and threading.get_ident() == main and not started.is_set():
            started.set()
            helper = Helper(other)
            world.threads.append(helper)
            while helper.is_alive() and not is_still(helper.ident or 0):
                pass

    disk = world.disk
    assert isinstance(disk, SimDisk)

    def finish() -> None:
        if gate in disk.before:
            disk.before.remove(gate)  # later syncs are not the outer call's
        if not started.is_set():
            effect.made = False

    world.finishers.append(finish)
    disk.before.append(gate)


# -- the rest ------------------------------------------------------------------------------------


def _flush(world: World) -> None:
    begun = world.ledger.tick()
    world.db.flush()
    world.hardened(begun)


def _close(world: World) -> None:
    begun = world.ledger.tick()
    world.db.close()
    world.hardened(begun)


def _compact(world: World) -> None:
    begun = world.ledger.tick()
    world.db.compact()
    world.hardened(begun)


def _trim(world: World) -> None:
    world.db.trim()


def _backup(world: World) -> None:
    world.db.backup(world.beside("backup"), overwrite=True)


def _check(world: World) -> None:
    report = world.db.check()
    if not report.ok:
        raise Wrong(f"the outer check: {'; '.join(map(str, report.errors[:2]))}")


def _stats(world: World) -> None:
    world.db.stats()


def _read(world: World) -> None:
    """Begin, look up, scan both ways, end; the cache is too small for it."""
    with world.db.read() as transaction:
        table = transaction.table("t")
        for key in (0, 149, 30):
            table.get(key_bytes(key))
        found = content_of(transaction)["t"]
        backwards = dict(table.range(reverse=True))
        once_more = {key: table.get(key) for key in list(found)[::40]}
    if backwards != found or list(found) != sorted(found):
        raise Wrong("a scan backwards finds something else")
    for name, value in once_more.items():
        if found[name] != value:
            raise Wrong(f"{name!r} is found by a scan, and otherwise by a look-up")
    for name, value in world.ledger.base["t"].items():
        if found.get(name) != value:
            raise Wrong(f"the outer read misses {name!r}")


def _read_one(world: World) -> None:
    with world.db.read() as transaction:
        if transaction.table("t").get(key_bytes(2)) != world.ledger.base["t"][key_bytes(2)]:
            raise Wrong("the outer read finds something else")


_new_table: list[Step] = [["put", "new", 1, 30, 1], ["put", "t", 5, 30, 55]]
_large: list[Step] = [["put", "t", 5, 2000, 55]]
_drop: list[Step] = [["drop", "old"], ["put", "t", 5, 30, 55]]
_rename: list[Step] = [["rename", "old", "newer"]]

OUTERS: dict[str, Outer] = {
    outer.name: outer
    for outer in (
        Outer("commit sync", _few, _committing(_ONE, "sync"), _wrote_before),
        Outer("commit os", _few, _committing(_ONE, "os"), _wrote_before),
        Outer("commit none", _few, _committing(_ONE, "none"), _wrote_before),
        Outer("commit after others", _few, _committing(_ONE, "sync"), _unsynced),
        Outer("with block", _few, _with_block, _wrote_before),
        Outer("first write", _few, _committing(_ONE, "sync"), clean=True),
        Outer("full log", _full_log, _committing(_ONE, "sync"), share=8),
        Outer("new table", _few, _committing(_new_table, "sync"), _wrote_before, share=8),
        Outer("new table os", _few, _committing(_new_table, "os"), _unsynced, share=8),
        Outer("large value", _few, _committing(_large, "sync"), _wrote_before, share=8),
        Outer("drop", _few, _committing(_drop, "sync"), _wrote_before, share=8),
        Outer("rename", _few, _committing(_rename, "none"), _wrote_before, share=8),
        Outer("spill", _wide, _spill, share=50, page_size=4096, cache_size=1 << 12),
        Outer("abort", _few, _abort, _wrote_before),
        Outer("savepoint", _few, functools.partial(_savepoint, False), _wrote_before, share=8),
        Outer("undone savepoint", _few, functools.partial(_savepoint, True), _wrote_before, share=8),
        Outer(
            "commit behind a flush",
            _few,
            _committing(_ONE, "sync"),
            _behind_a_flush,
            threads=True,
            share=8,
        ),
        Outer(
            "commit that leads a flush",
            _few,
            _committing(_ONE, "sync"),
            _leading_a_flush,
            threads=True,
            share=8,
        ),
        Outer("flush", _few, _flush, _unsynced, writes=False),
        Outer("close", _few, _close, _unsynced, closes=True, share=8),
        Outer("compact", _holes, _compact, _wrote_before, share=8),
        Outer("trim", _holes, _trim, _wrote_before, share=8),
        Outer("backup", _few, _backup, _unsynced, writes=False, share=8),
        Outer("check", _few, _check, _unsynced, writes=False, share=8),
        Outer("stats", _few, _stats, _wrote_before, writes=False),
        Outer("read", _many, _read, writes=False, share=8, cache_size=1 << 12),
        Outer("read one", _few, _read_one, _wrote_before, writes=False),
    )
}
