"""The committer: what turns transactions into commits that survive. Here is the order of the steps.

How a commit comes about (`commit`):

    1  in memory   its changes come on top of those since the last checkpoint, and it becomes the tip of
                   the chain (chain.py). The writer is then free for the next
    2  flush       what all commits since the last flush changed is written behind the log, as one
                   record, and synced (record_writer.py)
    3  shown       readers that begin now see it

Several committers that wait at 2 are served by one flush (group commit). An `os` commit leaves out
the sync. A `none` commit leaves out step 2 altogether and waits in memory for the next.

A commit that the log has no room for, or the next checkpoint no pages (promise.py), or that does more
than to change entries, is a checkpoint (checkpoint.py):

    1  in memory   all changes since the last checkpoint, and its own, become pages in free space
    2  flush       those pages, the catalogue and the map of free space are written and synced;
                   then a meta into the slot that does not hold the newest; then that is synced.
                   The log is empty from then on

Failures, and what remains true:

    the disk is full       the commit is refused before anybody waits for it; go on. Deletes go on too
    writing pages fails    the commits of the flush are undone, nobody has seen them; go on
    a sync fails, or       what is on disk is unknown until it is read again: the database is
    writing a record or    poisoned, every later call says so; close it and open it again
    a meta fails
    an interrupt           nothing has failed: what was under way is done again by the next flush

Locks, always taken in this order. Each is known by its owner (turn.py), and none is taken twice:

    seat           of the writer: a write transaction has it from its beginning to its end
    turn.lock      while a flush is under way; after it, who waits is rung for
    books.lock     short: the books and the chain. I/O under it: growth, zeros where space was given back (trim), and
                   the map at the first write
    pager's        shorter: the bookkeeping of the cache. No I/O

Who comes in while the same thread has one of the last three, or has the seat already (a signal handler,
a finalizer), is refused with BusyError, before anything was done. Reading is never refused.

Readers take no lock: a reader pins the published snapshot, looks whether it still is the published
one, and begins again if not. A page freed by commit k is handed out only to who asks for pages after
k was published, and asking looks at the pins.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from . import checkpoint, promise, record_writer
from .books import Books, Ledger, Metas
from .chain import NONE, SYNC, Chain, Commit, Record
from .errors import BusyError, ClosedError, CorruptError, LimpetError, ReadOnlyError, is_disk_full
from .file import File, on_fork, random_bytes
from .format import FIRST_NODE_PGNO, HEADER_SIZE, KNOWN_READ_ONLY, Header, Meta, Pgno, decode_header, max_key_size
from .log import Log, LogEnd, Replay, decode_changes
from .opening import warn_if_lost, write_holder
from .overlay import CHANGING, Overlay, TableInfo
from .pager import Pager
from .paging import PageWork
from .reader import ended
from .recovery import load_tables, recover, refusal
from .snapshot import Snapshot
from .transaction import Logged, WriteTransaction
from .turn import Seat, Turn, owner_of

_log = logging.getLogger("limpet")

# A transaction may keep twice the cache in memory before its changes go to the file early:
# 100,000 new rows of 174 bytes take 30 MiB, and are merged once instead of twice.
_OVERLAY_SHARE = 2


class Counts:
    """What was done since opening."""

    __slots__ = ("checkpoints", "commits", "flushes", "syncs")

    def __init__(self) -> None:
        self.commits = self.flushes = self.checkpoints = self.syncs = 0


class _Found(NamedTuple):
    """What opening a file found: its pages and books, the newest commit, and the highest txid ever used in it."""

    pager: Pager
    ledger: Ledger
    commit: Commit
    seen_txid: int
    clean: bool


class Committer:
    """Everything that changes an open database. `Database` is what users see of it.

    books    of the file
    chain    of the commits, and the life of the database
    pins     id of a read transaction -> txid of its snapshot
    retired  pagers of before a compaction; their readers own them
    turn     to flush
    """

    # With slots an `os` commit takes 4 % less.
    __slots__ = (
        "__weakref__",
        "_cache_lock",
        "_cache_size",
        "_is_booked",
        "_lock",
        "_nonces",
        "_orphans",
        "books",
        "chain",
        "counts",
        "forked_child",
        "overlay_limit",
        "path",
        "pins",
        "prepared",
        "read_only",
        "retired",
        "seat",
        "turn",
    )

    def __init__(self, file: File, path: str, *, read_only: bool, cache_size: int) -> None:
        """Take up a locked file: recover, and stand at its newest commit."""
        self.path = path
        self.read_only = read_only
        self._cache_size = cache_size
        self.overlay_limit = max(1 << 20, _OVERLAY_SHARE * cache_size)
        self._nonces = random.Random(random_bytes(8))
        self.seat = Seat()
        self.turn = Turn()
        self._lock = threading.RLock()
        self._is_booked = owner_of(self._lock)
        self._cache_lock = threading.RLock()  # one for all pagers, so that there is one answer to whether it is ours
        self._orphans: deque[PageWork] = deque()  # of transactions that ended where their pages could not be given back
        self.retired: weakref.WeakSet[Pager] = weakref.WeakSet()
        self.pins: dict[int, int] = {}
        self.counts = Counts()
        self.forked_child = False
        # Of the file that a compaction is about to put in place.
        self.prepared: tuple[Books, Commit, int, Callable[[], None]] | None = None
        found = self._take_up(file)
        self.chain = Chain(found.commit, found.seen_txid)
        self.books = self._books_of(found)
        on_fork(self)

    def _take_up(self, file: File) -> _Found:
        """What a locked file holds."""
        header = decode_header(file.read(0, HEADER_SIZE), self.path)
        if header.features_read_only & ~KNOWN_READ_ONLY and not self.read_only:
            _log.warning("%s: uses features that this code can only read; opened read-only", self.path)
            self.read_only = True
        pager = Pager(file, header, self._cache_size, self._cache_lock)
        if not self.read_only:
            # If the sync of the last clean close failed, only the cache has its mark.
            file.drop_cache(FIRST_NODE_PGNO * header.page_size)
        choice = recover(pager, glance=not self.read_only)
        if not choice.clean and not self.read_only:
            file.sync_all()  # what is found after this is on the disk, the size of the file included
            if not file.drop_cache():
                _log.debug("%s: the system's cache of the file could not be emptied", self.path)
            pager.forget()
            choice = recover(pager)
        meta, replay = choice.meta, choice.log
        if choice.problem is not None or meta is None or choice.slot is None or replay is None:
            raise refusal(choice, self.path)
        if not choice.clean:
            _log.info("%s: was not closed cleanly; %s", self.path, "; ".join(choice.reasons))
        tables = load_tables(pager, meta)
        log = Log(meta.epoch, meta.log_start, meta.log_size, header.page_size)
        doubled = choice.older is not None and choice.older.txid == meta.txid
        log.end = LogEnd(replay.used, replay.records[-1].checksum if replay.records else 0, True, doubled)
        log.taken = replay.used, 0
        log.replayed = sum([len(record.changes) for record in replay.records])
        base = Commit(Snapshot(meta.txid, tables, meta.next_tree_id, pager), SYNC, log)
        tables, count = _replayed(tables, replay, meta, header)
        commit = Commit(Snapshot(replay.last_txid, tables, meta.next_tree_id, pager), SYNC, log, count=count)
        ledger = Ledger(Metas(choice.slot, meta, choice.older), base, int(meta.catalogue_root), meta.nonce)
        pager.use_map()
        if not self.read_only:
            write_holder(file, header.page_size)
        seen = max(replay.seen_txid, *(int(each.txid) for each in choice.found if isinstance(each, Meta)))
        return _Found(pager, ledger, commit, seen, choice.clean)

    def _books_of(self, found: _Found) -> Books:
        return Books(found.pager, self.path, found.ledger, self.chain, self.pins, self._lock, clean=found.clean)

    def prepare_switch(self, file: File, sync_name: Callable[[], None]) -> None:
        """Read another file that holds the same commit, to go on with it as soon as it has our path.

        The caller is the writer, and flushes.
        sync_name  makes it durable that the file has the path
        """
        found = self._take_up(file)
        self.prepared = self._books_of(found), found.commit, max(self.chain.last_txid, found.seen_txid), sync_name

    def switch(self) -> None:
        """Go on with the file that was prepared, if it has our path; else forget it.

        The caller has the turn. An interrupt may have kept who prepared it from calling this: so whoever begins to
        write or to flush does it first. Who has begun to read the old file goes on with that.
        """
        prepared, old, chain = self.prepared, self.books.pager, self.chain
        if prepared is None:
            return
        books, commit, last_txid, sync_name = prepared
        if self.path != books.file.path and old.file.is_at_path():  # it has not got our name
            self.prepared = None
            books.file.close()
            return
        books.file.path = self.path
        try:
            sync_name()  # or a power cut could bring the old file back, without what is committed from now on
        except OSError as error:
            chain.failure, chain.published = error, None
            self.poison(error)
            raise
        self.retired.add(old)
        new = books, None, last_txid, commit, commit, commit
        with self._lock:
            self.books, self.prepared, chain.last_txid, chain.tip, chain.shown, chain.written = new
            chain.show(commit)
        if not self.pins:
            old.file.close()  # else the last reader of the old file does

    def forked(self) -> None:
        """Called in a forked child: the file belongs to the parent."""
        self.forked_child = True
        message = f"the database {self.path} was opened before a fork; the child has to open its own"
        self.chain.failure, self.chain.published = ClosedError(message), None
        for pager in (self.books.pager, *self.retired):
            pager.abandon(message)

    # -- coming in -------------------------------------------------------------------------------

    def error(self) -> LimpetError:
        """Why nothing works any more; for who has found a failure."""
        return self.chain.error(self.path)

    def enter(self) -> None:
        """Before anything that takes a lock: raises the failure if there is one; BusyError if this thread is inside."""
        if self.chain.failure is not None:
            raise self.error()
        if self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy():
            raise BusyError(
                "this thread is in the middle of a commit or another call of the same database, which a signal "
                "handler or a finalizer has interrupted; do it after that"
            )

    def poison(self, cause: BaseException) -> None:
        """What is on the disk is not known any more.

        Who has caught a failed sync says so by a plain statement, before it calls anything: an interrupt that came
        up in a call would take the place of the error, and the next sync may well report none.
        """
        chain = self.chain
        chain.failure, chain.published = chain.failure or cause, None
        if chain.failure is cause:
            _log.error("%s", self.error())

    # -- transactions (transaction.Host) ---------------------------------------------------------

    @property
    def pages(self) -> Books:
        """Where a transaction gets its pages."""
        return self.books

    def new_nonce(self) -> int:
        """The random part of a stamp."""
        return self._nonces.getrandbits(16)

    def begin(self, durability: str, timeout_s: float | None) -> WriteTransaction:
        """Let a write transaction have the seat; see `Database.write`."""
        chain = self.chain
        if chain.failure or self.read_only or self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy():
            self.enter()
            raise ReadOnlyError(f"{self.path} was opened read-only")
        transaction = WriteTransaction(self, durability, chain.tip, chain.last_txid + 1)
        try:
            if not self.seat.take(transaction, timeout_s):
                raise BusyError(f"another thread's write transaction did not end within {timeout_s:g} s")
            # From here on only an undone flush moves the tip, and that is noticed at the commit.
            tip = chain.tip
            if (
                tip is not transaction.base
                or chain.last_txid >= transaction.txid
                or tip.error is not None
                or chain.failure is not None
                or self.books.ledger.space is None
                or self.prepared is not None
                or self._orphans
            ):
                self._place(transaction)
            return transaction
        except BaseException:
            transaction.is_open = False
            self.seat.ring()
            raise

    def _place(self, transaction: WriteTransaction) -> None:
        """Let a transaction that has the seat begin at the tip as it is now."""
        chain = self.chain
        if chain.failure is not None:  # while it waited
            raise self.error()
        if self.prepared is not None:
            try:
                with self.turn.lock:
                    self.switch()
            finally:
                self.turn.ring()
        self._give_back_orphans()
        with self._lock:
            self._settle()
            self.books.space()
            transaction.place(chain.tip, chain.last_txid + 1)

    def abort(self, transaction: WriteTransaction) -> None:
        """Forget a transaction's changes. Works wherever it comes: finalizers abort too."""
        work, transaction.page_work = transaction.page_work, None
        if work is not None and not self.forked_child:
            if work.spilled:  # its number stands in the file; only who has the seat sets this
                self.chain.last_txid = max(self.chain.last_txid, work.txid)
            self._orphans.append(work)
        transaction.end()
        if self.forked_child:
            return
        self.seat.ring()
        if not self._is_booked() and not self.books.pager.is_busy():
            self._give_back_orphans()

    def _give_back_orphans(self) -> None:
        """The pages of transactions that did not commit are free again."""
        while self._orphans:
            with self._lock:
                try:
                    work = self._orphans.popleft()
                except IndexError:  # somebody was faster
                    return
                work.give_all_back()

    def commit(self, transaction: WriteTransaction) -> None:
        """Make a transaction's result the tip, and wait until it is as durable as was asked for."""
        if transaction.in_step or self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy():
            self.enter()
            transaction.refuse_in_step()
        base = transaction.base
        if base is None:
            raise ended()
        commit: Commit | None = None
        try:
            transaction.in_step = CHANGING  # until its end
            if self.chain.failure is not None:
                raise self.error()
            logged = transaction.logged()
            if logged is None:
                commit = self._checkpoint_commit(transaction)
            elif logged[2]:
                commit = self._log_commit(transaction, base, logged)
                if commit is None and self._is_promised(base, logged):
                    commit = self._log_commit(transaction, base, logged)
                if commit is None:
                    commit = self._checkpoint_commit(transaction)
        finally:
            if transaction.is_open:
                self.abort(transaction)  # an error, or nothing to commit
            else:
                transaction.end()
                if self.seat.waiting:
                    self.seat.ring()
        if commit is None:
            if self.chain.is_unseen(base):  # what it saw, and its caller may tell, is perhaps not durable yet
                self._await(base)
            return
        self.counts.commits += 1
        if commit.durability != NONE or not self._show_unflushed(commit):
            self._await(commit)

    def _built_on_undone(self) -> OSError:
        return OSError(
            errno.EIO,
            "an earlier commit, on which this transaction was built, could not be written; begin it again",
            self.path,
        )

    def _log_commit(self, transaction: WriteTransaction, base: Commit, logged: Logged) -> Commit | None:
        """Make a transaction's result the tip, to be recorded in the log.

        returns  None if the log has no room for it, or nobody has promised it pages of the next checkpoint
        """
        infos, encoded, added = logged
        before, log, chain = base.snapshot, base.log, self.chain
        own = len(encoded)
        size, count = base.size + own, base.count + added
        with self._lock:
            if chain.tip is not base or base.error is not None:
                self._settle()
                raise self._built_on_undone()
            if not (log.has_room(size, own, count) and log.is_promised(size, own, count)):
                return None
            txid = transaction.txid
            snapshot = Snapshot(txid, {**before.tables, **infos}, before.next_tree_id, before.pager)
            backlog = encoded, None if base is chain.written else base.backlog
            commit = Commit(snapshot, transaction.durability, log, base, size, count, backlog)
            chain.last_txid, chain.tip, transaction.is_open = txid, commit, False
        return commit

    def _is_promised(self, base: Commit, logged: Logged) -> bool:
        """Find room for what a commit adds to the next checkpoint; False if it has to be a checkpoint itself."""
        _, encoded, added = logged
        own = len(encoded)
        has_room = base.log.has_room(base.size + own, own, base.count + added)
        return has_room and promise.make(self.books, base, own, added)

    def _checkpoint_commit(self, transaction: WriteTransaction, *, in_turn: bool = False) -> Commit | None:
        """Make a transaction's result the tip, everything since the last checkpoint in pages; None: nothing changed."""
        try:
            self._apply(transaction, in_turn=in_turn)
        except CorruptError:
            if transaction.placed().error is not None:  # what it read is not there any more
                raise self._built_on_undone() from None
            raise
        tables = transaction.tables_after()
        with self._lock:
            if transaction.base is not self.chain.tip or self.chain.tip.error is not None:
                self._settle()
                raise self._built_on_undone()
            work = transaction.work()
            self.books.space().check_used([pgno for pgno in work.freed if pgno not in work.allocated[0]])
            if tables is None:
                return None
            return self._advance(transaction, tables)

    def _apply(self, transaction: WriteTransaction, *, in_turn: bool) -> None:
        """Turn everything that is not in the trees into pages. OSError if there is not enough room."""
        inserts = transaction.inserts()
        if self.books.extent.is_refused and not transaction.placed().log.epoch:
            # It might take the pages that the flush of the checkpoint before it needs.
            self._in_turn(self.flush_in_turn, in_turn=in_turn)
        try:
            transaction.attempt(partial(self._apply_once, transaction, share=float(inserts)))
        except OSError as error:
            if not is_disk_full(error):
                raise
        else:
            return
        self._in_turn(self._double, in_turn=in_turn)
        share = 1 if transaction.adds_entries() else 2 / 3 if inserts else 0
        self._apply_once(transaction, share=share, join_thin=False)

    def _in_turn(self, function: Callable[[], None], *, in_turn: bool) -> None:
        """Take the turn for a function, unless the caller has it."""
        if in_turn:
            function()
            return
        try:
            with self.turn.lock:
                function()
        finally:
            self.turn.ring()

    def _apply_once(self, transaction: WriteTransaction, *, share: float, join_thin: bool = True) -> None:
        transaction.apply_snapshot(join_thin=join_thin)
        promise.check(self.books, transaction.placed(), transaction, share)

    def _double(self) -> None:
        """Bring everything to the disk, and both metas to the newest checkpoint: what it freed can be used again.

        The caller has the seat and the turn.
        """
        books, chain = self.books, self.chain
        self.flush_in_turn()
        metas = books.ledger.metas
        if metas.other is not None and metas.other.txid == metas.newest.txid:
            return
        copy = replace(metas.newest, clean=False)
        try:
            checkpoint.write_copy_of_meta(books, copy, 1 - metas.slot)
            books.file.sync()
        except OSError as error:
            chain.failure, chain.published = error, None  # at once: see `poison`
            self.poison(error)
            raise
        with self._lock:
            checkpoint.finish_copy(books, chain, copy)
        self.counts.syncs += 1

    def _advance(self, transaction: WriteTransaction, tables: dict[str, TableInfo]) -> Commit:
        try:
            return checkpoint.advance(self.books, self.chain, transaction, tables)
        except AssertionError as error:  # the books contradict themselves: a fault of ours
            self.poison(error)
            raise

    def _show_unflushed(self, commit: Commit) -> bool:
        """Show a `none` commit to readers, unless it has to wait for a stronger one, or too much waits in memory."""
        chain = self.chain
        with self._lock:
            if commit.error is not None or chain.failure is not None:
                return False
            written = chain.written
            if commit.before is chain.shown:
                waiting = commit.size - written.size if commit.log is written.log else commit.size
                if self.books.ledger.unwritten_size + waiting > self.overlay_limit:
                    return False
                advance, chain.shown, commit.before, commit.advance = commit.advance, commit, None, None
                chain.show(commit)
                if advance is not None:
                    self.books.pager.discard(advance.stale)
                return True
            return not chain.is_unseen(commit)

    # -- flushing --------------------------------------------------------------------------------

    def _await(self, commit: Commit) -> None:
        """Wait until a commit is as durable as was asked for; bring that about if nobody else does."""
        chain, turn, txid = self.chain, self.turn, commit.txid
        sync = commit.durability == SYNC
        while commit.error is None and (chain.durable_txid if sync else chain.written_txid) < txid:
            if turn.busy:
                turn.wait(partial(self._is_served, commit, sync))
            try:
                with turn.lock:
                    turn.busy = True
                    try:
                        if commit.error is None:
                            self._flush(txid, sync=sync)
                    finally:
                        turn.busy = False
            finally:
                if turn.waiting:
                    turn.ring()
        if commit.error is not None:
            raise commit.error

    def _is_served(self, commit: Commit, sync: bool) -> bool:
        """Whether nobody has to wait for a commit any more: it is as durable as that, or undone."""
        chain = self.chain
        return commit.error is not None or (chain.durable_txid if sync else chain.written_txid) >= commit.txid

    def flush(self) -> None:
        """Bring everything committed so far to stable storage."""
        self._in_turn(self.flush_in_turn, in_turn=False)

    def flush_in_turn(self) -> None:
        """As `flush`, for who has the turn."""
        self._flush(self.chain.tip.txid, sync=True)

    def _flush(self, txid: int, *, sync: bool, clean: bool = False) -> None:
        """Step 2 and 3: bring the disk as far as commit `txid`. The caller has the turn.

        clean  leave the mark of a clean close
        """
        chain = self.chain
        while True:
            tip = chain.tip
            if chain.failure is not None:
                raise self.error()
            if self.prepared is not None:
                self.switch()
                continue
            if tip.error is not None:
                with self._lock:
                    self._settle()
                continue
            txid = min(txid, tip.txid)  # it may have been undone
            if chain.pending is not None:
                self._write_record(chain.pending, again=True)
                continue
            if self.books.ledger.plan is None and (chain.durable_txid if sync else chain.written_txid) >= txid:
                if not clean or not self.counts.flushes or self.books.clean:
                    return
                if tip.log.epoch:
                    self._write_mark()
                    return
            if self.books.ledger.plan is not None or not tip.log.epoch:
                self._write_checkpoint(clean=clean)
            else:
                with self._lock:
                    if not chain.tip.log.epoch:
                        continue  # a checkpoint has just come before it
                    record = record_writer.begin(self.books, chain, self.new_nonce(), sync=sync)
                self._write_record(record, again=False)
                if not clean:
                    return

    def _write_record(self, record: Record, *, again: bool) -> None:
        """What all commits since the last flush changed, and a sync: the way that most commits go.

        again   an interrupt has left it half-way
        """
        books, chain = self.books, self.chain
        try:
            record_writer.write(books, record, again=again)
        except OSError as error:
            if is_disk_full(error) and record_writer.is_absent(books, record):
                self._undo(error)
                raise
            chain.failure, chain.published = error, None  # at once: see `poison`
            self.poison(error)
            raise
        try:
            record_writer.complete(books, record, again=again)
        except OSError as error:
            chain.failure, chain.published = error, None
            self.poison(error)
            raise
        with self._lock:
            record_writer.finish(books, chain, record)
        counts = self.counts
        counts.flushes += 1
        counts.syncs += record.sync

    def _write_checkpoint(self, *, clean: bool) -> None:
        """Pages, sync, meta, sync: the state whose changes are all in the trees becomes the one on disk."""
        books, chain = self.books, self.chain
        try:
            with self._lock:
                plan = books.ledger.plan
                again = plan is not None
                plan = plan or checkpoint.begin(books, clean=clean)
            checkpoint.write_pages(books, plan)
        except (OSError, CorruptError) as error:
            self._undo(error)
            raise
        except AssertionError as error:  # the books contradict themselves: a fault of ours
            self.poison(error)
            raise
        try:
            checkpoint.write_meta(books, plan, again=again)
        except OSError as error:
            chain.failure, chain.published = error, None
            self.poison(error)
            raise
        with self._lock:
            stale = checkpoint.finish(books, chain, plan)
        counts = self.counts
        counts.flushes += 1
        counts.checkpoints += 1
        counts.syncs += 2
        books.pager.discard(stale)
        warn_if_lost(books.file)

    def _write_mark(self) -> None:
        """The newest checkpoint once more, marked as closed cleanly: only a meta is written, so both say the same.

        The sync before it is for errors that the system kept for the next one (ext4 with data=journal).
        """
        books, chain = self.books, self.chain
        try:
            checkpoint.write_mark(books)
        except OSError as error:
            chain.failure, chain.published = error, None
            self.poison(error)
            raise
        self.counts.flushes += 1
        self.counts.syncs += 2

    def _undo(self, cause: BaseException) -> None:
        """Writing failed before anything could be believed: forget all commits that nobody has seen."""
        error = cause if isinstance(cause, OSError) else OSError(errno.EIO, f"the flush failed: {cause}", self.path)
        with self._lock:
            checkpoint.undo(self.books, self.chain, error)

    def _settle(self) -> None:
        """Finish an undo that was interrupted. The caller has the lock of the books."""
        error = self.chain.tip.error
        if error is not None:
            checkpoint.undo(self.books, self.chain, error)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """See `Database.close`."""
        if self.forked_child:
            return
        holder = self.seat.holder()
        if self._is_booked() or self.turn.is_mine() or self.books.pager.is_busy():
            raise _busy_closing()
        if isinstance(self.chain.failure, ClosedError):
            self._let_go()  # an interrupt may have come before that
            return
        if isinstance(holder, WriteTransaction) and holder.thread == threading.get_ident():
            if holder.in_step:
                raise _busy_closing()
            holder.is_forsaken = True
            self.abort(holder)
        closing = _Closing()
        try:
            self.seat.take(closing, None)
            with self.turn.lock:
                if isinstance(self.chain.failure, ClosedError):
                    return  # another thread was faster
                self._close_file()
        finally:
            closing.is_open = False
            self.seat.ring()
            self.turn.ring()

    def _close_file(self) -> None:
        """Make everything durable, leave the mark, let go of the file. The caller has the seat and the turn.

        An interrupt leaves the database open: it can be closed again, and nothing is lost.
        """
        chain = self.chain
        failure: Exception | None = None
        try:
            if chain.failure is None and not self.read_only:
                self.flush_in_turn()
                self._close_cleanly()
                warn_if_lost(self.books.file)
        except (OSError, LimpetError) as error:
            failure = error
        closed = ClosedError(f"the database {self.path} is closed; open it again")
        chain.failure, chain.published = closed, None
        self._let_go()
        if failure is not None:
            raise failure

    def _let_go(self) -> None:
        """Release the files. Reading fails from here on."""
        for pager in (self.books.pager, *self.retired):
            pager.failure = f"the database {self.path} is closed"
            pager.forget()
            pager.file.close()

    def _close_cleanly(self) -> None:
        """Bring the log into the trees, and leave the mark. The caller has the seat and the turn.

        If there is no room on the disk, or a page that would have to be changed is damaged, the log stays as it is:
        it holds everything, and the next opening replays it.
        """
        chain = self.chain
        transaction = WriteTransaction(self, SYNC, chain.tip, chain.last_txid + 1)
        try:
            if chain.tip.log.end.used:
                self._checkpoint_commit(transaction, in_turn=True)
            self._flush(chain.tip.txid, sync=True, clean=True)
        except (OSError, CorruptError) as error:
            if chain.failure is not None:
                raise
            _log.warning("%s: the log could not be brought into the trees: %s", self.path, error)
        finally:
            if transaction.is_open:
                self.abort(transaction)
            transaction.end()


