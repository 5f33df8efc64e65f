"""Reading files of format 1, for the upgrade. Finished: it changes only if it is wrong.

Format 1 was copy-on-write trees and two metas that took turns, nothing else (engine/FORMAT.md has
its byte tables). What is chosen, and what is damage, is as it was then:

    the valid meta with the higher txid    its commit, if it was durable; a bad page below it is
                                           damage, and is reported
    a meta of an `os` commit               its commit, if all pages written since the durable one
                                           are whole; otherwise the other meta's

Nothing is believed: every page is verified against the reference that leads to it, levels have to
fall and keys to rise on the way, so that no file, however made, makes reading endless or recursive.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ..checksum import KIND_NAMES, ChecksumFunction, checksum_function
from ..errors import CorruptError, FormatError
from ..file import File

_MAGIC = b"\x89LMPT\r\n\x1a"
_HEADER = struct.Struct("<8s5I16sQI")  # magic version page_size kind features features id created checksum
_META = struct.Struct("<IIQQQQQQIIQI20x")  # the fields of _Meta, and checksum first, own page number last
_META_PGNOS = (1, 2)
_FIRST_NODE = 4
_PAGE = struct.Struct("<IBBHIIQ")  # checksum kind level count pgno tree_id stamp
_LEAF, _BRANCH, _OVERFLOW = 1, 2, 3
_CATALOGUE_TREE = 0
_CATALOGUE_ENTRY = struct.Struct("<QQIBB")  # root entries tree_id value_codec key_shape; then the key's codecs
_RECORD = struct.Struct("<IQ")  # of a large value: size, reference
_TXID_MASK = (1 << 48) - 1
_MAX_LEVEL = 40
_MAX_TXID = _TXID_MASK // 2


class _Meta(NamedTuple):
    flags: int
    stamp: int
    durable_txid: int
    catalogue_root: int
    free_space_root: int
    high_water: int
    free_count: int
    table_count: int
    next_tree_id: int
    commit_us: int

    @property
    def txid(self) -> int:
        return self.stamp & _TXID_MASK


class OldTable(NamedTuple):
    """One table, as the catalogue records it."""

    name: str
    root: int
    entry_count: int
    tree_id: int
    value_codec: int
    key_shape: int
    key_codecs: bytes


class _Node(NamedTuple):
    """A page taken apart: keys, and values (bytes, or the record of a large one) or children."""

    level: int
    stamp: int
    keys: list[bytes]
    values: list[bytes]
    large: frozenset[int]
    children: list[int]


class OldFile:
    """A file of format 1, at its newest commit.

    page_size, checksum_kind  as the header has them
    txid, next_tree_id        of the newest commit
    """

    def __init__(self, file: File) -> None:
        """Read header and metas, and choose.

        raises   FormatError: not of format 1, or the header is damaged; CorruptError
        """
        self.file = file
        head = file.read(0, _HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise FormatError(f"{file.path}: not a Limpet file, or its header is cut off")
        _, version, page_size, kind, incompatible, _, file_id, _, stored = _HEADER.unpack(head)
        found = zlib.crc32(head[: _HEADER.size - 4])
        if found != stored:
            raise FormatError(f"{file.path}: the header is damaged (expected {stored:#010x}, found {found:#010x})")
        if version != 1 or incompatible or kind not in KIND_NAMES:
            raise FormatError(
                f"{file.path}: format {version}, checksums {kind}, features {incompatible:#x}: not format 1"
            )
        if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            raise FormatError(f"{file.path}: page size {page_size} is not a power of two from 512 to 65536")
        self.page_size = page_size
        self.checksum_kind = kind
        self._checksum: ChecksumFunction = checksum_function(kind)
        self._seed = self._checksum(file_id, 0)
        self._meta = self._choose()
        self.txid = self._meta.txid
        self.next_tree_id = self._meta.next_tree_id

    # -- which commit ----------------------------------------------------------------------------

    def _read_meta(self, pgno: int) -> _Meta | None:
        data = self.file.read(pgno * self.page_size, _META.size)
        if len(data) < _META.size:
            return None
        stored, *fields, own = _META.unpack(data)
        if self._checksum(data[4:], self._seed) != stored or own != pgno:
            return None
        meta = _Meta(*fields)
        sound = _FIRST_NODE <= meta.high_water <= 1 << 32 and meta.durable_txid <= meta.txid <= _MAX_TXID
        return meta if sound else None

    def _choose(self) -> _Meta:
        metas = [meta for pgno in _META_PGNOS if (meta := self._read_meta(pgno)) is not None]
        problem: CorruptError | None = None
        for meta in sorted(metas, key=lambda meta: (meta.txid, meta.flags), reverse=True):
            needed = meta.high_water * self.page_size
            if self.file.size() < needed:
                problem = CorruptError(
                    f"the file was cut short: commit {meta.txid} needs {needed} bytes",
                    offset=self.file.size(),
                    expected=f"{needed} bytes",
                    found=f"{self.file.size()} bytes",
                )
            elif meta.durable_txid == meta.txid:
                return meta
            else:
                try:
                    self._verify_since(meta)
                except CorruptError as error:
                    problem = error
                else:
                    return meta
            if meta.durable_txid == meta.txid:
                break
        raise problem or CorruptError("no commit can be read: both metas are damaged", offset=self.page_size)

    def _verify_since(self, meta: _Meta) -> None:
        """Verify what an `os` commit wrote since the durable one, and what that refers to."""
        trees = [(meta.catalogue_root, _CATALOGUE_TREE)]
        trees += [(table.root, table.tree_id) for table in self._tables_of(meta)]
        for root, tree_id in trees:
            waiting = [(root, -1)] if root else []
            seen: set[int] = set()
            while waiting:
                ref, level = waiting.pop()
                if ref in seen:
                    raise CorruptError("the page has two places in its tree", pgno=ref & 0xFFFFFFFF)
                seen.add(ref)
                node = self._node(ref, tree_id, level)
                if node.stamp & _TXID_MASK <= meta.durable_txid:
                    continue
                waiting += [(child, node.level - 1) for child in node.children]
                for index in node.large:
                    self._large(node.values[index], tree_id)

    # -- what is in it ---------------------------------------------------------------------------

    def tables(self) -> list[OldTable]:
        """All tables, in the order of their names' bytes.

        raises   CorruptError
        """
        return list(self._tables_of(self._meta))

    def _tables_of(self, meta: _Meta) -> Iterator[OldTable]:
        count = 0
        for key, value in self._entries(meta.catalogue_root, _CATALOGUE_TREE):
            count += 1
            try:
                name = key.decode()
                root, entries, tree_id, value_codec, key_shape = _CATALOGUE_ENTRY.unpack_from(value)
            except (UnicodeDecodeError, struct.error) as error:
                raise CorruptError(f"the catalogue cannot be read: {error}") from None
            key_codecs = value[_CATALOGUE_ENTRY.size :]
            if len(key_codecs) != max(1, key_shape) or tree_id < 2:
                raise CorruptError("the catalogue entry contradicts itself", table=name)
            yield OldTable(name, root, entries, tree_id, value_codec, key_shape, key_codecs)
        if count != meta.table_count:
            raise CorruptError("the catalogue is incomplete", expected=meta.table_count, found=count)

    def entries(self, table: OldTable) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a table in key order, encoded; large values are loaded.

        raises   CorruptError with the table's name
        """
        count = 0
        try:
            for entry in self._entries(table.root, table.tree_id):
                count += 1
                yield entry
            if count != table.entry_count:
                raise CorruptError("the table has another number of entries", expected=table.entry_count, found=count)
        except CorruptError as error:
            error.table = error.table or table.name
            raise

    def _entries(self, root: int, tree_id: int) -> Iterator[tuple[bytes, bytes]]:
        waiting = [(root, -1)] if root else []
        last: bytes | None = None
        while waiting:
            ref, level = waiting.pop()
            node = self._node(ref, tree_id, level)
            waiting += [(child, node.level - 1) for child in reversed(node.children)]
            if node.level:
                continue
            for index, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
                if last is not None and key <= last:
                    raise CorruptError("the keys are out of order", pgno=ref & 0xFFFFFFFF)
                last = key
                yield key, self._large(value, tree_id) if index in node.large else value

    # -- pages -----------------------------------------------------------------------------------

    def _page(self, ref: int, size: int) -> bytes:
        pgno, expected = ref & 0xFFFFFFFF, ref >> 32
        offset = pgno * self.page_size
        if pgno < _FIRST_NODE or offset + size > self.file.size():
            raise CorruptError("a reference leaves the file", pgno=pgno, offset=offset)
        page = self.file.read(offset, size)
        found = self._checksum(memoryview(page)[4:], self._seed)
        if found != expected or len(page) != size:
            raise CorruptError(
                "the page is damaged: its checksum does not match",
                pgno=pgno,
                offset=offset,
                expected=expected,
                found=found,
            )
        return page

    def _node(self, ref: int, tree_id: int, level: int) -> _Node:
        """The node behind a reference; level -1: a root, which may have any."""
        page = self._page(ref, self.page_size)
        _, kind, own_level, count, pgno, own_tree, stamp = _PAGE.unpack_from(page)
        sound = pgno == ref & 0xFFFFFFFF and own_tree == tree_id and level in (-1, own_level) and count
        at = _PAGE.size
        if sound and kind == _LEAF and own_level == 0:
            (large_count,) = struct.unpack_from("<H", page, at)
            at += 2
            size = 2 * (2 * count + large_count)
            if at + size <= len(page):
                ends = struct.unpack_from(f"<{2 * count + large_count}H", page, at)
                cells = _slices(page, at + size, ends[: 2 * count])
                large = frozenset(ends[2 * count :])
                if cells is not None and all(index < count for index in large):
                    return _Node(0, stamp, cells[:count], cells[count:], large, [])
        elif sound and kind == _BRANCH and 0 < own_level <= _MAX_LEVEL:
            size = 2 * (count - 1) + 8 * count
            if at + size <= len(page):
                ends = struct.unpack_from(f"<{count - 1}H", page, at)
                children = list(struct.unpack_from(f"<{count}Q", page, at + 2 * (count - 1)))
                keys = _slices(page, at + size, ends)
                if keys is not None:
                    return _Node(own_level, stamp, keys, [], frozenset(), children)
        raise CorruptError("not the node that belongs here, or it contradicts itself", pgno=ref & 0xFFFFFFFF)

    def _large(self, record: bytes, tree_id: int) -> bytes:
        """The value that a record stands for."""
        if len(record) != _RECORD.size:
            raise CorruptError("the record of a large value has a wrong size", expected=_RECORD.size, found=len(record))
        size, ref = _RECORD.unpack(record)
        pages = -(-(_PAGE.size + size) // self.page_size)
        run = self._page(ref, pages * self.page_size)
        _, kind, _, _, pgno, own_tree, _ = _PAGE.unpack_from(run)
        if (kind, pgno, own_tree) != (_OVERFLOW, ref & 0xFFFFFFFF, tree_id):
            raise CorruptError("not the large value that belongs here", pgno=ref & 0xFFFFFFFF)
        return run[_PAGE.size : _PAGE.size + size]


def _slices(page: bytes, start: int, ends: tuple[int, ...]) -> list[bytes] | None:
    """The cells that lie side by side from `start` on; None if their ends do not rise or leave the page."""
    cells = []
    for end in ends:
        if not start <= end <= len(page):
            return None
        cells.append(page[start:end])
        start = end
    return cells
