"""Every kind of damage is found, named and survived: each test breaks one thing in a real file and reads the report."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import limpet
from limpet import check as check_module
from limpet import log
from limpet.check import Checker, Report, check_commit
from limpet.checksum import checksum_function
from limpet.file import MemoryFile
from limpet.format import (
    CATALOGUE_TREE,
    FREE_SPACE,
    HEADER_SIZE,
    META_SIZE,
    OVERFLOW,
    PAGE_HEADER_SIZE,
    Meta,
    Pgno,
    decode_header,
    decode_meta,
    decode_page_header,
    encode_meta,
    make_stamp,
)
from limpet.inspection import PageInfo
from limpet.node import Branch, Overflow, decode_node, encode_leaf
from limpet.pager import Pager

PAGE_SIZE = 512
USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)
TEXTS = limpet.Table("texts", key=limpet.INT, value=limpet.STR)
FLOATS = limpet.Table("floats", key=limpet.FLOAT, value=limpet.BOOL)
BIG = 3 * PAGE_SIZE


@pytest.fixture(scope="module", autouse=True)
def no_log() -> Iterator[None]:
    """Every commit is a checkpoint, so that metas and trees say everything. What the log says has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_MIN_PAGES", 0)
        patch.setattr(log, "_MAX_PAGES", 0)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two different commits, several levels, overflow runs and free pages."""
    path = tmp_path_factory.mktemp("base") / "base.limpet"
    copy = path.with_suffix(".copy")
    with limpet.open(path, page_size=PAGE_SIZE) as db:
        with db.write() as txn:
            txn[USERS].update({f"user-{number:05}": {"n": number} for number in range(1500)})
            txn[EVENTS].update({("log", number): b"e" * (number * 40) for number in range(40)})
            txn[TEXTS].update(dict.fromkeys(range(3), "t" * BIG))
            txn[FLOATS][1.5] = True
        with db.write() as txn:
            del txn[TEXTS][1]
        with db.write() as txn:
            txn[USERS]["user-00700"] = {"n": -1}
            txn[EVENTS]["log", 50] = b"f" * BIG
        shutil.copyfile(path, copy)  # before the close, which would make both metas name the same commit
    return copy


class Patient:
    """A copy of a file, to be broken. `edit` changes a page and makes every checksum above it right again."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self.path = path
        header = decode_header(bytes(self.data[:HEADER_SIZE]), "")
        self.page_size = header.page_size
        self.checksum = checksum_function(header.checksum_kind)
        self.seed = self.checksum(header.file_id, 0)
        with limpet.inspect(path) as inspection:
            self.pages = list(inspection.pages())
            self.roots = {table.name: table.root for table in inspection.tables()}

    def page(self, pgno: int, count: int = 1) -> bytes:
        return bytes(self.data[pgno * self.page_size : (pgno + count) * self.page_size])

    def put(self, pgno: int, page: bytes) -> None:
        self.data[pgno * self.page_size : pgno * self.page_size + len(page)] = page

    def flip(self, pgno: int, at: int) -> None:
        self.data[pgno * self.page_size + at] ^= 0x10

    def sealed(self, page: bytes) -> bytes:
        return self.checksum(page[4:], self.seed).to_bytes(4, "little") + page[4:]

    def edit(self, pgno: int, change: Callable[[bytearray], None], count: int = 1) -> None:
        page = bytearray(self.page(pgno, count))
        old = pgno.to_bytes(4, "little") + bytes(page[:4])
        change(page)
        sealed = self.sealed(bytes(page))
        self.put(pgno, sealed)
        self.refer(old, pgno.to_bytes(4, "little") + sealed[:4])

    def refer(self, old: bytes, new: bytes) -> None:
        """Replace a reference wherever it stands."""
        if old == new:
            return
        for found in [match.start() for match in re.finditer(re.escape(old), self.data)]:
            pgno, at = divmod(found, self.page_size)
            if self.data[found : found + 8] != old:
                continue
            if pgno in (1, 2):
                self.data[found : found + 8] = new
                self.seal_meta(pgno)
            else:

                def change(page: bytearray, at: int = at) -> None:
                    page[at : at + 8] = new

                self.edit(pgno, change)

    def seal_meta(self, pgno: int) -> None:
        start = pgno * self.page_size
        body = bytes(self.data[start + 4 : start + META_SIZE])
        self.data[start : start + 4] = self.checksum(body, self.seed).to_bytes(4, "little")

    def metas(self) -> list[tuple[int, Meta]]:
        """(slot, meta), the newest first."""
        metas = [
            (slot, decode_meta(self.page(slot)[:META_SIZE], Pgno(slot), self.page_size, self.checksum, self.seed))
            for slot in (1, 2)
        ]
        return sorted(metas, key=lambda found: -found[1].txid)

    def edit_meta(self, **changes: int) -> None:
        from dataclasses import replace

        slot, meta = self.metas()[0]
        changed = replace(meta, **changes)  # type: ignore[arg-type]  # a txid or a root is an int
        self.put(slot, encode_meta(changed, Pgno(slot), self.checksum, self.seed))

    def find(self, kind: str, table: str | None = None, level: int = 0, **more: object) -> list[PageInfo]:
        return [
            page
            for page in self.pages
            if (page.kind, page.table, page.level, page.state) == (kind, table, level, more.get("state", "reached"))
        ]

    def leaf(self, table: str = "users", index: int = 5) -> int:
        """A leaf in the middle of a table, which both commits share unless index is otherwise."""
        return self.find("leaf", table)[index].pgno

    def catalogue(self) -> int:
        return next(page.pgno for page in self.pages if page.tree_id == CATALOGUE_TREE and page.state == "reached")

    def map_page(self) -> int:
        return next(page.pgno for page in self.pages if page.kind == "free-space" and page.state == "reached")

    def rewrite_leaf(self, pgno: int, change: Callable[[list[bytes], list[bytes]], None]) -> None:
        """Encode a leaf anew with other entries."""
        header = decode_page_header(self.page(pgno))
        leaf = decode_node(self.page(pgno), Pgno(pgno), header.tree_id)
        assert not isinstance(leaf, Branch)
        keys, values = leaf.keys(), leaf.values()
        change(keys, values)
        body = encode_leaf(keys, values, Pgno(pgno), header.tree_id, header.stamp, self.page_size)[0]

        def replace(page: bytearray) -> None:
            page[4:] = body

        self.edit(pgno, replace)

    def change_table(self, name: str, offset: int, value: bytes) -> None:
        """Change bytes of a table's entry in the catalogue."""

        def change(keys: list[bytes], values: list[bytes]) -> None:
            index = keys.index(name.encode())
            entry = bytearray(values[index])
            entry[offset : offset + len(value)] = value
            values[index] = bytes(entry)

        self.rewrite_leaf(self.catalogue(), change)

    def branch_children(self, pgno: int) -> tuple[int, int]:
        """(offset of the first reference, number of children) of a branch."""
        count = decode_page_header(self.page(pgno)).count
        return PAGE_HEADER_SIZE + 2 * (count - 1), count

    def run(self, table: str = "texts") -> tuple[int, int]:
        """(first page, pages) of an overflow run."""
        runs = [page.pgno for page in self.pages if page.kind == "overflow" and page.table == table]
        first = next(pgno for pgno in runs if self.pages[pgno].level == 0 and self.pages[pgno].state == "reached")
        return first, 4

    def report(self, *, quick: bool = False) -> Report:
        self.path.write_bytes(self.data)
        with limpet.inspect(self.path) as inspection:
            return inspection.check(quick=quick)