class _Closing:
    """Who has the seat while the database is closed."""

    __slots__ = ("__weakref__", "is_open", "thread")

    def __init__(self) -> None:
        self.is_open = True
        self.thread = threading.get_ident()


def _busy_closing() -> BusyError:
    return BusyError(
        "this thread is in the middle of a commit or another call of the same database, which a signal handler or a "
        "finalizer has interrupted; let it finish and close the database after that"
    )


def _replayed(
    tables: dict[str, TableInfo], replay: Replay, meta: Meta, header: Header
) -> tuple[dict[str, TableInfo], int]:
    """The tables with the changes in the log on top, and how many changes there are."""
    names = {info.tree_id: name for name, info in tables.items()}
    changed: dict[str, dict[bytes, bytes | None]] = {}
    limit = max_key_size(header.page_size)
    tables = dict(tables)
    count = 0
    for record in replay.records:
        pgno = meta.log_start + record.at
        for group in decode_changes(record.changes, pgno):
            name = names.get(group.tree_id)
            if name is None:
                raise CorruptError(f"the log changes tree {group.tree_id}, which no table has", pgno=Pgno(pgno))
            if any(len(key) > limit for key, _ in group.changes):
                raise CorruptError("the log has a key that is too large", pgno=Pgno(pgno), table=name)
            changed.setdefault(name, {}).update(group.changes)
            count += len(group.changes)
    for name, changes in changed.items():
        if not tables[name].root:  # a key that came and went; there is nothing below to hide
            changes = {key: value for key, value in changes.items() if value is not None}
        tables[name] = tables[name]._replace(overlay=Overlay(changes, {}) if changes else None)
    return tables, count
