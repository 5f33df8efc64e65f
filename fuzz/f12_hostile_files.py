"""Any bytes opened as a database either work or raise FormatError or CorruptError, soon, and in little memory.

F12: files of other formats, garbage, zeros, an empty file, a newer version, absurd headers; and files of ours whose
pages were changed with a plan and sealed again, so that the parsers behind the checksum meet what no accident makes:
counts and lengths that lie, offsets that overlap, references to the page itself, to its parent, out of the file, to
another tree. A page is forged to keep its checksum where a cycle needs that.
"""

from __future__ import annotations

import random
import sqlite3
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import limpet
from limpet import CorruptError, FormatError
from limpet.checksum import checksum_function
from limpet.format import (
    FORMAT_VERSION,
    HEADER,
    HEADER_SIZE,
    LOG_CHANGES_AT,
    META_FIELDS,
    META_PGNOS,
    META_SIZE,
    PAGE_HEADER_SIZE,
    decode_header,
)

from .damage import Sample, pack, sample, unpack
from .harness import Budget, Case, FaultClass, no_hang, told_as
from .oracle import Wrong

LONGEST_MEMORY = 64 << 20  # bytes
_EXPECTED = (CorruptError, FormatError)


def run(budget: Budget) -> None:
    """Foreign files first, then changed ones for as long as there is time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hostile.limpet"
        for name, data in foreign_files(Path(folder)):
            with told_as({"file": pack(data[:65536]), "name": name}):
                attack(path, data, must_refuse=True)
                budget.count("foreign")
        for name, data in bombs():
            with told_as({"file": pack(data)}):
                if attack(path, data) == "works":
                    raise Wrong(f"{name}: everything in the file can be read and written")
                budget.count("bomb")
        while budget.more():
            seed = budget.rng.randrange(1 << 30)
            whole = _whole(seed)
            for index in range(64):
                if not budget.more():
                    return
                with told_as({"seed": seed, "index": index}):
                    budget.count(attack(path, mutate(whole, random.Random(seed + index))))


def _whole(seed: int) -> Sample:
    rng = random.Random(seed)
    return sample(rng, page_size=rng.choice((512, 512, 1024)), commits=rng.choice((2, 5, 12)), clean=bool(seed & 1))


def attack(path: Path, data: bytes, *, must_refuse: bool = False) -> str:
    """Open the bytes as a database and do everything with it; returns what came of it."""
    path.write_bytes(data)
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    outcome = ""
    try:
        with no_hang(6.0):  # under tracemalloc everything takes several times as long
            outcome = _try(path, must_refuse)
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if not tracing:
            tracemalloc.stop()
        if peak > LONGEST_MEMORY:
            raise Wrong(f"a file of {len(data)} bytes made the engine take {peak >> 20} MiB")
    return outcome


def _try(path: Path, must_refuse: bool) -> str:
    try:
        db = limpet.open(path, create=False, cache_size=1 << 16, lock_timeout=0)
    except _EXPECTED:
        return "refused"
    try:
        if must_refuse:
            raise Wrong("a file of another kind was opened")
        outcome = _use(db)
    finally:
        try:
            db.close()
        except _EXPECTED:
            outcome = "refused"
    return outcome


def _use(db: limpet.Database) -> str:
    """Read everything, check, write, delete, drop, compact; each may be refused, none may break."""
    outcome = "works"
    with db.read() as reader:
        names = reader.tables()
        for name in names:
            for backwards in (False, True):
                try:
                    for count, _ in enumerate(reader.table(name).range(reverse=backwards)):
                        if count > 100_000:
                            raise Wrong("a scan of a small file does not end")
                except _EXPECTED:
                    outcome = "refused"
    db.check()
    for action in ("put", "delete", "drop", "compact"):
        try:
            if action == "compact":
                db.compact()
                continue
            with db.write() as transaction:
                for name in transaction.tables():
                    table = transaction.table(name)
                    if action == "put":
                        table[b"key-000003"] = b"x" * 300
                    elif action == "delete":
                        table.delete_range(b"key-000001", b"key-000005")
                    else:
                        transaction.drop(name)
        except _EXPECTED:
            outcome = "refused"
    return outcome


# -- files that are not ours ---------------------------------------------------------------------


def foreign_files(folder: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of files that have to be refused."""
    rng = random.Random(1)
    database = folder / "other.sqlite"
    connection = sqlite3.connect(database)
    connection.execute("create table t (a, b)")
    connection.commit()
    connection.close()
    good = sample(random.Random(2)).image
    head = list(HEADER.unpack(good[:HEADER_SIZE]))
    files = [
        ("empty", b""),
        ("zeros", bytes(8192)),
        ("garbage", rng.randbytes(8192)),
        ("sqlite", database.read_bytes()),
        ("zip", b"PK\x03\x04" + rng.randbytes(4096)),
        ("lmdb", bytes(16) + b"\xde\xc0\xef\xbe" + bytes(8172)),
        ("text", b"hello\r\n" * 1000),
        ("newline conversion", good.replace(b"\r\n", b"\n")),
        ("big endian", b"".join(good[at : at + 4][::-1] for at in range(0, len(good), 4))),
    ]
    files += [(f"magic and {size} bytes", good[:size]) for size in range(8, HEADER_SIZE)]
    for field, value in (
        (1, FORMAT_VERSION + 1),
        (1, FORMAT_VERSION - 1),
        (1, 0),
        (1, 0xFFFFFFFF),
        (2, 0),
        (2, 500),
        (2, 256),
        (2, 1 << 20),
        (2, 65536),
        (3, 0),
        (3, 77),
        (4, 1),
        (4, 1 << 31),
    ):
        changed = [*head[:field], value, *head[field + 1 :]]
        body = HEADER.pack(*changed)[:-4]
        files.append(
            (f"header field {field} = {value}", body + struct.pack("<I", zlib.crc32(body)) + good[HEADER_SIZE:])
        )
    return files


