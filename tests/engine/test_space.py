"""Space and memory: freed pages are used again, the file does not grow without bound, the cache keeps to its size."""

import gc
import os
import random
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet.file import OSFileSystem

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
Opener = Callable[..., limpet.Database]


def trees_size(db: limpet.Database) -> int:
    """Bytes in use but for the log."""
    stats = db.stats()
    return stats.live_size - stats.log_size


def update(db: limpet.Database, rng: random.Random, rows: int, changes: int) -> None:
    with db.write() as txn:
        for _ in range(changes):
            txn[NUMBERS][rng.randrange(rows)] = rng.randbytes(rng.randrange(20, 180))


@pytest.mark.parametrize("durability", ["sync", "os", "none"])
@pytest.mark.parametrize("page_size", [512, 4096])
def test_the_file_stops_growing_under_steady_updates(
    open_db: Opener, db_path: Path, seed: int, durability: str, page_size: int
) -> None:
    rng = random.Random(seed)
    db = open_db(db_path, durability=durability, page_size=page_size)
    rows = page_size  # so that both sizes have as many pages
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(100) for number in range(rows)})
    sizes = []
    for turn in range(1200):
        update(db, rng, rows, 3)
        if turn % 300 == 299:
            sizes.append(db.stats().file_size)
        elif turn % 30 == 0 and durability == "none":
            db.flush()
    db.flush()
    stats = db.stats()
    assert sizes[3] <= sizes[2] * 1.3 + (64 << 10), f"seed {seed}: {sizes}"
    assert stats.file_size < 3.5 * stats.live_size, f"seed {seed}: {stats}"


@pytest.mark.parametrize("durability", ["sync", "os"])
def test_a_held_reader_makes_the_file_grow_and_its_end_gives_the_space_back(
    open_db: Opener, db_path: Path, seed: int, durability: str
) -> None:
    rng = random.Random(seed)
    db = open_db(db_path, durability=durability, page_size=512, cache_size=0)
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(100) for number in range(300)})
    for _ in range(50):
        update(db, rng, 300, 3)
    reader = db.read()
    expected = dict(reader[NUMBERS])
    for _ in range(100):
        update(db, rng, 300, 3)
    held = db.stats()
    assert held.pending_size > held.live_size
    assert dict(reader[NUMBERS]) == expected
    reader.close()
    for _ in range(5):
        update(db, rng, 300, 3)
    db.flush()
    update(db, rng, 300, 3)
    after = db.stats()
    assert after.pending_size < held.pending_size / 2
    assert after.free_size > held.free_size
    for _ in range(100):
        update(db, rng, 300, 3)
    assert db.stats().file_size <= after.file_size * 1.05


def test_a_held_reader_retains_what_it_may_see_and_the_statistics_say_so(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path, page_size=512)
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(100) for number in range(300)})
    with db.read() as reader:
        for _ in range(4):
            with db.write() as txn:
                txn[NUMBERS].update({number: bytes(100) for number in range(300)})
        stats = db.stats()
        assert stats.oldest_reader_txid == reader.txid
        assert 300 * 100 < stats.retained_size <= stats.pending_size
    with db.write() as txn:
        txn[NUMBERS][0] = b""
    assert db.stats().retained_size == 0


def test_a_queue_runs_in_constant_space(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path, page_size=512, durability="os")
    sizes = []
    for number in range(600):
        with db.write() as txn:
            txn[NUMBERS][number] = bytes(90)
            if number > 20:
                assert txn[NUMBERS].pop_first() == (number - 21, bytes(90))
        if number % 100 == 99:
            sizes.append(db.stats().file_size)
    assert sizes[-1] == sizes[1]


@pytest.mark.parametrize("how", ["drop", "clear", "delete_range", "delete", "replace"])
def test_the_space_of_what_was_removed_is_used_again(open_db: Opener, db_path: Path, how: str) -> None:
    db = open_db(db_path, page_size=512)
    sizes = []
    for turn in range(8):
        with db.write() as txn:
            txn[NUMBERS].update({number: bytes([turn]) * 100 for number in range(500)})
            txn[NUMBERS][-1] = bytes([turn]) * 20_000
        with db.write() as txn:
            if how == "drop":
                txn.drop(NUMBERS)
            elif how == "clear":
                txn[NUMBERS].clear()
            elif how == "delete_range":
                assert txn[NUMBERS].delete_range(-5, 5000) == 501
            elif how == "delete":
                for key in txn[NUMBERS]:
                    del txn[NUMBERS][key]
            else:
                txn[NUMBERS].update(dict.fromkeys(txn[NUMBERS], b""))
        sizes.append(db.stats().file_size)
    assert sizes[-1] <= sizes[3]
    if how != "replace":
        db.close()  # until then deletes may be in the log only
        db = open_db(db_path)
        assert trees_size(db) < 12 * 512