@pytest.fixture
def patient(base: Path, tmp_path: Path) -> Patient:
    path = tmp_path / "patient.limpet"
    shutil.copyfile(base, path)
    return Patient(path)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.errors]


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    """A change of some bytes of a page."""

    def change(page: bytearray) -> None:
        page[at : at + len(value)] = value

    return change


# -- sound files ---------------------------------------------------------------------------------


def test_the_file_that_all_tests_break_is_sound_and_has_everything(patient: Patient) -> None:
    report = patient.report()
    assert (report.errors, report.warnings) == ([], [])
    assert report.older_txid is not None
    assert report.older_ok
    assert report.reached_count + report.free_count + 4 == report.page_count
    assert report.pending_count
    assert patient.find("branch", "users", level=2)
    assert len(patient.find("branch", "users", level=1)) > 1


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_sound_files_have_no_findings(db_path: Path, page_size: int, checksum: str) -> None:
    with limpet.open(db_path, page_size=page_size, checksum=checksum) as db:
        assert db.check().errors == []
        for turn in range(6):
            with db.write(durability=["sync", "os", "none"][turn % 3]) as txn:
                txn[USERS].update({f"u{turn}-{number}": {"n": [number]} for number in range(200)})
                txn[EVENTS]["a", turn] = b"x" * (turn * page_size)
                txn[USERS].delete_range(f"u{turn - 2}", f"u{turn - 2}-5")
            report = db.check()
            assert (report.errors, report.warnings) == ([], [])
        db.flush()
        db.backup(f"{db_path}.copy")
        db.compact()
        report = db.check()
        assert (report.errors, report.warnings) == ([], [])
    for path in (str(db_path), f"{db_path}.copy"):
        with limpet.inspect(path) as inspection:
            report = inspection.check()
            assert (report.errors, report.warnings) == ([], [])


def test_a_database_in_memory_can_be_checked() -> None:
    with limpet.open(":memory:", page_size=512) as db:
        with db.write() as txn:
            txn[USERS].update({str(number): number for number in range(500)})
        report = db.check()
        assert (report.errors, report.warnings) == ([], [])
        assert report.reached_count > 10


# -- pages ---------------------------------------------------------------------------------------


def test_a_flipped_bit_is_reported_with_page_table_path_and_lost_keys(patient: Patient) -> None:
    pgno = patient.leaf("users", 20)
    keys = patient.pages[pgno].entries
    patient.flip(pgno, 300)
    report = patient.report()
    assert kinds(report) == ["checksum", "lost"]
    finding = report.errors[0]
    assert (finding.pgno, finding.offset, finding.table) == (pgno, pgno * PAGE_SIZE, "users")
    assert finding.path[0] == patient.roots["users"]
    assert finding.path[-1] == pgno
    assert len(finding.path) == 3
    assert re.fullmatch(r"keys from 'user-0\d+' up to 'user-0\d+'", finding.keys or "")
    assert report.errors[1].expected == 1500
    assert report.errors[1].found == 1500 - (keys or 0)
    assert str(finding).startswith(f"page {pgno}, table 'users': the page is damaged")
    assert f"-> {pgno}" in str(finding)
    assert json.loads(json.dumps(finding.as_dict()))["kind"] == "checksum"