def bombs() -> Iterator[tuple[str, bytes]]:
    """Files whose branches share their children, level above level: whoever walks all paths never returns."""
    for empty in (False, True):
        whole = sample(random.Random(3), commits=2)
        sealer = Sealer(whole.image)
        leaf = next(
            pgno for pgno in sorted(whole.needed()) if sealer.page(pgno)[4] == 1 and sealer.page(pgno)[12:16] > b"\1"
        )
        tree_id, stamp = struct.unpack_from("<IQ", sealer.page(leaf), 12)
        if empty:
            sealer.page(leaf)[6:8] = bytes(2)
            sealer.page(leaf)[24:26] = bytes(2)
            sealer.dirty.add(leaf)
        sealer.sealed()
        child = leaf
        roots = sealer.references_to(leaf)
        for level in range(1, 36):
            ref = child | sealer.sum_of(child) << 32
            keys = [b"key-%06d" % (2 * number) for number in range(1, 8)]
            pgno = sealer.add()
            ends = list(accumulate(map(len, keys), initial=PAGE_HEADER_SIZE + 2 * 7 + 8 * 8))[1:]
            page = sealer.page(pgno)
            struct.pack_into("<BBHIIQ7H8Q", page, 4, 2, level, 8, pgno, tree_id, stamp, *ends, *[ref] * 8)
            page[ends[0] - len(keys[0]) : ends[-1]] = b"".join(keys)
            sealer.seal(pgno)
            child = pgno
        for parent, at in roots:
            sealer.refer(parent, at, child)
            sealer.dirty.add(parent)
        for slot in META_PGNOS:
            struct.pack_into("<Q", sealer.page(slot), _META_AT["high_water"], sealer.count)
            sealer.dirty_metas.add(slot)
        yield f"shared children, empty leaves: {empty}", sealer.sealed()


# -- files that are, nearly ----------------------------------------------------------------------

_META_AT = dict(
    zip((name for name, _ in META_FIELDS), accumulate((size for _, size in META_FIELDS), initial=0), strict=False)
)
_META_REFS = (_META_AT["catalogue_root"], _META_AT["free_space_root"])
_NASTY = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutate(whole: Sample, rng: random.Random) -> bytes:
    """A file with some changes, all checksums right again."""
    sealer = Sealer(whole.image)
    count = len(whole.image) // sealer.page_size
    needed = sorted(whole.needed())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.random()
        if way < 0.15 or not needed:
            _mutate_meta(sealer, rng, count)
        elif way < 0.35 and whole.records():
            _mutate_record(sealer, rng.choice(whole.records()), rng)
        else:
            _mutate_page(sealer, rng.choice(needed), rng, count)
    return sealer.sealed()


