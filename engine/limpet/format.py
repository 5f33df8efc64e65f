"""File format 2 in code: structs, constants and limits, and what encodes, decodes and verifies each record.

The byte tables are in engine/FORMAT.md and nowhere else; tests/engine/test_format_document.py compares
them with this module. In short, a file is a sequence of pages of one size:

    page 0        header    written once, when the file is created, and never again
    pages 1, 2    metas     each names a checkpoint: the trees as of one commit; they take turns
    page 3        holder    who has the file open, as JSON text; advisory, trusted by nothing
    pages 4 ..    nodes     branch, leaf, overflow and free-space pages
                  log       one run of pages, which the meta names: what was committed since

All integers are little-endian and unsigned. A reference is a page number and the checksum that the
page carries, so it pins the content of all pages below it. A stamp is a txid and 16 random bits.
An epoch is what is logged on top of one checkpoint; it is named by the stamp of its meta.

Invariant: each page in [4, high_water) is exactly one of: reached once from the meta, in its log,
or marked free in its free-space map.

No I/O. Nothing here believes what it decodes: a decoder checks the checksum first, then the fields.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NewType

from .checksum import KIND_NAMES, Buffer, ChecksumFunction
from .errors import CorruptError, FormatError, UpgradeRequiredError, command

Pgno = NewType("Pgno", int)
Txid = NewType("Txid", int)
Ref = NewType("Ref", int)  # pgno + checksum << 32; 0 is "nothing"

MAGIC = b"\x89LMPT\r\n\x1a"
FORMAT_VERSION = 2
MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 65536
DEFAULT_PAGE_SIZE = 4096
MAX_PAGES = 1 << 32  # page numbers are 32-bit: 16 TiB of 4 KiB pages
MAX_VALUE_SIZE = (1 << 32) - 1
MAX_LEVEL = 40  # far above any real tree: a page has at least four children
KNOWN_INCOMPATIBLE = 0
KNOWN_READ_ONLY = 0

HEADER_PGNO = Pgno(0)
META_PGNOS = (Pgno(1), Pgno(2))
HOLDER_PGNO = Pgno(3)
FIRST_NODE_PGNO = Pgno(4)

LEAF = 1
BRANCH = 2
OVERFLOW = 3
FREE_SPACE = 4
LOG = 5
PAGE_KIND_NAMES = {LEAF: "leaf", BRANCH: "branch", OVERFLOW: "overflow", FREE_SPACE: "free-space", LOG: "log"}

CATALOGUE_TREE = 0
FREE_SPACE_TREE = 1
FIRST_TABLE_TREE = 2

FLAG_CLEAN = 1


def _record(*fields: tuple[str, str]) -> tuple[struct.Struct, tuple[tuple[str, int], ...]]:
    """(name, struct code) of each field in order -> (the struct, (name, size in bytes) of each field)."""
    sizes = tuple((name, struct.calcsize(f"<{code}")) for name, code in fields)
    return struct.Struct("<" + "".join(code for _, code in fields)), sizes


HEADER, HEADER_FIELDS = _record(
    ("magic", "8s"),
    ("format_version", "I"),
    ("page_size", "I"),
    ("checksum_kind", "I"),
    ("features_incompatible", "I"),
    ("features_read_only", "I"),
    ("file_id", "16s"),
    ("created_us", "Q"),
    ("checksum", "I"),
)
META, META_FIELDS = _record(
    ("checksum", "I"),
    ("flags", "I"),
    ("stamp", "Q"),
    ("catalogue_root", "Q"),
    ("free_space_root", "Q"),
    ("high_water", "Q"),
    ("free_count", "Q"),
    ("table_count", "I"),
    ("next_tree_id", "I"),
    ("commit_us", "Q"),
    ("log_start", "I"),
    ("log_size", "I"),
    ("slot", "I"),
    ("zero", "20x"),
)
PAGE, PAGE_FIELDS = _record(
    ("checksum", "I"),
    ("kind", "B"),
    ("level", "B"),
    ("count", "H"),
    ("pgno", "I"),
    ("tree_id", "I"),
    ("stamp", "Q"),
)
LOG_RECORD, LOG_RECORD_FIELDS = _record(  # after the page header; the changes follow
    ("epoch", "Q"),
    ("durable_txid", "Q"),
    ("commit_us", "Q"),
    ("previous", "I"),
    ("size", "I"),
)
LOG_GROUP, LOG_GROUP_FIELDS = _record(("tree_id", "I"), ("change_count", "I"))
LOG_CHANGE, LOG_CHANGE_FIELDS = _record(("key_size", "H"), ("value_size", "I"))  # key and value follow
LOG_DELETE = (1 << 32) - 1  # in the place of a value's size
OVERFLOW_RECORD, OVERFLOW_RECORD_FIELDS = _record(("value_size", "I"), ("reference", "Q"))
CATALOGUE_ENTRY, CATALOGUE_ENTRY_FIELDS = _record(  # one byte for each codec of the key follows
    ("root", "Q"),
    ("entry_count", "Q"),
    ("tree_id", "I"),
    ("value_codec", "B"),
    ("key_shape", "B"),
)
CHECKSUM = struct.Struct("<I")
PAGE_AFTER_CHECKSUM = struct.Struct("<" + PAGE.format[2:])  # without the "<I" that the checksum takes
LEAF_OVERFLOW_COUNT = struct.Struct("<H")

HEADER_SIZE = HEADER.size
META_SIZE = META.size
PAGE_HEADER_SIZE = PAGE.size
LOG_CHANGES_AT = PAGE_HEADER_SIZE + LOG_RECORD.size
LEAF_ARRAYS_AT = PAGE_HEADER_SIZE + LEAF_OVERFLOW_COUNT.size
REF_SIZE = 8
END_SIZE = 2

_TXID_BITS = 48
_TXID_MASK = (1 << _TXID_BITS) - 1
MAX_TXID = _TXID_MASK
_PGNO_MASK = (1 << 32) - 1


def make_ref(pgno: int, checksum: int) -> Ref:
    """A reference to the page `pgno` whose content has `checksum`."""
    return Ref(pgno | checksum << 32)


def ref_pgno(ref: int) -> Pgno:
    """The page number in a reference."""
    return Pgno(ref & _PGNO_MASK)


def ref_checksum(ref: int) -> int:
    """The checksum in a reference."""
    return ref >> 32


def make_stamp(txid: int, nonce: int) -> int:
    """The number that marks all pages of one attempt at one commit."""
    return txid | nonce << _TXID_BITS


def stamp_txid(stamp: int) -> Txid:
    """The txid in a stamp."""
    return Txid(stamp & _TXID_MASK)


def stamp_nonce(stamp: int) -> int:
    """The 16 random bits in a stamp; they tell two attempts at one txid apart."""
    return stamp >> _TXID_BITS


# -- limits that follow from the page size -------------------------------------------------------


def page_capacity(page_size: int) -> int:
    """Bytes of a leaf or branch that can be used: ends are 16-bit, so the last byte of 64 KiB is not."""
    return min(page_size, 0xFFFF)


def max_key_size(page_size: int) -> int:
    """The largest encoded key in bytes: a quarter page, so that a branch has at least four children."""
    return page_size // 4


def max_inline_entry(page_size: int) -> int:
    """Key plus value in bytes beyond which the value goes to overflow pages: half a leaf."""
    return (page_capacity(page_size) - LEAF_ARRAYS_AT) // 2 - 2 * END_SIZE


def overflow_page_count(value_size: int, page_size: int) -> int:
    """Pages in the run that holds a value of `value_size` bytes."""
    return -(-(PAGE_HEADER_SIZE + value_size) // page_size)


def bitmap_bits(page_size: int) -> int:
    """Pages covered by one bitmap page."""
    return (page_size - PAGE_HEADER_SIZE) * 8


def map_fanout(page_size: int) -> int:
    """References in one inner page of the free-space map."""
    return (page_size - PAGE_HEADER_SIZE) // REF_SIZE


def map_height(high_water: int, page_size: int) -> int:
    """The level of the root of the free-space map: just enough to cover `high_water` pages."""
    height, covered = 0, bitmap_bits(page_size)
    while covered < high_water:
        height += 1
        covered *= map_fanout(page_size)
    return height


def log_record_pages(size: int, page_size: int) -> int:
    """Pages of a log record that holds `size` bytes of changes."""
    return -(-(LOG_CHANGES_AT + size) // page_size)


# -- header --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """The identity of a file: page 0, decoded."""

    page_size: int
    checksum_kind: int
    file_id: bytes
    created_us: int
    format_version: int = FORMAT_VERSION
    features_incompatible: int = 0
    features_read_only: int = 0


def encode_header(header: Header) -> bytes:
    """The bytes at the head of page 0."""
    body = HEADER.pack(
        MAGIC,
        header.format_version,
        header.page_size,
        header.checksum_kind,
        header.features_incompatible,
        header.features_read_only,
        header.file_id,
        header.created_us,
        0,
    )[: -CHECKSUM.size]
    return body + CHECKSUM.pack(zlib.crc32(body))


def begins_like_ours(data: bytes) -> bool:
    """Whether a file that begins with these bytes is a Limpet file of any version, its magic perhaps damaged."""
    return data[: len(MAGIC)] == MAGIC or _holds_with(data, 0, MAGIC)


def header_damage(data: bytes) -> str | None:
    """What is wrong with the header of a file that begins like ours; None if it is whole.

    The magic, the version and the checksum keep their places in every later format, so this holds for those too, and
    nothing that a header says is believed before it: a version that its checksum does not confirm is no version.

    data     the first HEADER_SIZE bytes of the file, or fewer if it is shorter
    """
    if len(data) < HEADER_SIZE:
        return f"the header is cut off after {len(data)} of {HEADER_SIZE} bytes"
    stored: int = CHECKSUM.unpack_from(data, HEADER_SIZE - CHECKSUM.size)[0]
    found = zlib.crc32(data[: HEADER_SIZE - CHECKSUM.size])
    if found == stored:
        return None
    text = f"the header is damaged (expected checksum {stored:#010x}, found {found:#010x})"
    if _holds_with(data, 0, MAGIC):
        return f"{text}: its first {len(MAGIC)} bytes are wrong, and only those"
    for version in range(1, FORMAT_VERSION + 1):
        if _holds_with(data, len(MAGIC), version.to_bytes(4, "little")):
            said = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
            return f"{text}: the version in it says format {said}, and by the checksum it was format {version}"
    return text


def _holds_with(data: bytes, offset: int, right: bytes) -> bool:
    """Whether the checksum of a header holds if these bytes are put into it."""
    if len(data) < HEADER_SIZE:
        return False
    body = data[:offset] + right + data[offset + len(right) : HEADER_SIZE - CHECKSUM.size]
    return CHECKSUM.pack(zlib.crc32(body)) == data[HEADER_SIZE - CHECKSUM.size : HEADER_SIZE]


def decode_header(data: bytes, path: str) -> Header:
    """Decode and verify page 0.

    data     the first HEADER_SIZE bytes of the file, or fewer if it is shorter
    path     for the messages
    raises   FormatError: not ours, damaged, or newer; UpgradeRequiredError: older
    """
    if not data:
        raise FormatError(
            f"{path}: the file is empty; a Limpet file never is, so this may be somebody's lost data. "
            "Move it away to start afresh"
        )
    if not begins_like_ours(data):
        raise FormatError(
            f"{path}: not a Limpet file, or the head of one is lost (expected it to begin with {MAGIC!r}, found "
            f"{data[: len(MAGIC)]!r}); {command('check', path)} looks whether there are pages of one"
        )
    damage = header_damage(data)
    if damage is not None:
        raise FormatError(f"{path}: {damage}; {command('check', path)} says what can be saved, and how")
    _, version, page_size, kind, incompatible, read_only, file_id, created_us, _ = HEADER.unpack(data[:HEADER_SIZE])
    if not version:
        raise FormatError(f"{path}: the file has format 0, which there never was; another program has written it")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path}: the file has format {version}, this code reads up to format {FORMAT_VERSION}; upgrade limpet"
        )
    if version < FORMAT_VERSION:
        raise UpgradeRequiredError(
            f"{path}: the file has format {version}, this code writes format {FORMAT_VERSION}; "
            f"run {command('upgrade', path)} or limpet.upgrade(path)"
        )
    if not valid_page_size(page_size):
        raise FormatError(f"{path}: page size {page_size} is not a power of two from 512 to 65536")
    if kind not in KIND_NAMES:
        raise FormatError(f"{path}: unknown checksum kind {kind} (known: {sorted(KIND_NAMES)}); upgrade limpet")
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise FormatError(f"{path}: needs features {incompatible:#x} that this code does not have; upgrade limpet")
    return Header(page_size, kind, file_id, created_us, version, incompatible, read_only)


def valid_page_size(page_size: int) -> bool:
    """Whether a page may have this many bytes."""
    return MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE and page_size & (page_size - 1) == 0


# -- metas ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Meta:
    """One checkpoint, as a meta page records it."""

    txid: Txid
    nonce: int
    catalogue_root: Ref
    free_space_root: Ref
    high_water: int
    free_count: int
    table_count: int
    next_tree_id: int
    commit_us: int
    log_start: int = 0
    log_size: int = 0
    clean: bool = False

    @property
    def epoch(self) -> int:
        """What the log records on top of this checkpoint call it: its stamp."""
        return make_stamp(self.txid, self.nonce)


def encode_meta(meta: Meta, slot: Pgno, checksum: ChecksumFunction, seed: int) -> bytes:
    """The META_SIZE bytes of a meta for page `slot`; within one sector whatever the page size."""
    body = META.pack(
        0,
        FLAG_CLEAN if meta.clean else 0,
        meta.epoch,
        meta.catalogue_root,
        meta.free_space_root,
        meta.high_water,
        meta.free_count,
        meta.table_count,
        meta.next_tree_id,
        meta.commit_us,
        meta.log_start,
        meta.log_size,
        slot,
    )[CHECKSUM.size :]
    return CHECKSUM.pack(checksum(body, seed)) + body


def decode_meta(data: bytes, slot: Pgno, page_size: int, checksum: ChecksumFunction, seed: int) -> Meta:
    """Decode and verify a meta.

    data     META_SIZE bytes from the head of page `slot`
    raises   CorruptError with what is wrong; a torn write is no rare sight here
    """
    offset = slot * page_size
    if len(data) < META_SIZE:
        raise CorruptError(
            "the meta is cut off", pgno=slot, offset=offset, expected=f"{META_SIZE} bytes", found=f"{len(data)} bytes"
        )
    data = data[:META_SIZE]
    (
        stored,
        flags,
        stamp,
        catalogue,
        free_space,
        high_water,
        free_count,
        table_count,
        next_tree,
        when,
        log_start,
        log_size,
        own,
    ) = META.unpack(data)
    found = checksum(data[CHECKSUM.size :], seed)
    if found != stored:
        what = "the meta is empty" if not any(data) else "the checksum of the meta does not match"
        raise CorruptError(what, pgno=slot, offset=offset, expected=stored, found=found)
    if own != slot:
        raise CorruptError("the meta belongs to another page", pgno=slot, offset=offset, expected=int(slot), found=own)
    if (
        not FIRST_NODE_PGNO <= high_water <= MAX_PAGES
        or free_count > high_water
        or not 0 < stamp_txid(stamp) <= MAX_TXID // 2  # so that the next ones have room in a stamp
        or (log_size and log_start < FIRST_NODE_PGNO)
        or log_start + log_size > high_water
    ):
        raise CorruptError(
            f"the meta has impossible fields: high water {high_water}, free {free_count}, "
            f"txid {stamp_txid(stamp)}, log {log_start} (+{log_size})",
            pgno=slot,
            offset=offset,
        )
    return Meta(
        stamp_txid(stamp),
        stamp_nonce(stamp),
        Ref(catalogue),
        Ref(free_space),
        high_water,
        free_count,
        table_count,
        next_tree,
        when,
        log_start,
        log_size,
        bool(flags & FLAG_CLEAN),
    )


# -- page header ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageHeader:
    """The 24 bytes at the head of every page from page 4 on, decoded and not verified."""

    checksum: int
    kind: int
    level: int
    count: int
    pgno: Pgno
    tree_id: int
    stamp: int

    @property
    def txid(self) -> Txid:
        """The commit that wrote the page."""
        return stamp_txid(self.stamp)


def decode_page_header(page: bytes) -> PageHeader:
    """Decode the header of a page of at least PAGE_HEADER_SIZE bytes; the caller verifies it."""
    checksum, kind, level, count, pgno, tree_id, stamp = PAGE.unpack_from(page)
    return PageHeader(checksum, kind, level, count, Pgno(pgno), tree_id, stamp)


def seal_page(body: bytes, pgno: int, checksum: ChecksumFunction, seed: int) -> tuple[Ref, bytes]:
    """Put the checksum before a page's other bytes.

    body     the page (or overflow run) from byte 4 on
    returns  (reference, page)
    """
    value = checksum(body, seed)
    return Ref(pgno | value << 32), CHECKSUM.pack(value) + body


def page_checksum(page: Buffer, checksum: ChecksumFunction, seed: int) -> int:
    """What the checksum field of this page should be."""
    return checksum(memoryview(page)[CHECKSUM.size :], seed)


# -- catalogue entries ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What the catalogue records of one table."""

    root: Ref
    entry_count: int
    tree_id: int
    value_codec: int
    key_shape: int  # 0: a single codec, n: a tuple of n
    key_codecs: bytes


