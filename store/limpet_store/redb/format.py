"""The bytes of a redb file, formats 2 and 3, as far as reading needs them: all of them here and nowhere else.

Functions take bytes and return values; nothing here does I/O. Bytes from a file are never trusted: what does not fit is
`CorruptError` (or `FormatError`, for a file that is not redb, or of a version we do not know). The caller adds offset
and table. All integers are little-endian; "present" bytes are 0 = no, other = yes.

  super-header    OFFSET  SIZE  FIELD                    the first page of the file; bytes 0 to 63 have no checksum
                       0     9  magic                    "redb" 1A 0A A9 0D 0A
                       9     1  flags                    1: primary slot is slot 1; 2: recovery required; 4: two-phase
                      10     2  padding
                      12     4  page_size                4096 in every file made through redb's public API
                      16     4  region_header_pages      in front of the data pages of every region
                      20     4  region_data_pages        of a full region, 1 to 2^20
                      24     4  full_regions             these two are to be trusted only after a clean close
                      28     4  trailing_pages           data pages of the last, partial region; 0 = there is none
                      32    32  not needed
                      64   128  commit slot 0
                     192   128  commit slot 1

  commit slot          0     1  version                  2 or 3 (1: redb 1.x, laid out otherwise)
                       1     1  user root present
                       2     1  system root present
                       3     1  freed root present       format 2 only
                       4     4  padding
                       8    32  user root                catalogue of the tables
                      40    32  system root              catalogue of redb's own tables
                      72    32  freed root               format 2 only
                     104     8  transaction id
                     112    16  checksum                 XXH3-128 of bytes 0 to 111

  root                 0     8  page number
                       8    16  checksum of that page
                      24     8  length                   entries in the leaves of the tree

  page number          bits 0-19 index in the region, in units of the page's own size (only 20 - order bits count)
                       bits 20-39 region, bits 40-58 ignored, bits 59-63 order: the page has page_size << order bytes

  leaf                 0     1  1
                       1     1  padding
                       2     2  n                        entries, at least 1
                       4    4n  ends of the keys         only if keys have no fixed width; offsets in the page
                     ...    4n  ends of the values       only if values have no fixed width
                     ...        keys, then values        the end of the last value is the used length

  branch               0     1  2
                       1     1  padding
                       2     2  n                        separators, at least 1; n + 1 children
                       4     4  padding
                       8  16(n+1)  checksums of the children
                     ...   8(n+1)  page numbers of the children
                     ...    4n  ends of the separators   only if keys have no fixed width
                     ...        separators               the end of the last one is the used length

  table record         0     1  kind                     3 table, 4 multimap
                       1     8  length                   number of pairs
                       9     1  root present             0 = the table is empty
                      10    32  root
                      42   1+4  fixed key width present, width
                      47   1+4  fixed value width present, width
                      52     4  key alignment            1
                      56     4  value alignment          1
                      60     4  L                        size of the key type
                      64     L  key type                 class byte and UTF-8 name
                    64+L  rest  value type               class byte and UTF-8 name

  multimap value       0     1  1: the rest is a leaf of the members; 3: a root (32 bytes) of a tree of the members

A page names neither itself nor its widths nor its checksum: all that stands with its parent, so that one slot fixes
every byte below it. What a checksum covers is the used length, leftovers excluded.

Sources: redb's design document (https://github.com/cberner/redb/blob/master/docs/design.md) and files written by redb
2.6 and 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import le, lt
from typing import Any, Final, NamedTuple

from limpet import CorruptError, FormatError

from .xxh3 import checksum

MAGIC: Final = b"redb\x1a\n\xa9\r\n"
HEADER_SIZE: Final = 320  # the used part of the super-header
PAGE_SIZES: Final = tuple(1 << shift for shift in range(9, 17))  # redb asks for at least 512; its API makes only 4096
MAX_REGION_PAGES: Final = 1 << 20  # the page number has 20 bits for the index
MAX_ORDER: Final = 20
MAX_DEPTH: Final = 128  # redb's own cap; a tree of 10^12 rows is about 12 deep
LEAF: Final = 1
BRANCH: Final = 2
TABLE: Final = 3
MULTIMAP: Final = 4

_PRIMARY: Final = 1
_RECOVERY: Final = 2
_TWO_PHASE: Final = 4

HEADER: Final = struct.Struct("<9sB2x5I32x")
SLOT: Final = struct.Struct("<4B4x32s32s32sQ16s")
ROOT: Final = struct.Struct("<Q16sQ")
RECORD: Final = struct.Struct("<BQB32sBIBIIII")
PAGE_HEAD: Final = struct.Struct("<BxH")
_SLOT_HASHED: Final = 112


# ---------------------------------------------------------------------------------------------- header and slots


class Root(NamedTuple):
    """Where a tree begins."""

    page_number: int
    checksum: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the two commit slots. Nothing but `index` means anything unless `checksum_ok`."""

    index: int
    checksum_ok: bool
    version: int
    transaction_id: int
    user_root: Root | None
    system_root: Root | None
    freed_root: Root | None