def _mutate_page(sealer: Sealer, pgno: int, rng: random.Random, count: int) -> None:
    page = sealer.page(pgno)
    size = len(page)
    way = rng.randrange(8)
    if way == 0:  # kind, level, count
        struct.pack_into("<BBH", page, 4, rng.choice((page[4], 1, 2, 3, 4, 9)), *_level_and_count(page, rng))
    elif way == 1:  # an end, an index, a length
        at = rng.randrange(PAGE_HEADER_SIZE, min(size, PAGE_HEADER_SIZE + 80), 2)
        struct.pack_into("<H", page, at, rng.choice((*_NASTY[:15], size, size + 1, rng.randrange(65536))) & 0xFFFF)
    elif way == 2:  # a reference: page number anywhere, with the right checksum if there is such a page
        at = rng.randrange(PAGE_HEADER_SIZE, size - 8)
        sealer.refer(pgno, at, rng.choice((pgno, 0, 1, 2, 3, count, count + 7, 0xFFFFFFFF, rng.randrange(count))))
    elif way == 3:  # one of the references that are there leads somewhere else
        places = sealer.references(pgno)
        if places:
            sealer.refer(pgno, rng.choice(places), rng.choice((pgno, rng.randrange(4, count), rng.randrange(count))))
    elif way == 4:  # other owner, number, stamp
        struct.pack_into("<I", page, rng.choice((8, 12, 16, 20)), rng.choice(_NASTY))
    elif way == 5:  # a length of an overflow record, wherever it is
        at = rng.randrange(PAGE_HEADER_SIZE, size - 4)
        struct.pack_into("<I", page, at, rng.choice(_NASTY))
    elif way == 6:
        for _ in range(rng.randint(1, 12)):
            page[rng.randrange(4, size)] = rng.randrange(256)
    else:  # the content of another page, told to be this one
        other = sealer.page(rng.randrange(4, count))
        page[4:] = other[4:]
        struct.pack_into("<I", page, 8, pgno)
    sealer.dirty.add(pgno)


def _level_and_count(page: bytearray, rng: random.Random) -> tuple[int, int]:
    level, count = page[5], int.from_bytes(page[6:8], "little")
    return rng.choice((level, level + 1 & 255, 0, 1, 40, 41, 255)), rng.choice(
        (count, 0, 1, count + 1 & 0xFFFF, 0xFFFF)
    )


def _mutate_record(sealer: Sealer, pages: range, rng: random.Random) -> None:
    """A log record whose fields lie, with a right checksum."""
    run = bytearray(b"".join(sealer.page(pgno) for pgno in pages))
    way = rng.randrange(4)
    if way == 0:  # pages, epoch, what was durable, the one before, size
        at, form = rng.choice(((6, "<H"), (24, "<Q"), (32, "<Q"), (48, "<I"), (52, "<I"), (16, "<Q")))
        (value,) = struct.unpack_from(form, run, at)
        limit = (1 << 8 * struct.calcsize(form)) - 1
        struct.pack_into(form, run, at, rng.choice((*_NASTY, value + 1, value - 1, value * 2, limit)) & limit)
    elif way == 1:  # tree, count, and the sizes of the first key and value
        at = LOG_CHANGES_AT + rng.randrange(0, 16, 2)
        struct.pack_into("<H", run, at, rng.choice(_NASTY) & 0xFFFF)
    elif way == 2:
        at = LOG_CHANGES_AT + rng.randrange(0, 64)
        struct.pack_into("<I", run, at, rng.choice(_NASTY))
    else:
        for _ in range(rng.randint(1, 12)):
            run[rng.randrange(4, len(run))] = rng.randrange(256)
    sealer.put_run(pages.start, bytes(run))


def _mutate_meta(sealer: Sealer, rng: random.Random, count: int) -> None:
    slot = rng.choice(META_PGNOS)
    meta = sealer.page(slot)
    name, size = rng.choice([field for field in META_FIELDS if field[0] not in ("checksum", "zero")])
    at, form = _META_AT[name], "<I" if size == 4 else "<Q"
    (value,) = struct.unpack_from(form, meta, at)
    limit = (1 << 8 * struct.calcsize(form)) - 1
    new = rng.choice((0, 1, value + 1, value - 1, value * 2, count, count + 1, limit, 1 << 32, 1 << 47, 1 << 63))
    struct.pack_into(form, meta, at, new & limit)
    sealer.dirty_metas.add(slot)


