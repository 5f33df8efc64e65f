"""Nodes: encode and decode, searching a leaf where it lies, separators, and pages that contradict themselves."""

import zlib
from array import array
from bisect import bisect_left

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


@given(ENTRIES, ENTRIES, st.sets(st.integers(0, 24)))
def test_a_spliced_leaf_is_the_one_that_would_be_encoded_anew(
    entries: dict[bytes, bytes], changed: dict[bytes, bytes], doomed: set[int]
) -> None:
    leaf = leaf_of(entries)
    keys = sorted(entries)
    changes: dict[bytes, bytes | None] = {**changed, **{keys[index]: None for index in doomed if index < len(keys)}}
    splices = []
    for key in sorted(changes):
        at = bisect_left(keys, key)
        splices.append(node.Splice(at, key, changes[key], key in entries))
    expected = {key: value for key, value in {**entries, **changes}.items() if value is not None}
    if splices and expected:
        after = sorted(expected)
        content, ends, overflow = node.leaf_content(after, [expected[key] for key in after])
        assert leaf.splice(splices) == (content, len(expected), ends, overflow)
        assert (
            leaf.used
            + sum(
                (0 if value is None else node.leaf_entry_size(key, value)) - (leaf.entry_size(at) if there else 0)
                for at, key, value, there in splices
            )
            == len(content) - 2
        ), "what the editor expects it to take"


def test_values_that_take_the_place_of_one_of_their_size_move_nothing_and_change_kind_only_where_they_do() -> None:
    plain, other = b"a value of 12", b"another one!!"
    record, moved = node.overflow_record(5000, Ref(7)), node.overflow_record(6000, Ref(8))
    like_a_record = b"twelve bytes"
    assert len(plain) == len(other)
    assert len(record) == len(like_a_record)
    leaf = leaf_of({b"a": plain, b"b": record, b"c": like_a_record})
    for changed in (
        {b"a": other},
        {b"b": moved},
        {b"a": other, b"b": moved, b"c": like_a_record[::-1]},
        {b"b": like_a_record},  # from overflow pages into the leaf
        {b"c": moved},  # and the other way
        {b"b": like_a_record, b"c": moved},
    ):
        entries = {b"a": plain, b"b": record, b"c": like_a_record, **changed}
        content, ends, overflow = node.leaf_content(sorted(entries), [entries[key] for key in sorted(entries)])
        splices = [node.Splice(b"abc".index(key), key, value, replace=True) for key, value in changed.items()]
        assert leaf.splice(splices) == (content, 3, ends, overflow)


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


def test_a_layout_that_is_known_from_another_leaf_spares_no_check() -> None:
    """Leaves of entries of one size share what was found out about the first; the rest of each page is its own."""
    entries = {bytes([number]): bytes([number]) * 12 for number in range(20, 40)}
    page = leaf_of(entries).page
    twin = node.decode_node(page, Pgno(9), TREE)
    assert isinstance(twin, Leaf)
    assert (twin.keys(), twin.values()) == (list(entries), list(entries.values()))
    at = format.LEAF_ARRAYS_AT
    for offset, value in ((at, 600), (at + 2, 0), (at + 36, 127), (at + 78, 65535)):
        with pytest.raises(CorruptError, match="overlap or leave"):
            node.decode_node(damaged(page, offset, value), Pgno(9), TREE)
    short = page[: at + 4 * 20 + 20 * 12]  # as a file with smaller pages would have it
    with pytest.raises(CorruptError, match="overlap or leave"):
        node.decode_node(short, Pgno(9), TREE)
    with pytest.raises(CorruptError, match="more than its page"):
        node.decode_node(page[: at + 4 * 20 - 1], Pgno(9), TREE)
    with pytest.raises(CorruptError, match="overlap or leave"):  # the first key begins where an index should stand
        node.decode_node(damaged(page, 24, 1), Pgno(9), TREE)
    swapped = page[: at + 80] + page[at + 81 : at + 82] + page[at + 80 : at + 81] + page[at + 82 :]
    leaf = node.decode_node(swapped, Pgno(9), TREE)
    assert isinstance(leaf, Leaf)
    for _ in range(2):
        with pytest.raises(CorruptError, match="order"):
            leaf.keys()


def test_a_layout_of_one_size_is_what_any_other_is() -> None:
    """Sizes of nothing, of one entry, of what only looks like overflow records, and those that are even on average."""
    for entries in (
        {b"": b""},
        {b"a": b""},
        {b"a": b"1" * 12, b"b": b"2" * 12},
        {b"aa": b"11", b"b": b"2", b"ccc": b"333"},
        {b"a": b"11", b"b": b"2", b"c": b"333"},
        {b"aa": b"1", b"b": b"2", b"ccc": b"3"},
    ):
        for _ in range(2):
            leaf = leaf_of(entries)
            assert (leaf.keys(), leaf.values(), leaf.overflow) == (list(entries), list(entries.values()), frozenset())
            assert [leaf.get(key) for key in entries] == list(entries.values())


def test_layouts_do_not_pile_up_nor_grow_with_the_page() -> None:
    for size in range(700):
        leaf_of({b"a": bytes(size)})
    assert len(node._even_layouts) <= node._EVEN_LAYOUTS
    entries = {b"%04d" % number: b"%d" % (number % 10) for number in range(2 * node._MOST_EVEN)}
    for _ in range(2):
        leaf = leaf_of(entries, 32768)
        assert (leaf.keys(), leaf.values()) == (list(entries), list(entries.values()))
    assert max(map(len, node._even_layouts)) <= 2 * format.END_SIZE * node._MOST_EVEN


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