def test_the_commit_before_is_known_to_be_whole_where_it_does_not_share_the_damage(patient: Patient) -> None:
    newest = max(page.txid or 0 for page in patient.find("leaf", "users"))
    own = next(page.pgno for page in patient.find("leaf", "users") if page.txid == newest)
    patient.flip(own, 300)
    report = patient.report()
    assert not report.ok
    assert report.older_ok
    shared = next(page.pgno for page in patient.find("leaf", "users") if page.txid != newest)
    patient.flip(shared, 300)
    report = patient.report()
    assert report.older_ok is False
    assert len([finding for finding in report.errors if finding.kind == "checksum"]) == 2


def test_one_bad_page_does_not_hide_the_next(patient: Patient) -> None:
    damaged = [patient.leaf("users", 3), patient.leaf("users", 40), patient.leaf("events", 1), patient.run()[0]]
    for pgno in damaged:
        patient.flip(pgno, 100)
    report = patient.report()
    found = {finding.pgno for finding in report.errors if finding.kind == "checksum"}
    assert found == set(damaged)


def test_damage_to_the_own_checksum_alone_loses_nothing(patient: Patient) -> None:
    pgno = patient.leaf()
    patient.flip(pgno, 1)
    report = patient.report()
    assert kinds(report) == ["checksum"]
    assert "by its parent's reference the rest is whole" in report.errors[0].message
    assert report.errors[0].keys is None


def test_swapped_pages_are_told_from_damaged_ones(patient: Patient) -> None:
    a, b = patient.leaf("users", 5), patient.leaf("users", 9)
    pages = patient.page(a), patient.page(b)
    patient.put(b, pages[0])
    patient.put(a, pages[1])
    report = patient.report()
    assert kinds(report).count("stale") == 2
    assert f"it is page {b}" in next(str(found) for found in report.errors if found.pgno == a)


def test_a_lost_write_leaves_a_stale_page(patient: Patient) -> None:
    pgno = patient.leaf()
    page = bytearray(patient.page(pgno))
    page[16] ^= 1  # the txid
    patient.put(pgno, patient.sealed(bytes(page)))
    report = patient.report()
    assert kinds(report)[0] == "stale"
    assert "another version" in report.errors[0].message


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_a_truncated_file_is_reported_with_what_is_missing(patient: Patient, keep: float) -> None:
    del patient.data[int(patient.metas()[0][1].high_water * keep) * PAGE_SIZE + 100 :]
    report = patient.report()
    assert "size" in kinds(report)
    assert "truncated" in kinds(report)
    assert all(finding.table for finding in report.errors if finding.kind == "lost")


@pytest.mark.parametrize("kind", ["leaf", "overflow"])
def test_a_page_in_which_the_file_ends_is_reported(base: Path, kind: str) -> None:
    patient = Patient(base)
    pgno = patient.leaf() if kind == "leaf" else patient.run("events")[0]

    class CutFile(MemoryFile):
        def read(self, offset: int, size: int) -> bytes:
            return super().read(offset, min(size, 300) if offset == pgno * PAGE_SIZE else size)

    report = check_on(CutFile(), patient)
    assert kinds(report)[0] == "truncated"
    assert (report.errors[0].pgno, report.errors[0].found) == (pgno, "300")


def test_a_page_that_the_system_cannot_read_is_reported(base: Path) -> None:
    patient = Patient(base)
    bad = patient.leaf() * PAGE_SIZE, patient.run()[0] * PAGE_SIZE

    class FailingFile(MemoryFile):
        def read(self, offset: int, size: int) -> bytes:
            if offset in bad and size >= PAGE_SIZE:
                raise OSError(5, "Input/output error")
            return super().read(offset, size)

    report = check_on(FailingFile(), patient)
    assert kinds(report).count("io") == 2
    assert {(finding.pgno or 0) * PAGE_SIZE for finding in report.errors if finding.kind == "io"} == set(bad)


def check_on(file: MemoryFile, patient: Patient, progress: Callable[[int, int], None] | None = None) -> Report:
    file.grow(len(patient.data))
    file.write(0, bytes(patient.data))
    pager = Pager(file, decode_header(bytes(patient.data[:HEADER_SIZE]), ""), 0)
    (_, newest), (_, older) = patient.metas()
    return check_commit(pager, newest, older, progress)


