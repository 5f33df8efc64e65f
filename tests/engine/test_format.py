"""The file format in code: encode and decode, limits, and what is refused. The byte tables: test_format_document.py."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet import format
from limpet.errors import CorruptError, FormatError, UpgradeRequiredError
from limpet.format import Header, Meta, Pgno, Ref, Txid

HEADER = Header(4096, 1, bytes(range(16)), 1_700_000_000_000_000)
META = Meta(Txid(7), 9, Ref(11), Ref(12), 100, 5, 3, 8, 1_700_000_000_000_001, 20, 32)
SEED = 77


def encoded_meta(meta: Meta = META, slot: int = 1) -> bytes:
    return format.encode_meta(meta, Pgno(slot), zlib.crc32, SEED)


def test_sizes_are_those_of_the_format() -> None:
    assert (format.HEADER_SIZE, format.META_SIZE, format.PAGE_HEADER_SIZE) == (56, 96, 24)
    assert format.META_SIZE <= 512, "a meta lies within one sector"
    assert format.MAGIC == b"\x89LMPT\r\n\x1a"
    assert struct.calcsize("<IQ") == format.OVERFLOW_RECORD.size == 12


@given(
    st.builds(
        Header,
        st.sampled_from([512, 4096, 65536]),
        st.sampled_from([1, 2]),
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**64 - 1),
    )
)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    data = format.encode_header(header)
    assert len(data) == format.HEADER_SIZE
    assert format.decode_header(data + b"rest of the page", "f") == header


@given(st.integers(0, format.HEADER_SIZE * 8 - 1))
def test_every_flipped_bit_of_a_header_is_a_format_error(bit: int) -> None:
    data = bytearray(format.encode_header(HEADER))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        format.decode_header(bytes(data), "f")


def test_every_length_of_a_header_that_is_too_short_is_a_format_error() -> None:
    data = format.encode_header(HEADER)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            format.decode_header(data[:size], "f")


def test_an_older_version_is_an_upgrade_required_error_and_a_newer_one_is_not() -> None:
    older = format.encode_header(Header(4096, 1, bytes(16), 0, format_version=1))
    newer = format.encode_header(Header(4096, 1, bytes(16), 0, format_version=3))
    with pytest.raises(UpgradeRequiredError, match="format 1"):
        format.decode_header(older, "f")
    with pytest.raises(FormatError, match=r"format 3\b.*format 2\b") as caught:
        format.decode_header(newer, "f")
    assert not isinstance(caught.value, UpgradeRequiredError)
    with pytest.raises(FormatError, match="format 0, which there never was"):
        format.decode_header(format.encode_header(Header(4096, 1, bytes(16), 0, format_version=0)), "f")


def test_a_version_that_the_checksum_does_not_confirm_is_damage_and_nothing_to_upgrade_for() -> None:
    # The version was believed before the checksum was looked at: with one flipped bit in it, the message was that the
    # file had format 16642, and to upgrade limpet.
    data = format.encode_header(HEADER)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError, match="is damaged") as caught:
            format.decode_header(bytes(flipped), "f")
        assert not isinstance(caught.value, UpgradeRequiredError)
        assert "upgrade" not in str(caught.value)
        assert ("the version in it" in str(caught.value)) == (8 <= at // 8 < 12)
    newer = format.encode_header(Header(4096, 1, bytes(16), 0, format_version=3))
    for size in range(12, len(newer)):  # every format keeps the place of the checksum: FORMAT.md, "Header"
        with pytest.raises(FormatError, match="cut off") as caught:
            format.decode_header(newer[:size], "f")
        assert "upgrade" not in str(caught.value)


METAS = st.builds(
    Meta,
    st.just(Txid(2**46)),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1).map(Ref),
    st.integers(0, 2**64 - 1).map(Ref),
    st.integers(1000, 2**32),
    st.integers(0, 1000),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63),
    st.integers(4, 400),
    st.integers(0, 600),
    st.booleans(),
)


@given(METAS, st.sampled_from(format.META_PGNOS))
def test_a_meta_comes_back_as_it_was(meta: Meta, slot: Pgno) -> None:
    data = format.encode_meta(meta, slot, zlib.crc32, SEED)
    assert len(data) == format.META_SIZE
    assert format.decode_meta(data + bytes(100), slot, 512, zlib.crc32, SEED) == meta
    assert format.stamp_txid(meta.epoch) == meta.txid


@given(st.integers(0, format.META_SIZE * 8 - 1))
def test_every_flipped_bit_of_a_meta_is_a_corrupt_error(bit: int) -> None:
    data = bytearray(encoded_meta())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError) as caught:
        format.decode_meta(bytes(data), Pgno(1), 512, zlib.crc32, SEED)
    assert (caught.value.pgno, caught.value.offset) == (1, 512)


def test_a_torn_misplaced_foreign_or_empty_meta_is_a_corrupt_error() -> None:
    data = encoded_meta()
    for cut in range(0, len(data), 5):
        with pytest.raises(CorruptError, match="cut off"):
            format.decode_meta(data[:cut], Pgno(1), 512, zlib.crc32, SEED)
    with pytest.raises(CorruptError, match="another page"):
        format.decode_meta(data, Pgno(2), 512, zlib.crc32, SEED)
    with pytest.raises(CorruptError, match="checksum"):
        format.decode_meta(data, Pgno(1), 512, zlib.crc32, SEED + 1)
    with pytest.raises(CorruptError, match="empty"):
        format.decode_meta(bytes(96), Pgno(1), 512, zlib.crc32, SEED)


@pytest.mark.parametrize(
    "fields",
    [
        {"high_water": 3},
        {"high_water": 2**32 + 1},
        {"txid": Txid(0)},
        {"free_count": 101},
        {"log_start": 3},
        {"log_size": 81},
    ],
)
def test_a_meta_with_a_right_checksum_and_impossible_fields_is_a_corrupt_error(fields: dict[str, int]) -> None:
    values = {name: getattr(META, name) for name in META.__slots__} | fields
    with pytest.raises(CorruptError, match="impossible"):
        format.decode_meta(encoded_meta(Meta(**values)), Pgno(1), 512, zlib.crc32, SEED)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_references_and_stamps_come_apart_again(pgno: int, checksum: int) -> None:
    ref = format.make_ref(pgno, checksum)
    assert (format.ref_pgno(ref), format.ref_checksum(ref)) == (pgno, checksum)
    stamp = format.make_stamp(pgno, checksum & 0xFFFF)
    assert (format.stamp_txid(stamp), format.stamp_nonce(stamp)) == (pgno, checksum & 0xFFFF)


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_the_limits_of_a_page_leave_four_children_and_two_entries(page_size: int) -> None:
    key = format.max_key_size(page_size)
    assert key == page_size // 4
    assert 24 + 4 * 8 + 3 * (2 + key) <= format.page_capacity(page_size), "a branch has at least four children"
    inline = format.max_inline_entry(page_size)
    assert format.LEAF_ARRAYS_AT + 2 * (inline + 4) <= format.page_capacity(page_size)
    assert key + format.OVERFLOW_RECORD.size <= inline, "an entry of the longest key fits with its record"


def test_overflow_pages_and_map_levels_are_counted_right() -> None:
    assert [format.overflow_page_count(size, 512) for size in (0, 1, 488, 489, 1000, 1001)] == [1, 1, 1, 2, 2, 3]
    bits, fanout = format.bitmap_bits(512), format.map_fanout(512)
    assert (bits, fanout) == (488 * 8, 61)
    heights = [format.map_height(pages, 512) for pages in (4, bits, bits + 1, bits * fanout, bits * fanout + 1)]
    assert heights == [0, 0, 1, 1, 2]


def test_a_seal_is_what_the_page_checksum_verifies() -> None:
    body = bytes(range(256)) * 2
    ref, page = format.seal_page(body[:508], 9, zlib.crc32, SEED)
    assert len(page) == 512
    assert format.ref_pgno(ref) == 9
    assert (
        format.page_checksum(page, zlib.crc32, SEED) == format.ref_checksum(ref) == int.from_bytes(page[:4], "little")
    )


@given(st.integers(0, 2**64 - 1), st.integers(2, 2**32 - 1), st.integers(0, 255), st.binary(min_size=1, max_size=5))
def test_a_catalogue_entry_comes_back_as_it_was(root: int, tree_id: int, codec: int, keys: bytes) -> None:
    shape = 0 if len(keys) == 1 else len(keys)
    entry = format.CatalogueEntry(Ref(root), 5, tree_id, codec, shape, keys)
    data = format.encode_catalogue_entry(entry)
    assert format.decode_catalogue_entry(data, "t") == entry
    for wrong in (data[:-1], data + b"\1", b"", data[:21]):
        with pytest.raises(CorruptError) as caught:
            format.decode_catalogue_entry(wrong, "t")
        assert caught.value.table == "t"


def test_a_catalogue_entry_with_a_reserved_tree_is_a_corrupt_error() -> None:
    entry = format.CatalogueEntry(Ref(0), 0, format.FREE_SPACE_TREE, 1, 0, b"\1")
    with pytest.raises(CorruptError, match="reserved"):
        format.decode_catalogue_entry(format.encode_catalogue_entry(entry), "t")
