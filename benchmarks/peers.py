"""The databases that are compared, each used the way its own documentation recommends.

All three keep the same rows, bytes to bytes, in one table; all have the same cache, as far as they have one. What each
adapter does that the others do not is what a careful user of that database would do:

    limpet   the whole public API, nothing else
    sqlite3  WAL, synchronous=FULL, WITHOUT ROWID (one tree instead of two), a connection for each thread, cached
             statements, explicit transactions, executemany for bulk loads. Writers of several threads queue at a lock
             of the process: SQLite's own waiting (sleep and try again) is slower and unfair
    lmdb     a file instead of a folder, a map that is large enough, cursors with putmulti for bulk loads

Durabilities. "sync": on stable storage before the call returns. "os": the operating system has it; for SQLite that is
synchronous=NORMAL, which syncs when the log is copied into the database, and for LMDB sync=False, which a power cut may
turn into a damaged file. "none": Limpet only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import limpet

from .measure import MIB

try:
    lmdb: Any = importlib.import_module("lmdb")
except ImportError:  # an optional peer
    lmdb = None

CACHE_SIZE = 32 * MIB  # Limpet's default; SQLite gets the same instead of its 2 MiB
SYNCHRONOUS = {"sync": "FULL", "os": "NORMAL"}  # SQLite's words for durabilities
LMDB_MAP_SIZE = 1 << 34  # address space, not memory

Row = tuple[bytes, bytes]
Getter = Callable[[bytes], bytes | None]


class Peer(Protocol):
    """What the engine workloads ask of a database."""

    name: str

    def put(self, key: bytes, value: bytes) -> None:
        """One key in a transaction of its own, as durable as was asked for when opening. From any thread."""

    def get(self, key: bytes) -> bytes | None:
        """One key in a transaction of its own; from the thread that opened the database."""

    def getter(self) -> contextlib.AbstractContextManager[Getter]:
        """A function that gets keys, all in one transaction."""

    def scan(self) -> int:
        """Read every key and value in order; returns their total size."""

    def load(self, rows: Iterable[Row]) -> None:
        """Put many rows in one durable transaction, the fastest way there is."""

    def file_size(self) -> int:
        """Bytes on disk of a closed database."""

    def thread(self) -> contextlib.AbstractContextManager[object]:
        """What a thread needs before its first operation, and gives back after its last."""

    def close(self) -> None:
        """Close it, leaving nothing to recover."""


def _total(pairs: Iterable[Row]) -> int:
    total = 0
    for key, value in pairs:
        total += len(key) + len(value)
    return total


class Limpet:
    """The engine."""

    name = "limpet"
    ROWS = limpet.Table("rows", key=limpet.BYTES, value=limpet.BYTES)

    def __init__(self, folder: Path, *, cache_size: int = CACHE_SIZE, durability: str = "sync") -> None:
        self.path = folder / "rows.limpet"
        self.database = limpet.open(self.path, cache_size=cache_size, durability=durability)

    def put(self, key: bytes, value: bytes) -> None:
        """See Peer."""
        with self.database.write() as txn:
            txn[self.ROWS][key] = value

    def get(self, key: bytes) -> bytes | None:
        """See Peer."""
        with self.database.read() as txn:
            value: bytes | None = txn[self.ROWS].get(key)
            return value

    @contextlib.contextmanager
    def getter(self) -> Iterator[Getter]:
        """See Peer."""
        with self.database.read() as txn:
            yield txn[self.ROWS].get

    def scan(self) -> int:
        """See Peer."""
        with self.database.read() as txn:
            return _total(txn[self.ROWS].items())

    def load(self, rows: Iterable[Row]) -> None:
        """See Peer."""
        with self.database.write() as txn:
            txn[self.ROWS].update(rows)

    def file_size(self) -> int:
        """See Peer."""
        return self.path.stat().st_size

    def thread(self) -> contextlib.AbstractContextManager[object]:
        """See Peer. Nothing: any thread may use it."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """See Peer."""
        self.database.close()


class SQLite:
    """Python's sqlite3, in the mode that is compared with most often: WAL."""

    name = "sqlite3"

    def __init__(self, folder: Path, *, cache_size: int = CACHE_SIZE, durability: str = "sync") -> None:
        self.path = folder / "rows.sqlite"
        self._cache_size = cache_size
        self._synchronous = SYNCHRONOUS[durability]
        self._local = threading.local()
        self._writer = threading.Lock()
        self._execute = self.connection().execute  # of the thread that opens
        self._execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = sqlite_connection(self.path, self._cache_size, self._synchronous)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """See Peer."""
        with self._writer:  # a single statement is a transaction
            self.put_unqueued(key, value)

    def put_unqueued(self, key: bytes, value: bytes) -> None:
        """The same without the lock: SQLite waits for other threads by itself, as it does when it is simply used."""
        self.connection().execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (key, value))

    def get(self, key: bytes) -> bytes | None:
        """See Peer. A SELECT without BEGIN: the cheapest transaction that SQLite has."""
        row = self._execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def get_between(self, key: bytes) -> bytes | None:
        """The same with an explicit transaction around it, as for the other two."""
        execute = self._execute
        execute("BEGIN")
        row = execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
        execute("COMMIT")
        return None if row is None else row[0]

    @contextlib.contextmanager
    def getter(self) -> Iterator[Getter]:
        """See Peer."""
        execute = self.connection().execute

        def get(key: bytes) -> bytes | None:
            row = execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
            return None if row is None else row[0]

        execute("BEGIN")
        yield get
        execute("COMMIT")

    def scan(self) -> int:
        """See Peer."""
        return _total(self.connection().execute("SELECT key, value FROM rows ORDER BY key"))

    def load(self, rows: Iterable[Row]) -> None:
        """See Peer."""
        connection = self.connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)
        connection.execute("COMMIT")

    def file_size(self) -> int:
        """See Peer."""
        return sum(path.stat().st_size for path in self.path.parent.glob(self.path.name + "*"))

    @contextlib.contextmanager
    def thread(self) -> Iterator[object]:
        """See Peer. A connection."""
        try:
            yield self.connection()
        finally:
            self._local.connection.close()
            del self._local.connection

    def close(self) -> None:
        """See Peer. The last connection copies the log into the database and removes it."""
        self.connection().close()


