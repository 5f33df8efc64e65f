"""What `check` says about the log: records on top of the newest checkpoint, whole and crafted ones."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import limpet
from limpet.check import Report
from limpet.cli import main
from limpet.file import InspectedFile
from limpet.format import HEADER_SIZE, Meta, decode_header, make_stamp
from limpet.log import decode_changes, encode_changes, encode_record
from limpet.pager import Pager
from limpet.recovery import read_log, read_metas

NAMES = limpet.Table("names", key=limpet.INT, value=limpet.STR)
PAGE_SIZE = 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file as a crash leaves it: three commits in the log of a checkpoint."""
    live = tmp_path / "live.limpet"
    with limpet.open(live, page_size=PAGE_SIZE) as db:
        for number in range(4):
            with db.write() as txn:
                txn[NAMES][number] = f"name {number}"
        found = tmp_path / "crashed.limpet"
        found.write_bytes(live.read_bytes())
    return found


def report_of(path: Path, *, quick: bool = False) -> Report:
    with limpet.inspect(path) as inspection:
        return inspection.check(quick=quick)


def newest(pager: Pager) -> Meta:
    return max((each for each in read_metas(pager) if isinstance(each, Meta)), key=lambda each: each.txid)


@contextlib.contextmanager
def pager_of(path: Path) -> Iterator[Pager]:
    file = InspectedFile.open(str(path))
    try:
        yield Pager(file, decode_header(file.read(0, HEADER_SIZE), str(path)), 1 << 20)
    finally:
        file.close()


def records_of(path: Path) -> list[range]:
    """The bytes of the file that each record takes."""
    with pager_of(path) as pager:
        meta = newest(pager)
        starts = [(meta.log_start + each.at, each.pages) for each in read_log(pager, meta).records]
    return [range(pgno * PAGE_SIZE, (pgno + pages) * PAGE_SIZE) for pgno, pages in starts]


def append_record(path: Path, make: Callable[[int, bytes], bytes]) -> None:
    """Put a record behind the last one, with a good checksum; `make` gets the table's tree id and a key of it."""
    with pager_of(path) as pager:
        meta = newest(pager)
        log = read_log(pager, meta)
        last = log.records[-1]
        group = next(decode_changes(last.changes, 0))
        pgno = meta.log_start + log.used
        stamp = make_stamp(last.txid + 1, 1)
        changes = make(group.tree_id, group.changes[0][0])
        _, run = encode_record(
            changes, pgno, stamp, meta.epoch, last.checksum, last.txid, 0, PAGE_SIZE, pager.checksum, pager.seed
        )
    data = bytearray(path.read_bytes())
    data[pgno * PAGE_SIZE : pgno * PAGE_SIZE + len(run)] = run
    path.write_bytes(data)


def test_a_sound_log_has_no_findings_and_is_counted(path: Path) -> None:
    report = report_of(path)
    assert (report.errors, report.warnings) == ([], [])
    assert report.record_count == len(records_of(path)) >= 2
    assert report.txid is not None
    assert report.checkpoint_txid is not None
    assert report.txid == report.checkpoint_txid + report.record_count


@pytest.mark.parametrize("quick", [False, True])
def test_a_damaged_record_in_front_of_others_is_an_error_at_its_page(path: Path, quick: bool) -> None:
    records = records_of(path)
    data = bytearray(path.read_bytes())
    data[records[0].start + 100] ^= 0x10
    path.write_bytes(data)
    report = report_of(path, quick=quick)
    (finding,) = report.errors
    assert finding.kind == "log"
    assert finding.pgno == records[0].start // PAGE_SIZE
    assert "damaged" in finding.message


CRAFTED = {
    "no such table": (lambda tree_id, key: encode_changes(tree_id + 40, [(key, b"x")]), "which no table has", True),
    "not a number": (lambda tree_id, key: encode_changes(tree_id, [(b"\xff" * 30, b"x")]), "cannot be decoded", False),
    "not UTF-8": (lambda tree_id, key: encode_changes(tree_id, [(key, b"\xff\xfe")]), "cannot be decoded", False),
    "a large key": (lambda tree_id, key: encode_changes(tree_id, [(b"k" * 300, None)]), "too large", True),
    "cut off": (lambda tree_id, key: encode_changes(tree_id, [(key, b"xyz")])[:-1], "do not add up", True),
    "too many": (lambda tree_id, key: struct.pack("<II", tree_id, 1 << 31), "do not add up", True),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_record_that_is_whole_and_says_nonsense_is_an_error(path: Path, case: str) -> None:
    make, words, also_quick = CRAFTED[case]
    append_record(path, make)
    report = report_of(path)
    assert {finding.kind for finding in report.errors} == {"log"}
    assert any(words in finding.message for finding in report.errors), report.errors
    assert bool(report_of(path, quick=True).errors) == also_quick


@pytest.mark.parametrize("case", ["no such table", "cut off"])
def test_what_such_a_record_changed_is_missing_from_a_dump_which_says_so(
    path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The record was passed over without a word, and the exit code was 0.
    append_record(path, CRAFTED[case][0])
    assert main(["dump", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 4
    assert "left out" in err
    assert "do not add up" in err or "for which no table is found" in err


@pytest.mark.parametrize("case", CRAFTED)
def test_the_engine_meets_such_a_record_with_a_typed_error(path: Path, case: str) -> None:
    append_record(path, CRAFTED[case][0])
    try:
        with limpet.open(path, read_only=True) as db, db.read() as txn:
            assert [value for _, value in txn[NAMES].items()][:4] == [f"name {number}" for number in range(4)]
    except limpet.CorruptError:
        pass
    before = path.read_bytes()
    try:
        db = limpet.open(path)
    except limpet.CorruptError:
        assert path.read_bytes() == before
        return
    with db, contextlib.suppress(limpet.CorruptError):
        for number in range(4):
            with db.read() as txn:
                assert txn[NAMES][number] == f"name {number}"