class Sealer:
    """A file that can be changed: checksums, and the references that carry them, are put right at the end."""

    def __init__(self, image: bytes) -> None:
        header = decode_header(image[:HEADER_SIZE], "image")
        self.page_size = header.page_size
        self._checksum = checksum_function(header.checksum_kind)
        self._seed = self._checksum(header.file_id, 0)
        self._pages = [bytearray(image[at : at + self.page_size]) for at in range(0, len(image), self.page_size)]
        self.dirty: set[int] = set()
        self.dirty_metas: set[int] = set()
        self._aimed: dict[tuple[int, int], int] = {}  # (page, offset) -> the page it is made to refer to

    def page(self, pgno: int) -> bytearray:
        """A page, to be changed in place."""
        return self._pages[pgno % len(self._pages)]

    def refer(self, pgno: int, at: int, target: int) -> None:
        """Put a reference to `target` into a page."""
        self._aimed[pgno, at] = target
        value = self.sum_of(target) if target < len(self._pages) else 0
        struct.pack_into("<Q", self.page(pgno), at, target | value << 32)

    def references(self, pgno: int) -> list[int]:
        """Offsets in a page of what are references to pages of the file, by their checksums."""
        page = self.page(pgno)
        found = []
        for at in range(PAGE_HEADER_SIZE, len(page) - 7):
            target, value = struct.unpack_from("<II", page, at)
            if 4 <= target < len(self._pages) and int.from_bytes(self._pages[target][:4], "little") == value:
                found.append(at)
        return found

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self._pages)

    def add(self) -> int:
        """One page more, at the end."""
        self._pages.append(bytearray(self.page_size))
        return len(self._pages) - 1

    def references_to(self, target: int) -> list[tuple[int, int]]:
        """(page, offset) of each reference to a page."""
        return self._parents().get(target, [])

    def sealed(self) -> bytes:
        """The file, with the checksums of all changed pages right, and of those that refer to them, up to the metas."""
        parents = self._parents()
        waiting, rounds = set(self.dirty), 0
        while waiting and rounds < 64 + 4 * len(self.dirty):  # a reference to an ancestor has no end
            rounds += 1
            pgno = waiting.pop()
            if not 4 <= pgno < len(self._pages):
                continue
            old = bytes(self._pages[pgno][:4])
            self.seal(pgno)
            if bytes(self._pages[pgno][:4]) == old and rounds > 1:
                continue
            for parent, at in parents.get(pgno, ()):
                self._pages[parent][at + 4 : at + 8] = self._pages[pgno][:4]
                if parent in META_PGNOS:
                    self.dirty_metas.add(parent)
                else:
                    waiting.add(parent)
        for (pgno, _), target in self._aimed.items():
            if target == pgno:
                self._close_cycle(pgno)
        for slot in self.dirty_metas:
            meta = self._pages[slot]
            meta[:4] = struct.pack("<I", self._checksum(bytes(meta[4:META_SIZE]), self._seed))
        return b"".join(self._pages)

    def _parents(self) -> dict[int, list[tuple[int, int]]]:
        sums = {bytes(page[:4]): pgno for pgno, page in enumerate(self._pages) if pgno >= 4}
        parents: dict[int, list[tuple[int, int]]] = {}
        for pgno, page in enumerate(self._pages):
            for at in _META_REFS if pgno in META_PGNOS else range(PAGE_HEADER_SIZE, len(page) - 7) if pgno >= 4 else ():
                target = sums.get(bytes(page[at + 4 : at + 8]))
                if target is not None and int.from_bytes(page[at : at + 4], "little") == target:
                    parents.setdefault(target, []).append((pgno, at))
        return parents

    def put_run(self, pgno: int, run: bytes) -> None:
        """Put a run of pages in place, with the right checksum at its head."""
        run = struct.pack("<I", self._checksum(bytes(run[4:]), self._seed)) + run[4:]
        for index in range(len(run) // self.page_size):
            self._pages[pgno + index] = bytearray(run[index * self.page_size : (index + 1) * self.page_size])

    def seal(self, pgno: int) -> None:
        """Put the right checksum at the head of a page."""
        self._pages[pgno][:4] = struct.pack("<I", self.sum_of(pgno))

    def sum_of(self, pgno: int) -> int:
        """The checksum that a page should have."""
        return self._checksum(bytes(self._pages[pgno][4:]), self._seed)

    def _close_cycle(self, pgno: int) -> None:
        """Make a page that refers to itself carry the checksum that its reference names: four free bytes are enough."""
        page = self._pages[pgno]
        wanted = int.from_bytes(page[:4], "little")
        at = self.page_size - 4  # the end of a page is padding, or the end of its last value
        body = bytearray(page[4:])
        body[at - 4 : at] = bytes(4)
        base = self._checksum(bytes(body), self._seed)
        columns = []
        for bit in range(32):
            struct.pack_into("<I", body, at - 4, 1 << bit)
            columns.append(self._checksum(bytes(body), self._seed) ^ base)
        solution = solve(columns, base ^ wanted)
        if solution is not None:
            struct.pack_into("<I", page, at, solution)


def solve(columns: list[int], target: int) -> int | None:
    """Which columns, added bit by bit, give the target: a checksum is linear in the bits of its data."""
    basis: list[tuple[int, int]] = []
    for index, column in enumerate(columns):
        used = 1 << index
        for value, parts in basis:
            if column ^ value < column:
                column, used = column ^ value, used ^ parts
        if column:
            basis.append((column, used))
            basis.sort(reverse=True)
    chosen = 0
    for value, parts in basis:
        if target ^ value < target:
            target, chosen = target ^ value, chosen ^ parts
    return None if target else chosen


def _replay(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder, told_as(case):
        path = Path(folder) / "hostile.limpet"
        if "file" in case:
            attack(path, unpack(case["file"]), must_refuse="name" in case)
        else:
            attack(path, mutate(_whole(case["seed"]), random.Random(case["seed"] + case["index"])))


CLASS: FaultClass = FaultClass("F12", "hostile files, checksums sealed again", run, _replay)