def test_every_page_is_read_once(base: Path) -> None:
    patient = Patient(base)
    reads: dict[int, int] = {}

    class CountingFile(MemoryFile):
        def read(self, offset: int, size: int) -> bytes:
            if size >= PAGE_SIZE and size < 1 << 16:
                for pgno in range(offset // PAGE_SIZE, (offset + size) // PAGE_SIZE):
                    reads[pgno] = reads.get(pgno, 0) + 1
            return super().read(offset, size)

    calls: list[tuple[int, int]] = []
    report = check_on(CountingFile(), patient, lambda done, total: calls.append((done, total)))
    assert report.ok
    in_use = [page.pgno for page in patient.pages if page.state in ("reached", "pending") and page.pgno > 3]
    assert {pgno for pgno, _ in reads.items() if pgno < report.page_count} == set(in_use)
    assert {count for pgno, count in reads.items() if pgno < report.page_count} == {1}
    assert calls == sorted(calls)
    assert len(calls) > 1
    assert calls[-1][0] == calls[-1][1]


# -- re-sealed pages: the checksums are right, the content is wrong -------------------------------


@pytest.mark.parametrize(
    ("at", "value", "kind"),
    [
        (4, b"\x04", "kind"),
        (5, b"\x01", "level"),
        (8, b"\x05\x00\x00\x00", "misplaced"),
        (12, b"\x63\x00\x00\x00", "tree"),
        (16, make_stamp(999, 0).to_bytes(8, "little"), "txid"),
        (6, b"\xff\xff", "structure"),
        (26, b"\xff\xff", "structure"),
    ],
)
def test_each_field_of_a_leaf_is_verified(patient: Patient, at: int, value: bytes, kind: str) -> None:
    pgno = patient.leaf()
    patient.edit(pgno, put(at, value))
    report = patient.report()
    assert kinds(report)[0] == kind
    assert (report.errors[0].pgno, report.errors[0].table) == (pgno, "users")
    assert ("lost" in kinds(report)) == (kind != "txid")


@pytest.mark.parametrize("level", [0, 1, 3, 41])
def test_the_level_of_a_branch_is_verified(patient: Patient, level: int) -> None:
    root = patient.roots["users"]
    assert root is not None
    patient.edit(root, put(5, bytes([level])))
    report = patient.report()
    assert "level" in kinds(report)
    assert report.errors[0].table == "users"


def test_the_order_of_keys_is_verified(patient: Patient) -> None:
    pgno = patient.leaf()

    def swap(keys: list[bytes], _: list[bytes]) -> None:
        keys[3], keys[4] = keys[4], keys[3]

    patient.rewrite_leaf(pgno, swap)
    report = patient.report()
    assert kinds(report) == ["order", "lost"]
    assert report.errors[0].pgno == pgno


def test_the_order_of_separators_is_verified(patient: Patient) -> None:
    pgno = patient.find("branch", "users", level=1)[0].pgno
    page = patient.page(pgno)
    at, count = patient.branch_children(pgno)
    first = at + 8 * count
    size = int.from_bytes(page[24:26], "little") - first
    patient.edit(pgno, put(first, b"\xff" * size))
    assert kinds(patient.report())[0] == "order"


@pytest.mark.parametrize("replacement", [b"user-00000", b"user-99999"])
def test_keys_outside_of_their_separators_are_found(patient: Patient, replacement: bytes) -> None:
    pgno = patient.leaf("users", 10)

    def change(keys: list[bytes], _: list[bytes]) -> None:
        keys[0 if replacement < keys[0] else -1] = replacement

    patient.rewrite_leaf(pgno, change)
    report = patient.report()
    assert kinds(report) == ["separator"]
    assert report.errors[0].pgno == pgno
    assert "1 of" in report.errors[0].message
    assert replacement.decode() in str(report.errors[0].found)


def test_separators_outside_of_those_above_are_found(patient: Patient) -> None:
    pgno = patient.find("branch", "users", level=1)[1].pgno
    at, count = patient.branch_children(pgno)
    page = patient.page(pgno)
    first = at + 8 * count
    size = int.from_bytes(page[24:26], "little") - first
    patient.edit(pgno, put(first, b"a" * size))
    found = [finding for finding in patient.report().errors if finding.pgno == pgno]
    assert [finding.kind for finding in found] == ["separator"]


def test_a_key_that_is_too_long_is_found(patient: Patient) -> None:
    def change(keys: list[bytes], values: list[bytes]) -> None:
        del keys[2:], values[2:]
        keys[1] += b"x" * 140

    patient.rewrite_leaf(patient.leaf(), change)
    assert "entry" in kinds(patient.report())


def test_an_entry_that_is_too_large_for_a_leaf_is_found(patient: Patient) -> None:
    def change(keys: list[bytes], values: list[bytes]) -> None:
        del keys[2:], values[2:]
        values[1] = b'"' + b"x" * 300 + b'"'

    patient.rewrite_leaf(patient.leaf(), change)
    assert "entry" in kinds(patient.report())


def test_a_leaf_that_lost_an_entry_does_not_add_up(patient: Patient) -> None:
    def change(keys: list[bytes], values: list[bytes]) -> None:
        del keys[2], values[2]

    patient.rewrite_leaf(patient.leaf(), change)
    report = patient.report()
    assert kinds(report) == ["count"]
    assert (report.errors[0].expected, report.errors[0].found, report.errors[0].table) == (1500, 1499, "users")


def test_unused_bytes_that_are_not_zero_are_a_warning(patient: Patient) -> None:
    pages = [patient.leaf(), patient.find("branch", "users", level=2)[0].pgno]
    for pgno in pages:
        patient.edit(pgno, put(PAGE_SIZE - 1, b"\x01"))
    report = patient.report()
    assert report.ok
    assert {(finding.kind, finding.pgno) for finding in report.warnings} == {("padding", pgno) for pgno in pages}


# -- references ----------------------------------------------------------------------------------


def test_a_page_that_is_referred_to_twice_is_found(patient: Patient) -> None:
    pgno = patient.find("branch", "users", level=1)[0].pgno
    at, _ = patient.branch_children(pgno)
    page = patient.page(pgno)
    child = int.from_bytes(page[at : at + 4], "little")
    patient.edit(pgno, put(at + 8, page[at : at + 8]))
    report = patient.report()
    double = [finding for finding in report.errors if finding.kind == "double"]
    assert [finding.pgno for finding in double] == [child]
    assert double[0].path[-2:] == (pgno, child)
    assert [finding.kind for finding in report.warnings] == ["unreached"]
    assert report.unreached_count == 1


def test_a_page_that_two_tables_have_is_found(patient: Patient) -> None:
    root = patient.roots["floats"]
    assert root is not None
    reference = root.to_bytes(4, "little") + patient.page(root)[:4]
    patient.change_table("texts", 0, reference)
    report = patient.report()
    double = next(finding for finding in report.errors if finding.kind == "double")
    assert double.pgno == root
    assert double.table == "texts"
    assert "by its own header it belongs to tree" in double.message


@pytest.mark.parametrize("target", [0, 2, 3, 1 << 20])
def test_a_reference_that_leaves_the_pages_is_found(patient: Patient, target: int) -> None:
    pgno = patient.find("branch", "users", level=1)[0].pgno
    at, _ = patient.branch_children(pgno)
    patient.edit(pgno, put(at, target.to_bytes(4, "little")))
    report = patient.report()
    assert kinds(report)[0] == "reference"
    assert report.errors[0].found == target


def test_a_cycle_ends(patient: Patient) -> None:
    root = patient.roots["users"]
    assert root is not None
    at, _ = patient.branch_children(root)
    patient.edit(root, put(at, root.to_bytes(4, "little")))
    assert "double" in kinds(patient.report())


# -- overflow runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [0, 1, 3])
def test_damage_anywhere_in_a_run_is_found(patient: Patient, page: int) -> None:
    first, _ = patient.run()
    patient.flip(first + page, 60 if page == 3 else 400)
    report = patient.report()
    assert kinds(report) == ["checksum"]
    assert (report.errors[0].pgno, report.errors[0].table) == (first, "texts")
    assert re.fullmatch(r"key \d", report.errors[0].keys or "")


@pytest.mark.parametrize(
    ("at", "value", "kind"),
    [
        (4, b"\x01", "kind"),
        (5, b"\x01", "overflow"),
        (6, b"\x01\x00", "overflow"),
        (8, b"\x05\x00\x00\x00", "misplaced"),
        (12, b"\x63\x00\x00\x00", "tree"),
        (16, make_stamp(999, 0).to_bytes(8, "little"), "txid"),
    ],
)
def test_each_field_of_a_run_is_verified(patient: Patient, at: int, value: bytes, kind: str) -> None:
    first, count = patient.run()
    patient.edit(first, put(at, value), count)
    assert kinds(patient.report())[0] == kind


def test_the_unused_bytes_of_a_run_are_a_warning(patient: Patient) -> None:
    first, count = patient.run()
    patient.edit(first, put(count * PAGE_SIZE - 1, b"\x01"), count)
    report = patient.report()
    assert report.ok
    assert [(finding.kind, finding.pgno) for finding in report.warnings] == [("padding", first)]


def test_a_run_that_ends_behind_the_pages_is_found(patient: Patient) -> None:
    pgno = patient.find("leaf", "texts")[0].pgno

    def change(_: list[bytes], values: list[bytes]) -> None:
        values[0] = Overflow((1 << 31).to_bytes(4, "little") + values[0][4:])

    patient.rewrite_leaf(pgno, change)
    report = patient.report()
    assert kinds(report)[0] == "reference"


def test_the_indexes_of_overflow_records_have_an_order(patient: Patient) -> None:
    pgno = patient.find("leaf", "texts")[0].pgno
    at = 26 + 4 * (patient.pages[pgno].entries or 0)
    page = patient.page(pgno)
    patient.edit(pgno, put(at, page[at + 2 : at + 4] + page[at : at + 2]))
    assert kinds(patient.report()) == ["structure"]


# -- codecs --------------------------------------------------------------------------------------


def test_a_value_that_does_not_decode_is_found_unless_asked_to_be_quick(patient: Patient) -> None:
    def change(_: list[bytes], values: list[bytes]) -> None:
        values[2] = b"{" * len(values[2])

    patient.rewrite_leaf(patient.leaf(), change)
    report = patient.report()
    assert kinds(report) == ["codec"]
    assert "1 of" in report.errors[0].message
    assert "user-" in report.errors[0].message
    assert patient.report(quick=True).ok


def test_a_large_value_that_does_not_decode_is_found(patient: Patient) -> None:
    first, count = patient.run()
    patient.edit(first, put(1000, b"\xff"), count)
    report = patient.report()
    assert kinds(report) == ["codec"]
    assert report.errors[0].table == "texts"


def test_a_key_that_does_not_decode_is_found(patient: Patient) -> None:
    def change(keys: list[bytes], _: list[bytes]) -> None:
        keys[-1] = keys[-1][:-1] + b"\xff"

    last = patient.find("leaf", "users")[-1].pgno
    patient.rewrite_leaf(last, change)
    report = patient.report()
    found = [finding for finding in report.errors if finding.kind == "codec"]
    assert [finding.pgno for finding in found] == [last]
    assert "not UTF-8" in found[0].message
    assert "codec" not in kinds(patient.report(quick=True))


def test_a_tuple_key_with_an_element_too_few_is_found(patient: Patient) -> None:
    def change(keys: list[bytes], _: list[bytes]) -> None:
        keys[0] = b"log\x00\x00\x00"

    pgno = int(patient.find("leaf", "events")[0].pgno)
    patient.rewrite_leaf(pgno, change)
    assert "codec" in kinds(patient.report())


def test_a_key_that_encodes_to_other_bytes_is_found(patient: Patient) -> None:
    root = patient.roots["floats"]
    assert root is not None
    negative_zero = b"\x7f" + b"\xff" * 7  # decodes to -0.0, which is written as 0.0

    def change(keys: list[bytes], _: list[bytes]) -> None:
        keys[0] = negative_zero

    patient.rewrite_leaf(root, change)
    report = patient.report()
    assert kinds(report) == ["codec"]
    assert "not the ones" in report.errors[0].message


# -- the catalogue -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value", "kind", "words"),
    [
        (8, b"\x07", "count", "another number of entries"),
        (16, b"\x02\x00\x00\x00", "catalogue", "same tree id"),
        (16, b"\x00\x00\x00\x00", "catalogue", "reserved tree id"),
        (16, b"\x63\x00\x00\x00", "catalogue", "not given out yet"),
        (20, b"\x63", "codec", "unknown codec"),
        (21, b"\x07", "catalogue", "wrong number of key codecs"),
    ],
)
def test_each_field_of_a_table_is_verified(patient: Patient, offset: int, value: bytes, kind: str, words: str) -> None:
    patient.change_table("texts", offset, value)
    report = patient.report()
    found = [finding for finding in report.errors if finding.kind == kind]
    assert found
    assert words in str(found[0])
    assert "texts" in str(found[0])


