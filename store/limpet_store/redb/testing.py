"""Makes redb files, honest and hostile ones, for tests and fuzzing. Nothing that the package does needs it.

    maker = RedbMaker()
    maker.add_table("kv", [("a", "x"), ("key", "value")])
    data = maker.file()

The trees are built from the bottom up, leaf by leaf, and every page lands where the one before ended, so no file made
here is one that redb would have made; it is one that redb could read. `add_page` takes any bytes as a page and gives
the page number and the checksum for a parent, which makes hostile trees with perfect checksums a few lines long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from .format import (
    BRANCH,
    CATALOGUE,
    CODECS,
    HEADER,
    HEADER_SIZE,
    LEAF,
    MAGIC,
    MULTIMAP,
    PAGE_HEAD,
    RECORD,
    ROOT,
    SLOT,
    TABLE,
    Root,
    Shape,
    Type,
)
from .xxh3 import checksum

Value = str | int | bytes | bool | None

STR: Final = Type(1, "&str")
I64: Final = Type(1, "i64")


def encode(value: Value, type_: Type) -> bytes:
    """A Python value as redb stores it."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    codec = CODECS[type_]
    return value.to_bytes(codec.width or 1, "little", signed=type_.name.startswith("i"))


def width(type_: Type) -> int | None:
    """The fixed width of a type we know, None where it varies or we do not know it."""
    return CODECS[type_].width if type_ in CODECS else None


def encode_leaf(pairs: Sequence[tuple[bytes, bytes]], shape: Shape) -> bytes:
    """The used bytes of a leaf."""
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    at = 4 + 4 * len(pairs) * ((shape.key_width is None) + (shape.value_width is None))
    ends: list[int] = []
    for item in (*keys, *values):
        at += len(item)
        ends.append(at)
    wanted = (ends[: len(keys)] if shape.key_width is None else []) + (
        ends[len(keys) :] if shape.value_width is None else []
    )
    return b"".join((PAGE_HEAD.pack(LEAF, len(pairs)), struct.pack(f"<{len(wanted)}I", *wanted), *keys, *values))


def encode_branch(children: Sequence[tuple[int, bytes]], separators: Sequence[bytes], shape: Shape) -> bytes:
    """The used bytes of a branch; children are (page number, checksum)."""
    at = 8 + 24 * len(children) + (4 * len(separators) if shape.key_width is None else 0)
    ends: list[int] = []
    for separator in separators:
        at += len(separator)
        ends.append(at)
    return b"".join(
        (
            PAGE_HEAD.pack(BRANCH, len(separators)),
            bytes(4),
            *(digest for _, digest in children),
            *(struct.pack("<Q", number) for number, _ in children),
            struct.pack(f"<{len(ends)}I", *ends) if shape.key_width is None else b"",
            *separators,
        )
    )


def encode_record(
    kind: int, length: int, root: Root | None, key_type: Type, value_type: Type, shape: Shape | None = None
) -> bytes:
    """The catalogue's record of a table."""
    shape = Shape(width(key_type), width(value_type)) if shape is None else shape
    key_name = bytes([key_type.type_class]) + key_type.name.encode()
    return (
        RECORD.pack(
            kind,
            length,
            root is not None,
            bytes(ROOT.size) if root is None else ROOT.pack(*root),
            shape.key_width is not None,
            shape.key_width or 0,
            shape.value_width is not None,
            shape.value_width or 0,
            1,
            1,
            len(key_name),
        )
        + key_name
        + bytes([value_type.type_class])
        + value_type.name.encode()
    )


def encode_slot(
    version: int, transaction_id: int, user: Root | None, system: Root | None = None, freed: Root | None = None
) -> bytes:
    """A commit slot with its checksum."""
    roots = (user, system, freed)
    image = SLOT.pack(
        version,
        *(root is not None for root in roots),
        *(bytes(ROOT.size) if root is None else ROOT.pack(*root) for root in roots),
        transaction_id,
        bytes(16),
    )[:-16]
    return image + checksum(image)


