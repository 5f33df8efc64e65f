"""Reading redb files: the ones redb wrote, row by row, and ones made here for what those do not have."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet import ClosedError, CorruptError, FormatError, LimitError, LockedError, NoSuchTableError
from limpet_store.redb import BytesSource, RedbFile, xxh3
from limpet_store.redb.format import Root, Type
from limpet_store.redb.testing import I64, RedbMaker, encode_slot

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "tests" / "data" / "redb"
SHARED = Path(os.environ.get("LIMPET_REDB_DATA") or ROOT.parent / "shared" / "data" / "redb")
SMALL = ("v2-crashed", "v2-small", "v3-by-2.6", "v3-crashed", "v3-small")
LARGER = ("v2-medium", "v3-nul")


def unpack(name: str) -> bytes:
    for folder in (CHECKED_IN, SHARED):
        path = folder / f"{name}.xz"
        if path.exists():
            return lzma.decompress(path.read_bytes())
    pytest.skip(f"{name}.xz is not checked in, and {SHARED} (LIMPET_REDB_DATA) does not have it either")


def expected_rows(name: str) -> list[tuple[str, object, object]]:
    lines = unpack(f"{name}.jsonl").decode().split("\n")
    return [(table, key, value) for table, key, value in (json.loads(line) for line in lines if line)]


def all_rows(file: RedbFile) -> list[tuple[str, object, object]]:
    return [(table.name, key, value) for table in file.tables() for key, value in table.rows()]


def by_table(rows: list[tuple[str, object, object]]) -> list[tuple[str, object, object]]:
    return sorted(rows, key=lambda row: row[0])  # stable: the order inside a table is compared


def opened(data: bytes) -> RedbFile:
    return RedbFile(BytesSource(data))


@pytest.mark.parametrize("name", SMALL + LARGER)
def test_files_of_redb_give_exactly_their_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.redb"
    path.write_bytes(unpack(f"{name}.redb"))
    expected = expected_rows(name)
    with RedbFile(path) as file:
        assert by_table(all_rows(file)) == by_table(expected)
        assert not [key for _, key, _ in all_rows(file) if str(key).startswith("uncommitted")]
        assert file.commit.format_version == int(name[1])
        assert file.commit.clean == ("crashed" not in name)
        report = file.report()
    assert report.ok
    assert report.checksums == xxh3.engine()
    slow = ["limpet[redb]" in text for text in report.warnings]  # without the package `xxhash`, and then nothing else
    assert slow == [True] * (report.checksums == "python")
    assert sum(table.entries_read for table in report.tables) == len(expected)
    assert [table.name for table in report.tables] == sorted({table for table, _, _ in expected})


def test_raw_items_are_the_bytes_of_the_rows() -> None:
    with opened(unpack("v3-small.redb")) as file:
        table = file.table("idem_keys")
        assert (table.kind, table.key_type, table.value_type) == ("table", "&str", "i64")
        assert (table.key_width, table.value_width) == (None, 8)
        assert table.entry_count == 12
        assert [(key.decode(), int.from_bytes(value, "little")) for key, value in table.items()] == list(table.rows())
        with pytest.raises(NoSuchTableError, match="'nothing'"):
            file.table("nothing")


def test_a_file_without_the_c_package_is_verified_in_python_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = unpack("v3-crashed.redb")
    monkeypatch.setattr(xxh3, "_c_digest", None)
    with opened(data) as file:
        report = file.report()
    assert report.ok
    assert report.checksums == "python"
    assert any("limpet[redb]" in text for text in report.warnings)


def test_the_report_says_what_is_there_and_why() -> None:
    with opened(unpack("v2-crashed.redb")) as file:
        text = "\n".join(file.report().lines())
    for part in (
        "redb file format 2",
        "not cleanly",
        "transaction 97, format 2 (primary, read)",
        "newest slot whose",
        "&str -> i64",
        "verified (",
    ):
        assert part in text
    assert text.endswith("ok")


# ---------------------------------------------------------------------------------------------- what the files lack


@pytest.mark.parametrize(
    "maker",
    [
        RedbMaker(),
        RedbMaker(region_header_pages=3, region_data_pages=64, format_version=2),
        RedbMaker(page_size=512, region_data_pages=128),
    ],
    ids=["one region", "many regions", "small pages"],
)
@pytest.mark.parametrize("flags", [4, 2], ids=["clean", "crashed"])
def test_large_values_integers_multimaps_and_empty_tables(maker: RedbMaker, flags: int) -> None:
    text = [(f"k{i:04}", "v" * (i * i % 7001)) for i in range(300)]
    numbers = [(i, i * i) for i in range(-500, 500)]
    members = [("a", ["x", "y"]), ("b", [f"{i:05}" for i in range(2000)])]
    maker.add_table("text", text)
    maker.add_table("numbers", numbers, I64, I64)
    maker.add_table("empty", [])
    maker.add_table("own", [(b"\2\1", b"raw"), (b"\1\2", b"bytes")], Type(2, "Point"), Type(4, "Vec<u8>"))
    maker.add_multimap("members", members)
    maker.add_table("allocator_state", [(1, "redb's own")], I64, system=True)
    with opened(maker.file(flags=flags)) as file:
        assert [table.name for table in file.tables()] == ["empty", "members", "numbers", "own", "text"]
        assert list(file.table("text").rows()) == text
        assert list(file.table("numbers").rows()) == numbers
        assert list(file.table("empty").rows()) == []
        assert list(file.table("own").rows()) == [(b"\2\1", b"raw"), (b"\1\2", b"bytes")]
        assert list(file.table("members").rows()) == [(key, value) for key, values in members for value in values]
        assert file.table("members").kind == "multimap"
        assert file.report().ok


def test_a_fresh_store_has_no_tables() -> None:
    slot = encode_slot(3, 0, None)
    with opened(RedbMaker().file((slot, slot))) as file:
        assert list(file.tables()) == []
        assert file.commit.transaction_id == 0


# ---------------------------------------------------------------------------------------------- which commit


def two_commits() -> tuple[RedbMaker, bytes, bytes, Root]:
    """A maker with two commits: old has a = "1", new has a = "2"; and the root of the new catalogue."""
    maker = RedbMaker()
    maker.add_table("t", [("a", "1")])
    old = maker.slot(7)
    maker.add_table("t", [("a", "2")])
    root = maker.add_catalogue()
    assert root is not None
    return maker, old, maker.slot(8, root), root


def value_read(data: bytes, slot: int | None = None) -> tuple[object, str]:
    with RedbFile(BytesSource(data), slot=slot) as file:
        return dict(file.table("t").rows())["a"], file.commit.why


def broken(slot: bytes) -> bytes:
    return slot[:-1] + bytes([slot[-1] ^ 1])


@pytest.mark.parametrize("primary", [0, 1])
def test_a_clean_close_names_the_newest_commit(primary: int) -> None:
    maker, old, new, _ = two_commits()
    slots = (new, old) if primary == 0 else (old, new)
    value, why = value_read(maker.file(slots, flags=primary | 4))
    assert value == "2"
    assert "closed cleanly" in why


def test_a_clean_close_with_a_damaged_primary_is_damage_and_offers_salvage() -> None:
    maker, old, new, _ = two_commits()
    data = maker.file((broken(new), old), flags=4)
    with pytest.raises(CorruptError, match=r"slot 1 \(transaction 7\) can be read as salvage"):
        opened(data)
    assert value_read(data, slot=1)[0] == "1"
    with pytest.raises(CorruptError, match="cannot be salvaged"):
        RedbFile(BytesSource(data), slot=0)
    with pytest.raises(ValueError, match="slots 0 and 1"):
        RedbFile(BytesSource(data), slot=2)


def test_a_clean_close_whose_flag_byte_names_the_older_slot_is_damage() -> None:
    maker, old, new, _ = two_commits()
    with pytest.raises(CorruptError, match="older than slot 1"):
        opened(maker.file((old, new), flags=4))


def test_after_a_crash_the_newest_complete_commit_counts_whatever_the_flag_byte_says() -> None:
    maker, old, new, _ = two_commits()
    for flags in (2, 3):
        assert value_read(maker.file((old, new), flags=flags))[0] == "2"
        assert value_read(maker.file((new, old), flags=flags))[0] == "2"


def test_after_a_crash_a_torn_slot_leaves_the_other_one() -> None:
    maker, old, new, _ = two_commits()
    with opened(maker.file((old, broken(new)), flags=3)) as file:
        assert dict(file.table("t").rows()) == {"a": "1"}
        assert "slot 1 fails its checksum" in file.commit.rejected[0]
    with pytest.raises(CorruptError, match="both commit slots"):
        opened(maker.file((broken(old), broken(new)), flags=3))


def test_after_a_crash_a_commit_with_a_missing_page_gives_way_to_the_one_before() -> None:
    maker, old, new, root = two_commits()
    data = bytearray(maker.file((old, new), flags=3))
    offset = (1 + root.page_number) * 4096
    data[offset : offset + 4096] = bytes(4096)
    with opened(bytes(data)) as file:
        assert dict(file.table("t").rows()) == {"a": "1"}
        (rejected,) = file.commit.rejected
        assert f"offset {offset}" in rejected
    data[4096:] = bytes(len(data) - 4096)
    with pytest.raises(CorruptError, match="no commit is complete"):
        opened(bytes(data))


def test_after_a_crash_redbs_own_trees_count_as_well() -> None:
    # redb rolls a commit back whose system tree is torn; a reader that looked at the user's tables only would not.
    maker = RedbMaker()
    maker.add_table("t", [("a", "1")])
    old = maker.slot(7)
    maker.add_table("t", [("a", "2")])
    maker.add_table("allocator_state", [(1, "x")], I64, system=True)
    torn = maker.add_page(b"never written")[0]
    system = Root(torn, bytes(16), 1)
    new = encode_slot(3, 8, maker.add_catalogue(), system)
    assert value_read(maker.file((old, new), flags=3))[0] == "1"
    with opened(maker.file((old, new), flags=5)) as file:  # after a clean close it is a warning
        assert dict(file.table("t").rows()) == {"a": "2"}
        report = file.report()
        assert report.ok
        assert any("redb's own" in text for text in report.warnings)


def test_a_two_phase_crash_reads_the_primary_and_mentions_the_unfinished_commit() -> None:
    maker, old, new, _ = two_commits()
    data = maker.file((old, new), flags=2 | 4)
    with opened(data) as file:
        assert dict(file.table("t").rows()) == {"a": "1"}
        assert "transaction 8" in file.commit.warnings[0]
    with pytest.raises(CorruptError, match="only the primary slot 0 counts"):
        opened(maker.file((broken(old), new), flags=2 | 4))


@pytest.mark.parametrize("version", [1, 4])
def test_other_formats_are_recognised_and_refused(version: int) -> None:
    slot = encode_slot(version, 5, None)
    with pytest.raises(FormatError, match=f"format {version}"):
        opened(RedbMaker().file((slot, slot)))


# ---------------------------------------------------------------------------------------------- files and handles


def test_not_a_redb_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"r", b"redb", b"SQLite format 3\0" + bytes(10_000)):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="x: "):
            RedbFile(path)
    with pytest.raises(FileNotFoundError):
        RedbFile(tmp_path / "missing")
    with pytest.raises((FormatError, OSError)):
        RedbFile(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        RedbFile(tmp_path / "pipe")


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.redb"
    path.write_bytes(unpack("v3-small.redb"))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="redb's lock is mandatory there")
def test_a_file_in_use_is_refused_and_waited_for(small_file: Path) -> None:
    import fcntl

    with small_file.open("r+b") as gateway:
        fcntl.flock(gateway, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process") as caught:
            RedbFile(small_file)
        assert caught.value.waited_s < 1
        timer = threading.Timer(0.2, fcntl.flock, (gateway, fcntl.LOCK_UN))
        timer.start()
        with RedbFile(small_file, lock_timeout=10) as file, RedbFile(small_file):  # readers share
            assert file.table("kv").entry_count == 6
        timer.join()
        fcntl.flock(gateway, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and let go


def test_reading_leaves_the_file_alone(small_file: Path) -> None:
    before = small_file.read_bytes(), small_file.stat().st_mtime_ns
    small_file.chmod(0o400)
    with RedbFile(small_file) as file:
        assert file.report().ok
    assert (small_file.read_bytes(), small_file.stat().st_mtime_ns) == before
    assert list(small_file.parent.iterdir()) == [small_file]


def test_nothing_works_after_close(small_file: Path) -> None:
    file = RedbFile(small_file)
    table = file.table("kv")
    walk = table.items()
    next(walk)
    file.close()
    file.close()
    for action in (lambda: list(file.tables()), lambda: list(table.items()), file.report):
        with pytest.raises(ClosedError):
            action()


def test_an_unclosed_file_is_reported(small_file: Path) -> None:
    file = RedbFile(small_file)
    with pytest.warns(ResourceWarning, match=r"data\.redb"):
        del file


def test_a_file_cut_short_while_it_is_read_is_an_error_and_not_a_crash(small_file: Path) -> None:
    with RedbFile(small_file) as file:
        table = file.table("messages")
        os.truncate(small_file, 8192)
        with pytest.raises(CorruptError):
            list(table.items())


def test_importing_the_reader_needs_no_other_package(small_file: Path) -> None:
    script = (
        "import sys; sys.modules['xxhash'] = None\n"
        "from limpet_store.redb import RedbFile\n"
        f"with RedbFile({str(small_file)!r}) as file:\n"
        "    print(sum(1 for table in file.tables() for _ in table.items()), file.report().checksums)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(len(expected_rows("v3-small"))), "python"]


# ---------------------------------------------------------------------------------------------- memory


def test_a_walk_needs_little_memory_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    def rows(count: int) -> Iterator[tuple[str, str]]:
        return ((f"agent:main:{i:08}", "x" * 3000) for i in range(count))

    maker = RedbMaker()
    maker.add_table("messages", rows(1500))
    path = tmp_path / "large.redb"
    path.write_bytes(maker.file(flags=2))  # a crash: opening verifies everything first
    size = path.stat().st_size
    del maker
    tracemalloc.start()
    try:
        with RedbFile(path) as file:
            count = sum(1 for _ in file.table("messages").items())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1500
    assert size > 5 << 20
    assert peak < 1 << 20


def test_a_page_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    maker = RedbMaker()
    maker.add_table("t", [("big", "x" * 100_000)])
    data = maker.file()
    with RedbFile(BytesSource(data), max_page_size=65536) as file, pytest.raises(LimitError) as caught:
        list(file.table("t").items())
    assert caught.value.limit == 65536
    with opened(data) as file:
        assert file.report().ok
    with RedbFile(BytesSource(data), max_page_size=65536) as file:
        assert not file.report().ok