def test_names_of_tables_are_verified(patient: Patient) -> None:
    def change(keys: list[bytes], _: list[bytes]) -> None:
        keys[0], keys[-1] = b"", b"users\xff"

    patient.rewrite_leaf(patient.catalogue(), change)
    messages = [str(finding) for finding in patient.report().errors if finding.kind == "catalogue"]
    assert any("empty name" in message for message in messages)
    assert any("not UTF-8" in message for message in messages)


def test_a_catalogue_entry_that_is_an_overflow_record_is_found(patient: Patient) -> None:
    def change(_: list[bytes], values: list[bytes]) -> None:
        values[0] = Overflow(bytes(12))

    patient.rewrite_leaf(patient.catalogue(), change)
    found = [finding for finding in patient.report().errors if finding.kind == "catalogue"]
    assert "overflow record" in found[0].message


def test_a_damaged_catalogue_says_that_tables_are_lost_and_does_not_call_them_leaks(patient: Patient) -> None:
    pgno = patient.catalogue()
    patient.flip(pgno, 200)
    report = patient.report()
    assert kinds(report) == ["checksum"]
    assert report.errors[0].keys == "all tables"
    assert "catalogue" in report.errors[0].message
    assert [finding.kind for finding in report.warnings] == ["unreached"]
    assert (report.leaked_count, report.unreached_count > 100) == (0, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table_count": 9}, "number of tables"),
        ({"free_count": 9}, "number of free pages"),
    ],
)
def test_the_counts_of_the_meta_are_verified(patient: Patient, change: dict[str, int], words: str) -> None:
    patient.edit_meta(**change)
    report = patient.report()
    assert kinds(report) == ["count"]
    assert words in report.errors[0].message


