"""`limpet.inspect` looks into files that the database would refuse, and beside one that writes."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import limpet
from limpet import checksum
from limpet.format import HEADER_SIZE, LEAF, META_SIZE, PAGE
from limpet.inspection import plain

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)


def fill(path: Path, page_size: int = 512, checksum: str = "crc32") -> None:
    with limpet.open(path, page_size=page_size, checksum=checksum, durability="os") as db:
        for turn in range(3):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": {"n": number, "turn": turn} for number in range(400)})
                txn[EVENTS].update({("log", number): b"e" * (number * page_size // 4) for number in range(20)})


@pytest.fixture
def filled(db_path: Path) -> Path:
    """A file of pages of 512 bytes, closed cleanly."""
    fill(db_path)
    return db_path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# -- whole files ---------------------------------------------------------------------------------


def test_info_tells_what_is_in_header_and_metas(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        info = inspection.info()
        assert (info.problem, info.commit_problem, info.is_ours, info.closed_cleanly) == (None, None, True, True)
        assert info.header is not None
        assert info.header.page_size == 512
        assert [meta.pgno for meta in info.metas] == [1, 2]
        assert [meta.chosen for meta in info.metas].count(True) == 1
        assert info.meta is not None
        assert inspection.txid == info.meta.txid
        assert info.live_size + info.free_size + info.spare_size == info.file_size == filled.stat().st_size
        assert info.holder is not None
        assert info.holder["pid"] == os.getpid()
        assert any("chosen" in reason for reason in info.reasons)
        assert json.loads(json.dumps(info.as_dict()))["header"]["checksum_kind"] == "crc32"


def test_a_new_file_is_fine(db_path: Path) -> None:
    limpet.open(db_path).close()
    with limpet.inspect(db_path) as inspection:
        info = inspection.info()
        assert info.closed_cleanly
        assert [meta.empty for meta in info.metas].count(True) <= 1
        report = inspection.check()
        assert (report.errors, report.warnings) == ([], [])
        assert inspection.tables() == []
        assert [page.state for page in inspection.pages()][:4] == ["head"] * 4


def test_tables_entries_and_values_are_read_by_the_recorded_codecs(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        tables = inspection.tables()
        assert [(table.name, table.key, table.value, table.entry_count) for table in tables] == [
            ("events", "(STR, INT)", "BYTES", 20),
            ("users", "STR", "JSON", 400),
        ]
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
        assert inspection.get("events", ("log", 19)) == b"e" * (19 * 128)
        assert inspection.get("users", "nobody") is None
        assert inspection.get("users", "nobody", "default") == "default"
        keys = [key for key, _ in inspection.items("users")]
        assert keys == [f"user-{number:05}" for number in range(400)]
        with pytest.raises(limpet.NoSuchTableError):
            inspection.get("nope", 1)
        with pytest.raises(TypeError):
            inspection.get("users", 7)


def test_pages_has_a_record_of_every_page(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        pages = list(inspection.pages())
        assert [page.pgno for page in pages] == list(range(filled.stat().st_size // 512))
        assert {page.kind for page in pages[:4]} == {"header", "meta", "holder"}
        states = {page.state for page in pages}
        assert {"head", "reached", "free"} <= states <= {"head", "reached", "free", "idle", "spare"}
        leaves = [page for page in pages if page.kind == "leaf" and page.state == "reached"]
        assert sum(page.entries or 0 for page in leaves if page.table == "users") == 400
        assert all(0 < (page.fill or 0) <= 1 for page in leaves)
        runs = [page for page in pages if page.kind == "overflow" and page.state == "reached"]
        assert {page.table for page in runs} == {"events"}
        json.dumps([page.as_dict() for page in pages])


def test_pages_of_an_open_file_know_what_the_commit_before_needs(db_path: Path) -> None:
    with limpet.open(db_path, page_size=512) as db:
        for turn in range(3):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": turn for number in range(200)})
                txn.create(limpet.Table(f"made in turn {turn}"))  # a checkpoint
        with limpet.inspect(db_path) as inspection:
            states = [page.state for page in inspection.pages()]
            assert "pending" in states
            assert not inspection.info().closed_cleanly
            assert inspection.check().older_ok


def test_every_kind_of_page_is_decoded(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        pages = list(inspection.pages())
        decoded = [inspection.page(page.pgno) for page in pages]
        for page, info in zip(decoded, pages, strict=True):
            assert page.problem is None or info.state in ("free", "idle", "spare")
            assert page.kind == info.kind or info.state in ("free", "idle", "spare")
            json.dumps(page.as_dict())
        header, meta = decoded[0], decoded[1]
        assert header.fields["page_size"] == 512
        assert meta.fields["txid"] == inspection.txid
        assert meta.fields["catalogue_root"]["page"] > 3
        assert decoded[3].fields["pid"] == os.getpid()
        by_kind = {(page.kind, page.table): decoded[page.pgno] for page in pages if page.state == "reached"}
        leaf = by_kind["leaf", "users"]
        assert leaf.entries[0]["key"].startswith("user-")
        assert set(leaf.entries[0]["value"]) == {"n", "turn"}
        branch = by_kind["branch", "users"]
        assert [entry["index"] for entry in branch.entries] == list(range(branch.fields["count"]))
        assert all(entry["page"] > 3 for entry in branch.entries)
        catalogue = by_kind["leaf", None]
        assert [entry["name"] for entry in catalogue.entries] == ["events", "users"]
        free = by_kind["free-space", None]
        count = sum(entry["count"] for entry in free.entries)
        assert count == inspection.info().free_size // 512
        heads = [decoded[page.pgno] for page in pages if page.kind == "overflow" and page.level == 0]
        assert max(page.fields["run_pages"] or 0 for page in heads) == (24 + 19 * 128 + 511) // 512
        assert inspection.page(10**6).problem is not None
        with pytest.raises(ValueError):
            inspection.page(-1)


def test_a_path_leads_from_the_meta_to_the_entry(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        steps = inspection.path("users", "user-00007")
        assert [step.kind for step in steps] == ["meta", "leaf", "branch", "branch", "leaf"]
        assert [step.level for step in steps] == [None, 0, 2, 1, 0]
        assert steps[-1].index is not None
        assert inspection.page(steps[-1].pgno).entries[steps[-1].index]["key"] == "user-00007"
        assert (steps[-1].keys or "").split("'")[-2] > "user-00007"
        steps = inspection.path("events", ("log", 19))
        assert steps[-1].kind == "overflow"
        assert steps[-1].count is not None
        assert steps[-1].count > 1
        steps = inspection.path("users", "nobody")
        assert (steps[-1].kind, steps[-1].index, steps[-1].problem) == ("leaf", None, None)
        with pytest.raises(limpet.NoSuchTableError):
            inspection.path("nope", 1)
        json.dumps([step.as_dict() for step in steps])


def test_values_for_json_keep_what_they_are() -> None:
    import datetime
    import uuid

    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    number = uuid.UUID(int=7)
    assert plain((b"\x01", moment, number, float("inf"), float("nan"), 1, "x", None)) == [
        "0x01",
        "2026-01-02T00:00:00+00:00",
        str(number),
        "inf",
        "nan",
        1,
        "x",
        None,
    ]


# -- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_destroyed_header_is_no_reason_to_give_up(db_path: Path, page_size: int, checksum: str) -> None:
    fill(db_path, page_size, checksum)
    with limpet.inspect(db_path) as inspection:
        before = [page.as_dict() for page in inspection.pages()][1:]
    overwrite(db_path, 0, random.Random(1).randbytes(page_size))
    with pytest.raises(limpet.FormatError):
        limpet.open(db_path)
    with limpet.inspect(db_path) as inspection:
        assert inspection.is_ours
        assert inspection.page_size == page_size
        assert isinstance(inspection.problem, limpet.FormatError)
        assert any("guessed" in note for note in inspection.notes)
        assert any(checksum in note for note in inspection.notes)
        report = inspection.check()
        assert [finding.kind for finding in report.errors] == ["header"]
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
        assert [page.as_dict() for page in inspection.pages()][1:] == before
        assert inspection.page(0).problem is not None
        assert inspection.page(4).problem is None


def test_a_destroyed_head_leaves_the_pages(filled: Path) -> None:
    overwrite(filled, 0, bytes(4 * 512))
    with limpet.inspect(filled) as inspection:
        assert inspection.page_size == 512
        info = inspection.info()
        assert info.problem is not None
        assert info.commit_problem is not None
        states = [page.state for page in inspection.pages()]
        assert set(states) <= {"damaged", "unknown", "head"}
        assert [page for page in inspection.pages() if page.kind == "leaf" and page.tree_id == 2]
        report = inspection.check()
        assert {finding.kind for finding in report.errors} == {"header", "meta"}
        with pytest.raises(limpet.CorruptError):
            inspection.tables()


def test_a_page_size_that_is_asked_for_is_used(filled: Path) -> None:
    overwrite(filled, 0, bytes(HEADER_SIZE))
    with limpet.inspect(filled, page_size=512) as inspection:
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
        assert any("as asked for" in note for note in inspection.notes)
    with limpet.inspect(filled, page_size=1024) as inspection:
        assert inspection.page_size == 1024
        assert inspection.txid is None
    with pytest.raises(ValueError):
        limpet.inspect(filled, page_size=1000)


def test_a_page_size_that_contradicts_the_header_is_used_and_noted(filled: Path) -> None:
    with limpet.inspect(filled, page_size=1024) as inspection:
        assert any("the header says 512" in note for note in inspection.notes)
        assert not inspection.check().ok


def test_a_torn_meta_is_a_warning_and_the_other_one_is_used(db_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.limpet"
    with limpet.open(db_path, page_size=512) as db:
        for turn in range(3):
            with db.write() as txn:
                txn[USERS]["ada"] = turn
                txn.create(limpet.Table(f"made in turn {turn}"))  # a checkpoint
        shutil.copyfile(db_path, copy)
    with limpet.inspect(copy) as inspection:
        newest = next(meta.pgno for meta in inspection.info().metas if meta.chosen)
    overwrite(copy, newest * 512 + 50, b"\xff\xff")
    with limpet.inspect(copy) as inspection:
        info = inspection.info()
        assert [meta.pgno for meta in info.metas if meta.problem is not None] == [newest]
        assert inspection.get("users", "ada") == 1
        report = inspection.check()
        assert report.ok
        assert [(finding.kind, finding.pgno) for finding in report.warnings if finding.kind == "meta"] == [
            ("meta", newest)
        ]


def test_both_metas_destroyed_leaves_the_pages(filled: Path) -> None:
    for pgno in (1, 2):
        overwrite(filled, pgno * 512, b"\xff" * META_SIZE)
    with limpet.inspect(filled) as inspection:
        report = inspection.check()
        assert [finding.kind for finding in report.errors] == ["meta"]
        pages = list(inspection.pages())
        assert {page.state for page in pages[4:]} <= {"unknown", "damaged"}
        assert any(page.kind == "leaf" and page.entries for page in pages)
        with pytest.raises(limpet.CorruptError):
            inspection.get("users", "ada")


def test_a_truncated_file_is_read_as_far_as_it_goes(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        leaves = [page.pgno for page in inspection.pages() if page.table == "users" and page.kind == "leaf"]
    os.truncate(filled, (max(leaves) - 3) * 512 + 100)
    with limpet.inspect(filled) as inspection:
        assert inspection.info().commit_problem is not None
        assert not inspection.check().ok
        pages = list(inspection.pages())
        assert len(pages) == max(leaves) - 2


@pytest.mark.parametrize("size", [0, 1, 8, 30, HEADER_SIZE, 600, 1100, 2000])
def test_a_file_cut_off_at_any_point_of_its_head_raises_nothing(filled: Path, size: int) -> None:
    os.truncate(filled, size)
    with limpet.inspect(filled) as inspection:
        assert inspection.is_ours == (size >= 8)
        inspection.info()
        assert not inspection.check().ok
        assert len(list(inspection.pages())) <= 4


def test_damage_is_passed_over_if_the_caller_wants_that(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        pages = [page for page in inspection.pages() if page.state == "reached"]
        leaf = next(page for page in pages if page.kind == "leaf" and page.table == "users")
        run = next(page for page in pages if page.kind == "overflow" and page.level == 0)
    overwrite(filled, leaf.pgno * 512 + 200, b"\xff\xff\xff")
    overwrite(filled, run.pgno * 512 + 200, b"\xff\xff\xff")
    with limpet.inspect(filled) as inspection:
        with pytest.raises(limpet.CorruptError) as caught:
            list(inspection.items("users"))
        assert (caught.value.pgno, caught.value.table) == (leaf.pgno, "users")
        damage: list[limpet.CorruptError] = []
        assert len(list(inspection.items("users", on_damage=damage.append))) == 400 - (leaf.entries or 0)
        assert len(list(inspection.items("events", on_damage=damage.append))) == 19
        assert [error.pgno for error in damage] == [leaf.pgno, run.pgno]
        states = {page.pgno: page for page in inspection.pages() if page.state == "damaged"}
        assert leaf.pgno in states
        assert states[leaf.pgno].problem is not None
        assert inspection.page(leaf.pgno).problem is not None
        lost = [key for key in (f"user-{number:05}" for number in range(400)) if is_lost(inspection, key)]
        assert len(lost) == leaf.entries
        steps = inspection.path("users", lost[0])
        assert (steps[-1].pgno, steps[-1].kind) == (leaf.pgno, "unreadable")
        assert steps[-1].problem is not None


def is_lost(inspection: limpet.Inspection, key: str) -> bool:
    try:
        inspection.get("users", key)
    except limpet.CorruptError:
        return True
    return False


def test_a_damaged_catalogue_shows_what_is_left(filled: Path) -> None:
    with limpet.inspect(filled) as inspection:
        steps = inspection.path("users", "user-00001")
    overwrite(filled, steps[1].pgno * 512 + 100, b"\xff\xff\xff\xff")
    with limpet.inspect(filled) as inspection:
        with pytest.raises(limpet.CorruptError):
            inspection.tables()
        damage: list[limpet.CorruptError] = []
        assert inspection.tables(on_damage=damage.append) == []
        assert [error.pgno for error in damage] == [steps[1].pgno]
        assert inspection.path("users", "user-00001")[-1].kind == "unreadable"
        with pytest.raises(limpet.CorruptError):
            inspection.get("users", "user-00001")


@pytest.mark.parametrize("kept", [8, 12])
def test_a_header_of_which_only_the_beginning_is_left_is_ours(filled: Path, kept: int) -> None:
    # Zeros behind the magic were taken for a version 0, so a file that had lost its header was refused as another's.
    overwrite(filled, kept, bytes(HEADER_SIZE - kept))
    with limpet.inspect(filled) as inspection:
        assert inspection.is_ours
        assert inspection.page_size == 512
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}


def test_the_seed_is_found_without_asking_for_a_checksum_that_is_slow(
    db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All kinds of checksums were tried on every file without a header, so one with CRC-32 warned of a slow CRC-32C.
    fill(db_path, checksum="crc32")
    overwrite(db_path, 0, bytes(HEADER_SIZE))
    monkeypatch.setattr(limpet.checksum, "_accelerated", None)
    with limpet.inspect(db_path) as inspection:  # a warning would be an error
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}


@pytest.mark.parametrize("size", range(24, 28))
def test_a_last_page_that_ends_behind_its_header_is_survived(tmp_path: Path, size: int) -> None:
    # Where checksums cannot be computed, a page that was cut off was decoded, and raised struct.error.
    whole = b"".join(PAGE.pack(number, LEAF, 0, 1, number, 2, 1).ljust(512, b"\0") for number in range(4, 20))
    path = tmp_path / "headless"
    path.write_bytes(bytes(4 * 512) + whole + PAGE.pack(0, LEAF, 0, 1, 20, 2, 1).ljust(512, b"\0")[:size])
    with limpet.inspect(path, page_size=512) as inspection:
        assert any("cannot be verified" in note for note in inspection.notes)
        last = list(inspection.pages())[-1]
        assert (last.pgno, last.kind, last.entries, last.fill) == (20, "leaf", None, None)


# -- files that are not ours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"SQLite format 3\0" + bytes(8000),
        bytes(100_000),
        b"\x01\x00\x00\x00" * 10_000,
        b"\x04\x00\x00\x00" * 10_000,
        random.Random(3).randbytes(300_000),
        b"text\n" * 10_000,
    ],
    ids=["empty", "x", "sqlite", "zeros", "ones", "fours", "random", "text"],
)
def test_a_foreign_file_is_recognised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with limpet.inspect(path) as inspection:
        assert not inspection.is_ours
        assert inspection.page_size is None
        assert inspection.info().problem is not None
        assert list(inspection.pages()) == []
        assert [finding.kind for finding in inspection.check().errors] == ["header"]
        with pytest.raises(limpet.FormatError):
            inspection.tables()
        with pytest.raises(limpet.FormatError):
            inspection.page(0)
    assert path.read_bytes() == content


def test_a_foreign_file_is_not_said_to_use_a_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the guess at the checksums of a headless file warned that "this file uses CRC-32C".

    It was told of files that are not ours, and of ours that use CRC-32.
    """
    monkeypatch.setattr(checksum, "_accelerated", None)
    path = tmp_path / "foreign"
    path.write_bytes(b"\x04\x00\x00\x00" * 10_000)
    limpet.inspect(path).close()  # a warning would be an error
    fill(path.with_name("ours"), checksum="crc32")
    overwrite(path.with_name("ours"), 0, bytes(HEADER_SIZE))
    limpet.inspect(path.with_name("ours")).close()


