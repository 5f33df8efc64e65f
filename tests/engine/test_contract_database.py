"""The contract of a database: opening, closing, statistics, backup, compaction. Over a file and in memory."""

# ruff: noqa: PT012 - what is done inside a block before an exception leaves it is the subject here

import contextlib
import logging
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limpet

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
Opener = Callable[..., limpet.Database]


def fill(db: limpet.Database, count: int = 2000) -> dict[int, bytes]:
    """A table of many pages with a few large values, and a second table."""
    model = {number: b"%d" % number * 10 for number in range(count)} | {-1: bytes(100_000), -2: bytes(5000)}
    with db.write() as txn:
        txn[NUMBERS].update(model)
        txn[USERS]["ada"] = {"age": 36}
    return model


def holds(db: limpet.Database, model: dict[int, bytes]) -> bool:
    with db.read() as txn:
        return dict(txn[NUMBERS]) == model and dict(txn[USERS]) == {"ada": {"age": 36}}


# -- open ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
@pytest.mark.parametrize("checksum", ["crc32", None])
def test_every_page_size_and_checksum_works(
    open_db: Opener, place: str | Path, page_size: int, checksum: str | None
) -> None:
    db = open_db(place, page_size=page_size, checksum=checksum)
    model = fill(db, 500)
    assert db.stats().page_size == page_size
    assert holds(db, model)
    if place != ":memory:":
        db.close()
        db = open_db(place)  # the file says its page size; the argument is for new files
        assert db.stats().page_size == page_size
        assert holds(db, model)


