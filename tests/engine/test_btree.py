"""The functional core against a model: apply, seal, get and scan over pages in memory, and the shape of the tree."""

import random
from array import array
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet import btree
from limpet.backup import new_header
from limpet.checksum import CRC32
from limpet.errors import CorruptError
from limpet.file import MemoryFile
from limpet.format import Pgno, Ref, decode_page_header, max_inline_entry, ref_pgno
from limpet.node import Branch, Node, Overflow, branch_payload, encode_branch, leaf_payload, overflow_record
from limpet.pager import Pager

TREE = 2


class Forest:
    """Pages in memory, with one tree and its model. Pages are never used twice, so every old root stays readable."""

    def __init__(self, page_size: int = 512, cache_size: int = 1 << 20) -> None:
        self.pager = Pager(MemoryFile(), new_header(page_size, CRC32), cache_size)
        self.root = 0
        self.next_pgno = 4
        self.model: dict[bytes, bytes] = {}
        self.count = 0
        self.read: list[int] = []
        self.pages = 0

    def apply(self, changes: dict[bytes, bytes | None]) -> btree.Edit:
        """Apply, check what the edit says about itself, and write the pages."""
        before = self.refs()

        def read(ref: int) -> Node:
            self.read.append(ref)
            return self.pager.node(ref, TREE)

        edit = btree.apply(read, self.pager.page_size, self.root, changes)
        pgnos = list(range(self.next_pgno, self.next_pgno + edit.drafts))
        self.next_pgno += edit.drafts
        self.root, pages = btree.seal(self.pager, edit, TREE, 7, pgnos)
        assert sorted(pages) == pgnos, "each draft has one page"
        self.pager.write(pages)
        self.pages = len(pages)
        for key, value in changes.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value
        self.count += edit.delta
        after = self.refs()
        assert len(set(edit.freed)) == len(edit.freed), "nothing is freed twice"
        assert set(edit.freed) == before - after, "what the new tree does not use is freed, and nothing else"
        assert after - before == {ref for ref in after if ref_pgno(ref) in pages}
        return edit

    def refs(self) -> set[int]:
        """All nodes of the tree."""
        found, waiting = set(), [self.root] if self.root else []
        while waiting:
            ref = waiting.pop()
            found.add(ref)
            node = self.pager.node(ref, TREE)
            if isinstance(node, Branch):
                waiting.extend(node.children)
        return found

    def check(self, *, fill: float = 0.0) -> None:
        """The tree holds what the model holds, and is a B+tree: order, separators, one depth, no empty nodes."""
        items = sorted(self.model.items())
        assert self.count == len(items)
        assert list(entries(btree.scan(self.pager, self.root, TREE, None, None))) == items if self.root else not items
        used = {0: [0.0], 1: [0.0]}

        def visit(ref: int, low: bytes | None, high: bytes | None, level: int) -> None:
            node = self.pager.node(ref, TREE)
            assert node.level == level
            page = self.pager.page(ref)
            assert decode_page_header(page).pgno == ref_pgno(ref)
            if isinstance(node, Branch):
                assert len(node.children) == len(node.keys) + 1
                assert list(node.keys) == sorted(set(node.keys))
                bounds = [low, *node.keys, high]
                for child, (start, stop) in zip(node.children, pairwise(bounds), strict=True):
                    visit(child, start, stop, level - 1)
                size = sum(len(key) + 10 for key in node.keys) + 10
                used.setdefault(1, []).append(size / branch_payload(self.pager.page_size))
            else:
                keys = node.keys()
                assert keys, "no leaf is empty"
                assert keys == sorted(set(keys))
                assert low is None or keys[0] >= low
                assert high is None or keys[-1] < high
                size = sum(len(key) + len(value) + 4 for key, value in zip(keys, node.values(), strict=True))
                used[0].append(size / leaf_payload(self.pager.page_size))

        if self.root:
            visit(self.root, None, None, self.pager.node(self.root, TREE).level)
            leaves = used[0][1:]
            assert sum(leaves) / len(leaves) >= fill

    @property
    def depth(self) -> int:
        return self.pager.node(self.root, TREE).level + 1 if self.root else 0


def entries(batches: Iterable[tuple[list[bytes], list[bytes]]], *, reverse: bool = False) -> list[tuple[bytes, bytes]]:
    found = []
    for keys, values in batches:
        assert keys, "no empty batches"
        pairs = list(zip(keys, values, strict=True))
        found += pairs[::-1] if reverse else pairs
    return found