# -- free space ----------------------------------------------------------------------------------


def set_bit(pgno: int, *, free: bool) -> Callable[[bytearray], None]:
    def change(page: bytearray) -> None:
        at, mask = PAGE_HEADER_SIZE + pgno // 8, 1 << pgno % 8
        page[at] = page[at] | mask if free else page[at] & ~mask

    return change


def test_a_page_in_use_that_is_marked_free_is_an_error(patient: Patient) -> None:
    pgno = patient.leaf()
    patient.edit(patient.map_page(), set_bit(pgno, free=True))
    report = patient.report()
    assert sorted(kinds(report)) == ["count", "free"]
    finding = next(finding for finding in report.errors if finding.kind == "free")
    assert (finding.pgno, finding.table) == (pgno, "users")


def test_a_later_page_of_a_run_that_is_marked_free_is_an_error(patient: Patient) -> None:
    first, _ = patient.run()
    patient.edit(patient.map_page(), set_bit(first + 2, free=True))
    report = patient.report()
    assert first + 2 in {finding.pgno for finding in report.errors if finding.kind == "free"}


def test_leaked_pages_are_a_warning_with_what_they_were(patient: Patient) -> None:
    pgno = next(page.pgno for page in patient.pages if page.state == "free" and page.kind == "overflow")
    patient.edit(patient.map_page(), set_bit(pgno, free=False))
    patient.edit_meta(free_count=patient.metas()[0][1].free_count - 1)
    report = patient.report()
    assert report.ok
    assert report.leaked_count == 1
    assert [(finding.kind, finding.pgno) for finding in report.warnings] == [("leak", pgno)]
    assert "as overflow page of table 'texts'" in report.warnings[0].message


@pytest.mark.parametrize("pgno", [0, 3, 3000])
def test_pages_that_cannot_be_free_are_found(patient: Patient, pgno: int) -> None:
    patient.edit(patient.map_page(), set_bit(pgno, free=True))
    report = patient.report()
    assert kinds(report) == ["map"]
    assert report.errors[0].found == pgno


