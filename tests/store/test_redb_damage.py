"""Any bytes opened as a redb file either give rows that were written, or raise FormatError or CorruptError: no other
exception, no hang, no unbounded memory. (LimitError for a row above `max_page_size` is in test_redb_reader.)"""

from __future__ import annotations

import lzma
import random
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from limpet import CorruptError, FormatError, LimpetError
from limpet_store.redb import BytesSource, RedbFile, reader, xxh3
from limpet_store.redb import format as layout
from limpet_store.redb.format import CATALOGUE, MULTIMAP, TABLE, Root, Shape, Type
from limpet_store.redb.testing import I64, STR, RedbMaker, encode_branch, encode_leaf, encode_record

DATA = Path(__file__).parents[1] / "data" / "redb"
FILES = ("v2-crashed", "v2-small", "v3-by-2.6", "v3-crashed", "v3-small")
TYPED = (FormatError, CorruptError)
Rows = dict[str, list[tuple[bytes, bytes]]]


@cache
def contents(name: str) -> bytes:
    return lzma.decompress((DATA / f"{name}.redb.xz").read_bytes())


@cache
def rows_of(name: str, slot: int | None = None) -> Rows:
    with RedbFile(BytesSource(contents(name)), slot=slot) as file:
        return {table.name: list(table.items()) for table in file.tables()}


@cache
def bytes_in_use(name: str) -> list[int]:
    """Offsets of the first bytes of the pages that the commit uses: half of a file is free space."""
    used: list[int] = []

    class Spy(BytesSource):
        def read(self, offset: int, size: int) -> bytes:
            used.append(offset)
            return super().read(offset, size)

    with RedbFile(Spy(contents(name))) as file:
        for table in file.tables():
            for _ in table.items():
                pass
    return sorted(set(used))


def read_all(data: bytes | bytearray) -> tuple[Rows, bool, LimpetError | None]:
    """The rows before the first error, whether a newer commit was rejected, and the error, if it has a type of ours."""
    rows: Rows = {}
    rejected = False
    try:
        with RedbFile(BytesSource(data)) as file:
            rejected = bool(file.commit.rejected)
            for table in file.tables():
                rows[table.name] = []
                rows[table.name].extend(table.items())  # keeps what came before an error
    except TYPED as error:
        return rows, rejected, error
    return rows, rejected, None


def assert_no_wrong_row(name: str, data: bytes | bytearray, what: str) -> bool:
    """Whether the damage was seen."""
    started = time.process_time()  # of this process alone: others may be using the machine
    rows, rejected, error = read_all(data)
    assert time.process_time() - started < 2, what
    # After a crash, damage to the newest commit looks like a torn one: the one before counts, and the reader says so.
    for expected in (rows_of(name, slot) for slot in ((0, 1) if rejected and "crashed" in name else (None,))):
        if error is None:
            if rows == expected:
                return False
        elif all(found == expected.get(table, [])[: len(found)] for table, found in rows.items()):
            return True
    raise AssertionError(f"{what}: wrong rows")


def test_flipped_bytes_give_no_wrong_row(seed: int) -> None:
    source = random.Random(seed)
    seen = 0
    for number in range(2000):
        (name,) = source.choices(FILES, weights=(1, 3, 1, 1, 3))  # the large ones are slow
        data = bytearray(contents(name))
        # A third anywhere, a third in pages in use, a third in what steers: the header, or the head of a page.
        offset = (
            source.randrange(len(data)),
            min(source.choice(bytes_in_use(name)) + source.randrange(4096), len(data) - 1),
            source.choice((source.randrange(320), source.choice(bytes_in_use(name)) + source.randrange(64))),
        )[number % 3]
        flip = source.choice((1 << source.randrange(8), source.randrange(1, 256)))
        if offset == 9 and (flip & 3 == 3 or ("crashed" in name and flip & 5)):
            continue  # the flag byte says what kind of crash it was; nothing checks that, and redb cannot tell either
        data[offset] ^= flip
        seen += assert_no_wrong_row(name, data, f"seed {seed}: {name}, byte {offset} ^ {flip:#04x}")
    assert seen > 200