def test_the_page_size_of_an_existing_file_stays(open_db: Opener, db_path: Path) -> None:
    open_db(db_path, page_size=512).close()
    assert open_db(db_path, page_size=65536).stats().page_size == 512


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"page_size": 0}, ValueError),
        ({"page_size": 256}, ValueError),
        ({"page_size": 1000}, ValueError),
        ({"page_size": 131072}, ValueError),
        ({"page_size": -4096}, ValueError),
        ({"page_size": 4096.0}, TypeError),
        ({"page_size": "4096"}, TypeError),
        ({"page_size": True}, TypeError),
        ({"cache_size": -1}, ValueError),
        ({"cache_size": 1.5}, TypeError),
        ({"cache_size": None}, TypeError),
        ({"durability": "fsync"}, ValueError),
        ({"durability": None}, ValueError),
        ({"lock_timeout": -1}, ValueError),
        ({"lock_timeout": float("nan")}, ValueError),
        ({"lock_timeout": "1"}, TypeError),
        ({"lock_timeout": None}, TypeError),
        ({"checksum": "md5"}, ValueError),
        ({"checksum": 1}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_wrong_arguments_to_open_are_refused_and_make_no_file(
    place: str | Path, db_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        limpet.open(place, **options)
    assert not db_path.exists()


def test_options_are_given_by_name() -> None:
    by_place: Any = limpet.open
    with pytest.raises(TypeError):
        by_place(":memory:", True)


@pytest.mark.parametrize("path", [1, None, b"bytes.limpet", ["a"]])
def test_a_path_that_is_none_is_a_type_error(path: Any) -> None:
    with pytest.raises(TypeError):
        limpet.open(path)


def test_a_path_object_and_a_string_name_the_same_file(open_db: Opener, db_path: Path) -> None:
    with open_db(str(db_path)) as db:
        model = fill(db, 10)
        assert db.path == str(db_path.resolve())
    assert holds(open_db(db_path), model)


def test_a_new_file_is_small_and_stands_alone(open_db: Opener, db_path: Path) -> None:
    open_db(db_path).close()
    assert db_path.stat().st_size <= 32 * 1024
    assert os.listdir(db_path.parent) == [db_path.name]


def test_without_create_a_missing_file_is_a_file_not_found_error(db_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        limpet.open(db_path, create=False)
    with pytest.raises(FileNotFoundError):
        limpet.open(db_path, read_only=True)
    assert not db_path.exists()


def test_a_file_in_a_missing_folder_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        limpet.open(tmp_path / "missing" / "a.limpet")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_is_an_is_a_directory_error(tmp_path: Path, read_only: bool) -> None:
    for _ in range(2):  # and nothing of the first try is left open
        with pytest.raises(IsADirectoryError):
            limpet.open(tmp_path, read_only=read_only)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n", "not a Limpet file"),
        (b"SQLite format 3\0" + bytes(5000), "not a Limpet file"),
        (b"x" * 100_000, "not a Limpet file"),
        (b"\x89LMPT\r\n\x1a", "cut off"),
        (b"\x89LMPT\n\x1a" + bytes(4096), "not a Limpet file"),  # went through a newline conversion
    ],
)
def test_a_file_that_is_not_ours_is_a_format_error_and_stays_as_it_is(
    db_path: Path, data: bytes, words: str, read_only: bool
) -> None:
    db_path.write_bytes(data)
    with pytest.raises(limpet.FormatError, match=words) as caught:
        limpet.open(db_path, read_only=read_only)
    assert str(db_path) in str(caught.value)
    assert db_path.read_bytes() == data
    assert os.listdir(db_path.parent) == [db_path.name]


def test_a_newer_format_is_a_format_error_with_both_versions(open_db: Opener, db_path: Path) -> None:
    open_db(db_path).close()
    data = bytearray(db_path.read_bytes())
    data[8:12] = (7).to_bytes(4, "little")
    data[52:56] = zlib.crc32(data[:52]).to_bytes(4, "little")
    db_path.write_bytes(data)
    with pytest.raises(limpet.FormatError, match=r"format 7\b.*up to format 2\b") as caught:
        limpet.open(db_path)
    assert not isinstance(caught.value, limpet.UpgradeRequiredError)
    assert db_path.read_bytes() == data
    db_path.unlink()


def test_a_file_opened_twice_is_a_locked_error_whatever_path_leads_to_it(
    open_db: Opener, db_path: Path, tmp_path: Path
) -> None:
    db = open_db(db_path)
    model = fill(db, 10)
    symlink, hard_link = tmp_path / "symlink", tmp_path / "hard-link"
    symlink.symlink_to(db_path)
    os.link(db_path, hard_link)
    for path in (db_path, symlink, hard_link, tmp_path / "." / db_path.name):
        for read_only in (False, True):
            with pytest.raises(limpet.LockedError, match=f"pid {os.getpid()}"):
                limpet.open(path, lock_timeout=0, read_only=read_only)
    assert holds(db, model)
    db.close()
    for path in (symlink, hard_link):
        with limpet.open(path) as other:
            assert holds(other, model)


def test_a_symbolic_link_to_nothing_makes_the_file_it_points_to(open_db: Opener, db_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(db_path)
    with open_db(link) as db:
        fill(db, 10)
        db.compact()  # replaces the file, not the link
    assert link.is_symlink()
    assert db_path.is_file()


def test_read_only_reads_and_refuses_changes(open_db: Opener, db_path: Path) -> None:
    with open_db(db_path) as db:
        model = fill(db)
    before = db_path.read_bytes()
    db_path.chmod(0o444)
    with limpet.open(db_path, read_only=True) as db:
        assert db.read_only
        assert holds(db, model)
        assert db.check().ok
        assert db.tables() == ["numbers", "users"]
        assert db.stats().table_count == 2
        with pytest.raises(limpet.ReadOnlyError):
            db.write()
        with pytest.raises(limpet.ReadOnlyError):
            db.compact()
        db.flush()  # there is nothing to do
    assert db_path.read_bytes() == before
    db_path.chmod(0o644)


def test_a_database_in_memory_is_its_own_and_cannot_be_read_only(open_db: Opener) -> None:
    first, second = open_db(":memory:"), open_db(":memory:")
    fill(first, 10)
    assert second.tables() == []
    assert first.path == ":memory:"
    assert not Path(":memory:").exists()
    with pytest.raises(ValueError):
        limpet.open(":memory:", read_only=True)


def test_the_format_version_is_two(db: limpet.Database) -> None:
    assert db.format_version == 2


def test_an_opening_after_a_clean_close_finds_everything_and_again(open_db: Opener, db_path: Path) -> None:
    model: dict[int, bytes] = {}
    for number in range(12):
        with open_db(db_path) as db:
            with db.read() as txn:
                assert dict(txn[NUMBERS]) == model
            if number % 3:
                with db.write(durability=("sync", "os", "none")[number % 3]) as txn:
                    txn[NUMBERS][number] = model[number] = b"x"


# -- close ---------------------------------------------------------------------------------------


def test_close_may_be_called_twice_and_every_use_after_it_is_a_closed_error(
    db: limpet.Database, tmp_path: Path
) -> None:
    model = fill(db, 100)
    reader = db.read()
    view = reader[NUMBERS]
    pairs = iter(view.items())
    assert next(pairs) == (-2, model[-2])
    db.close()
    db.close()
    uses: list[Callable[[], object]] = [
        db.read,
        db.write,
        db.tables,
        db.stats,
        db.check,
        lambda: db.backup(tmp_path / "copy"),
        db.compact,
        db.flush,
        db.__enter__,
        lambda: view.get(55),
        lambda: list(view),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(limpet.ClosedError):
            use()
            pytest.fail(f"use {number} went through")
    reader.close()
    with pytest.raises(limpet.ClosedError):
        view.get(55)
    assert "closed" in repr(db)
    assert not (tmp_path / "copy").exists()
    assert db.path
    assert db.format_version == 2


def test_a_reader_of_before_a_compaction_ends_with_close_too(db: limpet.Database) -> None:
    """A compaction leaves the old file to its readers. Close has to end those as well."""
    fill(db)
    with db.read() as reader:
        db.compact()
        assert reader[NUMBERS][55]
        db.close()
        with pytest.raises(limpet.ClosedError):
            reader[NUMBERS].get(55)
        with pytest.raises(limpet.ClosedError):
            list(reader[NUMBERS])


def test_close_aborts_a_write_transaction_of_its_own_thread(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    model = fill(db, 10)
    txn = db.write()
    txn[NUMBERS][99] = b"never"
    db.close()
    with pytest.raises(limpet.ClosedError):
        txn[NUMBERS][100] = b"never"
    with pytest.raises(limpet.ClosedError):
        txn.commit()
    assert holds(open_db(db_path), model)


def test_close_waits_for_the_write_transaction_of_another_thread(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    began, finish = threading.Event(), threading.Event()

    def work() -> None:
        with db.write() as txn:
            txn[NUMBERS][1] = b"in time"
            began.set()
            finish.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(10)
    closer = threading.Thread(target=db.close)
    closer.start()
    finish.set()
    thread.join(20)
    closer.join(20)
    assert not closer.is_alive()
    with open_db(db_path) as db, db.read() as txn:
        assert dict(txn[NUMBERS]) == {1: b"in time"}


def test_close_from_several_threads_at_once_is_fine(db: limpet.Database) -> None:
    fill(db, 10)
    threads = [threading.Thread(target=db.close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with pytest.raises(limpet.ClosedError):
        db.read()


def test_the_block_of_a_database_closes_it_also_on_an_exception(place: str | Path) -> None:
    with pytest.raises(KeyError), limpet.open(place) as db:
        raise KeyError
    with pytest.raises(limpet.ClosedError):
        db.read()


# -- statistics ----------------------------------------------------------------------------------


def test_stats_add_up(db: limpet.Database) -> None:
    fill(db)
    with db.write() as txn:
        txn[NUMBERS].clear()
    stats = db.stats()
    assert stats.as_dict() == {name: getattr(stats, name) for name in stats.as_dict()}
    assert stats.table_count == 2
    assert stats.txid == stats.durable_txid
    assert stats.readers == 0
    assert stats.oldest_reader_txid is None
    assert stats.live_size + stats.free_size + stats.pending_size <= stats.file_size
    assert stats.live_size > 0
    assert stats.pending_size > 0  # what the second commit freed, the first one still needs
    assert stats.commits >= 2
    if db.path != ":memory:":
        assert stats.file_size == os.path.getsize(db.path)
    with db.read() as reader:
        for _ in range(3):
            with db.write() as txn:
                txn[NUMBERS].update(dict.fromkeys(range(1500, 6000), b"later"))
        stats = db.stats()
        assert stats.readers == 1
        assert stats.oldest_reader_txid == reader.txid < stats.txid
        assert 0 < stats.retained_size <= stats.pending_size


# -- backup --------------------------------------------------------------------------------------


def test_a_backup_is_a_whole_database(db: limpet.Database, tmp_path: Path, open_db: Opener) -> None:
    model = fill(db)
    target = tmp_path / "copy.limpet"
    db.backup(target)
    with db.write() as txn:
        txn[NUMBERS].clear()
    with open_db(target) as copy:
        assert holds(copy, model)
        assert copy.check().ok
        with copy.write() as txn:
            txn[NUMBERS][5000] = b"goes on"
    assert sorted(os.listdir(tmp_path)) == sorted({"copy.limpet", Path(db.path).name} - {":memory:"})


def test_a_backup_of_an_empty_database_is_an_empty_database(
    db: limpet.Database, tmp_path: Path, open_db: Opener
) -> None:
    db.backup(str(tmp_path / "copy"))
    assert open_db(tmp_path / "copy").tables() == []


def test_a_backup_replaces_a_file_only_when_asked_to(db: limpet.Database, tmp_path: Path, open_db: Opener) -> None:
    model = fill(db, 100)
    target = tmp_path / "copy"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError) as caught:
        db.backup(target)
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"precious"
    db.backup(target, overwrite=True)
    assert holds(open_db(target), model)


def test_a_backup_over_the_database_itself_is_refused(open_db: Opener, db_path: Path) -> None:
    """With overwrite=True it would put a copy under the path and leave the open database in a nameless file."""
    db = open_db(db_path)
    fill(db, 100)
    with pytest.raises((limpet.LimpetError, OSError, ValueError)):
        db.backup(db_path, overwrite=True)
    with db.write() as txn:
        txn[NUMBERS][7777] = b"after"
    db.close()
    with open_db(db_path) as db, db.read() as txn:
        assert txn[NUMBERS][7777] == b"after"


def test_a_backup_that_cannot_be_written_leaves_nothing_behind(db: limpet.Database, tmp_path: Path) -> None:
    model = fill(db, 100)
    with pytest.raises(OSError):
        db.backup(tmp_path / "missing" / "copy")
    assert holds(db, model)
    assert not (tmp_path / "missing").exists()


def test_a_backup_reports_its_progress_and_may_be_given_up(db: limpet.Database, tmp_path: Path) -> None:
    model = fill(db)
    calls: list[tuple[int, int]] = []
    db.backup(tmp_path / "copy", progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (len(model) + 1, len(model) + 1)

    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.backup(tmp_path / "second", progress=give_up)
    assert not [name for name in os.listdir(tmp_path) if "second" in name]
    assert holds(db, model)


def test_a_backup_shows_one_commit_although_others_are_made_meanwhile(
    db: limpet.Database, tmp_path: Path, open_db: Opener
) -> None:
    model = fill(db)

    def interfere(done: int, total: int) -> None:
        with contextlib.suppress(limpet.BusyError), db.write(durability="none") as txn:
            txn[NUMBERS].update(dict.fromkeys(range(0, 2000, 7), b"changed"))

    db.backup(tmp_path / "copy", progress=interfere)
    assert holds(open_db(tmp_path / "copy"), model)
    assert not holds(db, model)


# -- compaction ----------------------------------------------------------------------------------


def test_compaction_gives_space_back_and_changes_nothing_else(db: limpet.Database) -> None:
    model = fill(db, 5000)
    with db.write() as txn:
        txn[NUMBERS].delete_range(10, 4990)
    model = {key: value for key, value in model.items() if key < 10 or key >= 4990}
    before = db.stats()
    txid = before.txid
    freed = db.compact()
    after = db.stats()
    assert freed == before.file_size - after.file_size > 0
    assert after.free_size == after.pending_size == 0
    assert after.txid == txid
    assert after.live_size == after.file_size
    assert holds(db, model)
    with db.write() as txn:
        assert txn.txid > txid
        txn[NUMBERS][7] = model[7] = b"goes on"
    assert holds(db, model)
    if db.path != ":memory:":
        assert os.listdir(Path(db.path).parent) == [Path(db.path).name]
        path = db.path
        db.close()
        with limpet.open(path) as again:
            assert holds(again, model)
            assert again.check().ok


def test_compaction_of_an_empty_database_and_twice_in_a_row(db: limpet.Database) -> None:
    db.compact()
    db.compact()
    model = fill(db, 300)
    db.compact()
    size = db.stats().file_size
    assert db.compact() == 0
    assert db.stats().file_size == size
    assert holds(db, model)


def test_compaction_takes_unflushed_commits_along(open_db: Opener, place: str | Path) -> None:
    db = open_db(place, durability="none")
    model = fill(db, 200)
    db.compact()
    assert holds(db, model)
    if place != ":memory:":
        db.close()
        assert holds(open_db(place), model)


def test_compaction_inside_a_write_transaction_of_the_same_thread_is_a_busy_error(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        with pytest.raises(limpet.BusyError):
            db.compact()
    assert db.tables() == ["users"]


def test_compaction_given_up_leaves_the_file_in_use(db: limpet.Database) -> None:
    model = fill(db)

    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.compact(progress=give_up)
    assert holds(db, model)
    with db.write() as txn:
        txn[NUMBERS][7] = model[7] = b"goes on"
    assert holds(db, model)
    if db.path != ":memory:":
        assert os.listdir(Path(db.path).parent) == [Path(db.path).name]


def test_a_compacted_file_is_still_locked(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    fill(db, 10)
    db.compact()
    with pytest.raises(limpet.LockedError):
        limpet.open(db_path, lock_timeout=0)


# -- errors --------------------------------------------------------------------------------------


def test_the_tree_of_errors_is_the_one_in_the_contract() -> None:
    names = """
        FormatError CorruptError LockedError BusyError ClosedError ReadOnlyError TableTypeError NoSuchTableError
        LimitError PoisonedError
    """
    for name in names.split():
        assert getattr(limpet, name).__bases__[0] is limpet.LimpetError
    assert issubclass(limpet.UpgradeRequiredError, limpet.FormatError)
    assert issubclass(limpet.LimpetError, Exception)


def test_nothing_is_logged_by_ordinary_work(db: limpet.Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "limpet"):
        fill(db)
        db.flush()
    assert caplog.records == []


# -- upgrade -------------------------------------------------------------------------------------


def test_upgrade_leaves_a_missing_a_foreign_and_a_current_file_alone(open_db: Opener, db_path: Path) -> None:
    result = limpet.upgrade(db_path)
    assert (result.upgraded, result.from_version, result.backup) == (False, None, None)
    assert not db_path.exists()
    db_path.write_bytes(b"somebody else's")
    assert not limpet.upgrade(db_path).upgraded
    assert db_path.read_bytes() == b"somebody else's"
    db_path.unlink()
    with open_db(db_path) as db:
        model = fill(db, 10)
    before = db_path.read_bytes()
    for _ in range(2):
        result = limpet.upgrade(str(db_path))
        assert (result.upgraded, result.from_version, result.to_version) == (False, 2, 2)
    assert db_path.read_bytes() == before
    assert os.listdir(db_path.parent) == [db_path.name]
    assert holds(open_db(db_path), model)


def test_upgrade_of_an_open_file_is_a_locked_error(open_db: Opener, db_path: Path) -> None:
    open_db(db_path)
    with pytest.raises(limpet.LockedError):
        limpet.upgrade(db_path)
