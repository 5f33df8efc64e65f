"""What the harness knows about a file format, in one place: a new format needs another Layout and nothing else.

The monitors and the oracle ask a Layout where the metas are, which checkpoints a file holds, which
pages each of them needs, and how far the log on top of the newest goes. A Layout reads bytes with
code of its own: it shares with the engine the names of the fields and the decoding of header and
metas, but neither nodes nor pager nor log nor recovery, so that a mistake there does not hide itself.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from ..checksum import checksum_function
from ..errors import CorruptError, FormatError
from ..format import (
    BRANCH,
    CATALOGUE_TREE,
    CHECKSUM,
    FIRST_NODE_PGNO,
    FREE_SPACE,
    HEADER_SIZE,
    HOLDER_PGNO,
    LEAF,
    LEAF_ARRAYS_AT,
    LOG,
    LOG_CHANGE,
    LOG_CHANGES_AT,
    LOG_DELETE,
    LOG_GROUP,
    LOG_RECORD,
    META_PGNOS,
    META_SIZE,
    OVERFLOW,
    OVERFLOW_RECORD,
    PAGE,
    PAGE_HEADER_SIZE,
    Meta,
    decode_catalogue_entry,
    decode_header,
    decode_meta,
    map_fanout,
    map_height,
    overflow_page_count,
    ref_checksum,
    ref_pgno,
    stamp_txid,
)

Image = bytes | bytearray


class CommitRecord(NamedTuple):
    """One checkpoint as its meta has it.

    slot      which of the alternating places
    needed    bytes that the file must have
    """

    txid: int
    slot: int
    clean: bool
    needed: int
    raw: Meta


class Layout(Protocol):
    """What the monitors and the oracle need to know of a format."""

    page_size: int

    def commits(self, image: Image) -> list[CommitRecord]:
        """The checkpoints whose metas are valid, oldest first."""
        ...

    def log(self, image: Image, commit: CommitRecord) -> tuple[range, list[range]]:
        """The pages of the log on top of a checkpoint, and those of each of its records, in order."""
        ...

    def slot_of(self, offset: int, size: int) -> int | None:
        """The place of a commit record that a write to these bytes would change, or None."""
        ...

    def slot_offset(self, slot: int) -> int:
        """Where a slot begins."""
        ...

    def is_advisory(self, offset: int, size: int) -> bool:
        """Whether these bytes are trusted by nothing, so that they may be written at any time."""
        ...

    def pages(self, image: Image, commit: CommitRecord) -> set[int]:
        """The pages that a commit needs, each one verified. Raises CorruptError."""
        ...

    def problems(self, image: Image, commit: CommitRecord) -> list[str]:
        """What is wrong with a commit: damage, a page used twice, a page lost."""
        ...


class FormatTwo:
    """Format 2: header, two metas that take turns, a holder page, copy-on-write pages, a log on top of the newest."""

    def __init__(self, image: Image) -> None:
        """Read the header; raises FormatError."""
        header = decode_header(bytes(image[:HEADER_SIZE]), "image")
        self.page_size = header.page_size
        self._checksum = checksum_function(header.checksum_kind)
        self._seed = self._checksum(header.file_id, 0)

    def commits(self, image: Image) -> list[CommitRecord]:
        found = []
        for slot in range(len(META_PGNOS)):
            record = self.commit_in(image, slot)
            if record is not None:
                found.append(record)
        return sorted(found, key=lambda record: (record.txid, record.clean))

    def commit_in(self, image: Image, slot: int) -> CommitRecord | None:
        """The commit that a slot names, or None if it is damaged or empty."""
        pgno = META_PGNOS[slot]
        at = pgno * self.page_size
        try:
            meta = decode_meta(bytes(image[at : at + META_SIZE]), pgno, self.page_size, self._checksum, self._seed)
        except CorruptError:
            return None
        return CommitRecord(meta.txid, slot, meta.clean, meta.high_water * self.page_size, meta)

    def log(self, image: Image, commit: CommitRecord) -> tuple[range, list[range]]:
        meta = commit.raw
        region = range(meta.log_start, meta.log_start + meta.log_size)
        ends = list(accumulate((pages for pages, _ in self._records(image, meta)), initial=meta.log_start))
        return region, [range(start, stop) for start, stop in pairwise(ends)]

    def _records(self, image: Image, meta: Meta) -> list[tuple[int, list[tuple[int, bytes, bytes | None]]]]:
        """(pages, changes as (tree, key, value)) of each record that continues the one before."""
        found: list[tuple[int, list[tuple[int, bytes, bytes | None]]]] = []
        pgno, end = meta.log_start, meta.log_start + meta.log_size
        last, previous = int(meta.txid), 0
        while pgno < end:
            head = bytes(image[pgno * self.page_size : pgno * self.page_size + LOG_CHANGES_AT])
            if len(head) < LOG_CHANGES_AT:
                break
            stored, kind, _, pages, own, _, stamp = PAGE.unpack_from(head)
            epoch, _, _, before, size = LOG_RECORD.unpack_from(head, PAGE_HEADER_SIZE)
            if (kind, own, epoch, before) != (LOG, pgno, meta.epoch, previous) or not 0 < pages <= end - pgno:
                break
            run = bytes(image[pgno * self.page_size : (pgno + pages) * self.page_size])
            if len(run) < pages * self.page_size or LOG_CHANGES_AT + size > len(run):
                break
            if self._checksum(memoryview(run)[CHECKSUM.size :], self._seed) != stored or stamp_txid(stamp) <= last:
                break
            found.append((pages, _changes(run[LOG_CHANGES_AT : LOG_CHANGES_AT + size])))
            last, previous = stamp_txid(stamp), stored
            pgno += pages
        return found

    def slot_of(self, offset: int, size: int) -> int | None:
        for slot, pgno in enumerate(META_PGNOS):
            if offset < (pgno + 1) * self.page_size and offset + size > pgno * self.page_size:
                return slot
        return None

    def slot_offset(self, slot: int) -> int:
        return META_PGNOS[slot] * self.page_size

    def is_advisory(self, offset: int, size: int) -> bool:
        start = HOLDER_PGNO * self.page_size
        return start <= offset and offset + size <= start + self.page_size

    def pages(self, image: Image, commit: CommitRecord) -> set[int]:
        found, doubles, _ = self._walk(image, commit)
        if doubles:
            raise CorruptError(f"pages {sorted(doubles)} are used twice")
        return found

    def problems(self, image: Image, commit: CommitRecord) -> list[str]:
        try:
            found, doubles, free = self._walk(image, commit)
        except CorruptError as error:
            return [str(error)]
        log = set(range(commit.raw.log_start, commit.raw.log_start + commit.raw.log_size))
        doubles |= found & log
        found |= log
        wrong = [f"page {pgno} is used twice" for pgno in sorted(doubles)]
        everything = set(range(FIRST_NODE_PGNO, commit.raw.high_water))
        wrong += [f"page {pgno} is used and marked free" for pgno in sorted(found & free)]
        wrong += [f"page {pgno} is neither used nor free" for pgno in sorted(everything - found - free)]
        wrong += [f"page {pgno} lies behind the high water mark" for pgno in sorted((found | free) - everything)]
        if len(free) != commit.raw.free_count:
            wrong.append(f"the meta counts {commit.raw.free_count} free pages, the map {len(free)}")
        return wrong

    def _walk(self, image: Image, commit: CommitRecord) -> tuple[set[int], set[int], set[int]]:
        """(pages reached, of these the ones reached twice, pages marked free)."""
        meta = commit.raw
        if len(image) < commit.needed:
            raise CorruptError("the file is too short", expected=commit.needed, found=len(image))
        found: set[int] = set()
        doubles: set[int] = set()
        free = self._map(image, meta, found, doubles)
        catalogue: list[tuple[bytes, bytes]] = []
        self._tree(image, meta.catalogue_root, CATALOGUE_TREE, found, doubles, catalogue)
        for key, value in catalogue:
            entry = decode_catalogue_entry(value, key.decode(errors="replace"))
            entries: list[tuple[bytes, bytes]] = []
            self._tree(image, entry.root, entry.tree_id, found, doubles, entries)
            if len(entries) != entry.entry_count:
                raise CorruptError("wrong number of entries", expected=entry.entry_count, found=len(entries))
        if len(catalogue) != meta.table_count:
            raise CorruptError("wrong number of tables", expected=meta.table_count, found=len(catalogue))
        trees = {decode_catalogue_entry(value, "").tree_id for _, value in catalogue}
        for _, changes in self._records(image, meta):
            if not {tree for tree, _, _ in changes} <= trees:
                raise CorruptError("the log changes a tree that no table has")
        return found, doubles, free

    def _page(self, image: Image, ref: int, count: int = 1) -> bytes:
        pgno = ref_pgno(ref)
        page = bytes(image[pgno * self.page_size : (pgno + count) * self.page_size])
        if pgno < FIRST_NODE_PGNO or len(page) < count * self.page_size:
            raise CorruptError("a reference leaves the file", pgno=pgno)
        found = self._checksum(memoryview(page)[CHECKSUM.size :], self._seed)
        stored = CHECKSUM.unpack_from(page)[0]
        if not found == stored == ref_checksum(ref):
            raise CorruptError("the checksum does not match", pgno=pgno, expected=ref_checksum(ref), found=found)
        return page

    def _tree(
        self,
        image: Image,
        root: int,
        tree_id: int,
        found: set[int],
        doubles: set[int],
        entries: list[tuple[bytes, bytes]],
    ) -> None:
        waiting: list[tuple[int, int, bytes | None, bytes | None]] = [(root, -1, None, None)] if root else []
        while waiting:
            ref, level, low, high = waiting.pop()
            pgno = ref_pgno(ref)
            (doubles if pgno in found else found).add(pgno)
            page = self._page(image, ref)
            _, kind, own_level, count, own, own_tree, _ = PAGE.unpack_from(page)
            if (own, own_tree) != (pgno, tree_id) or level not in (-1, own_level):
                raise CorruptError("not the node that belongs here", pgno=pgno)
            values: list[bytes] = []
            if kind == BRANCH and own_level and count:
                keys, children = _branch(page, count)
                waiting.extend(
                    (child, own_level - 1, bottom, top)
                    for child, bottom, top in zip(children, [low, *keys], [*keys, high], strict=True)
                )
            elif kind == LEAF and not own_level and count:
                keys, values = _leaf(page, count)
                entries.extend(zip(keys, values, strict=True))
            else:
                raise CorruptError("neither a leaf nor a branch, or an empty one", pgno=pgno)
            if keys != sorted(set(keys)):
                raise CorruptError("keys out of order", pgno=pgno)
            if keys and ((low is not None and keys[0] < low) or (high is not None and keys[-1] >= high)):
                raise CorruptError("keys outside the bounds of the parent", pgno=pgno)
            if kind == BRANCH:
                continue
            for index in _overflow_indexes(page, count):
                size, ref = OVERFLOW_RECORD.unpack(values[index])
                count = overflow_page_count(size, self.page_size)
                run = self._page(image, ref, count)
                _, kind, _, _, own, own_tree, _ = PAGE.unpack_from(run)
                first = ref_pgno(ref)
                if (kind, own, own_tree) != (OVERFLOW, first, tree_id):
                    raise CorruptError("not the overflow run of this leaf", pgno=first)
                for each in range(first, first + count):
                    (doubles if each in found else found).add(each)

    def _map(self, image: Image, meta: Meta, found: set[int], doubles: set[int]) -> set[int]:
        free: set[int] = set()
        payload = self.page_size - PAGE_HEADER_SIZE
        waiting = [(int(meta.free_space_root), map_height(meta.high_water, self.page_size), 0)]
        while waiting:
            ref, level, index = waiting.pop()
            if not ref:
                continue
            pgno = ref_pgno(ref)
            (doubles if pgno in found else found).add(pgno)
            page = self._page(image, ref)
            _, kind, own_level, count, own, _, _ = PAGE.unpack_from(page)
            if (kind, own_level, own) != (FREE_SPACE, level, pgno):
                raise CorruptError("not the map page that belongs here", pgno=pgno)
            if level:
                for at in range(count):
                    start = PAGE_HEADER_SIZE + 8 * at
                    child = int.from_bytes(page[start : start + 8], "little")
                    waiting.append((child, level - 1, index * map_fanout(self.page_size) + at))
                continue
            bits = int.from_bytes(page[PAGE_HEADER_SIZE:], "little")
            base = index * payload * 8
            while bits:
                lowest = bits & -bits
                free.add(base + lowest.bit_length() - 1)
                bits ^= lowest
        return free


def _changes(data: bytes) -> list[tuple[int, bytes, bytes | None]]:
    found: list[tuple[int, bytes, bytes | None]] = []
    at = 0
    while at < len(data):
        tree, count = LOG_GROUP.unpack_from(data, at)
        at += LOG_GROUP.size
        for _ in range(count):
            key_size, value_size = LOG_CHANGE.unpack_from(data, at)
            key_at = at + LOG_CHANGE.size
            value_at = key_at + key_size
            at = value_at if value_size == LOG_DELETE else value_at + value_size
            found.append((tree, data[key_at:value_at], None if value_size == LOG_DELETE else data[value_at:at]))
    if at != len(data):
        raise CorruptError("the changes in a log record do not fill it", expected=len(data), found=at)
    return found


def _ends(page: bytes, at: int, count: int) -> list[int]:
    return [int.from_bytes(page[at + 2 * index : at + 2 * index + 2], "little") for index in range(count)]


def _leaf(page: bytes, count: int) -> tuple[list[bytes], list[bytes]]:
    ends = _ends(page, LEAF_ARRAYS_AT, 2 * count)
    start = LEAF_ARRAYS_AT + 4 * count + 2 * int.from_bytes(page[PAGE_HEADER_SIZE : PAGE_HEADER_SIZE + 2], "little")
    cells = [page[a:b] for a, b in pairwise([start, *ends])]
    return cells[:count], cells[count:]


def _overflow_indexes(page: bytes, count: int) -> list[int]:
    found = int.from_bytes(page[PAGE_HEADER_SIZE : PAGE_HEADER_SIZE + 2], "little")
    return _ends(page, LEAF_ARRAYS_AT + 4 * count, found)


def _branch(page: bytes, count: int) -> tuple[list[bytes], list[int]]:
    children_at = PAGE_HEADER_SIZE + 2 * (count - 1)
    ends = _ends(page, PAGE_HEADER_SIZE, count - 1)
    keys = [page[a:b] for a, b in pairwise([children_at + 8 * count, *ends])]
    places = range(children_at, children_at + 8 * count, 8)
    return keys, [int.from_bytes(page[at : at + 8], "little") for at in places]


def layout_of(image: Image) -> Layout | None:
    """The layout of a file, or None if it is not (yet) one of ours."""
    try:
        return FormatTwo(image)
    except FormatError:
        return None