@dataclass(frozen=True, slots=True)
class Header:
    """The super-header. `full_regions` and `trailing_pages` may be torn unless the file was closed cleanly."""

    primary: int
    recovery_required: bool
    two_phase: bool
    page_size: int
    region_header_pages: int
    region_data_pages: int
    full_regions: int
    trailing_pages: int
    slots: tuple[Slot, Slot]


def decode_header(data: bytes, file_size: int) -> Header:
    """Take apart the first 320 bytes of a file of `file_size` bytes.

    raises   FormatError: no redb file, or of a version that is older or newer than formats 2 and 3;
             CorruptError: it says redb, but its numbers cannot be
    """
    if not data:
        raise FormatError("the file is empty: no redb file")
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(
            f"not a redb file: it begins with {data[: len(MAGIC)].hex(' ')}, a redb file with {MAGIC.hex(' ')}"
        )
    if len(data) < HEADER_SIZE:
        raise CorruptError("a redb file cut off inside its header", offset=0, expected=HEADER_SIZE, found=len(data))
    (_, flags, page_size, region_header_pages, region_data_pages, full_regions, trailing_pages) = HEADER.unpack_from(
        data
    )
    if flags & ~(_PRIMARY | _RECOVERY | _TWO_PHASE):
        raise FormatError(
            f"flags {flags:#04x} at offset 9 have bits that no released redb sets: a newer or damaged file"
        )
    if page_size not in PAGE_SIZES:
        raise CorruptError("page size of a redb file", offset=12, expected="4096", found=page_size)
    if region_header_pages > MAX_REGION_PAGES:
        raise CorruptError("header pages of a region", offset=16, expected="at most 2^20", found=region_header_pages)
    if not 1 <= region_data_pages <= MAX_REGION_PAGES:
        raise CorruptError("data pages of a region", offset=20, expected="1 to 2^20", found=region_data_pages)
    if file_size < 2 * page_size:
        raise CorruptError("a redb file of less than two pages", offset=0, expected=2 * page_size, found=file_size)
    header = Header(
        primary=flags & _PRIMARY,
        recovery_required=bool(flags & _RECOVERY),
        two_phase=bool(flags & _TWO_PHASE),
        page_size=page_size,
        region_header_pages=region_header_pages,
        region_data_pages=region_data_pages,
        full_regions=full_regions,
        trailing_pages=trailing_pages,
        slots=(decode_slot(data, 0), decode_slot(data, 1)),
    )
    for slot in header.slots:
        if slot.checksum_ok and slot.version == 1:
            raise FormatError(
                "redb file format 1, written by redb 1.x: let a program built with redb 2.x copy its tables first"
            )
        if slot.checksum_ok and slot.version not in (2, 3):
            raise FormatError(f"redb file format {slot.version}: this reader knows formats 2 and 3")
    return header


def decode_slot(data: bytes, index: int) -> Slot:
    """Take commit slot `index` out of the super-header."""
    image = data[HEADER.size + index * SLOT.size :][: SLOT.size]
    version, user_present, system_present, freed_present, user, system, freed, transaction_id, expected = SLOT.unpack(
        image
    )
    return Slot(
        index=index,
        checksum_ok=checksum(image[:_SLOT_HASHED]) == expected,
        version=version,
        transaction_id=transaction_id,
        user_root=decode_root(user) if user_present else None,
        system_root=decode_root(system) if system_present else None,
        freed_root=decode_root(freed) if freed_present and version == 2 else None,
    )


def decode_root(data: bytes) -> Root:
    """Take apart the 32 bytes of a root."""
    return Root(*ROOT.unpack(data))


# ---------------------------------------------------------------------------------------------- page numbers


