"""Engines broken on purpose, one rule each, as small changes of their source.

A Mutant names functions of the engine and what to replace in their source. If the text is not there any more, the
engine has changed and the mutant has to follow: that is an error, not a survivor.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """One replacement in the source of one function: `target` is module:function or module:Class.method."""

    target: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken engine.

    rule     what it breaks, in a few words
    changes  how
    killers  the classes that should notice, the likeliest first
    workload the one in which it shows soonest
    """

    rule: str
    killers: tuple[str, ...]
    changes: tuple[Change, ...]
    workload: str = ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The engine is broken while this is entered."""
        undo: list[tuple[Any, str, Any]] = []
        try:
            for change in self.changes:
                undo += _apply(change)
            yield
        finally:
            for owner, name, before in reversed(undo):
                setattr(owner, name, before)


def _apply(change: Change) -> list[tuple[Any, str, Any]]:
    """Replace a function everywhere; returns (owner, name, what was there)."""
    module_name, _, path = change.target.partition(":")
    module = importlib.import_module(module_name)
    *owners, name = path.split(".")
    owner: Any = module
    for each in owners:
        owner = getattr(owner, each)
    before = inspect.getattr_static(owner, name)
    function = before.__func__ if isinstance(before, staticmethod | classmethod) else before
    source = _source_of(function)
    if change.old not in source:
        raise LookupError(f"{change.target} does not hold {change.old!r} any more: the mutant has to follow the engine")
    source = source.replace(change.old, change.new)
    flags = __future__.annotations.compiler_flag
    scope: dict[str, Any] = {}
    exec(compile(source, f"<mutant of {change.target}>", "exec", flags, dont_inherit=True), module.__dict__, scope)
    after = scope[name]
    if inspect.isfunction(after):
        vars(after)["__mutated_source__"] = source
    places = [(owner, name)]
    if not owners:  # a function may have been imported by name into other modules
        places += [
            (other, each)
            for other_name, other in list(sys.modules.items())
            if other_name.split(".")[0] in ("limpet", "limpet_store") and other is not module
            for each, value in list(vars(other).items())
            if value is before
        ]
    undo = [(place, each, inspect.getattr_static(place, each)) for place, each in places]
    for place, each in places:
        setattr(place, each, after)
    return undo


def _source_of(function: Any) -> str:
    """The source of a function, of its mutated version if it was changed before."""
    known = getattr(function, "__mutated_source__", None)
    return known if isinstance(known, str) else textwrap.dedent(inspect.getsource(function))


_RECORD = "limpet.committer:Committer._write_record"
_WRITE_RECORD = "limpet.record_writer:write"
_CHECKPOINT = "limpet.committer:Committer._write_checkpoint"
_SYNC = "limpet.checkpoint:sync_pages"
_TAKE_UP = "limpet.committer:Committer._take_up"

MUTANTS = (
    Mutant(
        "pages are not synced before the meta",
        ("F2", "F1"),
        (Change(_SYNC, "books.file.sync_all()", "pass"), Change(_SYNC, "books.file.sync()", "pass")),
    ),
    Mutant(
        "the meta is not synced",
        ("F1", "F2"),
        (Change("limpet.checkpoint:write_synced_meta", "books.file.write_synced(", "books.file.write("),),
    ),
    Mutant(
        "the meta is written before the pages",
        ("F1", "F2"),
        (
            Change(_CHECKPOINT, "checkpoint.write_pages(books, plan)", "pass"),
            Change(
                _CHECKPOINT,
                "    with self._lock:\n        stale",
                "    checkpoint.write_pages(books, plan)\n    with self._lock:\n        stale",
            ),
        ),
    ),
    Mutant(
        "fdatasync where fsync is needed after growth",
        ("F2", "F1"),
        (Change(_SYNC, "books.file.sync_all()", "books.file.sync()"),),
    ),
    Mutant(
        "growth is not synced",
        ("F2", "F1"),
        (Change("limpet.books:Extent._grow", "self.growth += 1", "pass"),),
    ),
    Mutant(
        "pages are reused one commit early",
        ("F1", "F2"),
        (
            Change(
                "limpet.books:Books.reclaim",
                "min(readers, self.ledger.metas.horizon)",
                "min(readers, self.ledger.metas.newest.txid)",
            ),
        ),
    ),
    Mutant(
        "freed pages are reused at once",
        ("F1", "F2"),
        (Change("limpet.books:Books.reclaim", "min(readers, self.ledger.metas.horizon)", "self._chain.last_txid + 1"),),
    ),
    Mutant(
        "pages of open snapshots are reused",
        ("F1", "F14"),
        (
            Change(
                "limpet.books:Books._oldest_reader",
                "return min([newest, *list(self._pins.values())])",
                "return newest",
            ),
        ),
        workload="readers",
    ),
    Mutant(
        "a meta is used although its checksum fails",
        ("F3", "F10"),
        (Change("limpet.format:decode_meta", "if found != stored:", "if False:"),),
    ),
    Mutant(
        "the older meta is chosen",
        ("F1", "F2"),
        (Change("limpet.recovery:choose", "max(valid)", "min(valid)"),),
    ),
    Mutant(
        "recovery seals a torn slot anew",
        ("F1", "F7"),
        (
            Change(
                _TAKE_UP,
                "    pager.use_map()\n",
                "    pager.use_map()\n"
                "    from .format import META_PGNOS, encode_meta\n"
                "    if not choice.clean and not self.read_only:\n"
                "        slot = 1 - choice.slot\n"
                "        data = encode_meta(meta, META_PGNOS[slot], pager.checksum, pager.seed)\n"
                "        file.write(META_PGNOS[slot] * pager.page_size, data)\n",
            ),
        ),
    ),
    Mutant(
        "no poison after a failed sync",
        ("F5", "F6"),
        tuple(
            Change(each, before, "pass")
            for each in (_RECORD, _CHECKPOINT)
            for before in ("self.poison(error)", "chain.failure, chain.published = error, None")
        ),
    ),
    Mutant(
        "checksums are not verified",
        ("F10", "F11"),
        (
            Change(
                "limpet.pager:Pager._verified",
                "found != ref_checksum(ref) or len(page) != size",
                "len(page) != size",
            ),
        ),
    ),
    Mutant(
        "a page is compared with its own checksum, not with its parent's reference",
        ("F11",),
        (
            Change(
                "limpet.pager:Pager._verified",
                "found != ref_checksum(ref) or len(page) != size",
                "len(page) != size or found != CHECKSUM.unpack_from(page)[0]",
            ),
        ),
    ),
    Mutant(
        "the directory is not synced after a file got its name",
        ("F1", "F2"),
        (Change("limpet.backup:put_in_place", "file_system.sync_directory(path)", "pass"),),
    ),
    Mutant(
        "the system's cache is trusted after a crash",
        ("F5",),
        (
            Change(_TAKE_UP, "if not choice.clean and not self.read_only:", "if False:"),
            Change(_TAKE_UP, "glance=not self.read_only", "glance=False"),
            Change(_TAKE_UP, "file.drop_cache(FIRST_NODE_PGNO * header.page_size)", "pass"),
        ),
    ),
    Mutant(
        "a new file gets its name before it is synced",
        ("F1", "F2"),
        (
            Change("limpet.backup:put_in_place", "file.sync_all()", "pass"),
            Change("limpet.opening:create_file", "file.sync_all()", "pass"),
            Change("limpet.backup:write_tables", "target.sync_all()", "pass"),
        ),
    ),
    Mutant(
        "opening for reading writes",
        ("F1", "F2"),
        (
            Change(
                _TAKE_UP,
                "    if not self.read_only:\n        write_holder(file, header.page_size)",
                "    write_holder(file, header.page_size)",
            ),
        ),
    ),
    Mutant(
        "the newest meta is overwritten",
        ("F1", "F3"),
        (Change("limpet.checkpoint:begin", "1 - ledger.metas.slot", "ledger.metas.slot"),),
    ),
    Mutant(
        "a log record is not synced",
        ("F1", "F2"),
        (Change(_WRITE_RECORD, "books.file.write_synced(", "books.file.write("),),
    ),
    Mutant(
        "an `os` commit forgets that it was not synced",
        ("F2", "F1"),
        (Change("limpet.record_writer:begin", "sync or (end.synced and not data)", "True"),),
        workload="durabilities",
    ),
    Mutant(
        "a log record counts whatever comes before it",
        ("F1", "F2"),
        (
            Change(
                "limpet.log:replay",
                "record.epoch != epoch or record.previous != previous or record.txid <= found.last_txid",
                "False",
            ),
        ),
    ),
    Mutant(
        "a log record is used although its checksum fails",
        ("F3", "F10"),
        (Change("limpet.log:decode_record", "if page_checksum(run, checksum, seed) != stored:", "if False:"),),
    ),
    Mutant(
        "a rotten log record is taken for the end of the log",
        ("F10", "F11"),
        (Change("limpet.log:replay", "if found.problem is None and (", "if False and ("),),
    ),
    Mutant(
        "the log begins anew after opening",
        ("F1", "F2"),
        (
            Change(_TAKE_UP, "LogEnd(replay.used, ", "LogEnd(0, "),
            Change(_TAKE_UP, "log.taken = replay.used, 0", "pass"),
        ),
    ),
    Mutant(
        "a full log is written beyond its end",
        ("F1", "F2"),
        (Change("limpet.log:Log.has_room", "used + pages <= self.size", "True"),),
    ),
    Mutant(
        "the copy of the newest meta is written over it",
        ("F1", "F3"),
        (Change("limpet.record_writer:complete", "1 - books.ledger.metas.slot", "books.ledger.metas.slot"),),
    ),
    Mutant(
        "a checkpoint leaves out what the log says of other tables",
        ("F1", "F2"),
        (
            Change(
                "limpet.transaction:WriteTransaction.apply_snapshot",
                "if info.overlay is not None:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "the changes of a snapshot are changed in place",
        ("F1", "F14"),
        (
            Change(
                "limpet.overlay:WorkingTree.changed_info",
                "settled, recent = above.settled, {**above.recent, **self.own}",
                "settled, recent = above.settled, above.recent\n            recent.update(self.own)",
            ),
        ),
        workload="readers",
    ),
    Mutant(
        "the delete of a key that only the log has is not logged",
        ("F1", "F2"),
        (
            Change(
                "limpet.overlay:WorkingTree._delete",
                "if below or key in self._before():",
                "if below:",
            ),
        ),
    ),
    Mutant(
        "an undone flush keeps its changes for the next record",
        ("F6",),
        (Change("limpet.checkpoint:undo", "ledger, chain.shown, None, taken", "ledger, chain.tip, None, taken"),),
    ),
    Mutant(
        "a failed flush keeps the pages it took",
        ("F6",),
        (Change("limpet.checkpoint:undo", "space.undo(plan.taken, plan.pending)", "pass"),),
    ),
    Mutant(
        "the log takes what no checkpoint has pages for",
        ("F6",),
        (Change("limpet.log:Log.is_promised", "return count", "return True or count"),),
    ),
    Mutant(
        "the last pages of a full disk are not kept for deletes",
        ("F6",),
        (Change("limpet.promise:check", "if missing > 0", "if False"),),
    ),
    Mutant(
        "a larger log is placed whether or not the file can grow",
        ("F6",),
        (Change("limpet.checkpoint:_next_log", "not extent.try_reserve(extent.capacity + wanted)", "False"),),
    ),
    Mutant(
        "overflow pages are not freed",
        ("F1", "F2"),
        (Change("limpet.paging:PageWork.apply", "for record in edit.dropped:", "for record in ():"),),
        workload="overflows",
    ),
    Mutant(
        "a table's number of entries is not kept up",
        ("F1", "F2"),
        (Change("limpet.paging:PageWork.apply", "tree.count + edit.delta", "tree.count"),),
    ),
    Mutant(
        "an undone savepoint still frees its pages",
        ("F1", "F6"),
        (
            Change(
                "limpet.transaction:Savepoint._undo",
                "txn.page_work = None",
                "work.held.clear()",
            ),
            Change("limpet.paging:PageWork.undo_savepoint", "del self.freed[freed_count:]", "pass"),
        ),
        workload="mixtures",
    ),
    Mutant(
        "a mapped page is touched behind the end of the file",
        ("F9",),
        (Change("limpet.file:OSFile.page", "if _size_of(handle.descriptor, 0, _END) < end:", "if False:"),),
    ),
    Mutant(
        "the store forgets an index",
        ("S1",),
        (Change("limpet_store.work:Work.put", "entries[after[0]] = after[1]", "pass"),),
    ),
    Mutant(
        "the store does not mark a reply as delivered with the task that it ends",
        ("S1",),
        (
            Change(
                "limpet_store.idempotency:mark",
                "work.put(IDEMPOTENCY, key, work.now(), work.get(IDEMPOTENCY, key))",
                "pass",
            ),
        ),
    ),
    Mutant(
        "a forked child goes on with the parent's file",
        ("F15",),
        (
            Change(
                "limpet.committer:Committer.forked",
                "self.chain.failure, self.chain.published = ClosedError(message), None",
                "pass",
            ),
            Change("limpet.committer:Committer.forked", "self.forked_child = True", "pass"),
            Change("limpet.file:_close_inherited_files", "owner._handle = None", "pass"),
            Change("limpet.file:_close_inherited_files", "handle.close()", "pass"),
        ),
    ),
    Mutant(
        "a call inside of another call of the same thread is let in",
        ("F18",),
        (
            Change(
                "limpet.committer:Committer.begin",
                "self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy()",
                "False",
            ),
            Change(
                "limpet.committer:Committer.commit",
                "self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy()",
                "False",
            ),
        ),
    ),
    Mutant(
        "a commit inside of a change of the same transaction is let in",
        ("F18",),
        (
            Change("limpet.committer:Committer.commit", "if transaction.in_step or", "if"),
            Change("limpet.transaction:WriteTransaction.step", "if self.in_step:", "if False:"),
        ),
    ),
    Mutant(
        "a log record counts before it is written",
        ("F18", "F6"),
        (
            Change(
                "limpet.record_writer:begin",
                "    chain.pending = record\n",
                "    chain.pending = record\n    log.end, chain.written = after, tip\n",
            ),
        ),
    ),
    Mutant(
        "the lock is not taken",
        ("F15", "F13"),
        (Change("limpet.file:wait_for_lock", "while not file.try_lock(exclusive=exclusive):", "while False:"),),
    ),
)