@pytest.mark.parametrize(
    ("at", "value", "kind"),
    [
        (4, b"\x01", "map"),
        (5, b"\x01", "map"),
        (8, b"\x05\x00\x00\x00", "misplaced"),
        (12, b"\x63\x00\x00\x00", "map"),
        (16, make_stamp(999, 0).to_bytes(8, "little"), "txid"),
    ],
)
def test_each_field_of_the_map_is_verified(patient: Patient, at: int, value: bytes, kind: str) -> None:
    patient.edit(patient.map_page(), put(at, value))
    report = patient.report()
    assert kinds(report) == [kind]
    assert "map of free space" in report.errors[0].message


def test_a_damaged_map_makes_no_leaks(patient: Patient) -> None:
    patient.flip(patient.map_page(), 100)
    report = patient.report()
    assert kinds(report) == ["checksum"]
    assert report.leaked_count == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with so many pages that its map of free space has two levels."""
    path = tmp_path_factory.mktemp("large") / "large.limpet"
    copy = path.with_suffix(".copy")
    with limpet.open(path, page_size=PAGE_SIZE) as db:
        with db.write() as txn:
            txn[EVENTS]["a", 1] = bytes(PAGE_SIZE * 2000)
        with db.write() as txn:
            txn[EVENTS]["a", 1] = b""
            txn[EVENTS]["a", 2] = bytes(PAGE_SIZE * 2100)
        with db.write() as txn:
            txn[EVENTS]["a", 3] = b""
        shutil.copyfile(path, copy)
    return copy


def map_root(patient: Patient) -> int:
    return next(page.pgno for page in patient.find("free-space", None, level=1))


def test_a_map_of_two_levels_is_walked(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.limpet"
    shutil.copyfile(large, path)
    patient = Patient(path)
    report = patient.report()
    assert (report.errors, report.warnings) == ([], [])
    assert report.free_count > 1900
    leaf = int.from_bytes(patient.page(map_root(patient))[24:28], "little")
    patient.flip(leaf, 200)
    report = patient.report()
    assert kinds(report) == ["checksum"]
    assert report.errors[0].path == (map_root(patient), leaf)
    assert report.leaked_count == 0


def test_a_part_of_the_map_behind_the_end_is_found(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.limpet"
    shutil.copyfile(large, path)
    patient = Patient(path)
    page = patient.page(map_root(patient))
    patient.edit(map_root(patient), put(6, b"\x03\x00"))
    patient.edit(map_root(patient), put(24 + 16, page[24:32]))
    report = patient.report()
    assert "map" in kinds(report)
    patient.edit(map_root(patient), put(6, b"\x02\x00"))
    report = patient.report()  # the reference is there still, but not counted
    assert report.ok
    assert [finding.kind for finding in report.warnings] == ["padding"]


def test_map_pages_are_claimed_like_all_others(patient: Patient) -> None:
    pgno = patient.map_page()
    reference = pgno.to_bytes(4, "little") + patient.page(pgno)[:4]
    patient.change_table("texts", 0, reference)
    double = next(finding for finding in patient.report().errors if finding.kind == "double")
    assert double.pgno == pgno


# -- the commit before ---------------------------------------------------------------------------


def test_damage_of_the_commit_before_is_a_warning_that_names_it(patient: Patient) -> None:
    older = patient.metas()[1][1].txid
    pgno = next(page.pgno for page in patient.pages if page.state == "pending" and page.kind == "leaf")
    patient.flip(pgno, 300)
    report = patient.report()
    assert report.ok
    assert report.older_ok is False
    assert report.warnings[0].kind == "checksum"
    assert report.warnings[0].message.startswith(f"commit {older}, the one before: ")
    assert report.warnings[0].pgno == pgno


def test_a_page_of_the_commit_before_that_was_overwritten_is_a_warning(patient: Patient) -> None:
    pgno = next(
        page.pgno for page in patient.pages if page.state == "pending" and page.kind == "branch" and page.level == 2
    )
    at, _ = patient.branch_children(pgno)
    patient.edit(pgno, put(at + 4, b"\x00\x00\x00\x00"))
    report = patient.report()
    assert report.ok
    assert [finding.kind for finding in report.warnings] == ["stale"]
    assert "was overwritten by commit" in report.warnings[0].message


def test_a_page_that_the_commit_before_has_twice_is_a_warning(patient: Patient) -> None:
    pgno = next(
        page.pgno
        for page in patient.pages
        if page.state == "pending" and page.kind == "branch" and page.table == "users" and page.level == 1
    )
    leaf = next(
        page.pgno for page in patient.pages if page.state == "pending" and page.kind == "leaf" and page.table == "users"
    )
    at, count = patient.branch_children(pgno)
    page = patient.page(pgno)
    own = next(
        index for index in range(count) if int.from_bytes(page[at + 8 * index : at + 8 * index + 4], "little") == leaf
    )
    other = own + 1 if own + 1 < count else own - 1
    patient.edit(pgno, put(at + 8 * other, page[at + 8 * own : at + 8 * own + 8]))
    report = patient.report()
    assert report.ok
    assert "double" in [finding.kind for finding in report.warnings]


def test_a_page_of_the_commit_before_that_its_own_map_calls_free_is_a_warning(patient: Patient) -> None:
    pgno = next(page.pgno for page in patient.pages if page.state == "pending" and page.kind == "leaf")
    older_map = next(page.pgno for page in patient.pages if page.state == "pending" and page.kind == "free-space")
    patient.edit(older_map, set_bit(pgno, free=True))
    report = patient.report()
    assert report.ok
    assert {"free", "count"} <= {finding.kind for finding in report.warnings}


# -- the file ------------------------------------------------------------------------------------


def test_junk_behind_the_end_is_a_warning(patient: Patient) -> None:
    end = patient.metas()[0][1].high_water * PAGE_SIZE
    patient.data += bytes(PAGE_SIZE * 3)
    patient.data[end + 700 : end + 710] = b"somebody's"
    report = patient.report()
    assert report.ok
    assert [(finding.kind, finding.offset) for finding in report.warnings] == [("junk", end + PAGE_SIZE)]


def test_pages_of_a_commit_that_never_was_are_no_junk(patient: Patient) -> None:
    end = patient.metas()[0][1].high_water
    patient.data += bytes(PAGE_SIZE * 8)
    leaf = bytearray(patient.page(patient.leaf()))
    leaf[8:12] = end.to_bytes(4, "little")
    patient.put(end, patient.sealed(bytes(leaf)))
    run = bytearray(patient.page(patient.run()[0], 4))
    run[8:12] = (end + 1).to_bytes(4, "little")
    patient.put(end + 1, patient.sealed(bytes(run)))
    report = patient.report()
    assert (report.errors, report.warnings) == ([], [])


def test_an_end_that_the_system_cannot_read_is_a_warning(base: Path) -> None:
    patient = Patient(base)
    end = patient.metas()[0][1].high_water * PAGE_SIZE
    patient.data += bytes(PAGE_SIZE)

    class FailingFile(MemoryFile):
        def read(self, offset: int, size: int) -> bytes:
            if offset >= end:
                raise OSError(5, "Input/output error")
            return super().read(offset, size)

    report = check_on(FailingFile(), patient)
    assert report.ok
    assert [finding.kind for finding in report.warnings] == ["io"]


def test_a_meta_that_claims_pages_without_end_takes_no_memory(patient: Patient) -> None:
    patient.edit_meta(high_water=1 << 32, free_space_root=0, free_count=0)
    report = patient.report()
    assert "size" in kinds(report)


def test_the_list_of_findings_is_bounded(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "MAX_FINDINGS", 3)
    for page in patient.find("leaf", "users"):
        patient.flip(page.pgno, 300)
    report = patient.report()
    assert len(report.errors) == 4
    assert re.fullmatch(r"and \d+ more that are not listed", report.errors[-1].message)


def test_keys_of_every_codec_are_shown_as_people_write_them() -> None:
    shown = check_module.shown_bound
    assert shown(limpet.STR, b"ab") == "'ab'"
    assert shown(limpet.INT, b"\x80") == "0"
    assert shown(limpet.BYTES, b"\xff") == repr(b"\xff")
    assert shown((limpet.STR, limpet.INT), b"ada\x00\x80\x00\x00\x00\x00\x00\x00\x07") == "('ada', 7)"
    assert shown((limpet.STR, limpet.INT), b"ad") == "('ad',)"
    assert shown((limpet.STR, limpet.INT), b"a\x01\x01b\x00") == "('a\\x00b',)"
    assert shown(limpet.DATETIME, b"\x80").startswith("1970-01-01")
    assert shown(None, b"\x01\x02") == "0x0102"
    assert check_module.shown_key(limpet.INT, b"short") == "0x73686f7274"
    assert check_module.shown_range(limpet.STR, None, b"b", "keys") == "keys up to 'b'"
    assert check_module.shown_range(limpet.STR, b"b", None, "keys") == "keys from 'b' on"
    assert check_module.shown_range(limpet.STR, None, None, "keys") == "all keys"
    assert len(shown(limpet.STR, b"x" * 500)) < 60


def test_any_change_of_any_page_is_survived(patient: Patient, seed: int) -> None:
    """Re-sealed at random, so that the damage gets past the checksums."""
    chance = random.Random(seed)
    original = bytes(patient.data)
    in_use = [page.pgno for page in patient.pages if page.state == "reached" and page.kind != "overflow"]
    for turn in range(25):
        patient.data[:] = original
        for _ in range(chance.randrange(1, 4)):
            pgno = chance.choice(in_use)
            at = chance.choice([chance.randrange(4, 60), chance.randrange(4, PAGE_SIZE)])
            patient.edit(pgno, put(at, bytes([chance.randrange(256)])))
        patient.path.write_bytes(patient.data)
        with limpet.inspect(patient.path) as inspection:
            report = inspection.check()
            json.dumps(report.as_dict())
            assert all(str(finding) for finding in report.errors + report.warnings)
            if turn % 10 == 0:
                assert len(list(inspection.pages())) == inspection.page_count


def test_the_checker_leaves_a_mark_for_each_page(base: Path) -> None:
    patient = Patient(base)
    file = MemoryFile()
    file.grow(len(patient.data))
    file.write(0, bytes(patient.data))
    (_, newest), (_, older) = patient.metas()
    checker = Checker(Pager(file, decode_header(bytes(patient.data[:HEADER_SIZE]), ""), 0), newest, older)
    checker.run()
    assert len(checker.marks) == newest.high_water
    assert checker.table_names[2] == "users"
    assert (FREE_SPACE, OVERFLOW) == (4, 3)
