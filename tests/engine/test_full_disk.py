"""A full disk, on real file systems that are small: rows can be deleted, and their space is used again.

Once every single delete failed after ENOSPC, because the checkpoint that it had to be found no pages. And `none`
commits were acknowledged without end while none of them could be written, so that `close()` lost them.
"""

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import limpet
from limpet import promise
from limpet.books import Books
from limpet.chain import Commit
from limpet.log import UNLIMITED
from limpet.testing import CannotMountError, small_disk
from limpet.testing.mounts import fill

ROWS = limpet.Table("rows", key=limpet.INT, value=limpet.BYTES)


def almost_full(kind: str) -> Iterator[Path]:
    """A file system with 640 KiB left."""
    try:
        with small_disk(kind) as folder:
            fill(folder, leave=640 << 10)
            yield folder
    except CannotMountError as error:
        pytest.skip(f"{kind}: {error}")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system with 640 KiB left."""
    yield from almost_full(request.param)


# Small rows are many, and each delete is a checkpoint as long as the disk is full: on ext4 that takes a minute.
@pytest.fixture(params=[("tmpfs", 100), ("tmpfs", 900), ("tmpfs", 5000), ("ext4", 900)], ids="{0[0]}-{0[1]}".format)
def disk_and_size(request: pytest.FixtureRequest) -> Iterator[tuple[Path, int]]:
    """A file system with 640 KiB left, and how large the rows are, in bytes."""
    kind, size = request.param
    for folder in almost_full(kind):
        yield folder, size


def insert_until_full(db: limpet.Database, rng: random.Random, size: int, durability: str = "os") -> dict[int, bytes]:
    """Rows under random keys, one a commit; returns those that were acknowledged."""
    rows: dict[int, bytes] = {}
    while True:
        key, value = rng.randrange(1 << 40), rng.randbytes(rng.randrange(size // 2, size + 1))
        if not commits(db, key, value, durability):
            assert content(db) == rows
            return rows
        rows[key] = value


def commits(db: limpet.Database, key: int, value: bytes, durability: str) -> bool:
    """Set a row; False if the disk is full."""
    try:
        with db.write(durability=durability) as txn:
            txn[ROWS][key] = value
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename != db.path:
            raise
        return False
    return True


def content(db: limpet.Database) -> dict[int, bytes]:
    with db.read() as txn:
        return dict(txn[ROWS].items())


def delete(db: limpet.Database, key: int, durability: str) -> None:
    with db.write(durability=durability) as txn:
        del txn[ROWS][key]


def test_every_row_of_a_full_disk_can_be_deleted_and_as_many_fit_again(
    disk_and_size: tuple[Path, int], seed: int
) -> None:
    disk, size = disk_and_size
    rng = random.Random(seed)
    with limpet.open(disk / "full.limpet") as db:
        rows = insert_until_full(db, rng, size)
        first = len(rows)
        for count, key in enumerate(rng.sample(sorted(rows), len(rows))):
            delete(db, key, "sync" if count < 20 else "os")
            del rows[key]
        assert content(db) == {}
        assert len(insert_until_full(db, rng, size)) > first * 0.6
        assert db.check().ok


@pytest.mark.parametrize("how", ["delete_range", "clear", "drop"])
def test_many_rows_of_a_full_disk_can_be_deleted_at_once(disk_and_size: tuple[Path, int], how: str, seed: int) -> None:
    disk, size = disk_and_size
    rng = random.Random(seed)
    with limpet.open(disk / "full.limpet") as db:
        rows = insert_until_full(db, rng, size)
        with db.write() as txn:
            if how == "delete_range":
                middle = sorted(rows)[len(rows) // 2]
                txn[ROWS].delete_range(None, middle)
                rows = {key: value for key, value in rows.items() if key >= middle}
            elif how == "clear":
                txn[ROWS].clear()
            else:
                txn.drop(ROWS)
        if how != "delete_range":
            rows = {}
        assert content(db) == rows
        for number in range(10):
            with db.write() as txn:
                txn[ROWS][-number] = bytes(size)


def test_a_full_file_can_be_closed_opened_and_emptied(disk: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = disk / "full.limpet"
    with limpet.open(path) as db:
        rows = insert_until_full(db, rng, 900)
    for leave in (True, False):
        db = limpet.open(path)
        assert content(db) == rows
        for key in rng.sample(sorted(rows), 40):
            delete(db, key, "sync")
            del rows[key]
        if leave:  # as a process that dies
            db._chain.failure = limpet.ClosedError("left by the test")
        db.close()
    with limpet.open(path) as db:
        assert content(db) == rows
        assert db.check().ok


def test_no_durability_is_stuck_and_nothing_acknowledged_is_lost(disk: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = disk / "full.limpet"
    refused = 0
    db = limpet.open(path)
    rows = insert_until_full(db, rng, 900, "none")
    for _ in range(400):
        durability = rng.choice(("sync", "os", "none", "none"))
        if rng.random() < 0.5:
            key = rng.choice(list(rows))
            delete(db, key, durability)
            del rows[key]
            continue
        key, value = rng.randrange(1 << 40), rng.randbytes(900)
        if commits(db, key, value, durability):
            rows[key] = value
        else:
            refused += 1
    assert refused > 20
    assert content(db) == rows
    db.close()
    with limpet.open(path) as db:
        assert content(db) == rows
        assert db.check().ok


def test_none_commits_are_refused_as_soon_as_they_cannot_be_written(disk: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = disk / "full.limpet"
    with limpet.open(path) as db:
        rows = insert_until_full(db, rng, 900, "none")
        db.flush()
    assert sum(map(len, rows.values())) < os.stat(path).st_size
    with limpet.open(path) as db:
        assert content(db) == rows


def test_trim_keeps_what_deletes_need(disk: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = disk / "full.limpet"
    with limpet.open(path) as db:
        rows = insert_until_full(db, rng, 900)
        for key in sorted(rows)[: len(rows) // 2]:
            delete(db, key, "os")
            del rows[key]
        for _ in range(3):
            db.flush()
            db.trim()
        fill(disk)
        for key in sorted(rows)[: len(rows) // 2]:
            delete(db, key, "os")
            del rows[key]
    with limpet.open(path) as db:  # which has to find out by itself where the holes are
        for key in sorted(rows):
            delete(db, key, "os")
        assert content(db) == {}
        with db.write() as txn:
            txn[ROWS][1] = bytes(900)
        assert db.check().ok


def test_compaction_says_that_it_needs_a_second_file_and_leaves_none_behind(disk: Path, seed: int) -> None:
    rng = random.Random(seed)
    with limpet.open(disk / "full.limpet") as db:
        rows = insert_until_full(db, rng, 900)
        before = sorted(disk.iterdir())
        with pytest.raises(OSError, match="second file") as caught:
            db.compact()
        assert caught.value.errno == errno.ENOSPC
        assert sorted(disk.iterdir()) == before
        assert content(db) == rows
        delete(db, next(iter(rows)), "sync")


def test_a_file_of_older_code_that_kept_nothing_free(disk: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be done there: whole tables go at once, and a little room on the disk lets single rows go."""
    rng = random.Random(seed)
    path = disk / "full.limpet"

    def promise_anything(books: Books, base: Commit, own: int, added: int) -> bool:
        base.log.limit = base.log.large_limit = UNLIMITED
        return True

    monkeypatch.setattr(promise, "make", promise_anything)
    monkeypatch.setattr(promise, "check", lambda *_: None)
    with limpet.open(path) as db:
        rows = insert_until_full(db, rng, 900)
    monkeypatch.undo()
    with limpet.open(path) as db:
        assert content(db) == rows
        ballast = disk / "ballast"
        for key in rng.sample(sorted(rows), len(rows)):
            try:
                delete(db, key, "os")
            except OSError:
                os.truncate(ballast, os.stat(ballast).st_size - (256 << 10))
                os.sync()
                delete(db, key, "os")
            del rows[key]
        assert content(db) == {}