def key_of(number: int) -> bytes:
    return b"%06d" % number


# -- apply ---------------------------------------------------------------------------------------


def test_an_empty_tree_finds_nothing_and_an_empty_change_changes_nothing() -> None:
    forest = Forest()
    assert btree.get(forest.pager, 0, TREE, None, b"a") is None
    edit = forest.apply({})
    assert (edit.root, edit.freed, edit.drafts, edit.delta) == (0, [], 0, 0)
    forest.apply({b"a": None, b"b": None})
    assert forest.root == 0
    forest.check()


@pytest.mark.parametrize("page_size", [512, 1024, 4096])
@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_random_changes_in_batches_of_every_size_agree_with_a_dict(page_size: int, batch: int, seed: int) -> None:
    rng = random.Random(seed + batch)
    forest = Forest(page_size)
    for turn in range(600 if batch == 1 else 4000 // (batch + 20)):
        growing = turn % 60 < 40
        changes: dict[bytes, bytes | None] = {}
        for _ in range(batch):
            key = key_of(rng.randrange(600))
            changes[key] = rng.randbytes(rng.randrange(60)) if rng.random() < (0.8 if growing else 0.2) else None
        forest.apply(changes)
        if turn % 10 == 0:
            forest.check()
    forest.check()


KEYS = st.one_of(
    st.binary(max_size=4),
    st.integers(0, 300).map(key_of),
    st.integers(0, 40).map(lambda number: bytes([number]) * 128),  # as long as a key may be
    st.integers(0, 40).map(lambda number: b"x" * 126 + key_of(number)[-2:]),  # separators as long as the keys
)
SIZES = st.one_of(st.integers(0, 30), st.integers(0, 110))
BATCHES = st.lists(st.dictionaries(KEYS, st.one_of(st.none(), SIZES), max_size=40), max_size=12)


@settings(max_examples=60)
@given(BATCHES)
def test_any_changes_agree_with_a_dict(batches: list[dict[bytes, int | None]]) -> None:
    forest = Forest()
    for batch in batches:
        forest.apply({key: None if size is None else bytes(size) for key, size in batch.items()})
        forest.check()
    for key in [*forest.model, b"missing", b"", b"\xff" * 200]:
        assert btree.get(forest.pager, forest.root, TREE, None, key) == forest.model.get(key)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, SIZES, min_size=1, max_size=60), st.lists(KEYS, max_size=2), st.booleans())
def test_scan_gives_exactly_the_range_in_both_directions(
    content: dict[bytes, int], bounds: list[bytes], reverse: bool
) -> None:
    forest = Forest()
    forest.apply({key: bytes(size) for key, size in content.items()})
    low = bounds[0] if bounds else None
    high = bounds[1] if len(bounds) > 1 else None
    expected = sorted(
        (
            (key, value)
            for key, value in forest.model.items()
            if (low is None or key >= low) and (high is None or key < high)
        ),
        reverse=reverse,
    )
    if low is None or high is None or low < high:
        scanned = btree.scan(forest.pager, forest.root, TREE, low, high, reverse=reverse)
        assert entries(scanned, reverse=reverse) == expected


def test_the_old_tree_is_untouched_by_an_edit(seed: int) -> None:
    rng = random.Random(seed)
    forest = Forest()
    history = []
    for _ in range(30):
        forest.apply({key_of(rng.randrange(200)): rng.randbytes(30) for _ in range(20)})
        history.append((forest.root, dict(forest.model)))
    for root, model in history:
        assert entries(btree.scan(forest.pager, root, TREE, None, None)) == sorted(model.items())


def test_an_edit_reads_each_affected_leaf_once_and_no_other(seed: int) -> None:
    forest = Forest(4096)
    forest.apply({key_of(number): bytes(100) for number in range(20_000)})
    assert forest.depth == 3
    forest.read.clear()
    forest.apply({key_of(number): b"new" * 33 + b"!" for number in random.Random(seed).sample(range(20_000), 50)})
    leaves = [ref for ref in forest.read if forest.pager.node(ref, TREE).level == 0]
    assert len(leaves) <= 50
    assert forest.pages <= 50 + 10


