"""Nodes: encode and decode, searching a leaf where it lies, separators, and pages that contradict themselves."""

import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet import format, node
from limpet.errors import CorruptError
from limpet.format import Pgno, Ref
from limpet.node import Branch, Leaf, Overflow

TREE = 5
ENTRIES = st.dictionaries(
    st.one_of(st.binary(max_size=6), st.lists(st.sampled_from(b"ab"), max_size=8).map(bytes)),
    st.one_of(st.binary(max_size=12), st.integers(0, 2**32 - 1).map(lambda size: node.overflow_record(size, Ref(9)))),
    min_size=1,
    max_size=25,
)


def sealed(body: bytes, pgno: int = 9) -> bytes:
    return format.seal_page(body, pgno, zlib.crc32, 0)[1]


def leaf_of(entries: dict[bytes, bytes], page_size: int = 1024) -> Leaf:
    keys = sorted(entries)
    body, _, _ = node.encode_leaf(keys, [entries[key] for key in keys], Pgno(9), TREE, 1, page_size)
    leaf = node.decode_node(sealed(body), Pgno(9), TREE)
    assert isinstance(leaf, Leaf)
    return leaf


@given(ENTRIES, st.lists(st.one_of(st.binary(max_size=8), st.lists(st.sampled_from(b"ab"), max_size=8).map(bytes))))
def test_a_leaf_gives_back_what_was_put_in_and_nothing_else(entries: dict[bytes, bytes], others: list[bytes]) -> None:
    leaf = leaf_of(entries)
    keys = sorted(entries)
    assert leaf.count == len(keys)
    assert leaf.keys() == keys
    assert leaf.values() == [entries[key] for key in keys]
    for index, key in enumerate(keys):
        found = leaf.get(key)
        assert found == entries[key]
        assert type(found) is type(entries[key])
        assert leaf.value(index) == found
    for other in others:  # which often begin or end in the middle of a key that is there
        assert leaf.get(other) == entries.get(other)
    assert {type(value) for index, value in enumerate(leaf.values()) if index in leaf.overflow} <= {Overflow}


@given(ENTRIES)
def test_the_size_of_a_leaf_is_the_sum_of_its_entries(entries: dict[bytes, bytes]) -> None:
    size = sum(node.leaf_entry_size(key, value) for key, value in entries.items())
    leaf = leaf_of(entries)
    assert leaf.page.rstrip(b"\0") == leaf.page[: format.LEAF_ARRAYS_AT + size].rstrip(b"\0")
    assert size <= node.leaf_payload(1024)


def test_a_leaf_may_be_full_to_the_last_byte() -> None:
    for page_size in (512, 1024, 65536):
        payload = node.leaf_payload(page_size)
        half = payload // 2 - 4
        entries = {b"a": bytes(half - 1), b"b": bytes(payload - 8 - half - 1)}
        assert leaf_of(entries, page_size).values() == [entries[b"a"], entries[b"b"]]


def test_a_key_that_is_part_of_its_neighbours_is_not_found_in_them() -> None:
    leaf = leaf_of({b"abc": b"abcabc", b"bcab": b"c", b"c": b"", b"ca": b"bc"})
    for absent in (b"a", b"ab", b"b", b"bc", b"bca", b"cab", b"abcb", b"", b"caabc", b"cc"):
        assert leaf.get(absent) is None, absent
    assert leaf_of({b"": b"empty", b"\0": b"zero"}).get(b"") == b"empty"


SEPARATED = st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=30, unique=True).map(sorted)


@given(SEPARATED, st.integers(1, 40))
def test_a_branch_gives_back_what_was_put_in(keys: list[bytes], level: int) -> None:
    children = array("Q", range(100, 101 + len(keys)))
    body = node.encode_branch(level, keys, children, Pgno(9), TREE, 1, 1024)
    branch = node.decode_node(sealed(body), Pgno(9), TREE)
    assert isinstance(branch, Branch)
    assert (branch.level, list(branch.keys), list(branch.children)) == (level, keys, list(children))
    changed = {0: 7, len(keys): 2**63 + 5}
    body = node.patch_branch(branch, changed, Pgno(10), TREE, 2)
    patched = node.decode_node(sealed(body, 10), Pgno(10), TREE)
    assert isinstance(patched, Branch)
    assert list(patched.keys) == keys
    assert list(patched.children) == [changed.get(index, child) for index, child in enumerate(children)]
    assert list(branch.children) == list(children), "the old one is as it was"


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_a_separator_is_the_shortest_key_that_divides(a: bytes, b: bytes) -> None:
    if a == b:
        return
    left, right = sorted((a, b))
    found = node.separator(left, right)
    assert left < found <= right
    assert right.startswith(found)
    assert not left < found[:-1] <= right, "a shorter one would do"


