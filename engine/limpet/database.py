"""Databases: what a user opens, reads, writes, copies and closes. How commits survive is in committer.py."""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import Self

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
from .check import Report, check_commit
from .checksum import KIND_NUMBERS, default_kind
from .committer import DURABILITIES, SYNC, Committer
from .errors import BusyError, ClosedError, LockedError, ReadOnlyError
from .file import File, FileSystem, MemoryFile, OSFileSystem
from .format import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MIN_PAGE_SIZE, Txid, valid_page_size
from .opening import DEFAULT_LOCK_TIMEOUT_S, open_file, warn_if_lost
from .recovery import read_log
from .transaction import ReadTransaction, Snapshot, WriteTransaction

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
        return Database(file_system, file, path, read_only=read_only, cache_size=cache_size, durability=durability)
    except BaseException:
        file.close()
        raise


class Database(Committer):
    """An open database. Made by `limpet.open`; use it as a context manager.

    Threads: all methods may be called from any thread. A forked child cannot use it and has to
    open its own.
    """

    __slots__ = ()

    @property
    def format_version(self) -> int:
        """The format of the file."""
        return self._header.format_version

    @property
    def read_only(self) -> bool:
        """Whether the database refuses changes."""
        return self._read_only

    def read(self) -> ReadTransaction:
        """Begin to read the newest commit. Never waits.

        returns  a ReadTransaction; close it, best with `with`
        raises   ClosedError, PoisonedError
        """
        transaction = ReadTransaction()
        transaction._open = False
        transaction._view = transaction._others = None
        transaction._pins = pins = self._pins
        while True:
            snapshot = self._published
            if snapshot is None:  # closed, poisoned, or inherited by a fork
                transaction.close()  # which may have pinned an older one
                raise self._error()
            transaction._snapshot = snapshot
            transaction.txid = txid = snapshot.txid
            transaction._open = True
            pins[id(transaction)] = txid
            if self._published is snapshot:
                return transaction

    def write(self, *, durability: str | None = None, timeout: float | None = None) -> WriteTransaction:
        """Begin to change the database; waits until no other thread does.

        durability  "sync", "os" or "none" for this commit; None: as the database was opened
        timeout     seconds to wait, 0 or more; None: as long as it takes
        returns     a WriteTransaction; it commits at the end of its `with` block
        raises      BusyError; ReadOnlyError; ClosedError, PoisonedError; CorruptError if the map of
                    free space is damaged (reading still works then)
        """
        if durability is None:
            durability = self._durability
        else:
            _check_durability(durability)
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout has to be 0 or more seconds, and None for no limit, not {timeout}")
        if self._failure is not None:
            raise self._error()
        if self._read_only:
            raise ReadOnlyError(f"{self._path} was opened read-only")
        me = threading.get_ident()
        if self._writer_thread == me:
            self._recover_writer()
            if self._writer_thread == me:
                raise BusyError(
                    "this thread has a write transaction open already; end it, or use a savepoint inside it"
                )
        if timeout is None:
            self._writer.acquire()
        elif not self._writer.acquire(True, timeout):
            raise BusyError(f"another thread's write transaction did not end within {timeout:g} s")
        transaction: WriteTransaction | None = None
        try:
            if self._failure is not None:  # while it waited
                raise self._error()
            self._writer_thread = me
            if self._space is None:
                with self._state:
                    self._loaded_space()
            transaction = WriteTransaction(self, self._tip, self._last_txid + 1, durability)
            self._transaction = weakref.ref(transaction)
            return transaction
        except BaseException:
            if transaction is not None:
                transaction._open = False  # or its end would release the writer once more
            self._release_writer()
            raise

    def tables(self) -> list[str]:
        """The names of all tables, in order."""
        with self.read() as transaction:
            return transaction.tables()

    def flush(self) -> None:
        """Make everything committed so far durable.

        raises   OSError, PoisonedError, ClosedError
        """
        self._check_usable()
        if not self._read_only:
            with self._flush_lock:
                self._flush_locked(self._tip.txid, SYNC)

    def stats(self) -> Stats:
        """Numbers about the database. Cost: O(tables)."""
        self._check_usable()
        with self._state:
            page_size = self._header.page_size
            pins = list(self._pins.values())
            space = self._space
            if space is not None:
                self._reclaim(space)
            published = self._published
            assert published is not None
            newest = self._meta()
            free = newest.free_count if space is None else space.free_count
            high_water = newest.high_water if space is None else space.high_water
            pending = 0 if space is None else space.pending_count
            retained = 0
            if space is not None and pins:
                retained = space.retained_by_readers(min(published.txid, self._horizon_of_metas()), min(pins))
            return Stats(
                page_size=page_size,
                txid=published.txid,
                durable_txid=self._durable_txid,
                table_count=len(published.tables),
                file_size=self._file.size(),
                live_size=(high_water - free) * page_size,
                free_size=(free - pending) * page_size,
                pending_size=pending * page_size,
                retained_size=retained * page_size,
                cache_size=self._cache_size,
                cached_size=self._pager.cached_size,
                page_reads=self._pager.read_count,
                commits=self._commit_count,
                log_size=self._log.size * page_size if self._log.start else 0,
                log_used=self._log.used * page_size,
                flushes=self._flush_count,
                checkpoints=self._checkpoint_count,
                syncs=self._sync_count,
                readers=len(pins),
                oldest_reader_txid=min(pins, default=None),
            )

    def check(self, progress: Progress | None = None) -> Report:
        """Verify the file: every page of the newest checkpoint, the log on top of it, and the checkpoint before.

        progress  called now and then with (pages looked at, pages in all)
        returns   a report; damage is in it, not raised. Commits that are only in memory are not
                  part of the file; `flush()` first to have them checked
        cost      reads the whole file
        """
        self._check_usable()
        with self._flush_lock, self._state:
            newest, older = self._meta(), self._metas[1 - self._slot] or self._meta()
            log = read_log(self._pager, newest)
            pager = self._pager
            token = object()
            self._pins[id(token)] = older.txid
        try:
            return check_commit(pager, newest, older if older.txid != newest.txid else None, progress, log=log)
        finally:
            del self._pins[id(token)]

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
        check_replaceable(self._file_system, self._file, self._path, target, overwrite=overwrite)
        with self.read() as transaction:
            snapshot = transaction._snapshot
            file = self._write_copy(snapshot, target, progress)
            try:
                check_replaceable(self._file_system, self._file, self._path, target, overwrite=overwrite)
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
        transaction = self.write()
        try:
            with self._flush_lock:
                self._flush_locked(self._tip.txid, SYNC)
                before = self._file.size()
                if self._path == MEMORY:
                    file: File = MemoryFile()
                    write_copy(
                        self._pager, self._tip.tables, Txid(self._tip.txid), self._tip.next_tree_id, file, progress
                    )
                else:
                    self._check_at_path()
                    file = self._write_copy(self._tip, self._path, progress)
                    replacing = False
                    try:
                        self._check_at_path()
                        if not file.try_lock(exclusive=True):
                            raise LockedError(
                                f"{self._path}: the new file was locked by another process as soon as it was made"
                            )
                        replacing = True
                        put_in_place(self._file_system, file, self._path, overwrite=True)
                    except BaseException as error:
                        if replacing and not self._file.is_at_path():
                            self._poison(error)  # our file has lost its name: what we still wrote would be lost with it
                        else:
                            remove_quietly(self._file_system, file.path)
                        file.close()
                        raise
                self._switch(file)
                return before - file.size()
        finally:
            if transaction._open:
                transaction.abort()

    def _check_at_path(self) -> None:
        """What has our name by now may be somebody else's database."""
        if not self._file.is_at_path():
            raise FileNotFoundError(
                errno.ENOENT,
                "the database was moved or replaced since it was opened; to compact it, open it anew",
                self._path,
            )

    def trim(self) -> int:
        """Give free space back to the file system, without rewriting anything.

        The file is cut behind the last page that was ever used, and stretches of free pages of at least 64 KiB become
        holes in it, where the system can do that (Linux, with `cffi`). Waits for the writer; readers go on. A later
        commit that uses such a stretch again needs room on the disk, and fails with OSError if there is none.

        returns  bytes given back, at most: some may have been holes before
        raises   BusyError if this thread is writing; ReadOnlyError; OSError
        cost     0.1 ms a stretch
        """
        transaction = self.write()
        try:
            with self._flush_lock, self._state:
                space, page_size = self._loaded_space(), self._header.page_size
                self._reclaim(space)
                before = self._file.size()
                end = space.high_water * page_size
                if before > end:
                    self._file.truncate(end)
                    self._capacity = space.high_water
                saved = max(0, before - end)
                for start, count in space.stretches(max(1, _SHORTEST_HOLE // page_size)):
                    if self._file.punch(start * page_size, count * page_size):
                        saved += count * page_size
                return saved
        finally:
            transaction.abort()

    def _write_copy(self, snapshot: Snapshot, target: str, progress: Progress | None) -> File:
        file = create_beside(self._file_system, target, self._file, will_be_used=target == self._path)
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

        raises   OSError if the last commits could not be made durable; the file is released even so
        """
        if self._forked:
            self._closed = True
            return
        transaction = self._transaction() if self._transaction is not None else None
        if transaction is not None and transaction._open and self._writer_thread == threading.get_ident():
            transaction.abort()
        self._recover_writer()
        with self._writer, self._flush_lock:
            already, self._closed = self._closed, True
            if already:
                return  # another thread was faster
            try:
                if self._failure is None and not self._read_only:
                    self._flush_locked(self._tip.txid, SYNC)
                    self._close_cleanly()
                    warn_if_lost(self._file)
            finally:
                self._failure = self._failure or ClosedError(f"the database {self._path} is closed; open it again")
                self._published = None
                for pager in (self._pager, *self._retired):
                    pager.failure = f"the database {self._path} is closed"
                    pager.forget()
                    pager.file.close()

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "poisoned" if self._failure else f"txid {self._tip.txid}"
        return f"<limpet.Database {self._path!r}, {state}>"


def _check_durability(durability: str) -> None:
    if durability not in DURABILITIES:
        raise ValueError(f"durability has to be one of {', '.join(map(repr, DURABILITIES))}, not {durability!r}")


def _checked_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes an int, not {type(value).__name__}")
    return value
