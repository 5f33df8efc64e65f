"""Bounds of what a checkpoint takes: never below what it does take, and not far above where leaves are at hand."""

import random
from functools import partial

import pytest

import limpet
from limpet import btree, room
from limpet.format import Ref, max_inline_entry, overflow_page_count
from limpet.node import overflow_record
from limpet.overlay import TableInfo

ROWS = limpet.Table("rows", key=limpet.BYTES, value=limpet.BYTES)


def needed(db: limpet.Database, info: TableInfo, changes: dict[bytes, bytes | None], *, join_thin: bool) -> int:
    """Pages that the changes take, counted by making drafts of them."""
    pager, stored, large = db._committer.books.pager, dict(changes), 0
    for key, value in changes.items():
        if value is not None and len(key) + len(value) > max_inline_entry(pager.page_size):
            large += overflow_page_count(len(value), pager.page_size)
            stored[key] = overflow_record(len(value), Ref(1))
    read = partial(pager.node, tree_id=info.tree_id)
    edit = btree.apply(read, pager.page_size, info.root, stored, join_thin=join_thin)
    return edit.drafts + large


def some_changes(rng: random.Random, keys: list[bytes], size: int) -> dict[bytes, bytes | None]:
    """Deletes, updates and inserts, scattered or all in one place."""
    kinds = rng.choice(("delete", "update", "insert", "all"))
    changes: dict[bytes, bytes | None] = {}
    prefix = rng.choice((b"", b"key 5", rng.randbytes(4)))
    for _ in range(rng.choice((1, 3, 20, 300))):
        kind = rng.choice(("delete", "update", "insert")) if kinds == "all" else kinds
        if kind == "insert" or not keys:
            changes[prefix + rng.randbytes(rng.randrange(1, 20))] = rng.randbytes(rng.randrange(size))
        else:
            changes[rng.choice(keys)] = None if kind == "delete" else rng.randbytes(rng.randrange(size))
    return changes


@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("cache_size", [0, 1 << 22])
def test_no_checkpoint_takes_more_than_the_bound(page_size: int, cache_size: int, seed: int) -> None:
    rng = random.Random(seed)
    for rows in (0, 1, 10, 300, 3000):
        size = rng.choice((10, 100, page_size // 3, page_size * 2))
        db = limpet.open(":memory:", page_size=page_size, cache_size=cache_size)
        with db.write() as txn:
            for _ in range(rows):
                txn[ROWS][b"key " + rng.randbytes(rng.randrange(1, 12))] = rng.randbytes(rng.randrange(size))
            txn.create(ROWS)
        info = db._chain.tip.snapshot.tables["rows"]
        with db.read() as reader:
            keys = list(reader[ROWS])
        for _ in range(12):
            changes = some_changes(rng, keys, size)
            found = room.of_tree(db._committer.books.pager, info.root, info.tree_id, changes)
            taken = needed(db, info, changes, join_thin=False)
            assert found.pages >= taken, f"seed {seed}, {rows} rows up to {size}, {len(changes)} changes"
        db.close()


def test_updates_in_place_take_hardly_more_than_they_have_to(seed: int) -> None:
    rng = random.Random(seed)
    with limpet.open(":memory:") as db:
        with db.write() as txn:
            txn[ROWS].update({b"%08d" % number: rng.randbytes(100) for number in range(20_000)})
        info = db._chain.tip.snapshot.tables["rows"]
        changes: dict[bytes, bytes | None] = {b"%08d" % rng.randrange(20_000): rng.randbytes(100) for _ in range(400)}
        with db.read() as reader:
            for key in changes:
                reader[ROWS].get(key)  # so that the leaves are at hand
        found = room.of_tree(db._committer.books.pager, info.root, info.tree_id, changes).pages
        assert found <= needed(db, info, changes, join_thin=True) * 1.2 + 4


def test_thin_nodes_stay_when_there_are_no_pages_for_their_neighbours(seed: int) -> None:
    rng = random.Random(seed)
    with limpet.open(":memory:", page_size=512) as db:
        with db.write() as txn:
            txn[ROWS].update({b"%08d" % number: bytes(40) for number in range(3000)})
        info = db._chain.tip.snapshot.tables["rows"]
        start = rng.randrange(100)
        gone: dict[bytes, bytes | None] = {
            b"%08d" % each: None for each in range(start, 3000, 100) for each in range(each, each + 7)
        }
        joined, left = (needed(db, info, gone, join_thin=join) for join in (True, False))
        assert left <= room.of_tree(db._committer.books.pager, info.root, info.tree_id, gone).pages
        assert left < joined
