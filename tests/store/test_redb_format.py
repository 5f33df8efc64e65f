"""The bytes of a redb file: the table in the docstring against the structs, and the functions that read them."""

from __future__ import annotations

import random
import re
import struct

import pytest

from limpet import CorruptError, FormatError
from limpet_store.redb import format as layout
from limpet_store.redb import xxh3
from limpet_store.redb.format import (
    CODECS,
    Geometry,
    PageSet,
    Place,
    Shape,
    Type,
    check_order,
    children,
    decode_collection,
    decode_header,
    decode_leaf,
    decode_record,
    measured_by,
    used_length,
)
from limpet_store.redb.testing import I64, STR, RedbMaker, encode_branch, encode_leaf, encode_record

VARIABLE = Shape(None, None)


def byte_table(name: str) -> list[tuple[int, int]]:
    """(offset, size) of each fixed field of a section of the docstring of `format`."""
    text = (layout.__doc__ or "").partition(f"\n  {name} ")[2].partition("\n\n")[0]
    rows = re.findall(r"(?:^|\n) *(\d+)  +(\d+(?:\+\d+)?)  ", text)
    return [(int(offset), sum(map(int, size.split("+")))) for offset, size in rows]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("super-header", layout.HEADER_SIZE),
        ("commit slot", layout.SLOT.size),
        ("root", layout.ROOT.size),
        ("table record", layout.RECORD.size),
    ],
)
def test_the_byte_table_agrees_with_the_structs(name: str, size: int) -> None:
    rows = byte_table(name)
    assert [offset for offset, _ in rows] == [sum(size for _, size in rows[:i]) for i in range(len(rows))]
    assert sum(size for _, size in rows) == size
    assert layout.HEADER.size + 2 * layout.SLOT.size == layout.HEADER_SIZE


def test_xxh3_gives_the_published_digests() -> None:
    data = bytes(i % 251 for i in range(4096))
    digests = {
        4: "b53d0ae8531d11a6e6e979c75fbf70eb",
        9: "4637ca9d97317990ceeb4a3ed869c716",
        112: "74eab981c8c5f687490b007adc0216fb",
        200: "f5d90936afe997dd0eba4306319503cb",
        241: "026d1c4295cde802a1a2b8bc61cba11d",
        4096: "71bcf104a5ff3571e50f994421d72ce1",
    }
    for size, digest in digests.items():
        assert xxh3.checksum_in_python(data[:size]).hex() == digest
        assert xxh3.checksum(data[:size]).hex() == digest


def test_xxh3_in_python_equals_the_c_package(seed: int) -> None:
    pytest.importorskip("xxhash", reason="nothing to compare with: the extra `redb` is not installed")
    source = random.Random(seed)
    for size in (*range(4, 600), 1023, 1024, 1025, 2048, 4096, 70_001):
        data = source.randbytes(size)
        assert xxh3.checksum_in_python(data) == xxh3.checksum(data), size


def test_without_the_c_package_python_computes_the_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxh3, "_c_digest", None)
    assert xxh3.engine() == "python"
    assert xxh3.checksum(b"limpet").hex() == xxh3.checksum_in_python(b"limpet").hex()


GEOMETRY = Geometry(page_size=4096, region_header_pages=3, region_data_pages=64, end=(1 + 2 * 67) * 4096)


def number(index: int, region: int = 0, order: int = 0) -> int:
    return order << 59 | region << 20 | index


def test_page_numbers_become_offsets() -> None:
    assert GEOMETRY.locate(number(0)) == Place(4 * 4096, 4096, 0, 0)
    assert GEOMETRY.locate(number(63)).offset == (1 + 3 + 63) * 4096
    assert GEOMETRY.locate(number(2, region=1, order=3)) == Place((1 + 67 + 3 + 16) * 4096, 8 * 4096, 1 << 20 | 16, 3)
    assert GEOMETRY.locate(number(0) | 1 << 45) == GEOMETRY.locate(number(0)), "reserved bits do not count"
    assert GEOMETRY.locate(number(1 << 19, order=1)) == GEOMETRY.locate(number(0, order=1)), "nor do high index bits"


