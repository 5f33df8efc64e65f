"""space: what a long life of small commits does to the file: its size, how scattered a commit is, how much is written.

The commits are those of a gateway in small: a value under a random key, a line of a conversation with the oldest one
taken away, a task that comes, changes its status twice and goes. Durability os, since what is written and where does
not depend on the syncs. Every peer gets the same commits, in the same order, some thousand in a row.
"""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import limpet

from .calls import counted_calls
from .measure import MIB, OURS, Result, Run, quantile
from .peers import CACHE_SIZE, LMDB_MAP_SIZE, lmdb, sqlite_connection

TABLES = ("kv", "lines", "tasks")
LIVE = "bytes of keys and values that are there"
IN_USE = "bytes in pages that are in use"
Change = tuple[str, bytes, bytes | None]  # table, key, value or None to remove
Commit = Sequence[Change]


def run(run: Run) -> Result:
    """Measure."""
    commits = run.size(1_000_000, quick=2_000)
    keys, lines, tasks = run.size(100_000, quick=200), run.size(30_000, quick=100), run.size(10_000, quick=50)
    steps = run.size(10, quick=2)
    result = Result(
        "space",
        f"the file in {commits:,} small commits of three tables",
        {"commits": commits, "keys": keys, "lines": lines, "tasks": tasks, "durability": "os"},
    )
    folder = run.folder("space")
    workload = _Workload(run.random(), keys, lines, tasks)
    limpet_peer = _Limpet(folder)
    peers: list[_Peer] = [limpet_peer, _SQLite(folder)]
    if lmdb is not None:
        peers.append(_LMDB(folder))
    places, written, asked = array("q"), 0, 0
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.callback(peer.close)
        calls = stack.enter_context(counted_calls())
        over_live = [0.0]
        in_use = 0.0
        for step in range(1, steps + 1):
            at = f"after {commits * step // steps:,} commits"
            run.progress(at)
            here = array("q")
            step_written = step_asked = 0
            for part in workload.commits(commits // steps, 1_000):
                for peer in peers:
                    for commit in part:
                        peer.commit(commit)
                        if peer.name == OURS:
                            found = calls.take()
                            here.append(found.places)
                            step_written += found.written_size
                step_asked += sum(len(key) + len(value or b"") for commit in part for _, key, value in commit)
            places += here
            written, asked = written + step_written, asked + step_asked
            in_use = limpet_peer.in_use() / MIB
            result.add_numbers(f"{at}: {LIVE}", {OURS: [workload.live_size / MIB]}, "MiB")
            result.add_numbers(f"{at}: {IN_USE}", {OURS: [in_use]}, "MiB")
            now = {peer.name: [peer.file_size() / MIB] for peer in peers}
            result.add_numbers(f"{at}: size of the file", now, "MiB")
            result.add_numbers(f"{at}: places of the file that a commit writes", {OURS: here}, "places")
            result.add_numbers(f"{at}: bytes written for each byte changed", {OURS: [step_written / step_asked]}, "x")
            over_live.append((now[OURS][0] - 8) / in_use)
    result.add_numbers("size of the closed file", {peer.name: [peer.file_size() / MIB] for peer in peers}, "MiB")
    live_mib = workload.live_size / MIB
    result.aim("size of the file, less 8 MiB, over the pages in use; the largest", max(over_live), 1.6, "x")
    result.aim("places of the file that a commit writes, median", quantile(sorted(places), 0.5), 1.3)
    mean = sum(places) / len(places)
    result.note(
        f"A commit of Limpet writes {mean:.2f} places on average, the checkpoints included, and {written / asked:.1f} "
        "bytes for each byte of keys and values that it changes. A removal counts the bytes of its key."
    )
    result.note(
        f"The limit of 1.6 is for what the format uses ({in_use:.1f} MiB in the end), not for the bytes of keys and "
        f"values alone ({live_mib:.1f} MiB): leaves that rows are inserted into at random are two thirds "
        "full, those of SQLite and LMDB as well. SQLite's file is measured with its log, LMDB's without its lock file."
    )
    return result


class _Workload:
    """Small commits. live_size: bytes of the keys and values that are there after them."""

    def __init__(self, random: Random, keys: int, lines: int, tasks: int) -> None:
        self._random = random
        self._keys, self._lines, self._tasks = keys, lines, tasks
        self._conversation: deque[tuple[bytes, int]] = deque()
        self._queue: deque[tuple[bytes, int]] = deque()
        self._kv: dict[bytes, int] = {}
        self._text = random.randbytes(1 << 20)
        self._number = 0
        self.live_size = 0

    def commits(self, count: int, part: int) -> Iterator[list[Commit]]:
        """So many commits, in parts."""
        while count > 0:
            yield [self._commit() for _ in range(min(part, count))]
            count -= part

    def _value(self, low: int, high: int) -> bytes:
        size = self._random.randint(low, high)
        at = self._random.randrange(len(self._text) - size)
        return self._text[at : at + size]

    def _commit(self) -> Commit:
        self._number += 1
        draw = self._random.random()
        if draw < 0.4:
            return [self._put_kv()]
        if draw < 0.6:
            return self._add_line()
        return self._move_task()

    def _put_kv(self) -> Change:
        key = b"key-%020d" % self._random.randrange(self._keys)
        value = self._value(50, 250)
        self.live_size += len(value) - self._kv.get(key, -len(key))
        self._kv[key] = len(value)
        return "kv", key, value

    def _add_line(self) -> Commit:
        key, value = b"session-%04d/%012d" % (self._random.randrange(500), self._number), self._value(200, 3_000)
        self._conversation.append((key, len(key) + len(value)))
        self.live_size += len(key) + len(value)
        changes: list[Change] = [("lines", key, value)]
        if len(self._conversation) > self._lines:
            old, size = self._conversation.popleft()
            self.live_size -= size
            changes.append(("lines", old, None))
        return changes

    def _move_task(self) -> Commit:
        draw = self._random.random()
        if self._queue and (draw < 0.25 or len(self._queue) > self._tasks):
            key, size = self._queue.popleft()
            self.live_size -= size
            return [("tasks", key, None)]
        if self._queue and draw < 0.75:
            at = self._random.randrange(min(len(self._queue), 100))
            key, size = self._queue[at]
        else:
            key, size = b"task-%015d" % self._number, 0
            at = -1
        value = self._value(200, 800)
        now = len(key) + len(value)
        self.live_size += now - size
        if at < 0:
            self._queue.append((key, now))
        else:
            self._queue[at] = (key, now)
        return [("tasks", key, value)]


class _Peer(Protocol):
    name: str

    def commit(self, changes: Commit) -> None: ...

    def file_size(self) -> int: ...

    def close(self) -> None: ...


class _Limpet:
    name = OURS

    def __init__(self, folder: Path) -> None:
        self._path = folder / "space.limpet"
        self._tables = {name: limpet.Table(name, key=limpet.BYTES, value=limpet.BYTES) for name in TABLES}
        self._database = limpet.open(self._path, durability="os", cache_size=CACHE_SIZE)

    def commit(self, changes: Commit) -> None:
        with self._database.write() as txn:
            for name, key, value in changes:
                if value is None:
                    del txn[self._tables[name]][key]
                else:
                    txn[self._tables[name]][key] = value

    def file_size(self) -> int:
        return self._path.stat().st_size

    def in_use(self) -> int:
        """Bytes of the pages in use."""
        return self._database.stats().live_size

    def close(self) -> None:
        self._database.close()


class _SQLite:
    name = "sqlite3"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "space.sqlite"
        self._connection: sqlite3.Connection = sqlite_connection(self._path, CACHE_SIZE, "NORMAL")
        for name in TABLES:
            self._connection.execute(f"CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def commit(self, changes: Commit) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for name, key, value in changes:
            if value is None:
                execute(f"DELETE FROM {name} WHERE key = ?", (key,))
            else:
                execute(f"INSERT OR REPLACE INTO {name} VALUES (?, ?)", (key, value))
        execute("COMMIT")

    def file_size(self) -> int:
        return sum(path.stat().st_size for path in self._path.parent.glob(self._path.name + "*"))

    def close(self) -> None:
        self._connection.close()


class _LMDB:
    name = "lmdb"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "space.lmdb"
        self._environment: Any = lmdb.open(
            str(self._path), subdir=False, map_size=LMDB_MAP_SIZE, sync=False, max_dbs=len(TABLES)
        )
        self._tables = {name: self._environment.open_db(name.encode()) for name in TABLES}

    def commit(self, changes: Commit) -> None:
        with self._environment.begin(write=True) as txn:
            for name, key, value in changes:
                if value is None:
                    txn.delete(key, db=self._tables[name])
                else:
                    txn.put(key, value, db=self._tables[name])

    def file_size(self) -> int:
        return self._path.stat().st_size

    def close(self) -> None:
        self._environment.close()