class RedbMaker:
    """A redb file under construction.

    page_size             of order 0
    region_header_pages   130 in files that redb 2 created, 0 in later ones
    region_data_pages     pages of a region; few of them make a file of many regions
    format_version        2 or 3
    """

    def __init__(
        self,
        *,
        page_size: int = 4096,
        region_header_pages: int = 0,
        region_data_pages: int = 1 << 20,
        format_version: int = 3,
    ) -> None:
        self.page_size = page_size
        self.region_header_pages = region_header_pages
        self.region_data_pages = region_data_pages
        self.format_version = format_version
        self.records: dict[str, bytes] = {}
        self.system_records: dict[str, bytes] = {}
        self._pages = bytearray()  # all after the super-header
        self._region = 0
        self._next = 0  # first page of the region that was never used

    def add_page(self, image: bytes, *, order: int | None = None) -> tuple[int, bytes]:
        """Place `image` as a page of the order it needs, or a higher one.

        returns  (page number, checksum of all of `image`)
        """
        if order is None:
            order = max(0, (len(image) - 1) // self.page_size).bit_length()
        length = self.page_size << order
        start = (self._next + (1 << order) - 1) >> order << order
        if start + (1 << order) > self.region_data_pages:
            self._region += 1
            start = 0
        self._next = start + (1 << order)
        region_pages = self.region_header_pages + self.region_data_pages
        offset = (self._region * region_pages + self.region_header_pages + start) * self.page_size
        if len(self._pages) < offset + length:
            self._pages.extend(bytes(offset + length - len(self._pages)))
        self._pages[offset : offset + len(image)] = image
        return order << 59 | self._region << 20 | start >> order, checksum(image)

    def add_tree(self, pairs: Iterable[tuple[bytes, bytes]], shape: Shape) -> Root | None:
        """A tree of `pairs`, which come in the order of their keys; None where there are none."""
        level: list[tuple[bytes, tuple[int, bytes]]] = []  # (largest key, page)
        leaf: list[tuple[bytes, bytes]] = []
        size = count = 0
        for key, value in pairs:
            entry_size = len(key) + len(value) + 8
            if leaf and 4 + size + entry_size > self.page_size:
                level.append((leaf[-1][0], self.add_page(encode_leaf(leaf, shape))))
                leaf, size = [], 0
            leaf.append((key, value))
            size += entry_size
            count += 1
        if not count:
            return None
        level.append((leaf[-1][0], self.add_page(encode_leaf(leaf, shape))))
        while len(level) > 1:
            parents: list[tuple[bytes, tuple[int, bytes]]] = []
            fan_out = max(2, (self.page_size - 32) // (28 + max(len(key) for key, _ in level)))
            for at in range(0, len(level), fan_out):
                group = level[at : at + fan_out]
                if len(group) == 1:  # a branch needs two children; depths may differ
                    parents.append(group[0])
                    continue
                image = encode_branch([page for _, page in group], [key for key, _ in group[:-1]], shape)
                parents.append((group[-1][0], self.add_page(image)))
            level = parents
        return Root(*level[0][1], count)

    def add_table(
        self,
        name: str,
        rows: Iterable[tuple[Value, Value]],
        key_type: Type = STR,
        value_type: Type = STR,
        *,
        system: bool = False,
    ) -> None:
        """A table of `rows`, which come in the order of their keys."""
        shape = Shape(width(key_type), width(value_type))
        root = self.add_tree(((encode(key, key_type), encode(value, value_type)) for key, value in rows), shape)
        record = encode_record(TABLE, root.length if root else 0, root, key_type, value_type)
        (self.system_records if system else self.records)[name] = record

    def add_multimap(
        self,
        name: str,
        rows: Iterable[tuple[Value, Sequence[Value]]],
        key_type: Type = STR,
        value_type: Type = STR,
        *,
        inline: int = 5,
    ) -> None:
        """A multimap; keys with more than `inline` members get a tree of their own."""
        members_shape = Shape(width(value_type), 0)
        pairs: list[tuple[bytes, bytes]] = []
        length = 0
        for key, values in rows:
            members = [(encode(value, value_type), b"") for value in values]
            length += len(members)
            if len(members) <= inline:
                collection = b"\x01" + encode_leaf(members, members_shape)
            else:
                root = self.add_tree(members, members_shape)
                collection = b"" if root is None else b"\x03" + ROOT.pack(*root)
            pairs.append((encode(key, key_type), collection))
        outer = self.add_tree(pairs, Shape(width(key_type), None))
        self.records[name] = encode_record(MULTIMAP, length, outer, key_type, value_type)

    def add_catalogue(self, *, system: bool = False) -> Root | None:
        """The tree of the tables so far."""
        records = self.system_records if system else self.records
        return self.add_tree(((name.encode(), records[name]) for name in sorted(records)), CATALOGUE)

    def slot(self, transaction_id: int, user: Root | None = None) -> bytes:
        """A commit slot of all tables so far, or of another user root."""
        root = self.add_catalogue() if user is None else user
        return encode_slot(self.format_version, transaction_id, root, self.add_catalogue(system=True))

    def file(self, slots: tuple[bytes, bytes] | None = None, *, flags: int = 4) -> bytes:
        """The whole file.

        slots    slot 0 and slot 1; without them slot 0 is a commit of all tables and slot 1 an empty one before it
        flags    1 = slot 1 is the primary, 2 = recovery required, 4 = two-phase
        """
        if slots is None:
            slots = self.slot(2), encode_slot(self.format_version, 1, None)
        region_pages = self.region_header_pages + self.region_data_pages
        full, rest = divmod(len(self._pages) // self.page_size, region_pages)
        trailing = max(rest - self.region_header_pages, 0)
        if not full and not trailing:
            trailing = 1
            self._pages.extend(bytes((self.region_header_pages + 1) * self.page_size))
        header = HEADER.pack(
            MAGIC, flags, self.page_size, self.region_header_pages, self.region_data_pages, full, trailing
        )
        assert HEADER.size + 2 * SLOT.size == HEADER_SIZE
        return b"".join((header, *slots, bytes(self.page_size - HEADER_SIZE), self._pages))