def test_an_empty_database_takes_no_more_than_before(tmp_path: Path) -> None:
    limpet.open(tmp_path / "empty.limpet").close()
    assert os.stat(tmp_path / "empty.limpet").st_size == 16 << 10


def test_a_checkpoint_that_is_in_memory_gets_its_pages_before_the_next_one_takes_any(disk: Path, seed: int) -> None:
    """While one thread flushed its checkpoint, another's took the pages that the flush needed: both were undone."""
    rng = random.Random(seed)
    with limpet.open(disk / "full.limpet") as db:
        rows = insert_until_full(db, rng, 900)
        counts = db._committer.counts
        for number in range(3):
            db.flush()
            before = counts.checkpoints
            for key in sorted(rows)[:2]:
                with db.write(durability="none") as txn:
                    del txn[ROWS][key]
                    txn.rename(ROWS, "other")
                    txn.rename("other", ROWS.name)  # which cannot be said in the log
                del rows[key]
            assert counts.checkpoints == before + 1, f"turn {number}"
            assert not db._chain.tip.log.epoch


def test_threads_delete_on_a_full_disk(disk: Path, seed: int) -> None:
    """Only what sets rows may be refused, whoever flushes meanwhile."""
    with limpet.open(disk / "full.limpet") as db:
        found = insert_until_full(db, random.Random(seed), 900)
        keys = sorted(found)
        models = [{key: found[key] for key in keys[number::3]} for number in range(3)]

        def live(number: int) -> None:
            rng, model = random.Random(seed + number), models[number]
            for _ in range(60):
                durability = rng.choice(("sync", "os", "none"))
                key, value = rng.randrange(1 << 38) * 3 + number - (1 << 42), rng.randbytes(900)
                if rng.random() < 0.5 and commits(db, key, value, durability):
                    model[key] = value
                gone = rng.choice(sorted(model))
                delete(db, gone, durability)
                del model[gone]

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(live, range(3)))
        assert content(db) == {key: value for model in models for key, value in model.items()}
        assert db.check().ok
