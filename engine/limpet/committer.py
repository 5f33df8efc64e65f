"""The commit protocol: what turns transactions into commits that survive.

How a commit comes about:

    1  in memory   under the writer's lock: its changes come on top of those since the last
                   checkpoint, a new Snapshot becomes the tip. The writer is then free for the next
    2  flush       under the flush lock: what all commits since the last flush changed is written
                   behind the log, as one record, and synced
    3  published   readers that begin now see it

Several committers that wait at 2 are served by one flush (group commit). An `os` commit leaves out
the sync. A `none` commit leaves out step 2 altogether and waits in memory for the next.

A commit that the log has no room for, or that does more than to change entries, is a checkpoint:

    1  in memory   all changes since the last checkpoint, and its own, become pages in free space
    2  flush       those pages, the catalogue and the map of free space are written and synced;
                   then a meta into the slot that does not hold the newest; then that is synced.
                   The log is empty from then on

Failures, and what remains true:

    the disk is full, or   the commits of the flush are undone, nobody has seen them; go on
    writing pages fails
    a sync fails, or       what is on disk is unknown until it is read again: the database is
    writing a record or    poisoned, every later call says so; close it and open it again
    a meta fails

Locks, always taken in this order:

    _writer   held by the write transaction
    _flush    held while a flush is under way
    _state    short, never during I/O but growth: space, tip, published, metas, log

Readers take none: a reader pins the published snapshot, looks whether it still is the published
one, and begins again if not. A page freed by commit k is handed out only by a transaction that
began after k was published, and beginning looks at the pins.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from . import btree
from .backup import now_us
from .codecs import describe_key
from .errors import ClosedError, CorruptError, LimpetError, PoisonedError
from .file import File, FileSystem, on_fork, random_bytes
from .format import (
    CATALOGUE_TREE,
    FIRST_NODE_PGNO,
    HEADER_SIZE,
    KNOWN_READ_ONLY,
    META_PGNOS,
    CatalogueEntry,
    Meta,
    Pgno,
    Ref,
    Txid,
    decode_header,
    encode_catalogue_entry,
    encode_meta,
    make_stamp,
    max_key_size,
    ref_pgno,
)
from .free_space import FreeSpace, MapBefore, Pending, load_map
from .log import Log, Replay, decode_changes, encode_changes, region_size
from .opening import warn_if_lost, write_holder
from .overlay import Changed, Overlay, TableInfo, WorkingTree
from .pager import Pager
from .recovery import load_tables, recover
from .transaction import Snapshot, WriteTransaction
from .turn import Turn

_log = logging.getLogger("limpet")

SYNC, OS, NONE = "sync", "os", "none"
DURABILITIES = (SYNC, OS, NONE)

# A transaction may keep twice the cache in memory before its changes go to the file early:
# 100,000 new rows of 174 bytes take 30 MiB, and are merged once instead of twice.
_OVERLAY_SHARE = 2
_GROWTH_SHARE = 8  # the file grows by an eighth,
_MIN_GROWTH = 64 << 10  # but by 64 KiB at least
_MAX_GROWTH = 8 << 20  # and 8 MiB at most
_DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@dataclass(slots=True)
class _Commit:
    """A commit that is in memory and not yet published. Those in the log take no pages, and leave nothing to undo."""

    snapshot: Snapshot
    durability: str
    checkpoint: _Checkpoint | None = None
    error: OSError | None = None  # why a failed flush undid it


@dataclass(slots=True)
class _Checkpoint:
    """What a commit that is a checkpoint did to the books; what is needed to undo it."""

    allocated: list[int]
    pages: set[int]
    superseded: list[int]  # pages of earlier unwritten commits that need not be written any more
    pending: list[Pending]
    stale: list[int]  # references of nodes that only older commits use
    log_before: Log  # which it ends
    base_before: Snapshot  # the last checkpoint before


_new_snapshot = Snapshot.__new__


class _Flush:
    """What one flush does, and what is needed to undo it."""

    def __init__(self) -> None:
        self.tip: Snapshot | None = None
        self.pages: dict[int, bytes] = {}  # everything to be written
        self.unwritten: set[int] = set()  # of these, the pages of commits in memory
        self.dirty_tables: set[str] = set()
        self.taken: set[int] = set()  # pages for the catalogue, the map and the log
        self.freed: list[int] = []  # their old pages, before they are pending
        self.pending: list[Pending] = []
        self.map_before: MapBefore | None = None
        self.catalogue_root = 0
        self.log: Log | None = None  # of the epoch that begins
        self.log_start = 0
        self.grew = False
        self.prepared = False  # the books are in order; until then only errors of ours can be undone


class Committer:
    """The state of an open database, and everything that changes it. `Database` is what users see of it.

    A file is attached (recovery), transactions are handed pages and turned into commits, commits are
    flushed to the log or as checkpoints, and undone if that fails.
    """

    # More attributes than a dict of shared keys holds; with slots an `os` commit takes 4 % less.
    __slots__ = (
        "__weakref__",
        "_cache_size",
        "_capacity",
        "_catalogue_root",
        "_checkpoint",
        "_checkpoint_count",
        "_clean",
        "_closed",
        "_commit_count",
        "_dirty_tables",
        "_durability",
        "_durable_txid",
        "_failure",
        "_file",
        "_file_system",
        "_flush_count",
        "_flush_lock",
        "_forked",
        "_grew",
        "_header",
        "_last_txid",
        "_log",
        "_log_unsynced",
        "_metas",
        "_nonce",
        "_nonces",
        "_overlay_limit",
        "_page_size",
        "_pager",
        "_path",
        "_pins",
        "_published",
        "_read_only",
        "_retired",
        "_slot",
        "_space",
        "_state",
        "_sync_count",
        "_tip",
        "_transaction",
        "_unpublished",
        "_unwritten",
        "_unwritten_size",
        "_writer",
        "_writer_thread",
        "_written_txid",
        "_young",
    )

    def __init__(
        self, file_system: FileSystem, file: File, path: str, *, read_only: bool, cache_size: int, durability: str
    ) -> None:
        """Take up a locked file."""
        self._file_system = file_system
        self._path = path
        self._cache_size = cache_size
        self._durability = durability
        self._overlay_limit = max(1 << 20, _OVERLAY_SHARE * cache_size)
        self._nonces = random.Random(random_bytes(8))
        self._writer = threading.Lock()
        self._writer_thread: int | None = None
        self._flush_lock = Turn()
        self._state = threading.RLock()
        self._retired: weakref.WeakSet[Pager] = weakref.WeakSet()  # of before a compaction; their readers own them
        self._pins: dict[int, int] = {}  # id of a read transaction -> txid of its snapshot
        self._transaction: weakref.ref[WriteTransaction] | None = None  # weak: one that was forgotten must be collected
        self._failure: LimpetError | None = None  # why nothing works any more
        self._forked = False
        self._closed = False
        self._commit_count = self._flush_count = self._checkpoint_count = self._sync_count = 0
        self._read_only = read_only
        self._last_txid = 0
        self._attach(file)
        on_fork(self)

    def _attach(self, file: File) -> None:
        """Take up a locked file: recover, and stand at its newest commit."""
        header = decode_header(file.read(0, HEADER_SIZE), self._path)
        if header.features_read_only & ~KNOWN_READ_ONLY and not self._read_only:
            _log.warning("%s: uses features that this code can only read; opened read-only", self._path)
            self._read_only = True
        pager = Pager(file, header, self._cache_size)
        if not self._read_only:
            # If the sync of the last clean close failed, only the cache has its mark.
            file.drop_cache(FIRST_NODE_PGNO * header.page_size)
        choice = recover(pager, glance=not self._read_only)
        if not choice.clean and not self._read_only:
            file.sync_all()  # what is found after this is on the disk, the size of the file included
            if not file.drop_cache():
                _log.debug("%s: the system's cache of the file could not be emptied", self._path)
            pager.forget()
            choice = recover(pager)
        meta, replay = choice.meta, choice.log
        if choice.problem is not None or meta is None or choice.slot is None or replay is None:
            raise choice.problem or CorruptError("no commit can be read")
        if not choice.clean:
            _log.info("%s: was not closed cleanly; %s", self._path, "; ".join(choice.reasons))
        tables = load_tables(pager, meta)
        self._header = header
        self._page_size = header.page_size
        self._file = file
        self._pager = pager
        self._metas: list[Meta | None] = [None, None]
        self._metas[choice.slot] = meta
        self._metas[1 - choice.slot] = choice.older
        self._slot = choice.slot  # of the newest meta
        self._log = Log(meta.epoch, meta.log_start, meta.log_size, header.page_size, replay.used)
        self._log.doubled = choice.older is not None and choice.older.txid == meta.txid
        if replay.records:
            self._log.previous = replay.records[-1].checksum
        self._durable_txid = self._written_txid = int(replay.last_txid)
        self._clean = choice.clean
        self._last_txid = max(
            [self._last_txid, replay.seen_txid, *(int(each.txid) for each in choice.found if isinstance(each, Meta))]
        )
        self._capacity = file.size() // header.page_size
        self._log_unsynced = False  # whether records were written that are not synced
        self._grew = self._capacity > meta.high_water  # a process that died may have added space and not synced it
        self._space: FreeSpace | None = None
        self._catalogue_root = int(meta.catalogue_root)
        self._dirty_tables: set[str] = set()
        self._unwritten: set[int] = set()  # first page numbers of held pages of commits in memory
        self._unwritten_size = 0  # their bytes; a run of overflow pages counts whole
        self._young: set[int] = set()  # pages of commits that no flush has seen yet
        self._unpublished: list[_Commit] = []
        self._nonce = meta.nonce
        # The newest commit whose changes are all in trees.
        self._checkpoint = Snapshot(meta.txid, tables, meta.next_tree_id, pager)
        tables = self._replayed(tables, replay, meta)
        snapshot = Snapshot(replay.last_txid, tables, meta.next_tree_id, pager)
        self._tip = snapshot
        self._published: Snapshot | None = snapshot
        pager.use_map()
        if not self._read_only:
            write_holder(file, header.page_size)

    def _replayed(self, tables: dict[str, TableInfo], replay: Replay, meta: Meta) -> dict[str, TableInfo]:
        """The tables with the changes in the log on top."""
        names = {info.tree_id: name for name, info in tables.items()}
        changed: dict[str, dict[bytes, bytes | None]] = {}
        limit = max_key_size(self._header.page_size)
        tables = dict(tables)
        for record in replay.records:
            pgno = meta.log_start + record.at
            for group in decode_changes(record.changes, pgno):
                name = names.get(group.tree_id)
                if name is None:
                    raise CorruptError(f"the log changes tree {group.tree_id}, which no table has", pgno=Pgno(pgno))
                if any(len(key) > limit for key, _ in group.changes):
                    raise CorruptError("the log has a key that is too large", pgno=Pgno(pgno), table=name)
                changed.setdefault(name, {}).update(group.changes)
                self._log.change_count += len(group.changes)
        for name, changes in changed.items():
            if not tables[name].root:  # a key that came and went; there is nothing below to hide
                changes = {key: value for key, value in changes.items() if value is not None}
            tables[name] = tables[name]._replace(overlay=Overlay(changes, {}) if changes else None)
        return tables

    def _switch(self, file: File) -> None:
        """Go on with another file that holds the same commit."""
        try:
            old = self._file
            self._retired.add(self._pager)
            with self._state:
                self._attach(file)
        except BaseException as error:
            self._poison(error)
            file.close()
            raise
        if not self._pins:
            old.close()  # else the last reader of the old file does

    def forked(self) -> None:
        """Called in a forked child: the file belongs to the parent."""
        self._forked = True
        message = f"the database {self._path} was opened before a fork; the child has to open its own"
        self._failure = ClosedError(message)
        self._published = None
        for pager in (self._pager, *self._retired):
            pager.abandon(message)

    @property
    def path(self) -> str:
        """The path of the file, symbolic links followed; ":memory:" if there is none."""
        return self._path

    @property
    def high_water(self) -> int:
        """The first page number never used, as the open write transaction sees it. Not for users."""
        return self._loaded_space().high_water

    # -- state -----------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._error()

    def _error(self) -> LimpetError:
        failure = self._failure
        assert failure is not None
        return type(failure)(*failure.args).with_traceback(None)

    def _poison(self, cause: BaseException) -> None:
        if self._failure is None:
            self._failure = PoisonedError(
                f"{self._path}: an earlier write or sync failed ({type(cause).__name__}: {cause}), so memory may not "
                "agree with the disk. Close the database and open it again; every acknowledged commit is there"
            )
            self._published = None
            _log.error("%s", self._failure)

    def new_nonce(self) -> int:
        """The random part of a stamp. Not for users."""
        return self._nonces.getrandbits(16)

    def _release_writer(self) -> None:
        self._transaction = None
        self._writer_thread = self._writer.release()  # type: ignore[func-returns-value]  # None; both or neither

    def _recover_writer(self) -> None:
        """Take the writer back from a transaction of this thread that was interrupted while it ended."""
        if self._writer_thread == threading.get_ident() and self._writer.locked():
            transaction = self._transaction() if self._transaction is not None else None
            if transaction is None or not transaction._open:
                self._release_writer()

    def _loaded_space(self) -> FreeSpace:
        """The free space, read from the file at the first write."""
        if self._space is None:
            meta = self._meta()
            page_size = self._header.page_size
            bits, refs = load_map(meta.free_space_root, meta.high_water, page_size, self._pager.page)
            space = FreeSpace(page_size, meta.high_water, bits, refs, self._reserve)
            if space.free_count != meta.free_count:
                raise CorruptError(
                    "the map of free space does not add up; the database can still be read",
                    expected=meta.free_count,
                    found=space.free_count,
                )
            roots = [info.root for info in self._checkpoint.tables.values()]
            space.check_used(
                [
                    *(ref_pgno(ref) for ref in refs.values()),
                    *range(meta.log_start, meta.log_start + meta.log_size),
                    *{ref_pgno(ref) for ref in (meta.catalogue_root, *roots) if ref},
                ]
            )
            older = [
                other for other in self._metas if other is not None and other is not meta and other.txid != meta.txid
            ]
            needed = None
            if older:
                needed = self._free_in_older(older[0], meta.high_water)
            space.set_pending(meta.txid, needed)
            self._space = space
        return self._space

    def _free_in_older(self, older: Meta, high_water: int) -> bytes:
        """Which pages the older commit does not need, as a map; none of them if its own map is damaged."""
        try:
            bits, _ = load_map(older.free_space_root, older.high_water, self._header.page_size, self._pager.page)
        except CorruptError as error:
            _log.warning("%s: commit %d, the one before, is damaged: %s", self._path, older.txid, error)
            return bytes(-(-high_water // 8))
        for pgno in range(older.high_water, min(high_water, 8 * len(bits))):  # the older commit has never used those
            bits[pgno >> 3] |= 1 << (pgno & 7)
        return bytes(bits)

    def _meta(self) -> Meta:
        """The newest checkpoint on disk."""
        meta = self._metas[self._slot]
        assert meta is not None
        return meta

    def _horizon_of_metas(self) -> int:
        """The oldest checkpoint whose meta is on the disk; its pages have to stay."""
        return min(int(meta.txid) for meta in self._metas if meta is not None)

    def _reclaim(self, space: FreeSpace) -> None:
        """Find out which freed pages may be used again. Only a transaction that asks for pages needs to know."""
        if not space.has_pending:
            return
        published = self._published  # first this, then the pins: a reader that comes between them looks again
        assert published is not None
        readers = min([published.txid, *list(self._pins.values())])
        self._pager.release(space.reclaim(min(readers, self._horizon_of_metas()), readers))

    def _reserve(self, high_water: int) -> None:
        """Make the file long enough for `high_water` pages, by real space."""
        if high_water <= self._capacity:
            return
        page_size = self._header.page_size
        needed = high_water * page_size
        size = self._capacity * page_size
        step = max(_MIN_GROWTH, min(_MAX_GROWTH, size // _GROWTH_SHARE))
        generous = max(needed, -(-(size + step) // page_size) * page_size)
        try:
            self._file.grow(generous)
            grown = generous
        except OSError:
            if generous == needed:
                raise
            self._file.grow(needed)
            grown = needed
        self._capacity = grown // page_size
        self._grew = True

    # -- what transactions ask for ---------------------------------------------------------------

    def _allocate(self, count: int) -> list[int]:
        with self._state, self._books():
            space = self._loaded_space()
            self._reclaim(space)
            # Behind the tree's pages, the catalogue's and the map's will want a place in the same run.
            return space.allocate(count, slack=2)

    def _allocate_runs(self, counts: Sequence[int]) -> list[range]:
        with self._state, self._books():
            space = self._loaded_space()
            self._reclaim(space)
            return space.allocate_runs(counts)

    def _give_back(self, pgnos: Iterable[int]) -> None:
        with self._state, self._books():
            self._loaded_space().give_back(pgnos)

    @contextmanager
    def _books(self) -> Iterator[None]:
        """Whatever stops a change of the free space half-way leaves books that nobody should write from."""
        try:
            yield
        except OSError:
            raise  # the file could not grow; that comes before any change
        except BaseException as error:
            self._poison(error)
            raise

    def _abort(self, transaction: WriteTransaction) -> None:
        if self._forked:
            transaction._end()
            return
        try:
            self._discard(transaction)
        finally:
            was_open = transaction._open
            transaction._end()
            if was_open:
                self._release_writer()

    def _discard(self, transaction: WriteTransaction) -> None:
        """Take back the pages of a transaction that does not commit."""
        work = transaction._pages
        if work is None:
            return
        with self._state:
            for allocated in work.allocated:
                self._pager.release(allocated)
                if self._space is not None:
                    self._space.give_back(allocated)
            if work.spilled:
                self._last_txid = max(self._last_txid, transaction.txid)

    def _commit(self, transaction: WriteTransaction) -> None:
        """Make a transaction's result the tip, and wait until it is as durable as was asked for."""
        try:
            if self._failure is not None:
                raise self._error()
            if transaction._savepoint is not None:
                raise RuntimeError("a savepoint is still open; leave its `with` block before the commit")
            if transaction._base is not self._tip:
                raise self._built_on_undone()
            if transaction._broken is not None:
                raise transaction._broken
            changes = transaction._own_changes()
            commit = self._log_commit(transaction, changes) if changes else None
            tables: dict[str, TableInfo] | None = None
            if commit is None and changes != []:
                tables = self._apply(transaction)
        except BaseException:
            if transaction._open:
                self._abort(transaction)
            raise
        if commit is None:
            if tables is None:
                basis = self._basis(transaction)
                self._abort(transaction)  # a transaction that changed nothing commits nothing
                if basis is not None:
                    self._await(basis)  # but what it saw, and its caller may tell, is perhaps not durable yet
                return
            commit = self._checkpoint_commit(transaction, tables)
        if commit.durability != NONE or not self._publish_unflushed(commit):
            self._await(commit)

    def _basis(self, transaction: WriteTransaction) -> _Commit | None:
        """The commit that a transaction began on, if readers cannot see it yet."""
        with self._state:
            return next((commit for commit in self._unpublished if commit.snapshot is transaction._base), None)

    def _await(self, commit: _Commit) -> None:
        """Wait until a commit is as durable as was asked for; bring that about if nobody else does."""
        txid = commit.snapshot.txid
        wanted = OS if commit.durability == NONE else commit.durability
        try:
            if (self._flush_lock.take() or self._wait_for(commit, wanted)) and commit.error is None:
                self._flush_locked(txid, wanted)
        finally:
            self._flush_lock.release()
        if commit.error is not None:
            raise commit.error

    def _wait_for(self, commit: _Commit, wanted: str) -> bool:
        """Take the turn to flush, or return False once somebody else has done what the commit waits for."""
        return self._flush_lock.wait(lambda: commit.error is not None or self._reached(wanted) >= commit.snapshot.txid)

    def _apply(self, transaction: WriteTransaction) -> dict[str, TableInfo] | None:
        """Turn everything that is not in the trees into pages; returns the tables, None if nothing has changed."""
        transaction._apply_snapshot()
        tables = self._tables_after(transaction)
        with self._state:
            work = transaction._page_work()
            self._loaded_space().check_used([pgno for pgno in work.freed if pgno not in work.allocated[0]])
        return tables

    def _log_commit(self, transaction: WriteTransaction, changes: list[tuple[WorkingTree, Changed]]) -> _Commit | None:
        """Make a transaction's result the tip, to be recorded in the log; None if the log has no room for it."""
        infos: dict[str, TableInfo] = {}
        parts: list[bytes] = []
        count = 0
        for tree, some in changes:
            info = tree.info()
            assert info is not None
            infos[tree.name] = info
            parts.append(encode_changes(info.tree_id, some))
            count += len(some)
        encoded = b"".join(parts)  # which costs nothing where there is but one
        with self._state:
            tip = self._tip
            if transaction._base is not tip:
                raise self._built_on_undone()
            snapshot = _new_snapshot(Snapshot)  # and no __init__, as for a TableView
            snapshot.txid = txid = transaction._txid
            snapshot.tables = {**tip.tables, **infos}
            snapshot.next_tree_id = tip.next_tree_id
            snapshot.pager = self._pager
            snapshot.trees = {}
            commit = _Commit(snapshot, transaction._durability)
            try:
                if not self._log.add(txid, encoded, count):
                    return None
                self._unpublished.append(commit)
                self._last_txid = txid
                self._tip = snapshot
                self._commit_count += 1
                transaction._end()  # at once: whatever happens, the commit is made
                self._release_writer()
            except BaseException as error:
                self._poison(error)  # the books may be half changed; the disk is not
                raise
            return commit

    def _checkpoint_commit(self, transaction: WriteTransaction, tables: dict[str, TableInfo]) -> _Commit:
        """Make a transaction's result, all of which is in pages, the tip."""
        commit: _Commit | None = None
        try:
            with self._state:
                if transaction._base is self._tip:
                    commit = self._advance(transaction, tables)
                    transaction._end()  # at once: an abort after this would give away pages that are in use
        except BaseException as error:
            self._poison(error)  # the books may be half changed; the disk is not
            raise
        finally:
            if commit is not None or self._failure is not None:
                transaction._end()
                self._release_writer()
        if commit is None:
            self._abort(transaction)
            raise self._built_on_undone()
        return commit

    def _close_cleanly(self) -> None:
        """Bring the log into the trees, and leave the mark. The caller has the writer and the flush lock.

        If there is no room on the disk, or a page that would have to be changed is damaged, the log stays as it is:
        it holds everything, and the next opening replays it.
        """
        transaction: WriteTransaction | None = None
        try:
            if not self._log.is_empty:
                transaction = WriteTransaction(self, self._tip, self._last_txid + 1, SYNC)
                tables = self._apply(transaction)
                if tables is not None:
                    with self._state:
                        self._advance(transaction, tables)
            self._flush_locked(self._tip.txid, SYNC, clean=True)
        except (OSError, CorruptError) as error:
            if self._failure is not None:
                raise
            if transaction is not None:
                self._discard(transaction)
            _log.warning("%s: the log could not be brought into the trees: %s", self._path, error)
        finally:
            if transaction is not None:
                transaction._end()

    def _built_on_undone(self) -> OSError:
        return OSError(
            errno.EIO,
            "an earlier commit, on which this transaction was built, could not be written; begin it again",
            self._path,
        )

    def _tables_after(self, transaction: WriteTransaction) -> dict[str, TableInfo] | None:
        """The tables of the new snapshot, or None if nothing has changed."""
        base = self._tip.tables
        tables: dict[str, TableInfo] | None = None
        for name, tree in transaction._trees.items():
            if not tree.changed:
                continue
            info = tree.info()
            if info != base.get(name):
                if tables is None:
                    tables = dict(base)
                if info is None:
                    del tables[name]
                else:
                    tables[name] = info
        return tables

    def _advance(self, transaction: WriteTransaction, tables: dict[str, TableInfo]) -> _Commit:
        """Make a transaction's result the tip, and what the next checkpoint on disk will be. In memory only."""
        space = self._loaded_space()
        txid = transaction._txid
        # From here on the pages are the commit's: whatever happens to the transaction, it gives none back.
        work, transaction._pages = transaction._page_work(), None
        (allocated,) = work.allocated
        own = allocated.intersection(work.freed)
        if own:
            allocated -= own
            work.held -= own
            self._pager.release(own)
            space.give_back(own)
        freed = [pgno for pgno in work.freed if pgno not in own]
        young = [pgno for pgno in freed if pgno in self._young]
        if young:
            freed = [pgno for pgno in freed if pgno not in self._young]
        pending = space.commit(txid, allocated, freed, young)
        superseded = [pgno for pgno in young if pgno in self._unwritten]
        superseded += [pgno for pgno in freed if pgno in self._unwritten]
        self._unwritten.difference_update(superseded)
        self._unwritten |= work.held
        self._unwritten_size += self._held_size(work.held) - self._held_size(superseded)
        self._young.difference_update(young)
        self._young |= allocated
        self._nonce = transaction.stamp >> 48
        self._last_txid = txid
        snapshot = Snapshot(txid, tables, transaction._next_tree_id, self._pager)
        self._dirty_tables.update(name for name, tree in transaction._trees.items() if tree.changed)
        checkpoint = _Checkpoint(
            list(allocated),
            work.held,
            superseded,
            pending,
            work.stale,
            self._log,
            self._checkpoint,
        )
        commit = _Commit(snapshot, transaction._durability, checkpoint)
        self._log = self._next_log(space)
        self._checkpoint = snapshot
        self._unpublished.append(commit)
        self._tip = snapshot
        self._commit_count += 1
        return commit

    def _next_log(self, space: FreeSpace) -> Log:
        """The empty log of the epoch that a checkpoint begins: in the same place, or in a larger one."""
        wanted = region_size(space.high_water, self._header.page_size)
        if self._log.size * 4 >= wanted * 3:
            return Log(0, self._log.start, self._log.size, self._page_size)
        return Log(0, 0, wanted, self._page_size)

    def _publish_unflushed(self, commit: _Commit) -> bool:
        """Show a `none` commit to readers, unless it has to wait for a stronger one, or too much waits in memory."""
        with self._state:
            if self._unpublished != [commit] or self._failure is not None:
                return False
            if self._unwritten_size + self._log.waiting_size > self._overlay_limit:
                return False
            self._unpublished = []
            self._published = commit.snapshot
            return True

    def _held_size(self, pgnos: Iterable[int]) -> int:
        """Bytes of held pages."""
        held = self._pager.held
        return sum(len(held[pgno]) for pgno in pgnos)

    # -- flushing --------------------------------------------------------------------------------

    def _reached(self, durability: str) -> int:
        return self._durable_txid if durability == SYNC else self._written_txid

    def _flush_locked(self, txid: int, durability: str, *, clean: bool = False) -> None:
        """Bring the disk as far as commit `txid`. The caller has the flush lock."""
        sync = durability == SYNC
        mark = clean and self._flush_count and not self._clean
        while (behind := (self._durable_txid if sync else self._written_txid) < txid) or mark:
            if self._failure is not None:
                raise self._error()
            if not self._log.epoch:
                self._write_checkpoint(clean=clean)
                mark = False
            elif behind:
                self._write_record(sync=sync)
            else:
                self._write_mark()
                mark = False

    # A record behind the log.

    def _write_record(self, *, sync: bool) -> None:
        """What all commits since the last flush changed, and a sync: the way that most commits go."""
        page_size = self._page_size
        copy: Meta | None = None
        record = b""
        taken: list[tuple[int, bytes]] = []
        log, offset = self._log, 0
        try:
            with self._state:
                if log is not self._log or not log.epoch:
                    return  # a checkpoint has just come before it
                tip, previous = self._tip, log.previous
                sync = sync or SYNC in [commit.durability for commit in self._unpublished]
                offset = (log.start + log.used) * page_size
                if log.waiting:
                    stamp = make_stamp(tip.txid, self._nonces.getrandbits(16))
                    pager = self._pager
                    previous, record, taken = log.take(stamp, self._durable_txid, now_us(), pager.checksum, pager.seed)
                if sync and not log.doubled:
                    copy = replace(self._meta(), clean=False)
            if record and sync and copy is None and not self._log_unsynced:
                self._file.write_synced(offset, record)
            elif record:
                self._file.write(offset, record)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _DISK_FULL and self._is_absent(offset, record):
                with self._state:
                    log.put_back(taken)
                self._undo_flush(_Flush(), error)
            else:
                self._poison(error)
            raise
        try:
            if copy is not None:  # from now on no single damaged page can hide the log
                self._write_meta(copy, 1 - self._slot)
            if sync and (copy is not None or self._log_unsynced or not record):
                self._file.sync()
            self._sync_count += sync
            with self._state:
                log.previous = previous
                if copy is not None:
                    self._metas[1 - self._slot] = copy
                    log.doubled = True
                self._log_unsynced = not sync
                self._clean = False
                self._finish(tip, sync=sync)
        except BaseException as error:
            self._poison(error)
            raise

    def _is_absent(self, offset: int, record: bytes) -> bool:
        """Whether a record that could not be written is not in the file; a part of it is no record."""
        try:
            return bool(record) and self._file.read(offset, len(record)) != record
        except OSError:
            return False

    def _write_meta(self, meta: Meta, slot: int) -> None:
        self._file.write(
            META_PGNOS[slot] * self._header.page_size,
            encode_meta(meta, META_PGNOS[slot], self._pager.checksum, self._pager.seed),
        )

    def _finish(self, snapshot: Snapshot, *, sync: bool) -> None:
        """A flush has brought the disk as far as this snapshot: let readers see it."""
        self._flush_count += 1
        published = self._published
        if published is None or snapshot.txid > published.txid:  # a `none` commit may have come to light meanwhile
            self._published = snapshot
        reached, self._unpublished = self._unpublished, []
        for commit in reached:
            if commit.snapshot.txid > snapshot.txid:
                self._unpublished.append(commit)
            elif commit.checkpoint is not None:
                self._pager.discard(commit.checkpoint.stale)
        # Last, because who waits for this looks without a lock, and then expects to see the commit.
        self._written_txid = snapshot.txid
        if sync:
            self._durable_txid = snapshot.txid

    # A checkpoint.

    def _write_checkpoint(self, *, clean: bool) -> None:
        """Pages, sync, meta, sync: the state whose changes are all in the trees becomes the one on disk."""
        work = _Flush()
        try:
            with self._state:
                meta = self._prepare(work, clean)
                work.prepared = True
            self._pager.write(work.pages)
        except BaseException as error:
            if work.prepared or isinstance(error, OSError | LimpetError):
                self._undo_flush(work, error)
            else:
                self._poison(error)  # an interrupt: the books may be half changed; the disk is not
            raise
        try:
            self._sync_and_record(meta, 1 - self._slot, grew=work.grew)
            with self._state:
                self._finish_checkpoint(work, meta)
        except BaseException as error:
            self._poison(error)
            raise
        warn_if_lost(self._file)

    def _write_mark(self) -> None:
        """The newest checkpoint once more, marked as closed cleanly: only a meta is written, so both say the same.

        The sync before it is for errors that the system kept for the next one (ext4 with data=journal).
        """
        meta = replace(self._meta(), clean=True)
        try:
            self._sync_and_record(meta, 1 - self._slot, grew=self._grew)
            with self._state:
                self._slot = 1 - self._slot
                self._metas[self._slot] = meta
                self._clean = True
                self._flush_count += 1
        except BaseException as error:
            self._poison(error)
            raise

    def _sync_and_record(self, meta: Meta, slot: int, *, grew: bool) -> None:
        if grew:
            self._file.sync_all()
        else:
            self._file.sync()
        data = encode_meta(meta, META_PGNOS[slot], self._pager.checksum, self._pager.seed)
        self._file.write_synced(META_PGNOS[slot] * self._header.page_size, data)
        self._sync_count += 2

    def _prepare(self, work: _Flush, clean: bool) -> Meta:
        """Collect what has to be written to make the newest checkpoint in memory the one of the file."""
        space = self._loaded_space()
        work.log = self._log
        tip = work.tip = self._checkpoint
        work.unwritten, self._unwritten, self._unwritten_size = self._unwritten, set(), 0
        work.dirty_tables, self._dirty_tables = self._dirty_tables, set()
        self._young = set()  # from here on, the pages of the checkpoint may be on disk
        work.pages.update((pgno, self._pager.held[pgno]) for pgno in work.unwritten)
        work.catalogue_root = self._write_catalogue(work, space)
        work.log_start = self._place_log(work, space)
        map_root = self._write_map(work, space)
        work.grew, self._grew = self._grew, False  # not before: all of them may have needed room
        return Meta(
            txid=Txid(tip.txid),
            nonce=self._nonce,
            catalogue_root=Ref(work.catalogue_root),
            free_space_root=map_root,
            high_water=space.high_water,
            free_count=space.free_count,
            table_count=len(tip.tables),
            next_tree_id=tip.next_tree_id,
            commit_us=now_us(),
            log_start=work.log_start,
            log_size=work.log.size,
            clean=clean,
        )

    def _place_log(self, work: _Flush, space: FreeSpace) -> int:
        """Where the log of the new epoch is: a larger file gets a larger one."""
        assert work.log is not None
        if work.log.start or not work.log.size:
            return work.log.start
        before = self._meta()
        run = space.allocate_run(work.log.size)
        work.taken.update(run)
        space.mark_used(run)
        work.pages.update((pgno, bytes(self._header.page_size)) for pgno in run)  # real space, even if it was a hole
        for pgno in range(before.log_start, before.log_start + before.log_size):
            self._drop(work, space, pgno)
        return run.start

    def _write_catalogue(self, work: _Flush, space: FreeSpace) -> int:
        """Bring the catalogue up to the tip; returns its root."""
        tip, pager = work.tip, self._pager
        assert tip is not None
        changes: btree.Changes = {}
        for name in work.dirty_tables:
            info = tip.tables.get(name)
            key = name.encode()
            if info is not None:
                shape, codecs = describe_key(info.key)
                changes[key] = encode_catalogue_entry(
                    CatalogueEntry(Ref(info.root), info.root_count, info.tree_id, info.value.number, shape, codecs)
                )
            elif self._catalogue_root and btree.get(pager, self._catalogue_root, CATALOGUE_TREE, None, key) is not None:
                changes[key] = None
        if not changes:
            return self._catalogue_root
        edit = btree.apply(partial(pager.node, tree_id=CATALOGUE_TREE), pager.page_size, self._catalogue_root, changes)
        pgnos = self._take(work, space, edit.drafts, slack=1)
        root, pages = btree.seal(pager, edit, CATALOGUE_TREE, make_stamp(tip.txid, self._nonce), pgnos)
        work.pages.update(pages)
        for ref in edit.freed:
            self._drop(work, space, ref_pgno(ref))
        return root

    def _write_map(self, work: _Flush, space: FreeSpace) -> Ref:
        """Bring the map of free space up to date, this flush's own pages included; returns its root."""
        tip = work.tip
        assert tip is not None
        if space.map_is_dirty:
            planned = space.plan_map(
                lambda count: self._take(work, space, count, slack=0), lambda pgno: self._drop(work, space, pgno)
            )
            pages, refs = space.encode_map(planned, make_stamp(tip.txid, self._nonce), self._pager.seal)
            work.pages.update(pages)
            work.map_before = space.install_map(refs)
        work.pending = space.add_pending(tip.txid, work.freed)
        work.freed = []
        return space.map_root()

    @staticmethod
    def _take(work: _Flush, space: FreeSpace, count: int, slack: int) -> list[int]:
        pgnos = space.allocate(count, slack)
        work.taken.update(pgnos)
        space.mark_used(pgnos)
        return pgnos

    @staticmethod
    def _drop(work: _Flush, space: FreeSpace, pgno: int) -> None:
        space.check_used((pgno,))
        if pgno in work.taken:  # it was free and in use at once; giving it back twice would not be undone
            raise CorruptError("a page that is in use is marked free", pgno=Pgno(pgno))
        space.mark_free((pgno,))
        work.freed.append(pgno)

    def _finish_checkpoint(self, work: _Flush, meta: Meta) -> None:
        """The meta is in the file: its epoch begins."""
        assert work.tip is not None
        assert work.log is not None
        self._slot = 1 - self._slot
        self._metas[self._slot] = meta
        self._log_unsynced = False
        self._clean = meta.clean
        self._catalogue_root = work.catalogue_root
        self._checkpoint_count += 1
        work.log.epoch, work.log.start = meta.epoch, work.log_start
        self._pager.release(work.unwritten)
        self._finish(work.tip, sync=True)

    def _undo_flush(self, work: _Flush, cause: BaseException) -> None:
        """Writing failed before anything could be believed: forget all commits that nobody has seen."""
        try:
            with self._state:
                space = self._loaded_space()
                published = self._published
                assert published is not None
                error = (
                    cause
                    if isinstance(cause, OSError)
                    else OSError(5, f"the flush was interrupted: {cause!r}", self._path)
                )
                unwritten = work.unwritten | self._unwritten
                undone = [commit.checkpoint for commit in self._unpublished if commit.checkpoint is not None]
                for checkpoint in reversed(undone):
                    space.undo(checkpoint.allocated, checkpoint.pending)
                    unwritten -= checkpoint.pages
                    unwritten.update(checkpoint.superseded)
                    self._pager.release(checkpoint.pages)
                    self._log, self._checkpoint = checkpoint.log_before, checkpoint.base_before
                for checkpoint in undone:
                    unwritten -= checkpoint.pages
                for commit in self._unpublished:
                    commit.error = error
                if work.map_before is not None:
                    space.restore_map(work.map_before)
                space.undo(work.taken, work.pending)
                space.mark_used(work.freed)
                self._unwritten, self._unwritten_size = unwritten, self._held_size(unwritten)
                self._dirty_tables |= work.dirty_tables
                self._grew = True
                self._log.forget_after(published.txid)
                self._unpublished = []
                self._tip = published
        except Exception as error:  # noqa: BLE001 an interrupt left the books half changed; the caller raises `cause`
            self._poison(error)
        except BaseException as error:
            self._poison(error)
            raise