def test_truncated_files_give_no_wrong_row(seed: int) -> None:
    source = random.Random(seed)
    for number in range(150):
        name = source.choice(FILES)
        data = contents(name)
        size = source.choice((source.randrange(len(data)), source.randrange(len(data) // 4096) * 4096, number * 5))
        rows, _, error = read_all(data[:size])
        if error is None:
            assert "crashed" in name  # the size that a clean close leaves is known
            assert rows in (rows_of(name), rows_of(name, 0), rows_of(name, 1))


def test_appended_bytes_are_ignored_and_mentioned() -> None:
    with RedbFile(BytesSource(contents("v3-small") + bytes(5000))) as file:
        assert file.report().ok
        assert "5000 bytes follow" in file.commit.warnings[0]


# ---------------------------------------------------------------------------------------------- perfect checksums


def one_table(kind: int, root: Root | None, length: int, key: Type, value: Type, shape: Shape) -> Callable[..., bytes]:
    def make(maker: RedbMaker) -> bytes:
        maker.records["t"] = encode_record(kind, length, root, key, value, shape)
        return maker.file()

    return make


VARIABLE = Shape(None, None)
POINT = Type(2, "Point")


def leaf(*pairs: tuple[bytes, bytes]) -> bytes:
    return encode_leaf(pairs, VARIABLE)


def repeated_child(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    child = maker.add_page(leaf((b"a", b"1")))
    return maker.add_page(encode_branch([child, child], [b"a"], VARIABLE)), 2


def overlapping_children(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    large = maker.add_page(leaf((b"a", b"1")) + bytes(4), order=2)
    number = maker.add_page(leaf((b"b", b"1")), order=2)[0]
    image = leaf((b"c", b"1"))
    inside = (number & 0xFFFFF) * 4 + 1
    maker._pages[inside * 4096 : inside * 4096 + len(image)] = image
    second = (number, xxh3.checksum(leaf((b"b", b"1"))))
    third = (inside, xxh3.checksum(image))
    first = (large[0], xxh3.checksum(leaf((b"a", b"1"))))
    return maker.add_page(encode_branch([first, second, third], [b"a", b"b"], VARIABLE)), 3


def too_deep(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    page = maker.add_page(leaf((b"%05d" % 999, b"")))
    for depth in range(200, 0, -1):
        first = maker.add_page(leaf((b"%05d" % depth, b"")))
        page = maker.add_page(encode_branch([first, page], [b"%05d" % depth], VARIABLE))
    return page, 201


def order_of_31(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    number, digest = maker.add_page(leaf((b"a", b"1")))
    return (number | 31 << 59, digest), 1


def order_of_20(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    number, digest = maker.add_page(leaf((b"a", b"1")))
    return (number | 20 << 59, digest), 1


def backwards(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(leaf((b"b", b"1"), (b"a", b"2"))), 2


def backwards_across_leaves(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    first, second = maker.add_page(leaf((b"b", b"1"))), maker.add_page(leaf((b"a", b"2")))
    return maker.add_page(encode_branch([first, second], [b"b"], VARIABLE)), 2


def too_few(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(leaf((b"a", b"1"))), 2


def too_many(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(leaf((b"a", b"1"), (b"b", b"2"))), 1


def absurdly_many(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(leaf((b"a", b"1"))), 1 << 63


def no_entries(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(b"\1\0\0\0" + bytes(20)), 1


def more_offsets_than_page(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(b"\1\0\xff\xff" + bytes(20)), 65535


def more_children_than_page(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(b"\2\0\xff\xff" + bytes(20)), 65535


def value_of_3_gib(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(struct.pack("<BxHII", 1, 1, 13, 3 << 30) + b"a"), 1


def ends_before_it_begins(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    return maker.add_page(struct.pack("<BxHII", 1, 1, 13, 0) + b"a"), 1


def separators_backwards(maker: RedbMaker) -> tuple[tuple[int, bytes], int]:
    pages = [maker.add_page(leaf((key, b""))) for key in (b"a", b"b", b"c")]
    image = bytearray(encode_branch(pages, [b"a", b"b"], VARIABLE))
    struct.pack_into("<I", image, 8 + 24 * 3, 4000)
    return maker.add_page(bytes(image)), 3


HOSTILE = [
    repeated_child,
    overlapping_children,
    too_deep,
    order_of_31,
    order_of_20,
    backwards,
    backwards_across_leaves,
    too_few,
    too_many,
    absurdly_many,
    no_entries,
    more_offsets_than_page,
    more_children_than_page,
    value_of_3_gib,
    ends_before_it_begins,
    separators_backwards,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=[hostile.__name__ for hostile in HOSTILE])
@pytest.mark.parametrize("flags", [4, 2], ids=["clean", "crashed"])
def test_hostile_trees_with_perfect_checksums_are_refused(
    hostile: Callable[[RedbMaker], tuple[tuple[int, bytes], int]], flags: int
) -> None:
    maker = RedbMaker()
    page, length = hostile(maker)
    maker.records["t"] = encode_record(TABLE, length, Root(*page, length), STR, STR)
    data = maker.file((maker.slot(2), bytes(128)), flags=flags)  # no other commit to fall back to
    with pytest.raises(CorruptError):
        read_error(data)
    if flags == 4:
        with RedbFile(BytesSource(data)) as file:
            assert not file.report().ok


def read_error(data: bytes) -> None:
    error = read_all(data)[2]
    if error is not None:
        raise error


def test_rows_without_bytes_are_bounded() -> None:
    # 65,535 pairs of no width fit in four bytes, so nothing but their order bounds them.
    maker = RedbMaker()
    page = maker.add_page(b"\1\0\xff\xff")
    for type_ in (Type(1, "()"), POINT):
        maker.records["t"] = encode_record(TABLE, 65535, Root(*page, 65535), type_, type_, Shape(0, 0))
        with pytest.raises(CorruptError, match=r"ascend|twice"):
            read_error(maker.file())
    maker.records["t"] = encode_record(
        MULTIMAP, 65535, Root(*maker.add_page(leaf((b"a", b"\1\1\0\xff\xff"))), 1), STR, POINT, Shape(None, 0)
    )
    with pytest.raises(CorruptError, match="twice"):
        read_error(maker.file())


def test_a_tree_with_two_owners_is_in_the_report() -> None:
    maker = RedbMaker()
    maker.add_table("t", [("a", "1")])
    maker.records["u"] = maker.records["t"]
    with RedbFile(BytesSource(maker.file())) as file:
        report = file.report()
    assert "twice" in report.errors[0]
    assert report.tables[1].damage is not None


def test_the_catalogue_is_not_trusted_either() -> None:
    def with_catalogue(*pairs: tuple[bytes, bytes], length: int = 0) -> bytes:
        maker = RedbMaker()
        root = Root(*maker.add_page(encode_leaf(pairs, CATALOGUE)), length or len(pairs))
        return maker.file((maker.slot(2, root), maker.slot(1)))

    good = encode_record(TABLE, 0, None, STR, I64)
    assert read_all(with_catalogue((b"t", good))) == ({"t": []}, False, None)
    for data in (
        with_catalogue((b"\xff", good)),
        with_catalogue((b"u", good), (b"t", good)),
        with_catalogue((b"t", good), length=2),
        with_catalogue((b"t", b"")),
        with_catalogue((b"t", good[:60])),
        with_catalogue((b"t", encode_record(TABLE, 5, None, STR, I64))),
        with_catalogue((b"t", encode_record(TABLE, 5, Root(0, bytes(16), 6), STR, I64))),
    ):
        with pytest.raises(CorruptError):
            read_error(data)


@pytest.fixture
def any_checksum_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forger's dream: rules other than the checksum have to hold on their own."""

    class Fits(bytes):
        __slots__ = ()
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    def checksum(data: bytes) -> bytes:
        return Fits(16)

    monkeypatch.setattr(reader, "checksum", checksum)
    monkeypatch.setattr(layout, "checksum", checksum)


def test_a_cycle_ends(any_checksum_fits: None) -> None:
    for loop_to in (0, 1):
        maker = RedbMaker()
        first = maker.add_page(leaf((b"a", b"1")))
        image = encode_branch([first, (loop_to, bytes(16))], [b"a"], VARIABLE)
        page = maker.add_page(image)
        maker.records["t"] = encode_record(TABLE, 9, Root(*page, 9), STR, STR)
        for flags in (4, 2):
            with pytest.raises(CorruptError, match="twice"):
                read_error(maker.file(flags=flags))


def mutations(source: random.Random) -> Iterator[bytearray]:
    maker = RedbMaker(page_size=512, region_data_pages=256)
    maker.add_table("text", [(f"k{i:02}", "v" * (i * 37 % 900)) for i in range(40)])
    maker.add_table("numbers", [(i, i) for i in range(100)], I64, I64)
    maker.add_multimap("members", [("a", ["x", "y"]), ("b", [f"{i:03}" for i in range(200)])])
    originals = [maker.file(flags=flags) for flags in (4, 2)]
    while True:
        data = bytearray(source.choice(originals))
        for _ in range(source.choice((1, 1, 2, 5))):
            page = source.randrange(len(data) // 512) * 512
            offset = source.choice((page + source.randrange(64), source.randrange(len(data))))
            patch = source.choice(
                (b"\0", b"\xff", b"\xff\xff\xff\xff", bytes(8), source.randbytes(source.randrange(1, 9)))
            )
            data[offset : offset + len(patch)] = patch
        yield data


def test_without_checksums_damage_still_gives_typed_errors_in_time(any_checksum_fits: None, seed: int) -> None:
    errors = 0
    for number, data in zip(range(700), mutations(random.Random(seed)), strict=False):
        started = time.process_time()
        try:
            with RedbFile(BytesSource(data)) as file:
                list(file.report().lines())
                for table in file.tables():
                    for _ in table.rows():
                        pass
        except TYPED:
            errors += 1
        assert time.process_time() - started < 2, f"seed {seed}, number {number}"
    assert errors > 200
