"""The bytes of a file that may be damaged: what its header says or what stands in for that, and its pages.

Where the header is damaged, what is left of it is tried first: if a meta verifies by some page size,
some kind of checksum and the file id as it stands there, those are right, since a wrong one gives
another checksum. Where it is destroyed, two things that it holds are missing:

    the page size    is the one by which most pages are where their own number says
    the seed         of the checksums. A CRC is affine in its seed, so each page that is still whole
                     gives a candidate, and it is believed if two different ones give the same

Nothing here says what the pages mean, and nothing is raised for what is in the file, except that a
FormatError says so where not even the page size is known.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from ..checksum import CRC32, CRC32C, KIND_NAMES, ChecksumFunction, checksum_function
from ..errors import CorruptError, FormatError
from ..file import File
from ..format import (
    BRANCH,
    CHECKSUM,
    FIRST_NODE_PGNO,
    FREE_SPACE,
    HEADER,
    HEADER_SIZE,
    HOLDER_PGNO,
    LEAF,
    LOG,
    MAX_PAGE_SIZE,
    META,
    META_FIELDS,
    META_PGNOS,
    META_SIZE,
    MIN_PAGE_SIZE,
    OVERFLOW,
    PAGE,
    PAGE_HEADER_SIZE,
    PAGE_KIND_NAMES,
    Header,
    PageHeader,
    Pgno,
    begins_like_ours,
    decode_header,
    decode_meta,
    decode_page_header,
    header_damage,
    page_checksum,
    valid_page_size,
)
from ..log import Record, decode_record
from ..pager import Pager
from .results import when

_SAMPLE_SIZE = 32 << 20  # bytes at the head of a file in which the page size and the seed are looked for
_SAMPLE_PAGES = 64  # pages from which the seed of the checksums is computed
_LONGEST_RUN = 64 << 20  # bytes in which the end of a run of pages is looked for
_CHUNK = 1 << 20  # bytes read at once
_KINDS = (CRC32, CRC32C)  # in the order in which they are tried: CRC-32C may warn that it is slow
_PAGE_SIZES = [1 << bits for bits in range(MIN_PAGE_SIZE.bit_length() - 1, MAX_PAGE_SIZE.bit_length())]
_META_ZERO_SIZE = dict(META_FIELDS)["zero"]


class RawFile:
    """A file, its header decoded or guessed. Takes over the file that it is given.

    header         None if it is damaged
    problem        what is wrong with it
    notes          what had to be guessed instead, and from what
    is_ours        whether it is a Limpet file that this code can read, damaged or not
    asked          the page size that the caller gave, None if it is to be found out
    is_verifiable  whether checksums can be computed: their kind and seed are known
    """

    def __init__(self, file: File, page_size: int | None) -> None:
        """Decode the header. page_size: in bytes, where the caller knows better; None: as the file has it."""
        self.file = file
        self.is_closed = False
        self.header: Header | None = None
        self.problem: FormatError | None = None
        self.notes: list[str] = []
        self.is_ours = True
        self.is_verifiable = False
        self.asked = page_size
        self._pager: Pager | None = None
        data = file.read(0, HEADER_SIZE)
        try:
            self.header = decode_header(data, file.path)
        except FormatError as error:
            self.problem = error
            if begins_like_ours(data) and header_damage(data) is None:
                self.is_ours = False  # whole, and not for this code
            elif not self._try_header(data):
                self._do_without_header(has_magic=begins_like_ours(data))
            return
        header = self.header
        if page_size is not None and page_size != header.page_size:
            self.notes.append(f"page size {page_size}: as asked for; the header says {header.page_size}")
            header = dataclasses.replace(header, page_size=page_size)
        self._pager = Pager(file, header, 0)
        self.is_verifiable = True

    def _try_header(self, data: bytes) -> bool:
        """Take what is left of a damaged header, if a meta proves it right."""
        if len(data) < HEADER_SIZE:
            return False
        _, _, page_size, _, _, _, file_id, created_us, _ = HEADER.unpack(data)
        sizes = dict.fromkeys(size for size in (page_size, *_PAGE_SIZES) if valid_page_size(size))
        for kind in _KINDS:
            checksum = checksum_function(kind, warn=False)
            seed = checksum(file_id, 0)
            for size in sizes if self.asked is None else [self.asked]:
                if any(_is_meta(self.file, slot, size, checksum, seed) for slot in META_PGNOS):
                    self.notes.append(f"page size {size}, checksums {KIND_NAMES[kind]}: by these a meta is whole")
                    self._pager = Pager(self.file, Header(size, kind, file_id, created_us), 0)
                    self.is_verifiable = True
                    return True
        return False

    def _do_without_header(self, *, has_magic: bool) -> None:
        sizes = _guess_page_sizes(self.file) if self.asked is None else [self.asked]
        if not sizes:
            self.is_ours = has_magic
            return
        page_size = sizes[0]
        kind, seed, votes = _recover_seed(self.file, page_size)
        for size in sizes[1:]:
            if seed is not None:
                break
            kind, seed, votes = _recover_seed(self.file, size)
            page_size = size if seed is not None else page_size
        if seed is None and not has_magic and self.asked is None:
            self.is_ours = False
            return
        how = "as asked for" if self.asked else "guessed, from where pages are by their own number"
        self.notes.append(f"page size {page_size}: {how}")
        self._pager = Pager(self.file, Header(page_size, kind, bytes(16), 0), 0)
        if seed is None:
            self.notes.append("checksums cannot be verified: what they are seeded with was in the header")
            return
        self.notes.append(f"checksums: {KIND_NAMES[kind]}, the seed computed from pages that are whole ({votes} agree)")
        self._pager.seed = seed
        self.is_verifiable = True

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self.is_closed = True
        self.file.close()

    @property
    def path(self) -> str:
        """The path of the file, as it was given."""
        return self.file.path

    @property
    def pager(self) -> Pager:
        """The pager; it verifies what it reads. FormatError if not even the page size is known."""
        if self._pager is None:
            raise self.problem or FormatError(f"{self.path}: there are no pages to look at")
        return self._pager

    @property
    def page_size(self) -> int | None:
        """Bytes a page; None if it is not known."""
        return None if self._pager is None else self._pager.page_size

    @property
    def page_count(self) -> int:
        """Pages in the file, a last one that is cut off included."""
        return 0 if self._pager is None else -(-self.file.size() // self._pager.page_size)

    def header_problem(self) -> str | None:
        """What is wrong with the header, for people, without advice where the pages can be looked at all the same."""
        if self.problem is None:
            return None
        if not self.is_ours:
            return str(self.problem).removeprefix(f"{self.path}: ")
        data = self.file.read(0, HEADER_SIZE)
        text = header_damage(data) if begins_like_ours(data) else "the header is destroyed"
        return f"{text}; the database cannot be opened"

    def holder(self) -> dict[str, Any] | None:
        """What the process that opened the file last for writing wrote about itself; None if that is unreadable."""
        if self._pager is None:
            return None
        data = self.file.read(HOLDER_PGNO * self._pager.page_size, MIN_PAGE_SIZE)
        try:
            note = json.loads(data.rstrip(b"\0").decode())
            return {
                "pid": int(note["pid"]),
                "host": str(note["host"]),
                "program": str(note["program"]),
                "since": when(int(note["since"]) * 1_000_000),
            }
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    # -- pages -----------------------------------------------------------------------------------

    def read(self, pgno: int, count: int = 1) -> bytes:
        """What can be read of `count` pages."""
        return self._read(pgno, count * self.pager.page_size)

    def _read(self, pgno: int, size: int) -> bytes:
        try:
            return self.file.read(pgno * self.pager.page_size, size)
        except OSError:
            return b""

    def page_header(self, pgno: int) -> PageHeader | None:
        """The header of a page, not verified; None if the file ends before it does."""
        data = self._read(pgno, PAGE_HEADER_SIZE)
        return decode_page_header(data) if len(data) == PAGE_HEADER_SIZE else None

    def checksum_of(self, page: bytes) -> int:
        """What the checksum field of a page should be."""
        return page_checksum(page, self.pager.checksum, self.pager.seed)

    def log_run(self, pgno: int, header: PageHeader) -> bytes:
        """What can be read of the pages that a log record says it has."""
        return self.read(pgno, max(1, min(header.count, _LONGEST_RUN // self.pager.page_size)))

    def log_record(self, pgno: int, header: PageHeader) -> Record | None:
        """The log record that begins with a page of this header; None if it is not whole."""
        pager = self.pager
        return decode_record(self.log_run(pgno, header), 0, pgno, pager.page_size, pager.checksum, pager.seed)

    def run_length(self, pgno: int, header: PageHeader, page: bytes) -> int | None:
        """How many pages from this one on the checksum in its header covers; None if there are none that have it.

        An overflow run does not say how long it is: it has as many pages as it takes for its checksum to come out.
        """
        if header.kind == LOG:
            record = self.log_record(pgno, header)
            return None if record is None else record.pages
        pager = self.pager
        if len(page) < pager.page_size:
            return None
        found = self.checksum_of(page)
        count = 1
        while found != header.checksum:
            if header.kind != OVERFLOW or count * pager.page_size >= _LONGEST_RUN:
                return None
            data = self.read(pgno + count)
            if len(data) < pager.page_size:
                return None
            found = pager.checksum(data, found)
            count += 1
        return count

    def run_around(self, pgno: int) -> PageHeader | None:
        """The first page of the overflow run or log record of which a page is a later one; None if it is of none."""
        if not self.is_verifiable:
            return None
        lowest = max(FIRST_NODE_PGNO, pgno - _LONGEST_RUN // self.pager.page_size)
        for first in range(pgno - 1, lowest - 1, -1):
            header = self.page_header(first)
            if header is not None and header.pgno == first and header.kind in PAGE_KIND_NAMES:
                return header if (self.run_length(first, header, self.read(first)) or 0) > pgno - first else None
        return None


# -- without a header ----------------------------------------------------------------------------


def _is_meta(file: File, slot: Pgno, page_size: int, checksum: ChecksumFunction, seed: int) -> bool:
    """Whether a meta is whole by this page size and these checksums."""
    try:
        decode_meta(file.read(slot * page_size, META_SIZE), slot, page_size, checksum, seed)
    except CorruptError:
        return False
    return True


def _guess_page_sizes(file: File) -> list[int]:
    """The page sizes by which pages are where their own number says; first the one by which most are."""
    votes: Counter[int] = Counter()
    size = min(file.size(), _SAMPLE_SIZE)
    for start in range(0, size, _CHUNK):
        data = file.read(start, min(_CHUNK, size - start))
        for at in range(0, len(data) - META_SIZE + 1, MIN_PAGE_SIZE):
            offset = start + at
            _, kind, _, _, pgno, _, _ = PAGE.unpack_from(data, at)
            if kind in PAGE_KIND_NAMES and pgno >= FIRST_NODE_PGNO and offset % pgno == 0:
                votes[offset // pgno] += 1
            slot = META.unpack_from(data, at)[-1]
            end = at + META_SIZE
            if slot in META_PGNOS and offset % slot == 0 and not any(data[end - _META_ZERO_SIZE : end]):
                votes[offset // slot] += 1
    return [page_size for page_size, _ in votes.most_common() if valid_page_size(page_size)]


def _recover_seed(file: File, page_size: int) -> tuple[int, int | None, int]:
    """The kind and seed of the checksums, by the pages that are whole.

    returns  (kind, seed, how many pages agree); the seed is None if no two do
    """
    samples = _samples(file, page_size)
    for kind in _KINDS:
        checksum = checksum_function(kind, warn=False)
        bases = {size: _seed_basis(checksum, size - CHECKSUM.size) for size in {len(data) for data in samples}}
        votes = Counter(_seed_of(checksum, data, bases[len(data)]) for data in samples)
        for seed, count in votes.most_common(1):
            if count > 1:
                return kind, seed, count
    return CRC32, None, 0


def _samples(file: File, page_size: int) -> set[bytes]:
    """Metas and pages that are perhaps whole. A set: the same bytes twice would confirm themselves."""
    samples: set[bytes] = set()
    for slot in META_PGNOS:
        data = file.read(slot * page_size, META_SIZE)
        if len(data) == META_SIZE and META.unpack(data)[-1] == slot:
            samples.add(data)
    for pgno in range(FIRST_NODE_PGNO, min(file.size(), _SAMPLE_SIZE) // page_size):
        if len(samples) > _SAMPLE_PAGES:
            break
        head = file.read(pgno * page_size, PAGE_HEADER_SIZE)
        if len(head) < PAGE_HEADER_SIZE:
            break
        header = decode_page_header(head)
        if header.pgno == pgno and header.kind in (LEAF, BRANCH, FREE_SPACE):
            samples.add(file.read(pgno * page_size, page_size))
    return samples


def _seed_basis(checksum: ChecksumFunction, size: int) -> dict[int, tuple[int, int]]:
    """What the bits of a seed do to the checksum of `size` bytes, whatever the bytes are.

    A CRC is affine in its seed: checksum(data, a ^ b) ^ checksum(data, 0) is the XOR of the same for
    a and for b. So the images of the 32 single bits tell everything; they are brought into a form in
    which each has another highest bit (elimination over GF(2)).

    returns  highest bit of an image -> (the image, the seed that has it)
    """
    zeros = bytes(size)
    zero = checksum(zeros, 0)
    basis: dict[int, tuple[int, int]] = {}
    for bit in range(32):
        image, seed = checksum(zeros, 1 << bit) ^ zero, 1 << bit
        while (top := image.bit_length()) in basis:
            image ^= basis[top][0]
            seed ^= basis[top][1]
        basis[top] = image, seed
    return basis


def _seed_of(checksum: ChecksumFunction, page: bytes, basis: dict[int, tuple[int, int]]) -> int:
    """The seed with which a page, or a meta, has the checksum that it carries."""
    rest = CHECKSUM.unpack_from(page)[0] ^ page_checksum(page, checksum, 0)
    seed = 0
    while rest:
        image, part = basis[rest.bit_length()]
        rest ^= image
        seed ^= part
    return seed