def encode_catalogue_entry(entry: CatalogueEntry) -> bytes:
    """The value of the catalogue's tree for one table."""
    return (
        CATALOGUE_ENTRY.pack(entry.root, entry.entry_count, entry.tree_id, entry.value_codec, entry.key_shape)
        + entry.key_codecs
    )


def decode_catalogue_entry(data: bytes, name: str) -> CatalogueEntry:
    """Decode one value of the catalogue's tree.

    raises   CorruptError: too short, or lengths that disagree
    """
    if len(data) < CATALOGUE_ENTRY.size:
        raise CorruptError(
            "the catalogue entry is too short", table=name, expected=f">= {CATALOGUE_ENTRY.size}", found=len(data)
        )
    root, entry_count, tree_id, value_codec, key_shape = CATALOGUE_ENTRY.unpack_from(data)
    key_codecs = data[CATALOGUE_ENTRY.size :]
    if len(key_codecs) != max(1, key_shape):
        raise CorruptError(
            "the catalogue entry has a wrong number of key codecs",
            table=name,
            expected=max(1, key_shape),
            found=len(key_codecs),
        )
    if tree_id < FIRST_TABLE_TREE:
        raise CorruptError(
            "the catalogue entry has a reserved tree id", table=name, expected=f">= {FIRST_TABLE_TREE}", found=tree_id
        )
    return CatalogueEntry(Ref(root), entry_count, tree_id, value_codec, key_shape, key_codecs)
