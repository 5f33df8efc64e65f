"""Databases: what a user opens, reads, writes, copies and closes. How commits survive is in committer.py."""

from __future__ import annotations

import errno
import logging
import os
import threading
from dataclasses import asdict, dataclass
from functools import partial
from typing import Self

from . import promise
from .backup import (
    Progress,
    check_replaceable,
    create_beside,
    first_meta,
    initialise,
    new_header,
    put_in_place,
    remove_quietly,
    write_copy,
)
from .chain import DURABILITIES, SYNC
from .check import Report, check_commit
from .checksum import KIND_NUMBERS, default_kind
from .committer import Committer
from .errors import ClosedError, LockedError, is_disk_full
from .file import File, FileSystem, MemoryFile, OSFileSystem
from .format import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MIN_PAGE_SIZE, Txid, valid_page_size
from .head import check_head
from .opening import DEFAULT_LOCK_TIMEOUT_S, open_file
from .reader import ReadTransaction
from .recovery import read_log
from .snapshot import Snapshot
from .transaction import WriteTransaction

_log = logging.getLogger("limpet")
MEMORY = ":memory:"
DEFAULT_CACHE_SIZE = 32 << 20
_SHORTEST_HOLE = 64 << 10  # bytes; a shorter one makes the file harder to read in a row than it is worth


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers about an open database. Sizes are in bytes, counts of commits and syncs since opening.

    txid            the newest commit that readers see
    durable_txid    the newest commit on stable storage
    file_size       the file's length
    live_size       of that, pages in use by the newest commit, and the head of the file
    free_size       of that, pages that can be used again now
    pending_size    of that, pages that an older meta or a reader still needs
    retained_size   of pending, what would be free but for readers; at most pending_size
    cache_size      the limit of the page cache; cached_size what it holds
    page_reads      pages that were not in the cache
    log_size        of the live pages, those of the log; log_used what is in it since the last checkpoint
    flushes         log records and metas written; syncs: calls of the system's sync
    checkpoints     of the flushes, those that wrote trees and a meta
    readers         read transactions open; oldest_reader_txid the oldest of their snapshots
    """

    page_size: int
    txid: int
    durable_txid: int
    table_count: int
    file_size: int
    live_size: int
    free_size: int
    pending_size: int
    retained_size: int
    cache_size: int
    cached_size: int
    page_reads: int
    commits: int
    log_size: int
    log_used: int
    flushes: int
    checkpoints: int
    syncs: int
    readers: int
    oldest_reader_txid: int | None

    def as_dict(self) -> dict[str, int | None]:
        """The same as a dict, for logs and JSON."""
        return asdict(self)


def open(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    cache_size: int = DEFAULT_CACHE_SIZE,
    page_size: int = DEFAULT_PAGE_SIZE,
    durability: str = SYNC,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT_S,
    checksum: str | None = None,
) -> Database:
    """Open a database file, or create it.

    path          the file, or ":memory:" for a database that lives and dies with the process
    create        make the file if there is none; else FileNotFoundError
    read_only     take a shared lock and refuse changes
    cache_size    bytes of decoded pages to keep, 0 or more
    page_size     bytes, a power of two from 512 to 65536; for a new file
    durability    of commits that do not say: "sync" survives power loss, "os" survives the death of
                  the process, "none" waits in memory for the next stronger commit or flush()
    lock_timeout  seconds to wait for another process to let go of the file, 0 or more
    checksum      "crc32c" or "crc32"; for a new file; None: CRC-32C if the package is there
    raises        FormatError, UpgradeRequiredError, CorruptError, LockedError; OSError
    warns         RuntimeWarning if checksums have to be computed in Python
    cost          a few ms: it reads the metas, the catalogue and the log, whatever the size of the file
    """
    if not valid_page_size(_checked_int("page_size", page_size)):
        raise ValueError(f"page_size has to be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}, not {page_size}")
    if _checked_int("cache_size", cache_size) < 0:
        raise ValueError(f"cache_size has to be 0 or more bytes, not {cache_size}")
    _check_durability(durability)
    if isinstance(lock_timeout, bool) or not isinstance(lock_timeout, int | float):
        raise TypeError(f"lock_timeout takes seconds, not {type(lock_timeout).__name__}")
    if not lock_timeout >= 0:
        raise ValueError(f"lock_timeout has to be 0 or more seconds, not {lock_timeout}")
    if checksum is not None and checksum not in KIND_NUMBERS:
        raise ValueError(f"checksum has to be one of {sorted(KIND_NUMBERS)}, not {checksum!r}")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError("path has to be a str or a path of str")
    return open_on(
        OSFileSystem(),
        name,
        create=create,
        read_only=read_only,
        cache_size=cache_size,
        page_size=page_size,
        durability=durability,
        lock_timeout=lock_timeout,
        checksum=checksum,
    )


def open_on(
    file_system: FileSystem,
    path: str,
    *,
    create: bool = True,
    read_only: bool = False,
    cache_size: int = DEFAULT_CACHE_SIZE,
    page_size: int = DEFAULT_PAGE_SIZE,
    durability: str = SYNC,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT_S,
    checksum: str | None = None,
) -> Database:
    """As `open`, with checked arguments, on any file system: the way in for a simulated disk."""
    kind = default_kind() if checksum is None else KIND_NUMBERS[checksum]
    if path == MEMORY:
        if read_only:
            raise ValueError("a database in memory is empty at first; read_only makes no sense for it")
        file: File = MemoryFile()
        initialise(file, new_header(page_size, kind), first_meta())
    else:
        path = file_system.resolve(path)
        file = open_file(file_system, path, create and not read_only, read_only, lock_timeout, page_size, kind)
    try:
        committer = Committer(file, path, read_only=read_only, cache_size=cache_size)
        return Database(file_system, committer, durability)
    except BaseException:
        file.close()
        raise


class Database:
    """An open database. Made by `limpet.open`; use it as a context manager.

    Threads: all methods may be called from any thread. A forked child cannot use it and has to
    open its own. Signal handlers and finalizers may call everything; what would get in the way of a
    call that they have interrupted raises BusyError at once, and nothing has happened then. Reading
    always works.
    """

    __slots__ = ("__weakref__", "_chain", "_committer", "_durability", "_file_system", "_pins")

    def __init__(self, file_system: FileSystem, committer: Committer, durability: str) -> None:
        """Not for users: `limpet.open` makes it."""
        self._file_system = file_system
        self._committer = committer
        self._chain = committer.chain
        self._pins = committer.pins
        self._durability = durability

    @property
    def path(self) -> str:
        """The path of the file, symbolic links followed; ":memory:" if there is none."""
        return self._committer.path

    @property
    def format_version(self) -> int:
        """The format of the file."""
        return self._committer.books.header.format_version

    @property
    def read_only(self) -> bool:
        """Whether the database refuses changes."""
        return self._committer.read_only

    def read(self) -> ReadTransaction:
        """Begin to read the newest commit. Never waits.

        returns  a ReadTransaction; close it, best with `with`
        raises   ClosedError, PoisonedError
        """
        transaction = ReadTransaction()
        transaction._open = False
        transaction._snapshot = transaction._view = transaction._others = None
        transaction._pins = pins = self._pins
        chain = self._chain
        while True:
            snapshot = chain.published
            if snapshot is None:  # closed, poisoned, or inherited by a fork
                transaction.close()  # which may have pinned an older one
                raise self._committer.error()
            transaction._snapshot = snapshot
            transaction.txid = txid = snapshot.txid
            transaction._open = True
            pins[id(transaction)] = txid
            if chain.published is snapshot:
                return transaction

    def write(self, *, durability: str | None = None, timeout: float | None = None) -> WriteTransaction:
        """Begin to change the database; waits until no other thread does.

        durability  "sync", "os" or "none" for this commit; None: as the database was opened
        timeout     seconds to wait, 0 or more; None: as long as it takes
        returns     a WriteTransaction; it commits at the end of its `with` block
        raises      BusyError: another thread has not ended within `timeout`, or this thread is writing
                    already, or is in the middle of another call, which a signal handler or a finalizer
                    has interrupted; ReadOnlyError; ClosedError, PoisonedError; CorruptError if the map
                    of free space is damaged (reading still works then)
        """
        if durability is None:
            durability = self._durability
        else:
            _check_durability(durability)
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout has to be 0 or more seconds, and None for no limit, not {timeout}")
        return self._committer.begin(durability, timeout)

    def tables(self) -> list[str]:
        """The names of all tables, in order."""
        with self.read() as transaction:
            return transaction.tables()

    def flush(self) -> None:
        """Make everything committed so far durable.

        raises   OSError, PoisonedError, ClosedError; BusyError in the middle of another call of this thread
        """
        self._committer.enter()
        if not self.read_only:
            self._committer.flush()

    def stats(self) -> Stats:
        """Numbers about the database. Cost: O(tables). BusyError in the middle of another call of this thread."""
        committer, chain = self._committer, self._chain
        committer.enter()
        with committer.books.lock:  # the same for all books: a compaction may have come before it
            books = committer.books
            page_size = books.page_size
            pins = list(self._pins.values())
            metas, space = books.ledger.metas, books.ledger.space
            if space is not None:
                books.reclaim(space)
            published = chain.published or chain.shown.snapshot
            free = metas.newest.free_count if space is None else space.free_count
            high_water = metas.newest.high_water if space is None else space.high_water
            pending = 0 if space is None else space.pending_count
            retained = 0
            if space is not None and pins:
                retained = space.retained_by_readers(min(published.txid, metas.horizon), min(pins))
            log, counts = chain.tip.log, committer.counts
            return Stats(
                page_size=page_size,
                txid=published.txid,
                durable_txid=chain.durable_txid,
                table_count=len(published.tables),
                file_size=books.file.size(),
                live_size=(high_water - free) * page_size,
                free_size=(free - pending) * page_size,
                pending_size=pending * page_size,
                retained_size=retained * page_size,
                cache_size=books.pager.cache_size,
                cached_size=books.pager.cached_size,
                page_reads=books.pager.read_count,
                commits=counts.commits,
                log_size=log.size * page_size if log.start else 0,
                log_used=log.end.used * page_size,
                flushes=counts.flushes,
                checkpoints=counts.checkpoints,
                syncs=counts.syncs,
                readers=len(pins),
                oldest_reader_txid=min(pins, default=None),
            )

    def check(self, progress: Progress | None = None) -> Report:
        """Verify the file: its head, every page of the newest checkpoint, the log on top of it, the checkpoint before.

        Header and metas are read from the disk and compared with what this handle believes; it is an error if the file
        would not open any more, or only at an earlier commit.

        progress  called now and then with (pages looked at, pages in all)
        returns   a report; damage is in it, not raised. Commits that are only in memory are not
                  part of the file; `flush()` first to have them checked
        raises    ClosedError, PoisonedError; BusyError in the middle of another call of this thread
        cost      reads the whole file
        """
        committer = self._committer
        committer.enter()
        token = object()
        try:
            try:
                with committer.turn.lock, committer.books.lock:
                    books = committer.books
                    pager, metas = books.pager, books.ledger.metas
                    newest, older = metas.newest, metas.other or metas.newest
                    log = read_log(pager, newest)
                    head = check_head(pager, metas.by_slot, self._chain.written_txid)
                    self._pins[id(token)] = older.txid
            finally:
                committer.turn.ring()
            report = check_commit(pager, newest, older if older.txid != newest.txid else None, progress, log=log)
        finally:
            self._pins.pop(id(token), None)
        head.add_to(report)
        return report

    def backup(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
    ) -> None:
        """Write the newest commit into a new file, compacted, while others go on reading and writing.

        path       appears only when it is whole and synced
        overwrite  replace what is at `path`; else FileExistsError
        progress   called now and then with (entries written, entries in all)
        raises     ValueError if that is this database, by whatever name; LockedError if it is another one that
                   somebody has open; CorruptError if a page of the commit is damaged. The backup then does not appear
        cost       reads all live pages; while it runs, their space cannot be used again
        """
        name = os.fspath(path)
        if name == MEMORY:
            raise ValueError(f"a backup is a file; {MEMORY!r} is none")
        target = self._file_system.resolve(name)
        committer = self._committer
        check_replaceable(self._file_system, committer.books.file, self.path, target, overwrite=overwrite)
        with self.read() as transaction:
            snapshot = transaction._snapshot
            assert snapshot is not None
            file = self._write_copy(snapshot, target, progress)
            try:
                check_replaceable(self._file_system, committer.books.file, self.path, target, overwrite=overwrite)
                put_in_place(self._file_system, file, target, overwrite=overwrite)
            except BaseException:
                if file.path != target:
                    remove_quietly(self._file_system, file.path)
                raise
            finally:
                file.close()

    def compact(self, progress: Progress | None = None) -> int:
        """Rewrite the file without free space, and put the new one in its place.

        Waits for the writer; open readers keep the old file until they end.

        returns  bytes given back to the file system
        raises   BusyError if this thread is writing; OSError: the old file stays in place and in use;
                 FileNotFoundError if it does not have its name any more
        cost     reads and writes all live pages
        """
        committer = self._committer
        transaction = self.write()
        try:
            with committer.turn.lock:
                committer.flush_in_turn()
                before = committer.books.file.size()
                snapshot = self._chain.tip.snapshot
                if self.path == MEMORY:
                    file: File = MemoryFile()
                    write_copy(
                        snapshot.pager, snapshot.tables, Txid(snapshot.txid), snapshot.next_tree_id, file, progress
                    )
                    committer.prepare_switch(file, file.sync)
                    committer.switch()
                else:
                    self._check_at_path()
                    file = self._write_compacted(snapshot, progress)
                    self._replace_file(file)
                return before - file.size()
        finally:
            if transaction.is_open:
                transaction.abort()
            committer.turn.ring()

    def _write_compacted(self, snapshot: Snapshot, progress: Progress | None) -> File:
        try:
            return self._write_copy(snapshot, self.path, progress)
        except OSError as error:
            if not is_disk_full(error):
                raise
            books = self._committer.books
            with books.lock:
                space = books.space()
                size = (space.high_water - space.free_count) * books.page_size
            raise OSError(
                error.errno,
                f"compaction writes a second file beside the first, of about {size >> 10} KiB, and the disk is full; "
                "nothing has changed. Rows can be deleted all the same, and their space is used again",
                self.path,
            ) from error

    def _replace_file(self, file: File) -> None:
        """Give a finished copy the name of the file, and go on with it. The caller is the writer, and flushes."""
        committer = self._committer
        old = committer.books.file
        try:
            self._check_at_path()
            if not file.try_lock(exclusive=True):
                raise LockedError(f"{self.path}: the new file was locked by another process as soon as it was made")
            committer.prepare_switch(file, partial(self._file_system.sync_directory, self.path))
            put_in_place(self._file_system, file, self.path, overwrite=True)
            committer.switch()
        except BaseException as error:
            if old.is_at_path():
                committer.prepared = None
                remove_quietly(self._file_system, file.path)
                file.close()
            elif isinstance(error, OSError):
                committer.poison(error)  # our file has lost its name: what we still wrote would be lost with it
                file.close()
            else:  # an interrupt came after the new file had the name
                committer.switch()
            raise

    def _check_at_path(self) -> None:
        """What has our name by now may be somebody else's database."""
        if not self._committer.books.file.is_at_path():
            raise FileNotFoundError(
                errno.ENOENT,
                "the database was moved or replaced since it was opened; to compact it, open it anew",
                self.path,
            )

    def trim(self) -> int:
        """Give free space back to the file system, without rewriting anything.

        The file is cut behind the last page that was ever used, and stretches of free pages of at least 64 KiB become
        holes in it, where the system can do that (Linux, with `cffi`). What the next checkpoint may need stays, so that
        rows can be deleted on a full disk. Waits for the writer; readers go on. A later commit that uses such a stretch
        again needs room on the disk, and fails with OSError if there is none.

        returns  bytes given back, at most: some may have been holes before
        raises   BusyError if this thread is writing; ReadOnlyError; OSError
        cost     0.1 ms a stretch
        """
        committer = self._committer
        transaction = self.write()
        try:
            with committer.turn.lock:
                books, tip = committer.books, self._chain.tip
                kept = promise.kept(books, tip)
                with books.lock:
                    space, page_size = books.space(), books.page_size
                    books.reclaim(space)
                    spare = max(0, books.free(space) - kept)
                    tip.log.limit = -1  # what was promised is counted anew
                    capacity = books.extent.capacity
                    saved = books.extent.cut(max(space.high_water, capacity - spare))
                    spare -= capacity - books.extent.capacity
                    for start, length in space.stretches(max(1, _SHORTEST_HOLE // page_size)):
                        count = min(length, spare)
                        if count and books.file.punch(start * page_size, count * page_size):
                            space.hollow(range(start, start + count))
                            spare -= count
                            saved += count * page_size
                    return saved
        finally:
            transaction.abort()
            committer.turn.ring()

    def _write_copy(self, snapshot: Snapshot, target: str, progress: Progress | None) -> File:
        file = create_beside(self._file_system, target, snapshot.pager.file, will_be_used=target == self.path)
        try:
            write_copy(snapshot.pager, snapshot.tables, Txid(snapshot.txid), snapshot.next_tree_id, file, progress)
        except BaseException:
            file.close()
            remove_quietly(self._file_system, file.path)
            raise
        return file

    def close(self) -> None:
        """Make everything durable, mark the file as cleanly closed, release it. May be called twice.

        Waits for another thread's write transaction; aborts one of this thread. Open read
        transactions fail from here on.

        raises   OSError if the last commits could not be made durable; the file is released even so.
                 BusyError, in a signal handler or a finalizer that has interrupted a commit or another
                 call of this thread: that goes on, and the database stays open
        """
        self._committer.close()

    def __enter__(self) -> Self:
        if self._chain.failure is not None:
            raise self._committer.error()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        failure = self._chain.failure
        state = f"txid {self._chain.tip.snapshot.txid}"
        if failure is not None:
            state = "closed" if isinstance(failure, ClosedError) else "poisoned"
        return f"<limpet.Database {self.path!r}, {state}>"


def _check_durability(durability: str) -> None:
    if durability not in DURABILITIES:
        raise ValueError(f"durability has to be one of {', '.join(map(repr, DURABILITIES))}, not {durability!r}")


def _checked_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes an int, not {type(value).__name__}")
    return value