def test_a_change_of_one_key_rewrites_one_path() -> None:
    forest = Forest(4096)
    forest.apply({key_of(number): bytes(100) for number in range(20_000)})
    for changes in ({key_of(777): bytes(100)}, {key_of(777): b"short"}, {key_of(777): None}, {b"000777x": bytes(90)}):
        edit = forest.apply(dict(changes))
        assert forest.pages == len(edit.freed) == forest.depth == 3
    forest.check()


def test_deleting_what_is_not_there_rewrites_nothing_that_counts() -> None:
    forest = Forest()
    forest.apply({key_of(number): b"v" for number in range(0, 200, 2)})
    edit = forest.apply({key_of(number): None for number in range(1, 200, 2)})
    assert edit.delta == 0
    forest.check()


def test_deleting_a_few_keys_that_are_not_there_leaves_the_leaf_as_it_is() -> None:
    forest = Forest()
    forest.apply({key_of(number): b"v" for number in range(0, 20, 2)})
    edit = forest.apply({key_of(1): None, key_of(3): None})
    assert (edit.root, edit.freed, edit.drafts, edit.delta) == (forest.root, [], 0, 0)


def test_deleting_everything_leaves_no_tree_in_one_step_and_in_many() -> None:
    for batch in (1, 3, 50, 1000):
        forest = Forest()
        forest.apply({key_of(number): bytes(40) for number in range(300)})
        pages = len(forest.refs())
        assert forest.depth >= 3
        for start in range(0, 300, batch):
            forest.apply({key_of(number): None for number in range(start, min(300, start + batch))})
            forest.check()
        assert forest.root == 0
        assert pages > 0


@pytest.mark.parametrize("order", ["up", "down", "middle out"])
def test_a_tree_that_shrinks_loses_its_levels(order: str) -> None:
    forest = Forest()
    forest.apply({key_of(number): bytes(40) for number in range(500)})
    deep = forest.depth
    doomed = list(range(495))
    if order == "down":
        doomed.reverse()
    elif order == "middle out":
        doomed.sort(key=lambda number: abs(number - 250))
    for number in doomed:
        forest.apply({key_of(number): None})
    forest.check()
    assert forest.depth == 1 < deep


def test_thin_leaves_are_joined_with_a_neighbour(seed: int) -> None:
    rng = random.Random(seed)
    forest = Forest()
    forest.apply({key_of(number): bytes(40) for number in range(1000)})
    for number in rng.sample(range(1000), 850):
        forest.apply({key_of(number): None})
    forest.check(fill=0.3)


def test_leaves_of_which_hardly_anything_is_left_are_joined_in_one_step_too() -> None:
    forest = Forest()
    forest.apply({key_of(number): bytes(40) for number in range(1000)})
    forest.apply({key_of(number): None for number in range(1000) if number % 11})
    forest.check(fill=0.4)


# -- how pages fill ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10, 1000])
def test_ascending_keys_fill_their_pages(batch: int) -> None:
    forest = Forest()
    for start in range(0, 1000, batch):
        forest.apply({key_of(number): bytes(20) for number in range(start, start + batch)})
    forest.check(fill=0.9)


def test_runs_that_grow_side_by_side_fill_their_pages() -> None:
    forest = Forest()
    for number in range(200):
        for run in range(8):
            forest.apply({b"session-%d/" % run + number.to_bytes(8, "big"): bytes(20)})
    forest.check(fill=0.75)


def test_random_keys_leave_pages_two_thirds_full(seed: int) -> None:
    forest = Forest()
    for number in random.Random(seed).sample(range(10**6), 1500):
        forest.apply({key_of(number): bytes(20)})
    forest.check(fill=0.6)


def test_the_longest_keys_and_the_largest_inline_values_fit() -> None:
    forest = Forest()
    limit = max_inline_entry(512)
    for number in range(60):
        key = bytes([number]) * 128
        forest.apply({key: bytes(limit - 128)})
        forest.apply({key_of(number): bytes(limit - 6)})
        forest.check()
    assert forest.depth >= 3
    for number in range(60):
        forest.apply({bytes([number]) * 128: None})
        forest.check()


# -- large values --------------------------------------------------------------------------------


