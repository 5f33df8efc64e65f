"""The store's operations on sqlite3, as a careful author of a gateway would write them.

The same rows, the same indexes, the same number of transactions as limpet_store; every statement is served from an
index, counts are kept instead of counted, rows that belong together are stored together (WITHOUT ROWID). WAL,
synchronous=FULL. A connection for each thread; writers queue at a lock, since SQLite's own way of waiting is to sleep
and try again. `AsyncSQLiteStore` calls it through a pool of threads, which is how SQLite is used from asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .peers import sqlite_connection

P = ParamSpec("P")
T = TypeVar("T")

Message = dict[str, Any]

SCHEMA = """
CREATE TABLE sessions (
    session_key TEXT PRIMARY KEY, message_count INTEGER NOT NULL, last_active INTEGER NOT NULL,
    created_at INTEGER NOT NULL, generation INTEGER NOT NULL, title TEXT, title_source TEXT,
    pinned INTEGER NOT NULL DEFAULT 0, archived INTEGER NOT NULL DEFAULT 0, peer_name TEXT
) WITHOUT ROWID;
CREATE TABLE messages (
    session_key TEXT, seq INTEGER, body TEXT NOT NULL, PRIMARY KEY (session_key, seq)
) WITHOUT ROWID;
CREATE TABLE archive (
    session_key TEXT, generation INTEGER, seq INTEGER, stored_at INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (session_key, generation, seq)
) WITHOUT ROWID;
CREATE TABLE counters (
    session_key TEXT, generation INTEGER, row_count INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    next_seq INTEGER NOT NULL, PRIMARY KEY (session_key, generation)
) WITHOUT ROWID;
CREATE TABLE tasks (
    arrival INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, session_key TEXT NOT NULL, priority INTEGER NOT NULL,
    status TEXT NOT NULL, retries INTEGER NOT NULL DEFAULT 0, max_retries INTEGER NOT NULL DEFAULT 3,
    turns INTEGER NOT NULL DEFAULT 0, max_turns INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, expires_at INTEGER, content_hash TEXT NOT NULL, error TEXT,
    notified INTEGER NOT NULL DEFAULT 0, last_reply TEXT, attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tasks_queue ON tasks (status, priority, created_at, arrival);
CREATE INDEX tasks_sessions ON tasks (session_key, status, priority, arrival, content_hash);
CREATE INDEX tasks_expiry ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND (status = 'Pending' OR (notified AND status IN ('Done', 'Failed', 'Dead')));
CREATE TABLE task_messages (
    arrival INTEGER, position INTEGER, body TEXT NOT NULL, PRIMARY KEY (arrival, position)
) WITHOUT ROWID;
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, status TEXT NOT NULL, submitted_at INTEGER NOT NULL, next_poll_at INTEGER NOT NULL,
    is_open INTEGER NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_polls ON jobs (next_poll_at) WHERE is_open;
CREATE INDEX jobs_ends ON jobs (submitted_at) WHERE NOT is_open;
CREATE TABLE idempotency (key TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX idempotency_times ON idempotency (at);
CREATE TABLE cron (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""

EXPIRED = (  # SQLite would look at all finished tasks instead
    "tasks INDEXED BY tasks_expiry WHERE expires_at IS NOT NULL"
    " AND (status = 'Pending' OR (notified AND status IN ('Done', 'Failed', 'Dead')))"
    " AND expires_at < ?"
)


class SQLiteStore:
    """A gateway's store on sqlite3; every method is a transaction of its own unless it is called inside `write()`."""

    def __init__(
        self, path: Path, *, cache_size: int, synchronous: str = "FULL", clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._cache_size = cache_size
        self._synchronous = synchronous
        self._clock = clock
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._writer = threading.RLock()
        self._depth = 0
        self.commits = 0
        with self.write() as execute:
            if execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in SCHEMA.split(";"):
                    execute(statement)

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = sqlite_connection(self._path, self._cache_size, self._synchronous)
            self._connections.append(found)
        return found

    def close(self) -> None:
        """Close every connection; the last one copies the log into the database."""
        for connection in self._connections:
            connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """A write transaction, or the one that is open; gives the connection's `execute`."""
        with self._writer:
            connection = self.connection()
            if self._depth:
                yield connection.execute
                return
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield connection.execute
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            else:
                connection.execute("COMMIT")
                self.commits += connection.total_changes != before
            finally:
                self._depth = 0

    # --- tasks -------------------------------------------------------------------------------------------------------

    def submit(self, task_id: str, session_key: str, message: Message, content_hash: str) -> tuple[str, str]:
        """Add a task, or its message to the one that is waiting; returns (kind, task id)."""
        with self.write() as execute:
            waiting = execute(
                "SELECT arrival, priority, content_hash FROM tasks WHERE session_key = ? AND status = 'Pending'"
                " ORDER BY priority, arrival",
                (session_key,),
            ).fetchall()
            for arrival, _, found_hash in waiting:
                if found_hash == content_hash:
                    return "duplicate", self._task_id(execute, arrival)
            for arrival, priority, _ in waiting:
                if priority == 2:
                    execute(
                        "INSERT INTO task_messages SELECT ?, max(position) + 1, ? FROM task_messages WHERE arrival = ?",
                        (arrival, _dumps(message), arrival),
                    )
                    execute("UPDATE tasks SET updated_at = ? WHERE arrival = ?", (self._now(), arrival))
                    return "merged", self._task_id(execute, arrival)
            self.enqueue(task_id, session_key, message, content_hash)
            return "new", task_id

    def enqueue(
        self, task_id: str, session_key: str, message: Message, content_hash: str, *, ttl_secs: int = 3600
    ) -> None:
        """Add a task as it is."""
        with self.write() as execute:
            now = self._now()
            arrival = execute(
                "INSERT INTO tasks (id, session_key, priority, status, created_at, updated_at, expires_at,"
                " content_hash) VALUES (?, ?, 2, 'Pending', ?, ?, ?, ?)",
                (task_id, session_key, now, now, now + ttl_secs, content_hash),
            ).lastrowid
            execute("INSERT INTO task_messages VALUES (?, 0, ?)", (arrival, _dumps(message)))

    def dequeue(self) -> tuple[str, str, list[Message]] | None:
        """Take the task that goes first; (id, session key, messages)."""
        with self.write() as execute:
            found = execute(
                "SELECT arrival, id, session_key FROM tasks WHERE status = 'Pending'"
                " ORDER BY priority, created_at, arrival LIMIT 1"
            ).fetchone()
            if found is None:
                return None
            execute("UPDATE tasks SET status = 'Running', updated_at = ? WHERE arrival = ?", (self._now(), found[0]))
            bodies = execute("SELECT body FROM task_messages WHERE arrival = ? ORDER BY position", (found[0],))
            return found[1], found[2], [json.loads(body) for (body,) in bodies]

    def finish_turn(self, task_id: str, turn: int, reply: str, *, notified: bool = False) -> None:
        """Record a turn, its reply, that it is delivered, and that the task is done."""
        with self.write() as execute:
            now = self._now()
            execute(
                "UPDATE tasks SET turns = ?, last_reply = ?, status = 'Done', notified = ?, updated_at = ?"
                " WHERE id = ?",
                (turn, reply, notified, now, task_id),
            )
            execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?)", (f"task:{task_id}:turn:{turn}", now))

    def requeue_running(self) -> int:
        """After a crash: put the tasks that were running back into the queue."""
        with self.write() as execute:
            return execute(
                "UPDATE tasks SET status = 'Pending', attempts = attempts + 1, updated_at = ? WHERE status = 'Running'",
                (self._now(),),
            ).rowcount

    def cleanup_expired(self) -> int:
        """Delete the tasks whose time is over."""
        with self.write() as execute:
            now = self._now()
            execute(f"DELETE FROM task_messages WHERE arrival IN (SELECT arrival FROM {EXPIRED})", (now,))
            return execute(f"DELETE FROM {EXPIRED}", (now,)).rowcount

    # --- conversations -----------------------------------------------------------------------------------------------

    def append(self, session_key: str, message: Message) -> int:
        """Add a message to a session and its archive."""
        return self.append_many(session_key, [message])

    def append_many(self, session_key: str, messages: Iterable[Message]) -> int:
        """Add messages in one transaction; returns the number of the first."""
        bodies = [_dumps(message) for message in messages]
        with self.write() as execute:
            now = self._now()
            found = execute(
                "INSERT INTO sessions (session_key, message_count, last_active, created_at, generation)"
                " VALUES (?, ?, ?, ?, 1) ON CONFLICT (session_key) DO UPDATE"
                " SET message_count = message_count + excluded.message_count, last_active = excluded.last_active"
                " RETURNING message_count, generation",
                (session_key, len(bodies), now, now),
            ).fetchall()
            count, generation = found[0]
            first: int = count - len(bodies)
            many = self.connection().executemany
            many("INSERT INTO messages VALUES (?, ?, ?)", [(session_key, first + n, b) for n, b in enumerate(bodies)])
            many(
                "INSERT INTO archive VALUES (?, ?, ?, ?, ?)",
                [(session_key, generation, first + n, now, b) for n, b in enumerate(bodies)],
            )
            many(
                "INSERT INTO counters VALUES (?, ?, ?, ?, ?) ON CONFLICT (session_key, generation) DO UPDATE"
                " SET row_count = row_count + excluded.row_count, next_seq = excluded.next_seq",
                [(session_key, each, len(bodies), first, first + len(bodies)) for each in (0, generation)],
            )
            return first

    def list_sessions(self) -> list[str]:
        """The keys of all sessions."""
        return [key for (key,) in self._read("SELECT session_key FROM sessions ORDER BY session_key")]

    def session_items(self) -> list[tuple[Any, ...]]:
        """All sessions with everything that is known of them."""
        return self._read("SELECT * FROM sessions ORDER BY session_key")

    def load_recent(self, session_key: str, limit: int) -> list[Message]:
        """The last active messages, oldest first."""
        found = self._read(
            "SELECT body FROM messages WHERE session_key = ? ORDER BY seq DESC LIMIT ?", (session_key, limit)
        )
        return [json.loads(body) for (body,) in reversed(found)]

    def archive_stat(self, session_key: str) -> tuple[int, int | None, int | None, list[int]]:
        """Messages, first and last number, generations."""
        found = self._read(
            "SELECT generation, row_count, first_seq, next_seq FROM counters"
            " WHERE session_key = ? AND generation > 0 ORDER BY generation",
            (session_key,),
        )
        rows = [row for row in found if row[1]]
        return (
            sum(row[1] for row in rows),
            rows[0][2] if rows else None,
            rows[-1][3] - 1 if rows else None,
            [row[0] for row in rows],
        )

    def archive_tail(self, session_key: str, limit: int) -> list[tuple[int, int, Message]]:
        """The last archived messages, oldest first: (generation, seq, message)."""
        found = self._read(
            "SELECT generation, seq, body FROM archive WHERE session_key = ?"
            " ORDER BY generation DESC, seq DESC LIMIT ?",
            (session_key, limit),
        )
        return [(generation, seq, json.loads(body)) for generation, seq, body in reversed(found)]

    # --- the rest ----------------------------------------------------------------------------------------------------

    def add_finished_job(self, job_id: str, body: str) -> None:
        """A job that is over and delivered."""
        with self.write() as execute:
            now = self._now()
            execute("INSERT INTO jobs VALUES (?, 'Done', ?, ?, 0, 1, ?)", (job_id, now, now + 10, body))

    def claim_due(self, limit: int, lease: int) -> list[str]:
        """Take jobs that are due."""
        with self.write() as execute:
            now = self._now()
            found = execute(
                "SELECT id, body FROM jobs WHERE is_open AND next_poll_at <= ? ORDER BY next_poll_at LIMIT ?",
                (now, limit),
            ).fetchall()
            for job_id, _ in found:
                execute("UPDATE jobs SET next_poll_at = ?, version = version + 1 WHERE id = ?", (now + lease, job_id))
            return [body for _, body in found]

    def cleanup_jobs(self, retention_secs: int) -> int:
        """Delete jobs that are over."""
        with self.write() as execute:
            cutoff = self._now() - retention_secs
            return execute("DELETE FROM jobs WHERE NOT is_open AND submitted_at < ?", (cutoff,)).rowcount

    def mark_delivered(self, key: str) -> None:
        """Remember that something was delivered."""
        with self.write() as execute:
            execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?)", (key, self._now()))

    def cleanup_idempotency(self, retention_secs: int) -> int:
        """Forget what was delivered long ago."""
        with self.write() as execute:
            return execute("DELETE FROM idempotency WHERE at < ?", (self._now() - retention_secs,)).rowcount

    def put_cron(self, job_id: str, text: str) -> None:
        """A scheduled job."""
        with self.write() as execute:
            execute("INSERT OR REPLACE INTO cron VALUES (?, ?)", (job_id, text))

    def cron_items(self) -> list[tuple[str, str]]:
        """All scheduled jobs."""
        return self._read("SELECT id, text FROM cron ORDER BY id")

    def used_size(self) -> int:
        """Bytes of the pages in use."""
        pages, free, size = (
            self._read(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _read(self, statement: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
        return self.connection().execute(statement, arguments).fetchall()

    def _now(self) -> int:
        return int(self._clock())

    @staticmethod
    def _task_id(execute: Callable[..., sqlite3.Cursor], arrival: int) -> str:
        found: str = execute("SELECT id FROM tasks WHERE arrival = ?", (arrival,)).fetchone()[0]
        return found


class AsyncSQLiteStore:
    """The store called through a pool of threads."""

    def __init__(self, store: SQLiteStore, threads: int) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sqlite")

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of the store in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(method, *args, **kwargs))

    def close(self) -> None:
        """End the threads; the store itself stays open."""
        self._pool.shutdown()


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