def sqlite_connection(path: Path, cache_size: int, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection in WAL mode without the implicit transactions of the Python module."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL").fetchone()
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute(f"PRAGMA cache_size=-{cache_size // 1024}")
    return connection


class LMDB:
    """py-lmdb. It has no cache of its own: the operating system's is used through a map of the file."""

    name = "lmdb"

    def __init__(self, folder: Path, *, cache_size: int = CACHE_SIZE, durability: str = "sync") -> None:
        del cache_size
        self.path = folder / "rows.lmdb"
        self._environment: Any = lmdb.open(
            str(self.path), subdir=False, map_size=LMDB_MAP_SIZE, sync=durability == "sync", max_spare_txns=16
        )

    def put(self, key: bytes, value: bytes) -> None:
        """See Peer."""
        with self._environment.begin(write=True) as txn:
            txn.put(key, value)

    def get(self, key: bytes) -> bytes | None:
        """See Peer."""
        with self._environment.begin() as txn:
            value: bytes | None = txn.get(key)
            return value

    @contextlib.contextmanager
    def getter(self) -> Iterator[Getter]:
        """See Peer."""
        with self._environment.begin() as txn:
            yield txn.get

    def scan(self) -> int:
        """See Peer."""
        with self._environment.begin() as txn, txn.cursor() as cursor:
            return _total(cursor)

    def load(self, rows: Iterable[Row]) -> None:
        """See Peer."""
        with self._environment.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(rows)

    def load_one_by_one(self, rows: Iterable[Row]) -> None:
        """The same without the loop in C that only LMDB has."""
        with self._environment.begin(write=True) as txn:
            put = txn.put
            for key, value in rows:
                put(key, value)

    def file_size(self) -> int:
        """See Peer. The file is as long as the last page used; the lock file is not counted."""
        return os.stat(self.path).st_size

    def thread(self) -> contextlib.AbstractContextManager[object]:
        """See Peer. Nothing: any thread may use it."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """See Peer."""
        self._environment.close()


def peers() -> tuple[type[Limpet | SQLite | LMDB], ...]:
    """The peers that are installed, Limpet first."""
    return (Limpet, SQLite) if lmdb is None else (Limpet, SQLite, LMDB)


@contextlib.contextmanager
def opened(
    folder: Path, *, only: Collection[str] | None = None, cache_size: int = CACHE_SIZE, durability: str = "sync"
) -> Iterator[dict[str, Limpet | SQLite | LMDB]]:
    """Every peer, or some of them, each open in a folder of its own (`folder / name`); closed in the end."""
    with contextlib.ExitStack() as stack:
        found = {}
        for make in peers():
            if only is not None and make.name not in only:
                continue
            own = folder / make.name
            own.mkdir(parents=True, exist_ok=True)
            peer = make(own, cache_size=cache_size, durability=durability)
            stack.callback(peer.close)
            found[peer.name] = peer
        yield found


def versions() -> dict[str, str]:
    """The version of every peer."""
    from importlib import metadata

    found = {"sqlite3": sqlite3.sqlite_version}
    try:
        found["limpet"] = metadata.version("limpet")
    except metadata.PackageNotFoundError:
        found["limpet"] = "not installed"
    for package in ("crc32c", "portalocker", "cffi"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    if lmdb is not None:
        found["lmdb"] = "{}.{}.{}".format(*lmdb.version())
        found["py-lmdb"] = str(lmdb.__version__)
    return found