def test_an_overflow_record_that_is_replaced_or_deleted_is_dropped_once() -> None:
    forest = Forest()
    records = {key_of(number): overflow_record(1000 + number, Ref(900 + number)) for number in range(40)}
    forest.apply(dict(records))
    found = btree.get(forest.pager, forest.root, TREE, None, key_of(5))
    assert type(found) is Overflow
    assert (found.value_size, found.ref) == (1005, 905)
    for changes in ({key_of(5): b"small"}, {key_of(6): None}, {key_of(7): overflow_record(5000, Ref(77))}):
        edit = forest.apply(dict(changes))
        assert edit.dropped == [records[key] for key in changes]
    many: dict[bytes, bytes | None] = {key_of(number): None for number in range(10, 30)}
    assert sorted(forest.apply(many).dropped) == sorted(records[key] for key in many)
    assert forest.apply({key_of(200): b"elsewhere"}).dropped == []
    for number in (0, 35):
        assert type(btree.get(forest.pager, forest.root, TREE, None, key_of(number))) is Overflow


def test_leaves_with_records_and_small_values_agree_with_a_dict(seed: int) -> None:
    """Some changes at once to leaves that hold overflow records: spliced, merged, split and joined."""
    rng = random.Random(seed)
    forest = Forest()
    for turn in range(300):
        changes: dict[bytes, bytes | None] = {}
        start = rng.randrange(600)
        for _ in range(rng.randrange(1, 12)):
            key = key_of(rng.randrange(start, start + 40))
            roll = rng.random()
            if roll < 0.35:
                changes[key] = overflow_record(1000 + turn, Ref(rng.randrange(1, 1 << 60)))
            else:
                changes[key] = rng.randbytes(rng.randrange(30)) if roll < 0.7 else None
        before = {key: forest.model.get(key) for key in changes}
        edit = forest.apply(changes)
        assert sorted(edit.dropped) == sorted(value for value in before.values() if type(value) is Overflow)
        found = dict(entries(btree.scan(forest.pager, forest.root, TREE, None, None))) if forest.root else {}
        assert found == forest.model
        assert {key: type(value) for key, value in found.items()} == {
            key: type(value) for key, value in forest.model.items()
        }
    assert forest.depth >= 2


def test_page_refs_gives_every_node_and_every_run_once() -> None:
    forest = Forest()
    forest.apply({key_of(number): bytes(40) for number in range(300)})
    forest.apply({b"large": overflow_record(5000, Ref(999))})
    found = list(btree.page_refs(forest.pager, forest.root, TREE))
    runs = [each for each in found if isinstance(each, Overflow)]
    nodes = [each for each in found if not isinstance(each, Overflow)]
    assert [run.ref for run in runs] == [999]
    assert sorted(nodes) == sorted(ref_pgno(ref) for ref in forest.refs())
    assert list(btree.page_refs(forest.pager, 0, TREE)) == []


# -- damage --------------------------------------------------------------------------------------


def test_a_page_of_the_wrong_level_is_reported_by_everything_that_meets_it() -> None:
    """Without the check, a branch that is its own descendant would never end."""
    forest = Forest()
    forest.apply({key_of(number): bytes(40) for number in range(300)})
    node = forest.pager.node(forest.root, TREE)
    assert isinstance(node, Branch)
    assert node.level >= 2
    children = array("Q", node.children)
    grandchild = forest.pager.node(children[1], TREE)
    assert isinstance(grandchild, Branch)
    children[1] = grandchild.children[0]
    pgno = Pgno(forest.next_pgno)
    body = encode_branch(node.level, list(node.keys), children, pgno, TREE, 7, 512)
    bad, page = forest.pager.seal(body, pgno)
    forest.pager.write({pgno: page})
    inside = node.keys[0]
    with pytest.raises(CorruptError, match="level"):
        btree.get(forest.pager, bad, TREE, None, inside)
    for reverse in (False, True):
        with pytest.raises(CorruptError, match="level"):
            list(btree.scan(forest.pager, bad, TREE, None, None, reverse=reverse))
    with pytest.raises(CorruptError, match="level"):
        list(btree.page_refs(forest.pager, bad, TREE))
    for changes in ({inside: b"x"}, {inside: b"x", inside + b"0": b"y"}):
        with pytest.raises(CorruptError, match="level"):
            btree.apply(lambda ref: forest.pager.node(ref, TREE), 512, bad, dict(changes))


def test_a_page_of_another_tree_is_reported() -> None:
    forest = Forest(cache_size=0)
    forest.apply({b"a": b"b"})
    with pytest.raises(CorruptError, match="another tree"):
        btree.get(forest.pager, forest.root, TREE + 1, None, b"a")