class Place(NamedTuple):
    """A page in the file: where, how long, and its pages of order 0 as numbers (`unit` on, 2^order of them)."""

    offset: int
    length: int
    unit: int
    order: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What turns page numbers into offsets. `end` is where the file, or the part of it that counts, stops."""

    page_size: int
    region_header_pages: int
    region_data_pages: int
    end: int

    @classmethod
    def of(cls, header: Header, file_size: int) -> Geometry:
        """The geometry of a file; after a clean close its size must agree with the header."""
        end = file_size
        if not header.recovery_required:
            region_pages = header.region_header_pages + header.region_data_pages
            if header.trailing_pages > header.region_data_pages:
                raise CorruptError(
                    "the last region is larger than a full one",
                    offset=28,
                    expected=f"at most {header.region_data_pages}",
                    found=header.trailing_pages,
                )
            pages = 1 + header.full_regions * region_pages
            if header.trailing_pages:
                pages += header.region_header_pages + header.trailing_pages
            end = pages * header.page_size
            if pages == 1:
                raise CorruptError("the file has no regions", offset=24, expected="at least one", found=0)
            if end > file_size:
                raise CorruptError("the file is shorter than its header says", offset=0, expected=end, found=file_size)
        return cls(header.page_size, header.region_header_pages, header.region_data_pages, end)

    def locate(self, page_number: int) -> Place:
        """Check a page number and turn it into a place inside the file.

        raises   CorruptError, before anything is read: an order of 20 asks for 4 GiB
        """
        order = page_number >> 59
        if order > MAX_ORDER:
            raise CorruptError(f"page number {page_number:#x} has order {order}, more than {MAX_ORDER}")
        index = page_number & (0xFFFFF >> order)
        region = page_number >> 20 & 0xFFFFF
        if (index + 1) << order > self.region_data_pages:
            raise CorruptError(f"page number {page_number:#x} lies beyond its region of {self.region_data_pages} pages")
        region_start = 1 + region * (self.region_header_pages + self.region_data_pages)
        first_page = region_start + self.region_header_pages + (index << order)
        offset, length = first_page * self.page_size, self.page_size << order
        if offset + length > self.end:
            raise CorruptError(
                f"page number {page_number:#x} means bytes {offset} to {offset + length}, the file ends at {self.end}"
            )
        return Place(offset, length, region << 20 | index << order, order)


class PageSet:
    """The pages of one snapshot met so far. A page met twice is a cycle, or damage: no page belongs to two places.

    One bit per page of order 0, in pieces of 4 KiB made when needed: 128 MiB of file cost 4 KiB of memory.
    """

    __slots__ = ("_pieces",)

    _PIECE_BITS: Final = 15

    def __init__(self) -> None:
        self._pieces: dict[int, bytearray] = {}

    def add(self, place: Place) -> None:
        """Take in a page.

        raises   CorruptError: the page, or a part of it, is there already
        """
        unit, order = place.unit, place.order
        at = (unit & (1 << self._PIECE_BITS) - 1) >> 3
        if order < 3:
            piece = self._piece(unit >> self._PIECE_BITS)
            mask = (1 << (1 << order)) - 1 << (unit & 7)
            met = bool(piece[at] & mask)
            piece[at] |= mask
        else:
            met = False
            size = 1 << min(order, self._PIECE_BITS) - 3
            for number in range(unit >> self._PIECE_BITS, (unit + (1 << order) - 1 >> self._PIECE_BITS) + 1):
                piece = self._piece(number)
                met = met or any(piece[at : at + size])
                piece[at : at + size] = b"\xff" * size
        if met:
            raise CorruptError("this page is reached twice: a cycle, or two owners", offset=place.offset)

    def _piece(self, number: int) -> bytearray:
        piece = self._pieces.get(number)
        if piece is None:
            piece = self._pieces[number] = bytearray(1 << self._PIECE_BITS - 3)
        return piece


# ---------------------------------------------------------------------------------------------- pages of a tree


class Shape(NamedTuple):
    """Widths of the keys and values of a tree; None where they vary. Pages do not say, their table does."""

    key_width: int | None
    value_width: int | None


CATALOGUE: Final = Shape(None, None)
FREED: Final = Shape(16, None)


def measured_by(head: bytes, shape: Shape) -> int:
    """How many bytes of a page are needed before `used_length` can be told.

    head     at least the first 4 bytes of the page
    raises   CorruptError: neither a leaf nor a branch, or without entries
    """
    n: int
    kind, n = PAGE_HEAD.unpack_from(head)
    if kind not in (LEAF, BRANCH):
        raise CorruptError("kind of a tree page", expected="1 (leaf) or 2 (branch)", found=kind)
    if n == 0:
        raise CorruptError("a tree page without entries")
    if kind == LEAF:
        return 4 + 4 * n * ((shape.key_width is None) + (shape.value_width is None))
    return 8 + 24 * (n + 1) + (4 * n if shape.key_width is None else 0)


def used_length(head: bytes, shape: Shape) -> int:
    """The bytes of a page that its checksum covers.

    head     at least `measured_by` bytes of the page
    returns  as the page says; whether the page is as long is for the caller to check
    """
    kind, n = PAGE_HEAD.unpack_from(head)
    keys_at = measured_by(head, shape)
    if kind == LEAF and shape.value_width is None:
        return _u32(head, keys_at - 4)
    keys_end = _u32(head, keys_at - 4) if shape.key_width is None else keys_at + n * shape.key_width
    return keys_end + (n * shape.value_width if kind == LEAF and shape.value_width is not None else 0)


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def decode_leaf(page: bytes, shape: Shape) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of a leaf.

    page     exactly the used length
    raises   CorruptError: ends outside the page or out of order
    """
    _, n = PAGE_HEAD.unpack_from(page)
    keys_at = measured_by(page, shape)
    if keys_at > len(page):
        raise CorruptError(f"a leaf of {n} entries", expected=f"at least {keys_at} bytes", found=len(page))
    if shape.key_width is None:
        key_ends = struct.unpack_from(f"<{n}I", page, 4)
        keys = _cut(page, keys_at, key_ends)
        values_at = key_ends[-1]
    else:
        keys = _cut_fixed(page, keys_at, n, shape.key_width)
        values_at = keys_at + n * shape.key_width
    if shape.value_width is None:
        value_ends = struct.unpack_from(f"<{n}I", page, keys_at - 4 * n)
        values = _cut(page, values_at, value_ends)
    else:
        values = _cut_fixed(page, values_at, n, shape.value_width)
    return keys, values


