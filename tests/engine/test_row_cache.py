"""Rows that were asked for again: right at every root, within bounds, and gone when the database is."""

import os
import random
from pathlib import Path

import pytest

import limpet
from limpet.row_cache import ROW_OVERHEAD

ROWS = limpet.Table("rows")


def key_of(number: int) -> bytes:
    return b"%06d" % number


def ask(db: limpet.Database, keys: range, times: int = 4) -> None:
    """Look keys up often enough for their leaves to be kept."""
    with db.read() as txn:
        for _ in range(times):
            for number in keys:
                txn[ROWS].get(key_of(number))


def kept(db: limpet.Database) -> dict[bytes, bytes]:
    """What the cache of the newest snapshot's tree holds."""
    snapshot = db._chain.published
    assert snapshot is not None
    rows = snapshot.tables["rows"].rows
    return {} if rows is None else rows.rows


def test_rows_that_are_asked_for_again_are_answered_without_the_tree(tmp_path: Path) -> None:
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn[ROWS].update((key_of(number), b"v%d" % number) for number in range(2000))
        ask(db, range(2000), times=1)
        pages = db.stats().page_reads
        assert not kept(db) or len(kept(db)) <= 2000
        ask(db, range(2000))
        assert len(kept(db)) == 2000
        db._committer.books.pager.hot.clear()
        ask(db, range(2000), times=1)
        assert db.stats().page_reads == pages


def test_each_root_has_its_own_rows_while_checkpoints_come_and_readers_stay(seed: int) -> None:
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}
    snapshots: list[tuple[limpet.ReadTransaction, dict[bytes, bytes]]] = []
    with limpet.open(":memory:", page_size=512) as db:
        for step in range(120):
            with db.write() as txn:
                for _ in range(rng.randrange(1, 30)):
                    key = key_of(rng.randrange(150))
                    if rng.random() < 0.3:
                        txn[ROWS].pop(key, None)
                        model.pop(key, None)
                    else:
                        size = 600 if rng.random() < 0.1 else rng.randrange(40)  # 600 bytes go to overflow pages
                        model[key] = txn[ROWS][key] = rng.randbytes(size)
                if rng.random() < 0.3:
                    txn.create(limpet.Table(f"other {step}"))  # more than the log can say: a checkpoint
            snapshots.append((db.read(), model.copy()))
            for reader, expected in snapshots:
                table = reader[ROWS]
                for number in range(150):
                    for _ in range(2):
                        assert table.get(key_of(number)) == expected.get(key_of(number))
            while len(snapshots) > 4:
                snapshots.pop(rng.randrange(len(snapshots)))[0].close()
        assert db.stats().checkpoints > 10
        assert kept(db)
        for reader, _ in snapshots:
            reader.close()
        assert db.check().ok


def test_an_aborted_commit_leaves_the_rows_of_the_commit_before(tmp_path: Path) -> None:
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn[ROWS].update((key_of(number), b"old") for number in range(50))
        ask(db, range(50))
        txn = db.write()
        txn[ROWS].update((key_of(number), b"new") for number in range(50))
        txn[ROWS].clear()
        assert txn[ROWS].get(key_of(1)) is None
        txn.abort()
        with db.read() as snapshot:
            assert snapshot[ROWS].get(key_of(1)) == b"old"


@pytest.mark.parametrize("cache_size", [0, 20_000, 100_000])
def test_rows_take_at_most_half_of_the_cache_and_make_room_for_what_is_asked_later(
    tmp_path: Path, cache_size: int
) -> None:
    with limpet.open(tmp_path / "x.limpet", cache_size=cache_size, page_size=512) as db:
        with db.write() as txn:
            txn[ROWS].update((key_of(number), bytes(20)) for number in range(4000))
        for start in range(0, 4000, 500):
            ask(db, range(start, start + 500), times=30)
            assert db.stats().cached_size <= cache_size
            assert len(kept(db)) * (26 + ROW_OVERHEAD) <= cache_size
        if cache_size == 100_000:
            for _ in range(40):
                ask(db, range(50), times=20)
            assert key_of(25) in kept(db)


def test_large_values_stay_out(tmp_path: Path) -> None:
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            for number in range(20):
                txn[ROWS][key_of(number)] = bytes(5000) if number % 2 else b"small"
        ask(db, range(20))
        assert set(kept(db)) == {key_of(number) for number in range(0, 20, 2)}
        with db.read() as txn:
            assert txn[ROWS].get(key_of(1)) == bytes(5000)


def test_a_closed_database_gives_no_rows_to_a_reader_that_is_left(tmp_path: Path) -> None:
    db = limpet.open(tmp_path / "x.limpet")
    with db.write() as txn:
        txn[ROWS][b"k"] = b"v"
    db.compact()  # the row is in the tree, not in the log
    with db.read() as txn:
        for _ in range(5):
            assert txn[ROWS].get(b"k") == b"v"
        assert txn[ROWS]._known.get(b"k") == b"v"
        db.close()
        with pytest.raises(limpet.ClosedError):
            txn[ROWS].get(b"k")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_no_rows_from_an_inherited_reader(tmp_path: Path) -> None:
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn[ROWS][b"k"] = b"v"
        db.compact()
        with db.read() as txn:
            table = txn[ROWS]
            for _ in range(5):
                assert table.get(b"k") == b"v"
            assert table._known
            child = os.fork()
            if not child:
                try:
                    table.get(b"k")
                except limpet.ClosedError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert table.get(b"k") == b"v"