def test_a_newer_format_is_not_ours_but_a_flipped_version_is(filled: Path) -> None:
    original = filled.read_bytes()
    overwrite(filled, 8, b"\x09")
    with limpet.inspect(filled) as inspection:
        assert inspection.is_ours  # the checksum says that only the version has changed
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
    header = original[:8] + b"\x09\0\0\0" + original[12:52]
    filled.write_bytes(header + zlib.crc32(header).to_bytes(4, "little") + original[56:])
    with limpet.inspect(filled) as inspection:
        assert not inspection.is_ours
        assert "format 9" in str(inspection.problem)


def test_unknown_features_that_do_not_hinder_reading_are_a_warning(filled: Path) -> None:
    data = bytearray(filled.read_bytes())
    data[24] = 0x80
    data[52:56] = zlib.crc32(data[:52]).to_bytes(4, "little")
    filled.write_bytes(data)
    with limpet.inspect(filled) as inspection:
        report = inspection.check()
        assert report.ok
        assert [finding.kind for finding in report.warnings] == ["header"]
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}


def test_what_the_system_refuses_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        limpet.inspect(tmp_path / "missing")
    with pytest.raises(OSError):
        limpet.inspect(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_make_us_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        limpet.inspect(tmp_path / "pipe")


# -- beside a writer -----------------------------------------------------------------------------


def test_an_inspection_neither_waits_nor_makes_others_wait(filled: Path) -> None:
    with limpet.open(filled, create=False) as db, limpet.inspect(filled) as inspection:
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
        with db.write() as txn:
            txn[USERS]["user-00007"] = "changed"
        assert inspection.get("users", "user-00007") == {"n": 7, "turn": 2}
        inspection.refresh()
        assert inspection.get("users", "user-00007") == "changed"
        assert inspection.check().ok
    limpet.open(filled, lock_timeout=0).close()


def test_a_writer_that_goes_on_is_followed(filled: Path) -> None:
    with limpet.open(filled, create=False) as db, limpet.inspect(filled) as inspection:
        first = inspection.txid
        for turn in range(10, 20):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": turn for number in range(400)})
        assert inspection.get("users", "user-00007") == 19
        assert inspection.txid != first
    with limpet.open(filled, create=False) as db, limpet.inspect(filled) as inspection:
        for turn in range(10, 20):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": -turn for number in range(400)})
        assert [value for _, value in inspection.items("users")] == [-19] * 400


def test_a_path_follows_a_writer_too(filled: Path) -> None:
    # `path` took pages that a writer had used again for damage, where all others look at the metas first.
    with limpet.open(filled, create=False) as db, limpet.inspect(filled) as inspection:
        for turn in range(10, 20):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": turn for number in range(400)})
        steps = inspection.path("users", "user-00007")
        assert [step.problem for step in steps] == [None] * len(steps)
        assert inspection.txid == db.stats().txid


def test_a_reading_that_was_overtaken_says_so_instead_of_mixing_commits(filled: Path) -> None:
    with limpet.open(filled, create=False) as db, limpet.inspect(filled) as inspection:
        items = inspection.items("users")
        next(items)
        for turn in range(10, 20):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": turn for number in range(400)})
        with pytest.raises(limpet.BusyError, match="wrote over"):
            list(items)


def test_a_check_beside_a_writer_finds_no_damage_that_is_not_there(filled: Path) -> None:
    with limpet.open(filled, create=False, durability="os") as db:
        stop = threading.Event()

        def write() -> None:
            turn = 100
            while not stop.wait(0.001):  # as a sync would; without a pause it laps those who read now and then
                turn += 1
                with db.write() as txn:
                    txn[USERS].update({f"user-{number:05}": turn for number in range(0, 400, 7)})

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(10):
                with limpet.inspect(filled) as inspection:
                    report = inspection.check()
                    assert report.errors == []
                    assert {finding.kind for finding in report.warnings} <= {"changed"}
                    assert len(inspection.tables()) == 2
                    list(inspection.pages())
        finally:
            stop.set()
            thread.join()


def test_a_file_that_another_process_holds_can_be_inspected(filled: Path) -> None:
    script = textwrap.dedent("""
        import sys, limpet
        with limpet.open(sys.argv[1]) as db:
            print("holding", flush=True)
            sys.stdin.read()
    """)
    with holding(script, filled) as pid, limpet.inspect(filled) as inspection:
        info = inspection.info()
        assert info.holder is not None
        assert info.holder["pid"] == pid
        assert inspection.check().ok


class holding:  # noqa: N801 read as a verb: with holding(...)
    """A process that holds a file until the block ends."""

    def __init__(self, script: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> int:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holding\n"
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)


def test_a_closed_inspection_says_so(filled: Path) -> None:
    inspection = limpet.inspect(filled)
    inspection.close()
    inspection.close()
    with pytest.raises(limpet.ClosedError):
        inspection.tables()


@pytest.fixture
def logged(db_path: Path, tmp_path: Path) -> Path:
    """A file that was left open, with three records in its log."""
    copy = tmp_path / "copy.limpet"
    with limpet.open(db_path, page_size=512) as db:
        with db.write() as txn:
            txn[USERS].update({f"user-{number:05}": 0 for number in range(50)})
        for turn in range(1, 4):
            with db.write(durability="os" if turn == 3 else None) as txn:
                txn[USERS][f"user-{turn:05}"] = turn
                txn[USERS][f"new-{turn}"] = turn
                if turn == 2:
                    del txn[USERS]["user-00010"]
        shutil.copyfile(db_path, copy)
    return copy


def test_what_the_log_says_is_shown_everywhere(logged: Path) -> None:
    with limpet.inspect(logged) as inspection:
        info = inspection.info()
        assert (info.record_count, info.txid, info.meta and info.meta.txid) == (3, 5, 2)
        assert inspection.txid == 5
        assert not info.closed_cleanly
        assert any("the log goes on" in reason for reason in info.reasons)
        (table,) = inspection.tables()
        assert table.entry_count == 52
        assert inspection.get("users", "user-00001") == 1
        assert inspection.get("users", "user-00010") is None
        assert inspection.get("users", "user-00011") == 0
        items = dict(inspection.items("users"))
        assert list(items) == sorted(items)
        assert len(items) == 52
        assert items["new-3"] == items["user-00003"] == 3
        pages = [page for page in inspection.pages() if page.kind == "log"]
        assert [page.state for page in pages] == ["reached"] * 3 + ["idle"] * (len(pages) - 3)
        assert [page.entries for page in pages[:3]] == [2, 3, 2]
        record = inspection.page(pages[1].pgno)
        assert record.problem is None
        assert record.kind == "log"
        changes = {entry["key"]: (entry["change"], entry.get("value")) for entry in record.entries}
        assert changes == {"user-00002": ("put", 2), "new-2": ("put", 2), "user-00010": ("delete", None)}
        assert {entry["table"] for entry in record.entries} == {"users"}
        newest, deleted, below = (inspection.path("users", f"user-{number:05}")[-1] for number in (2, 10, 11))
        assert (newest.kind, newest.pgno, deleted.kind, deleted.index) == ("log", pages[1].pgno, "log", None)
        assert below.kind == "leaf"
        report = inspection.check()
        assert report.ok
        assert (report.txid, report.checkpoint_txid, report.record_count) == (5, 2, 3)
        json.dumps([info.as_dict(), report.as_dict(), record.as_dict()])


def test_a_log_that_breaks_off_is_explained(logged: Path) -> None:
    with limpet.inspect(logged) as inspection:
        first, second, third = (page.pgno for page in inspection.pages() if page.kind == "log" and page.txid)
    whole = logged.read_bytes()
    overwrite(logged, third * 512 + 60, bytes(20))  # never synced: the end of the log
    with limpet.inspect(logged) as inspection:
        assert inspection.txid == 4
        assert inspection.check().ok
    for pgno in (first, second):
        logged.write_bytes(whole)
        overwrite(logged, pgno * 512 + 60, bytes(20))
        with limpet.inspect(logged) as inspection:
            if pgno == first:  # a later one knows that it was safe
                assert inspection.commit_problem is not None
                assert ("log", pgno) in [(finding.kind, finding.pgno) for finding in inspection.check().errors]
            assert inspection.get("users", "user-00011") == 0


@pytest.fixture
def widely_logged(db_path: Path, tmp_path: Path) -> Path:
    """A file that was left open, with one record of several pages in its log."""
    copy = tmp_path / "copy.limpet"
    with limpet.open(db_path, page_size=512) as db:
        with db.write() as txn:
            txn[USERS].update({f"user-{number:05}": 0 for number in range(50)})
        with db.write() as txn:
            txn[USERS].update({f"wide-{number}": "w" * 150 for number in range(9)})
            del txn[USERS]["user-00010"]
        shutil.copyfile(db_path, copy)
    return copy


def test_a_record_of_several_pages_is_whole_page_by_page(widely_logged: Path) -> None:
    # The later pages of a record were shown as damaged by `page`, and a deletion as a value that cannot be decoded.
    with limpet.inspect(widely_logged) as inspection:
        first, *later = (page.pgno for page in inspection.pages() if page.kind == "log" and page.state == "reached")
        assert len(later) >= 2
        record = inspection.page(first)
        assert [entry for entry in record.entries if "problem" in entry] == []
        (deletion,) = (entry for entry in record.entries if entry["change"] == "delete")
        assert (deletion["key"], "value" in deletion) == ("user-00010", False)
        for page in map(inspection.page, later):
            assert (page.kind, page.problem, page.fields) == ("log", None, {"first_page": first})
        for pgno in (1, 2):
            overwrite(widely_logged, pgno * 512, b"\xff" * META_SIZE)
    # Without a meta nothing says that these pages are a log: the checksum of a record of several pages was compared
    # with that of its first page, and the record belonged to the catalogue, because no tree has its number.
    with limpet.inspect(widely_logged) as inspection:
        info = list(inspection.pages())[first]
        assert (info.kind, info.state, info.problem, info.tree_id, info.table) == ("log", "unknown", None, None, None)


def all_of(iterator: Iterator[Any]) -> list[Any]:
    return list(iterator)


def test_any_bytes_are_survived(filled: Path, seed: int) -> None:
    chance = random.Random(seed)
    original = filled.read_bytes()
    for _ in range(25):
        data = bytearray(original)
        for _ in range(chance.choice([1, 20, 400])):
            at = chance.choice([chance.randrange(2048), chance.randrange(len(data))])
            data[at] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        filled.write_bytes(data)
        with limpet.inspect(filled) as inspection:
            json.dumps(inspection.info().as_dict())
            inspection.check()
            for page in inspection.pages():
                if chance.random() < 0.1:
                    json.dumps(inspection.page(page.pgno).as_dict())
            for call in (
                inspection.tables,
                lambda: inspection.get("users", "user-00100"),
                lambda: inspection.path("events", ("log", 3)),
                lambda: all_of(inspection.items("users", on_damage=lambda _: None)),
            ):
                try:
                    call()
                except (limpet.CorruptError, limpet.FormatError, limpet.NoSuchTableError):
                    pass
