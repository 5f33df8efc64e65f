"""Lives on a disk that is full: deletes go on, what was acknowledged stays, and free space comes back.

A disk of a random size is filled, then rows are deleted, changed and added at random, in all
durabilities, with reopenings, deaths and readers between. Any insert may fail with ENOSPC. A delete
of one key must not, nor one of a range, nor `clear`, unless a reader holds the space back.
"""

from __future__ import annotations

import errno
import random

import limpet
from limpet.testing import Monitor, SimDisk

from .oracle import Wrong, abandon, check_structure, open_sim, tuned

TABLE = limpet.Table("rows", key=limpet.INT, value=limpet.BYTES)
_SMALLEST, _LARGEST = 40 << 10, 220 << 10  # bytes of the disk
_STEPS = 400


class FullDisk:
    """One life, made by a seed."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.row = rng.choice((20, 90, 400, 1500))
        # The monitors look at the whole file again and again, so it is a small one then, of few rows.
        monitored = self.row > 20 and rng.random() < 0.3
        largest = 2 * _SMALLEST if monitored or self.row == 20 else _LARGEST
        self.disk = SimDisk(capacity=rng.randrange(_SMALLEST, largest))
        self.monitor = Monitor(self.disk) if monitored else None
        self.rows: dict[int, bytes] = {}
        self.db = self._open()
        self.refused = 0

    def go(self) -> None:
        """Fill, live, empty, fill again."""
        first = self._fill()
        for _ in range(_STEPS):
            if not self.rows:
                break
            self._step()
        self._compare()
        for key in self.rng.sample(sorted(self.rows), len(self.rows)):
            self._delete(key)
        again = self._fill()
        if again * 3 < first:
            raise Wrong(f"the disk took {first} rows, and when it was empty again only {again}")
        self._reopen()
        self.db.close()

    def _open(self) -> limpet.Database:
        if self.monitor is None:
            return open_sim(self.disk)
        with self.monitor.opening():
            return open_sim(self.disk)

    def _value(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(self.row + 1))

    def _durability(self) -> str:
        return self.rng.choice(("sync", "os", "none"))

    def _fill(self) -> int:
        """Insert until nothing more fits; returns how many rows did."""
        count, durability = 0, self._durability()
        ascending = self.rng.random() < 0.5
        while True:
            key = max(self.rows, default=0) + 1 if ascending else self.rng.randrange(1 << 40)
            if not self._set(key, self._value(), durability):
                return count
            count += 1

    def _set(self, key: int, value: bytes, durability: str) -> bool:
        try:
            with self.db.write(durability=durability) as txn:
                txn[TABLE][key] = value
        except OSError as error:
            self._refused(error)
            return False
        self.rows[key] = value
        return True

    def _refused(self, error: OSError) -> None:
        if error.errno != errno.ENOSPC or error.filename is None:
            raise Wrong(f"a full disk says {error!r}") from error
        self.refused += 1
        self._compare()

    def _delete(self, key: int) -> None:
        with self.db.write(durability=self._durability()) as txn:
            del txn[TABLE][key]
        del self.rows[key]

    def _step(self) -> None:
        rng = self.rng
        kind = rng.choices(
            ("delete", "range", "set", "change", "flush", "reopen", "die", "read", "clear", "trim"),
            (30, 3, 14, 8, 2, 2, 2, 3, 0.2, 1),
        )[0]
        key = rng.choice(sorted(self.rows))
        if kind == "delete":
            self._delete(key)
        elif kind == "range":
            stop = key + rng.choice((3, 1 << 20, 1 << 38))
            with self.db.write(durability=self._durability()) as txn:
                txn[TABLE].delete_range(key, stop)
            self.rows = {each: value for each, value in self.rows.items() if not key <= each < stop}
        elif kind == "set":
            self._set(rng.randrange(1 << 40), self._value(), self._durability())
        elif kind == "change":
            self._set(key, self._value(), self._durability())
        elif kind == "flush":
            self.db.flush()
        elif kind == "reopen":
            self._reopen()
        elif kind == "die":
            self.db.flush()
            self.disk.kill()
            abandon(self.db)
            self.db = self._open()
            self._compare()
        elif kind == "read":
            with self.db.read() as reader:
                before = dict(self.rows)
                for _ in range(rng.randrange(4)):
                    self._set(rng.randrange(1 << 40), self._value(), self._durability())
                if dict(reader[TABLE].items()) != before:
                    raise Wrong("a snapshot has changed")
        elif kind == "clear":
            with self.db.write(durability=self._durability()) as txn:
                txn[TABLE].clear()
            self.rows = {}
        else:
            self.db.trim()

    def _reopen(self) -> None:
        self.db.close()
        self.db = self._open()
        self._compare()

    def _compare(self) -> None:
        with self.db.read() as reader:
            found = dict(reader[TABLE].items())
        if found != self.rows:
            raise Wrong(f"{len(self.rows)} rows were acknowledged, {len(found)} are there")
        check_structure(self.db, self.disk)


def live(seed: int) -> int:
    """One life on a full disk; returns how often it said so."""
    with tuned(2048):
        life = FullDisk(seed)
        life.go()
        return life.refused