def test_an_aborted_transaction_takes_no_space(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path, page_size=512, cache_size=0)
    with db.write() as txn:
        txn[NUMBERS][0] = b""
    sizes = []
    for _ in range(6):
        txn = db.write()
        txn[NUMBERS].update({number: bytes(150) for number in range(6000)})  # more than 1 MiB: pages are written early
        txn.abort()
        sizes.append(db.stats().file_size)
    assert sizes[-1] <= sizes[1]
    assert trees_size(db) < 10 * 512
    with db.read() as reader:
        assert dict(reader[NUMBERS]) == {0: b""}


def test_ascending_keys_leave_full_pages_behind(open_db: Opener, db_path: Path) -> None:
    one_by_one, at_once = open_db(db_path, page_size=512, durability="none"), open_db(":memory:", page_size=512)
    for number in range(2000):
        with one_by_one.write() as txn:
            txn[NUMBERS][number] = bytes(40)
    with at_once.write() as txn:
        txn[NUMBERS].update({number: bytes(40) for number in range(2000)})
    payload = 2000 * (8 + 40 + 4)
    for db in (one_by_one, at_once):
        db.flush()
        assert trees_size(db) < payload * 1.25


def test_runs_that_grow_side_by_side_leave_full_pages_behind(open_db: Opener) -> None:
    """Each session appends to its own run of keys, as the messages of a chat do."""
    events = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)
    db = open_db(":memory:", page_size=1024)
    order = [(f"session {who}", number) for number in range(150) for who in range(20)]
    for key in order:
        with db.write(durability="none") as txn:
            txn[events][key] = bytes(50)
    db.flush()
    payload = len(order) * (11 + 8 + 50 + 4)
    assert trees_size(db) < payload * 1.5


def test_random_inserts_leave_pages_at_least_half_full(open_db: Opener, seed: int) -> None:
    rng = random.Random(seed)
    db = open_db(":memory:", page_size=512)
    keys = rng.sample(range(10**9), 3000)
    for start in range(0, 3000, 30):
        with db.write(durability="none") as txn:
            txn[NUMBERS].update({key: bytes(40) for key in keys[start : start + 30]})
    db.flush()
    assert trees_size(db) < 2 * 3000 * (8 + 40 + 4)


def test_deleting_most_of_a_table_shrinks_it(open_db: Opener, seed: int) -> None:
    rng = random.Random(seed)
    db = open_db(":memory:", page_size=512)
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(40) for number in range(5000)})
    full = trees_size(db)
    doomed = rng.sample(range(5000), 4500)
    for start in range(0, 4500, 50):
        with db.write(durability="none") as txn:
            for number in doomed[start : start + 50]:
                del txn[NUMBERS][number]
    with db.write() as txn:
        txn.create(limpet.Table("another"))  # more than the log can say, so all goes into the trees
    assert trees_size(db) < full * 0.45  # a tenth of the entries, in pages at least a quarter full
    with db.read() as txn:
        assert set(txn[NUMBERS]) == set(range(5000)) - set(doomed)


# -- memory --------------------------------------------------------------------------------------


def memory_of(db: limpet.Database) -> int:
    """Bytes of all the objects that the cache of pages keeps alive."""
    seen: set[int] = set()
    waiting: list[object] = [db._committer.books.pager.hot, db._committer.books.pager._cold]
    total = 0
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        waiting.extend(gc.get_referents(each))
        if not gc.is_tracked(each):
            waiting.extend(getattr(each, name) for name in getattr(type(each), "__slots__", ()) if hasattr(each, name))
    return total


@pytest.mark.parametrize("cache_size", [0, 100_000, 1_000_000])
def test_the_cache_keeps_to_its_size_in_real_memory(open_db: Opener, db_path: Path, seed: int, cache_size: int) -> None:
    rng = random.Random(seed)
    with open_db(db_path) as db, db.write() as txn:
        txn[NUMBERS].update({number: bytes(150) for number in range(20_000)})
    db = open_db(db_path, cache_size=cache_size)
    with db.read() as txn:
        for turn in range(4):
            for _ in range(1500):
                assert txn[NUMBERS].get(rng.randrange(20_000)) is not None
            if turn == 2:
                assert sum(1 for _ in txn[NUMBERS]) == 20_000
            assert db.stats().cached_size <= cache_size
            assert memory_of(db) <= cache_size * 1.1 + 10_000