def test_an_overflow_run_holds_its_value_and_zeros() -> None:
    body = node.encode_overflow(b"x" * 1010, Pgno(9), TREE, 1, 512)
    page = sealed(body)
    assert len(page) == 3 * 512
    assert page[24:1034] == b"x" * 1010
    assert not any(page[1034:])
    record = node.overflow_record(1010, Ref(9 | 5 << 32))
    assert (record.value_size, record.ref, list(record.pgnos(512))) == (1010, 9 | 5 << 32, [9, 10, 11])
    assert len(record) == 12


# -- pages that contradict themselves ------------------------------------------------------------


def damaged(page: bytes, offset: int, value: int, size: int = 2) -> bytes:
    return page[:offset] + value.to_bytes(size, "little") + page[offset + size :]


LEAF = leaf_of({b"a": b"1", b"b": b"22", b"c": bytes(node.overflow_record(900, Ref(3)))})


@pytest.mark.parametrize(
    ("offset", "size", "value", "words"),
    [
        (4, 1, 7, "not a node"),
        (4, 1, format.OVERFLOW, "not a node"),
        (5, 1, 1, "level 0"),
        (6, 2, 9000, "more than its page can hold"),
        (8, 4, 10, "belongs elsewhere"),
        (12, 4, 6, "another tree"),
        (24, 2, 600, "more than its page can hold"),
        (26, 2, 5, "overlap or leave"),
        (26, 2, 60000, "overlap or leave"),
        (28, 2, 1000, "overlap or leave"),
        (36, 2, 60000, "overlap or leave"),
    ],
)
def test_a_leaf_that_contradicts_itself_or_its_place_is_a_corrupt_error(
    offset: int, size: int, value: int, words: str
) -> None:
    with pytest.raises(CorruptError, match=words) as caught:
        node.decode_node(damaged(LEAF.page, offset, value, size), Pgno(9), TREE)
    assert caught.value.pgno == 9


def test_overflow_indexes_that_point_nowhere_or_twice_are_a_corrupt_error() -> None:
    entries = {b"a": node.overflow_record(900, Ref(3)), b"b": node.overflow_record(901, Ref(4)), b"c": b"1"}
    page = leaf_of(entries).page
    at = format.LEAF_ARRAYS_AT + 4 * 3
    for index, words in ((7, "does not point"), (2, "does not point"), (1, "twice")):
        with pytest.raises(CorruptError, match=words):
            node.decode_node(damaged(page, at, index), Pgno(9), TREE)


def test_keys_out_of_order_are_a_corrupt_error_when_they_are_all_looked_at() -> None:
    body, _, _ = node.encode_leaf([b"b", b"a"], [b"", b""], Pgno(9), TREE, 1, 512)
    leaf = node.decode_node(sealed(body), Pgno(9), TREE)
    assert isinstance(leaf, Leaf)
    with pytest.raises(CorruptError, match="order"):
        leaf.keys()


@given(st.binary(min_size=508, max_size=508), st.sampled_from([format.LEAF, format.BRANCH]), st.integers(0, 60))
def test_any_page_decodes_or_is_a_corrupt_error(body: bytes, kind: int, count: int) -> None:
    """Whatever stands in a page with a right checksum: no other error, and no slice that leaves the page."""
    level = 0 if kind == format.LEAF else 1
    body = format.PAGE_AFTER_CHECKSUM.pack(kind, level, count, 9, TREE, 1) + body[20:]
    try:
        decoded = node.decode_node(sealed(body), Pgno(9), TREE)
        if isinstance(decoded, Leaf):
            decoded.get(b"a")
            assert len(decoded.keys()) == len(decoded.values()) == count
    except CorruptError as error:
        assert error.pgno == 9  # noqa: PT017 either outcome is right