def _cut(page: bytes, start: int, ends: tuple[int, ...]) -> list[bytes]:
    if start > ends[0] or ends[-1] > len(page) or not all(map(le, ends, ends[1:])):
        raise CorruptError("the offsets of a page run backwards or leave it")
    return [page[a:b] for a, b in zip((start, *ends), ends, strict=False)]


def _cut_fixed(page: bytes, start: int, n: int, width: int) -> list[bytes]:
    if start + n * width > len(page):
        raise CorruptError(f"{n} entries of {width} bytes from {start} on leave a page of {len(page)} bytes")
    if width == 0:
        return [b""] * n
    return [page[a : a + width] for a in range(start, start + n * width, width)]


def check_separators(page: bytes, shape: Shape) -> None:
    """Check the offsets of the separators of a branch, though a full read has no use for separators.

    raises   CorruptError
    """
    _, n = PAGE_HEAD.unpack_from(page)
    keys_at = measured_by(page, shape)
    if keys_at > len(page):
        raise CorruptError(f"a branch of {n} separators", expected=f"at least {keys_at} bytes", found=len(page))
    if shape.key_width is None:
        ends = struct.unpack_from(f"<{n}I", page, keys_at - 4 * n)
        if keys_at > ends[0] or ends[-1] > len(page) or not all(map(le, ends, ends[1:])):
            raise CorruptError("the separators of a branch run backwards or leave it")


def children(page: bytes) -> Iterator[tuple[int, bytes]]:
    """Page number and checksum of each child of a branch, in key order, taken out one by one."""
    _, n = PAGE_HEAD.unpack_from(page)
    numbers_at = 8 + 16 * (n + 1)
    hashes = page[8:numbers_at]
    numbers = struct.iter_unpack("<Q", page[numbers_at : numbers_at + 8 * (n + 1)])
    # The generator below must not hold on to the page, whose separators may be long.
    return ((number, hashes[16 * i : 16 * i + 16]) for i, (number,) in enumerate(numbers))


# ---------------------------------------------------------------------------------------------- table records, types


class Type(NamedTuple):
    """How redb names the type of keys or values: a class byte and a name."""

    type_class: int
    name: str

    def __str__(self) -> str:
        # 1 is the ordinary case; 3 and 4 mark built-in tuples and other composites of later versions.
        return {1: "", 2: "user-defined ", 3: "", 4: ""}[self.type_class] + self.name


@dataclass(frozen=True, slots=True)
class Record:
    """What the catalogue says of a table."""

    kind: int
    length: int
    root: Root | None
    shape: Shape
    key_type: Type
    value_type: Type