def test_a_table_that_fits_is_read_from_the_disk_once(open_db: Opener, db_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with open_db(db_path) as db, db.write() as txn:
        txn[NUMBERS].update({number: bytes(150) for number in range(5000)})
    db = open_db(db_path)
    with db.read() as txn:
        for number in range(5000):
            assert number in txn[NUMBERS]
        before = db.stats().page_reads
        for _ in range(3000):
            assert txn[NUMBERS].get(rng.randrange(5000)) is not None
        assert db.stats().page_reads == before


def test_a_large_transaction_does_not_live_in_memory(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path, cache_size=0)
    largest = 0
    with db.write() as txn:
        for number in range(40):
            txn[NUMBERS].update({number * 1000 + each: bytes(200) for each in range(1000)})
            tree = txn._trees["numbers"]
            overlay = sum(len(key) + len(value or b"") for key, value in tree.changes().items())
            largest = max(largest, overlay + sum(map(len, db._committer.books.pager.held.values())))
    assert largest < 3 << 20
    with db.read() as reader:
        assert len(reader[NUMBERS]) == 40_000


def test_unflushed_commits_of_large_values_do_not_pile_up_in_memory(open_db: Opener, db_path: Path) -> None:
    """A value in overflow pages counted as one page, so `none` commits of large values were kept without bound."""
    db = open_db(db_path, durability="none", cache_size=0)  # at most 1 MiB waits
    for number in range(40):
        with db.write() as txn:
            txn[NUMBERS][number] = bytes(200_000)
        assert sum(map(len, db._committer.books.pager.held.values())) < 2 << 20
    with db.read() as reader:
        assert len(reader[NUMBERS]) == 40


def test_readers_in_many_threads_leave_no_pins_behind(open_db: Opener) -> None:
    db = open_db(":memory:")

    def look() -> None:
        for _ in range(100):
            with db.read() as txn:
                txn[NUMBERS].get(1)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(20):
        with db.write() as txn:
            txn[NUMBERS][number] = b""
    for thread in threads:
        thread.join(30)
    assert db.stats().readers == 0
    with db.write() as txn:
        txn[NUMBERS][0] = b"x"
    with db.write() as txn:
        txn[NUMBERS][0] = b"y"
    assert db.stats().pending_size < 10 * 4096


# -- giving space back ---------------------------------------------------------------------------


def blocks(path: Path) -> int:
    """Bytes that the file takes on the disk."""
    return path.stat().st_blocks * 512


@pytest.fixture
def can_punch(tmp_path: Path) -> bool:
    """Whether free space in the middle of a file can be given back: not without `cffi`, nor on every file system."""
    file = OSFileSystem().create(str(tmp_path / "probe"))
    try:
        file.write(0, b"x" * (1 << 20))
        return file.punch(0, 1 << 20)
    finally:
        file.close()


def test_trim_gives_free_space_back_and_loses_nothing(
    open_db: Opener, db_path: Path, seed: int, can_punch: bool
) -> None:
    rng = random.Random(seed)
    db = open_db(db_path)
    with db.write() as txn:
        txn[NUMBERS].update({number: rng.randbytes(200) for number in range(20_000)})
    with db.write() as txn:
        txn[NUMBERS].delete_range(1000, 19_000)
    for _number in range(3):  # so that no meta needs what was freed
        update(db, rng, 1000, 3)
    with db.read() as reader:
        before = dict(reader[NUMBERS])
        size, taken = db.stats().file_size, blocks(db_path)
        saved = db.trim()
        assert db.stats().file_size <= size
        assert dict(reader[NUMBERS]) == before
    if can_punch:
        assert saved > 2 << 20
        assert blocks(db_path) <= taken - (2 << 20)
    else:  # only the end of the file is given back
        assert saved == size - db_path.stat().st_size
    assert db.check().ok
    with db.write() as txn:  # into the holes
        txn[NUMBERS].update(dict.fromkeys(range(20000), b"x" * 200))
    assert db.check().ok
    db.close()
    with limpet.open(db_path) as db, db.read() as reader:
        assert len(reader[NUMBERS]) == 20_000
        assert db.check().ok


def test_trim_keeps_what_a_reader_needs(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(200) for number in range(20_000)})
    with db.read() as reader:
        with db.write() as txn:
            txn[NUMBERS].clear()
        for number in range(3):
            with db.write() as txn:
                txn[NUMBERS][number] = b"new"
        db.trim()
        assert all(value == bytes(200) for value in reader[NUMBERS].values())
        assert len(reader[NUMBERS]) == 20_000


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_copies_are_as_private_as_the_file(db_path: Path, tmp_path: Path, mode: int) -> None:
    copy = tmp_path / "copy.limpet"
    with limpet.open(db_path) as db:
        with db.write() as txn:
            txn[NUMBERS][1] = b"secret"
        db_path.chmod(mode)
        db.backup(copy)
        db.compact()
    assert (stat.S_IMODE(copy.stat().st_mode), stat.S_IMODE(db_path.stat().st_mode)) == (mode, mode)
