"""Nodes: leaf and branch pages, decoded and encoded. No I/O.

A decoded node is never changed: the cache shares it among all transactions. It keeps the bytes of
its page, and of the arrays in it only what a search needs: the keys. Values are sliced out of the
page when somebody asks, so a cached leaf costs its page plus its keys.

Pages come from disk, so nothing in them is believed: counts and ends are checked once, here, when
a page is decoded, and what does not fit is a CorruptError. After that a slice cannot go astray.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import accumulate
from operator import lt

from .errors import CorruptError
from .format import (
    BRANCH,
    END_SIZE,
    LEAF,
    LEAF_ARRAYS_AT,
    LEAF_OVERFLOW_COUNT,
    MAX_LEVEL,
    OVERFLOW,
    OVERFLOW_RECORD,
    PAGE,
    PAGE_AFTER_CHECKSUM,
    PAGE_HEADER_SIZE,
    REF_SIZE,
    Pgno,
    Ref,
    overflow_page_count,
    page_capacity,
    ref_pgno,
)

# What Python spends on a decoded node, in bytes, so that the cache can be sized in real memory:
_OBJECT_SIZE = 180  # the node, its page's bytes header, its list and tuple headers
_KEY_SIZE = 8 + 33 + 8  # list slot, bytes header, rounding of the allocator
_END_SIZE = 8 + 24  # tuple slot and int (small ends are shared, most are not)


class Overflow(bytes):
    """An overflow record: the twelve bytes that stand in a leaf for a large value."""

    __slots__ = ()

    @property
    def value_size(self) -> int:
        """The size of the value in bytes."""
        return int(OVERFLOW_RECORD.unpack(self)[0])

    @property
    def ref(self) -> Ref:
        """The reference of the first page of the run."""
        return Ref(OVERFLOW_RECORD.unpack(self)[1])

    def pgnos(self, page_size: int) -> range:
        """The pages of the run."""
        first = ref_pgno(self.ref)
        return range(first, first + overflow_page_count(self.value_size, page_size))


class Leaf:
    """A leaf: entries in key order. Immutable, valid for as long as somebody holds it.

    keys       the keys, ascending
    overflow   indexes of the entries whose value is an overflow record
    """

    __slots__ = ("_ends", "count", "keys", "memory", "overflow", "page")
    level = 0

    def __init__(self, page: bytes, keys: list[bytes], ends: tuple[int, ...], overflow: frozenset[int]) -> None:
        self.page = page
        self.keys = keys
        self.count = len(keys)
        self._ends = ends
        self.overflow = overflow
        self.memory = len(page) + _OBJECT_SIZE + len(keys) * (_KEY_SIZE + 2 * _END_SIZE) + sum(map(len, keys))

    def value(self, index: int) -> bytes:
        """The stored value of one entry; an Overflow where the value lives elsewhere."""
        at = self.count + index
        ends = self._ends
        stored = self.page[ends[at - 1] : ends[at]]
        if index in self.overflow:
            return Overflow(stored)
        return stored

    def values(self) -> list[bytes]:
        """All stored values, in key order."""
        page, ends, count = self.page, self._ends, self.count
        if not count:
            return []
        stored = [page[start:end] for start, end in zip(ends[count - 1 : -1], ends[count:], strict=True)]
        for index in self.overflow:
            stored[index] = Overflow(stored[index])
        return stored


class Branch:
    """A branch: children divided by separators. Immutable.

    keys      separators, ascending; one fewer than children
    children  references
    """

    __slots__ = ("children", "keys", "level", "memory", "page")

    def __init__(self, page: bytes, level: int, keys: list[bytes], children: tuple[int, ...]) -> None:
        self.page = page
        self.level = level
        self.keys = keys
        self.children = children
        self.memory = (
            len(page) + _OBJECT_SIZE + len(children) * (_KEY_SIZE + 8 + 32) + sum(map(len, keys))
        )  # a reference is an int of 32 bytes


Node = Leaf | Branch


@lru_cache(maxsize=4096)
def _ends_struct(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}H")


@lru_cache(maxsize=4096)
def _refs_struct(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q")


# -- decode --------------------------------------------------------------------------------------


def decode_node(page: bytes, pgno: Pgno, tree_id: int) -> Node:
    """Decode a leaf or branch whose checksum has been verified.

    pgno, tree_id  where the page was found and whose it should be
    raises         CorruptError where the page contradicts itself or its place
    cost           about 0.1 us an entry
    """
    _, kind, level, count, own_pgno, own_tree_id, _ = PAGE.unpack_from(page)
    if own_pgno != pgno:
        raise CorruptError("the page belongs elsewhere", pgno=pgno, expected=int(pgno), found=own_pgno)
    if own_tree_id != tree_id:
        raise CorruptError("the page belongs to another tree", pgno=pgno, expected=tree_id, found=own_tree_id)
    if kind == LEAF:
        if level:
            raise CorruptError("a leaf has to have level 0", pgno=pgno, expected=0, found=level)
        return _decode_leaf(page, pgno, count)
    if kind == BRANCH:
        if not 0 < level <= MAX_LEVEL:
            raise CorruptError("impossible level of a branch", pgno=pgno, expected=f"1 to {MAX_LEVEL}", found=level)
        return _decode_branch(page, pgno, level, count)
    raise CorruptError("not a node of a tree", pgno=pgno, expected="leaf or branch", found=f"kind {kind}")


def _decode_leaf(page: bytes, pgno: Pgno, count: int) -> Leaf:
    (overflow_count,) = LEAF_OVERFLOW_COUNT.unpack_from(page, PAGE_HEADER_SIZE)
    overflow_at = LEAF_ARRAYS_AT + 2 * END_SIZE * count
    data_at = overflow_at + END_SIZE * overflow_count
    if data_at > len(page):
        raise CorruptError(
            f"the leaf counts {count} entries and {overflow_count} overflow records, more than its page can hold",
            pgno=pgno,
        )
    ends = _ends_struct(2 * count).unpack_from(page, LEAF_ARRAYS_AT)
    _check_ends(ends, data_at, len(page), pgno)
    keys = (
        [page[start:end] for start, end in zip((data_at, *ends[: count - 1]), ends[:count], strict=True)]
        if count
        else []
    )
    _check_order(keys, pgno)
    if not overflow_count:
        return Leaf(page, keys, ends, _NO_OVERFLOW)
    indexes = _ends_struct(overflow_count).unpack_from(page, overflow_at)
    for index in indexes:
        if index >= count or ends[count + index] - ends[count + index - 1] != OVERFLOW_RECORD.size:
            raise CorruptError(f"overflow index {index} does not point at an overflow record", pgno=pgno)
    return Leaf(page, keys, ends, frozenset(indexes))


_NO_OVERFLOW: frozenset[int] = frozenset()


def _decode_branch(page: bytes, pgno: Pgno, level: int, count: int) -> Branch:
    children_at = PAGE_HEADER_SIZE + END_SIZE * (count - 1)
    data_at = children_at + REF_SIZE * count
    if not count or data_at > len(page):
        raise CorruptError(f"the branch counts {count} children, which its page cannot hold", pgno=pgno)
    ends = _ends_struct(count - 1).unpack_from(page, PAGE_HEADER_SIZE)
    _check_ends(ends, data_at, len(page), pgno)
    keys = [page[start:end] for start, end in zip((data_at, *ends[:-1]), ends, strict=True)] if ends else []
    _check_order(keys, pgno)
    return Branch(page, level, keys, _refs_struct(count).unpack_from(page, children_at))


def _check_ends(ends: tuple[int, ...], data_at: int, page_size: int, pgno: Pgno) -> None:
    if ends and (ends[0] < data_at or ends[-1] > page_size or list(ends) != sorted(ends)):
        raise CorruptError("the offsets of the entries overlap or leave the page", pgno=pgno)


def _check_order(keys: list[bytes], pgno: Pgno) -> None:
    if not all(map(lt, keys, keys[1:])):
        raise CorruptError("the keys are not in order", pgno=pgno)


# -- encode --------------------------------------------------------------------------------------


def leaf_entry_size(key: bytes, value: bytes) -> int:
    """Bytes that one entry takes in a leaf."""
    return len(key) + len(value) + (3 if type(value) is Overflow else 2) * END_SIZE


def leaf_payload(page_size: int) -> int:
    """Bytes in a leaf for its entries."""
    return page_capacity(page_size) - LEAF_ARRAYS_AT


def branch_entry_size(key: bytes) -> int:
    """Bytes that one child and the separator before it take in a branch."""
    return len(key) + END_SIZE + REF_SIZE


def branch_payload(page_size: int) -> int:
    """Bytes in a branch for its children, one separator being absent."""
    return page_capacity(page_size) - PAGE_HEADER_SIZE + END_SIZE


def encode_leaf(
    keys: list[bytes], values: list[bytes], pgno: Pgno, tree_id: int, stamp: int, page_size: int
) -> tuple[bytes, tuple[int, ...], frozenset[int]]:
    """Encode a leaf that fits.

    returns  (the page from byte 4 on, the ends array, overflow indexes), as Leaf wants them
    """
    count = len(keys)
    overflow: list[int] = []
    if Overflow in set(map(type, values)):
        overflow = [index for index, value in enumerate(values) if type(value) is Overflow]
    data_at = LEAF_ARRAYS_AT + END_SIZE * (2 * count + len(overflow))
    ends = tuple(accumulate(map(len, (*keys, *values)), initial=data_at))[1:]
    body = b"".join(
        (
            PAGE_AFTER_CHECKSUM.pack(LEAF, 0, count, pgno, tree_id, stamp),
            LEAF_OVERFLOW_COUNT.pack(len(overflow)),
            _ends_struct(2 * count).pack(*ends),
            _ends_struct(len(overflow)).pack(*overflow) if overflow else b"",
            *keys,
            *values,
            bytes(page_size - (ends[-1] if ends else data_at)),
        )
    )
    assert len(body) == page_size - 4, "a leaf larger than its page"
    return body, ends, frozenset(overflow) if overflow else _NO_OVERFLOW


def encode_branch(
    level: int,
    keys: list[bytes],
    children: list[int] | tuple[int, ...],
    pgno: Pgno,
    tree_id: int,
    stamp: int,
    page_size: int,
) -> bytes:
    """Encode a branch that fits; returns the page from byte 4 on."""
    count = len(children)
    assert len(keys) == count - 1, "separators divide children"
    data_at = PAGE_HEADER_SIZE + END_SIZE * (count - 1) + REF_SIZE * count
    ends = tuple(accumulate(map(len, keys), initial=data_at))
    body = b"".join(
        (
            PAGE_AFTER_CHECKSUM.pack(BRANCH, level, count, pgno, tree_id, stamp),
            _ends_struct(count - 1).pack(*ends[1:]),
            _refs_struct(count).pack(*children),
            *keys,
            bytes(page_size - ends[-1]),
        )
    )
    assert len(body) == page_size - 4, "a branch larger than its page"
    return body


def patch_branch(branch: Branch, changed: dict[int, int], pgno: Pgno, tree_id: int, stamp: int) -> bytes:
    """A copy of a branch with some children replaced, its separators as they were.

    changed  child index -> new reference
    returns  the page from byte 4 on
    cost     2 us, where encoding 150 children anew takes 30
    """
    count = len(branch.children)
    body = bytearray(branch.page)
    PAGE_AFTER_CHECKSUM.pack_into(body, 4, BRANCH, branch.level, count, pgno, tree_id, stamp)
    children_at = PAGE_HEADER_SIZE + END_SIZE * (count - 1)
    for index, ref in changed.items():
        body[children_at + REF_SIZE * index : children_at + REF_SIZE * (index + 1)] = ref.to_bytes(REF_SIZE, "little")
    return bytes(body[4:])


def encode_overflow(value: bytes, pgno: Pgno, tree_id: int, stamp: int, page_size: int) -> bytes:
    """Encode the run of pages that holds a large value; returns it from byte 4 on."""
    size = overflow_page_count(len(value), page_size) * page_size
    return b"".join(
        (
            PAGE_AFTER_CHECKSUM.pack(OVERFLOW, 0, 0, pgno, tree_id, stamp),
            value,
            bytes(size - PAGE_HEADER_SIZE - len(value)),
        )
    )


def overflow_record(value_size: int, ref: Ref) -> Overflow:
    """The record that stands for a large value in a leaf."""
    return Overflow(OVERFLOW_RECORD.pack(value_size, ref))


def separator(left: bytes, right: bytes) -> bytes:
    """The shortest key that is greater than `left` and not greater than `right`.

    source   Bayer and Unterauer, "Prefix B-trees", 1977
    """
    size = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        size += 1
    return right[: size + 1]