def decode_record(data: bytes) -> Record:
    """Take apart the catalogue's record of a table.

    raises   CorruptError: not what redb writes; FormatError: what a newer redb may write
    """
    if len(data) < RECORD.size + 2:
        raise CorruptError("size of a table record", expected=f"at least {RECORD.size + 2} bytes", found=len(data))
    (
        kind,
        length,
        root_present,
        root_bytes,
        key_fixed,
        key_width,
        value_fixed,
        value_width,
        key_alignment,
        value_alignment,
        type_size,
    ) = RECORD.unpack_from(data)
    if kind not in (TABLE, MULTIMAP):
        raise CorruptError("kind of a table", expected="3 (table) or 4 (multimap)", found=kind)
    if (key_alignment, value_alignment) != (1, 1):
        raise FormatError(f"alignments {key_alignment} and {value_alignment} in a table record: a newer redb wrote it")
    if not 1 <= type_size < len(data) - RECORD.size:
        raise CorruptError("size of the key type in a table record", expected="less than the rest", found=type_size)
    root = decode_root(root_bytes) if root_present else None
    if root is None and length:
        raise CorruptError("a table without a root", expected="0 pairs", found=length)
    if root is not None and kind == TABLE and root.length != length:
        raise CorruptError("a table and its root disagree on the number of pairs", expected=length, found=root.length)
    record = Record(
        kind=kind,
        length=length,
        root=root,
        shape=Shape(key_width if key_fixed else None, value_width if value_fixed else None),
        key_type=_decode_type(data[RECORD.size : RECORD.size + type_size]),
        value_type=_decode_type(data[RECORD.size + type_size :]),
    )
    _check_width(record.key_type, record.shape.key_width)
    _check_width(record.value_type, record.shape.value_width)
    return record


def _decode_type(data: bytes) -> Type:
    if data[0] not in (1, 2, 3, 4):
        raise CorruptError("class of a type in a table record", expected="1 to 4", found=data[0])
    try:
        return Type(data[0], data[1:].decode())
    except UnicodeDecodeError as error:
        raise CorruptError("name of a type in a table record is not UTF-8", found=data[1:]) from error


class Codec(NamedTuple):
    """A type we know. `order` puts raw keys in a form whose comparison is the type's own order."""

    width: int | None
    order: Callable[[list[bytes]], list[Any]]
    decode: Callable[[bytes], object]


def _as_they_are(keys: list[bytes]) -> list[bytes]:
    return keys


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _unsigned(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _float(data: bytes) -> float:
    value: float = struct.unpack("<f" if len(data) == 4 else "<d", data)[0]
    return value


_TEXT: Final = Codec(None, _as_they_are, bytes.decode)
CODECS: Final[dict[Type, Codec]] = {
    Type(1, "&str"): _TEXT,
    Type(1, "String"): _TEXT,
    Type(1, "&[u8]"): Codec(None, _as_they_are, bytes),
    Type(1, "bool"): Codec(1, _as_they_are, any),
    Type(1, "()"): Codec(0, _as_they_are, lambda data: None),  # there is but one value
    Type(1, "char"): Codec(3, lambda keys: list(map(_unsigned, keys)), lambda data: chr(_unsigned(data))),
    Type(1, "f32"): Codec(4, _as_they_are, _float),
    Type(1, "f64"): Codec(8, _as_they_are, _float),
    **{
        Type(1, f"i{8 * width}"): Codec(width, lambda keys: list(map(_signed, keys)), _signed)
        for width in (1, 2, 4, 8, 16)
    },
    **{
        Type(1, f"u{8 * width}"): Codec(width, lambda keys: list(map(_unsigned, keys)), _unsigned)
        for width in (1, 2, 4, 8, 16)
    },
}


def _check_width(type_: Type, width: int | None) -> None:
    codec = CODECS.get(type_)
    if codec is not None and codec.width != width:
        raise CorruptError(f"width of the type {type_.name}", expected=codec.width, found=width)


def check_order(keys: list[bytes], last: bytes | None, type_: Type) -> None:
    """Keys ascend, within a leaf and from one leaf to the next; it also bounds the rows by the bytes read.

    keys     of one leaf
    last     last key of the leaf before, None for the first leaf
    type_    of the keys; of a type we do not know only repetition is seen
    raises   CorruptError
    """
    if last is not None:
        keys = [last, *keys]
    codec = CODECS.get(type_)
    if codec is None:
        if any(a == b for a, b in pairwise(keys)):
            raise CorruptError("a key comes twice")
        return
    ordered = codec.order(keys)
    if not all(map(lt, ordered, ordered[1:])):
        raise CorruptError(f"the keys do not ascend in the order of {type_.name}")


def decode_collection(data: bytes) -> bytes | Root:
    """What stands in a multimap in place of a value: a leaf image of the members, or the root of their tree.

    raises   CorruptError
    """
    if len(data) >= 5 and data[0] == 1 and data[1] == LEAF:
        return data[1:]
    if len(data) == 1 + ROOT.size and data[0] == 3:
        return decode_root(data[1:])
    raise CorruptError("values of a multimap key", expected="a leaf image or a root", found=data[:8].hex(" "))