@pytest.mark.parametrize(
    "page_number",
    [number(64), number(8, order=3), number(0, region=2), number(0, order=7), number(0, order=20), number(0, order=31)],
)
def test_page_numbers_that_leave_the_region_or_the_file_are_refused(page_number: int) -> None:
    with pytest.raises(CorruptError, match="page number"):
        GEOMETRY.locate(page_number)


def test_a_page_set_sees_repeats_and_overlaps(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(6):
        pages, taken = PageSet(), set[int]()
        for _ in range(60):
            order = source.choice((0, 0, 0, 1, 2, 3, 4, 7, 14, 15, 16))
            unit = source.randrange(1 << 18 >> order) << order
            units = set(range(unit, unit + (1 << order)))
            place = Place(0, 0, unit, order)
            if taken & units:
                with pytest.raises(CorruptError, match="twice"):
                    pages.add(place)
            else:
                pages.add(place)
            taken |= units


@pytest.mark.parametrize("shape", [VARIABLE, Shape(None, 8), Shape(3, None), Shape(3, 8), Shape(None, 0)])
def test_a_leaf_gives_back_its_entries(shape: Shape) -> None:
    keys = [b"aaa", b"bbb", b"ccc"] if shape.key_width else [b"", b"b", b"long" * 10]
    values = [b"v" * (i * 5 if shape.value_width is None else shape.value_width) for i in range(3)]
    image = encode_leaf(list(zip(keys, values, strict=True)), shape)
    assert used_length(image + b"leftovers", shape) == len(image)
    assert measured_by(image[:4], shape) <= len(image)
    assert decode_leaf(image, shape) == (keys, values)


@pytest.mark.parametrize("shape", [VARIABLE, Shape(8, None)])
def test_a_branch_gives_back_its_children(shape: Shape) -> None:
    pages = [(i, bytes([i]) * 16) for i in range(4)]
    image = encode_branch(pages, [b"12345678"] * 3, shape)
    assert used_length(image + b"leftovers", shape) == len(image)
    layout.check_separators(image, shape)
    assert list(children(image)) == pages


@pytest.mark.parametrize(
    ("what", "offset", "value"),
    [
        ("a key that ends before it begins", 4, 7),
        ("key ends that run backwards", 8, 19),
        ("a key that ends behind the page", 4, 1 << 31),
        ("a value that ends before it begins", 12, 21),
        ("values that overlap the keys", 12, 3),
    ],
)
def test_a_leaf_with_impossible_offsets_is_refused(what: str, offset: int, value: int) -> None:
    image = bytearray(encode_leaf([(b"a", b"x"), (b"b", b"y")], VARIABLE))
    struct.pack_into("<I", image, offset, value)
    with pytest.raises(CorruptError):
        decode_leaf(bytes(image), VARIABLE)


def test_neither_leaf_nor_branch_nor_empty() -> None:
    for image in (b"\0\0\1\0", b"\3\0\1\0", b"\1\0\0\0", b"\2\0\0\0"):
        with pytest.raises(CorruptError):
            measured_by(image, VARIABLE)


def test_records_and_types_round_trip() -> None:
    record = decode_record(encode_record(3, 0, None, STR, I64))
    assert (record.key_type, record.value_type, record.shape) == (STR, I64, Shape(None, 8))
    assert str(record.key_type) == "&str"
    own = decode_record(encode_record(3, 0, None, Type(2, "Point"), STR, Shape(12, None)))
    assert (str(own.key_type), own.shape) == ("user-defined Point", Shape(12, None))


@pytest.mark.parametrize(
    ("what", "offset", "patch", "error"),
    [
        ("a table of format 1", 0, b"\1", CorruptError),
        ("no kind we know", 0, b"\5", CorruptError),
        ("rows without a root", 1, b"\1", CorruptError),
        ("alignment", 52, b"\2", FormatError),
        ("a key type of no bytes", 60, b"\0\0\0\0", CorruptError),
        ("a key type longer than the record", 60, b"\xff\xff\xff\xff", CorruptError),
        ("a key type that takes all", 60, b"\x09\0\0\0", CorruptError),
        ("a class of types we do not know", 64, b"\7", CorruptError),
        ("a type that is not UTF-8", 66, b"\xff", CorruptError),
        ("text of fixed width", 42, b"\1\4\0\0\0", CorruptError),
        ("an i64 of 4 bytes", 47, b"\1\4\0\0\0", CorruptError),
    ],
)
def test_records_that_cannot_be_are_refused(what: str, offset: int, patch: bytes, error: type[Exception]) -> None:
    image = bytearray(encode_record(3, 0, None, STR, I64))
    image[offset : offset + len(patch)] = patch
    with pytest.raises(error):
        decode_record(bytes(image))
    with pytest.raises(CorruptError):
        decode_record(bytes(image)[:65])


def test_integer_keys_are_compared_as_numbers() -> None:
    keys = [(i * 1000).to_bytes(8, "little", signed=True) for i in range(-3, 4)]
    check_order(keys, None, I64)
    check_order(keys[1:], keys[0], I64)
    with pytest.raises(CorruptError, match="ascend"):
        check_order(keys, keys[0], I64)
    with pytest.raises(CorruptError, match="ascend"):
        check_order(keys, None, Type(1, "u64"))
    with pytest.raises(CorruptError, match="ascend"):
        check_order([b"b", b"a"], None, STR)
    check_order([b"b", b"a"], None, Type(2, "Backwards"))
    with pytest.raises(CorruptError, match="twice"):
        check_order([b"b", b"b"], None, Type(2, "Backwards"))


def test_values_decode_by_their_type() -> None:
    decoded = {type_.name: codec.decode(bytes(codec.width or 0)) for type_, codec in CODECS.items()}
    assert decoded["&str"] == ""
    assert decoded["&[u8]"] == b""
    assert decoded["()"] is None
    assert decoded["bool"] is False
    assert decoded["char"] == "\0"
    assert decoded["i64"] == decoded["u128"] == 0
    assert CODECS[Type(1, "f64")].decode(struct.pack("<d", 1.5)) == 1.5
    assert CODECS[I64].decode(b"\xfe" + b"\xff" * 7) == -2


def test_collections_of_a_multimap() -> None:
    leaf = encode_leaf([(b"a", b"")], Shape(None, 0))
    assert decode_collection(b"\1" + leaf) == leaf
    assert decode_collection(b"\3" + bytes(32)) == (0, bytes(16), 0)
    for data in (b"", b"\1", b"\1\1\0\1", b"\1\2\0\0\0\0", b"\2" + bytes(32), b"\3" + bytes(31), b"\3" + bytes(33)):
        with pytest.raises(CorruptError):
            decode_collection(data)


@pytest.mark.parametrize(
    ("what", "offset", "patch", "error"),
    [
        ("not redb", 0, b"SQLite fo", FormatError),
        ("a newer flag", 9, b"\x0c", FormatError),
        ("page size 0", 12, bytes(4), CorruptError),
        ("page size 3000", 12, struct.pack("<I", 3000), CorruptError),
        ("page size 2^31", 12, struct.pack("<I", 1 << 31), CorruptError),
        ("absurd region headers", 16, b"\xff\xff\xff\xff", CorruptError),
        ("empty regions", 20, bytes(4), CorruptError),
        ("regions of 2^32 pages", 20, b"\xff\xff\xff\xff", CorruptError),
    ],
)
def test_headers_that_cannot_be_are_refused(what: str, offset: int, patch: bytes, error: type[Exception]) -> None:
    data = bytearray(RedbMaker().file())
    data[offset : offset + len(patch)] = patch
    with pytest.raises(error):
        decode_header(bytes(data[:320]), len(data))
