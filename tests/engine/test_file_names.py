"""Files by name: one by another name, those that are built beside their place, those that lose theirs; and modes."""

import errno
import logging
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import limpet
from limpet import file as file_module
from limpet.backup import create_beside
from limpet.database import open_on
from limpet.errors import LockedError
from limpet.file import OSFileSystem
from limpet.testing.processes import KillSwitch

ROWS = limpet.Table("rows", key=limpet.INT, value=limpet.BYTES)
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def put(db: limpet.Database, number: int) -> None:
    """One durable row."""
    with db.write() as txn:
        txn[ROWS][number] = b"acknowledged"


def numbers(path: Path) -> list[int]:
    """The keys in a file."""
    with limpet.open(path, create=False) as db, db.read() as txn:
        return list(txn[ROWS])


def checkpoint(db: limpet.Database, name: str) -> None:
    """A commit that is more than the log can say."""
    with db.write() as txn:
        txn.create(limpet.Table(name))


# -- the same file by another name -----------------------------------------------------------------


def test_a_backup_never_replaces_the_database_itself_whatever_name_leads_to_it(db_path: Path, tmp_path: Path) -> None:
    """Names were compared as strings: by a second one, the backup replaced the database; later commits were lost."""
    other = tmp_path / "folder"
    other.mkdir()
    with limpet.open(db_path) as db:
        put(db, 1)
        os.link(db_path, other / "second")
        (other / "symbolic").symlink_to(db_path)
        for name in (db_path, other / "second", other / "symbolic"):
            for overwrite in (True, False):
                with pytest.raises(ValueError, match="cannot replace the database itself"):
                    db.backup(name, overwrite=overwrite)
        put(db, 2)
    assert numbers(db_path) == [1, 2]
    with limpet.open(db_path, read_only=True) as db, pytest.raises(ValueError, match="the database itself"):
        db.backup(other / "second", overwrite=True)


@pytest.fixture
def second_folder(tmp_path: Path, db_path: Path) -> Iterator[Path]:
    """The folder of the database, mounted at a second place."""
    place = tmp_path / "second"
    place.mkdir()
    try:
        subprocess.run(["mount", "--bind", db_path.parent, place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"folders cannot be mounted here: {error}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_backup_through_a_second_mount_of_the_folder_is_refused(second_folder: Path, db_path: Path) -> None:
    with limpet.open(db_path) as db:
        put(db, 1)
        with pytest.raises(ValueError, match="the database itself"):
            db.backup(second_folder / db_path.name, overwrite=True)
        put(db, 2)
    assert numbers(db_path) == [1, 2]


def test_a_backup_sees_what_becomes_its_target_while_it_is_written(db_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with limpet.open(db_path) as db:
        put(db, 1)

        def meanwhile(*_: int) -> None:
            if not target.exists():
                os.link(db_path, target)

        with pytest.raises(ValueError, match="the database itself"):
            db.backup(target, overwrite=True, progress=meanwhile)
        put(db, 2)
    assert numbers(target) == [1, 2]
    assert sorted(os.listdir(tmp_path)) == sorted({db_path.name, "copy"})


def test_a_backup_does_not_replace_a_database_that_somebody_has_open(db_path: Path, tmp_path: Path) -> None:
    """It took the name of a file that went on to be written: what was committed to that from then on was lost."""
    other = tmp_path / "other"
    with limpet.open(db_path) as db:
        put(db, 1)
        with limpet.open(other) as held:
            put(held, 7)
            with pytest.raises(LockedError, match="open as a database"):
                db.backup(other, overwrite=True)
            put(held, 8)
        assert numbers(other) == [7, 8]
        with limpet.open(other, read_only=True) as reader:
            db.backup(other, overwrite=True)  # a reader loses nothing
            with reader.read() as txn:
                assert list(txn[ROWS]) == [7, 8]
    assert numbers(other) == [1]


# -- files that are built beside their place -------------------------------------------------------


def test_errors_name_the_path_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is missing or not writable, opening named a file that nobody had asked for."""
    missing = tmp_path / "missing" / "app.limpet"
    with pytest.raises(FileNotFoundError) as caught:
        limpet.open(missing)
    assert caught.value.filename == str(missing)
    path = tmp_path / "app.limpet"
    with limpet.open(path) as db:
        with pytest.raises(FileNotFoundError) as caught:
            db.backup(missing)
        assert caught.value.filename == str(missing)

        open_file = os.open

        def refuse(name: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT and str(name).startswith(str(tmp_path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return open_file(name, flags, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            other = tmp_path / "other"
            for call, name in (
                (lambda: limpet.open(other), other),
                (lambda: db.backup(other), other),
                (db.compact, path),
            ):
                with pytest.raises(PermissionError) as refused:
                    call()
                assert refused.value.filename == str(name)
                assert ".new" not in str(refused.value)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(file_module, "_pwrite", full)
            with pytest.raises(OSError, match="No space") as no_space:
                db.backup(other)
            assert no_space.value.filename == str(other)
        monkeypatch.setattr(file_module, "network_file_system", lambda _: "nfs4")
        with pytest.raises(limpet.LimpetError, match="network") as remote:
            db.backup(other)
        assert str(remote.value).startswith(f"{other}: ")
        assert os.listdir(tmp_path) == ["app.limpet"]


@posix_only
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_killed_creation_leaves_is_removed_by_the_next_opening(tmp_path: Path, when: str) -> None:
    """The files of creations that were killed stayed for ever."""
    left = 0
    for at in range(30):
        path = tmp_path / f"{at}.limpet"
        child = os.fork()
        if not child:
            try:
                open_on(KillSwitch(at, when), str(path)).close()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        left += any(name.startswith(path.name) and name.endswith(".new") for name in os.listdir(tmp_path))
        with limpet.open(path) as db:
            put(db, at)
        assert numbers(path) == [at]
        assert [name for name in os.listdir(tmp_path) if name.startswith(path.name)] == [path.name]
        if not os.WIFSIGNALED(status):
            break
    assert left >= 3


def test_the_second_name_of_a_finished_file_is_removed(tmp_path: Path) -> None:
    """What dies between giving a file its name and taking the other one away leaves it with both."""
    path = tmp_path / "app.limpet"
    with limpet.open(path) as db:
        put(db, 1)
    os.link(path, tmp_path / "app.limpet.01234567.new")
    assert numbers(path) == [1]
    assert os.listdir(tmp_path) == ["app.limpet"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.limpet"
    limpet.open(path).close()
    with limpet.open(tmp_path / "b") as db:
        db.backup(tmp_path / "app.limpet.aaaaaaaa.new.limpet")
    keep = {
        "app.limpet.aaaaaaaa.new": b"somebody's notes",
        "app.limpet.aaaaaaa.new": b"",
        "app.limpet.AAAAAAAA.new": b"",
        "app.limpet.aaaaaaaa.news": b"",
        "app.limpet.new": b"",
        "other.limpet.aaaaaaaa.new": b"",
        "my-app.limpet.aaaaaaaa.new": b"",
    }
    for name, content in keep.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "app.limpet.bbbbbbbb.new").mkdir()
    (tmp_path / "app.limpet.cccccccc.new").symlink_to(tmp_path / "b")
    kept = set(os.listdir(tmp_path))
    system = OSFileSystem()
    building = create_beside(system, str(path))  # by this process,
    code = (
        "import sys, limpet.backup, limpet.file\n"
        "file = limpet.backup.create_beside(limpet.file.OSFileSystem(), sys.argv[1])\n"
        "print(file.path, flush=True)\n"
        "sys.stdin.read()\n"
    )
    before: set[str]
    with subprocess.Popen(  # and by another one
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            theirs = Path(process.stdout.readline().strip())
            before = kept | {theirs.name, Path(building.path).name}
            assert set(os.listdir(tmp_path)) == before
            limpet.open(path, read_only=True).close()
            with limpet.open(path) as db:
                put(db, 1)
                db.compact()
            assert set(os.listdir(tmp_path)) == before
        finally:
            process.kill()
    building.close()
    limpet.open(path).close()
    assert set(os.listdir(tmp_path)) == kept


def test_a_builder_whose_file_was_taken_for_a_leftover_makes_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "app.limpet")
    lock = file_module._try_lock
    taken: list[str] = []

    def slow(descriptor: int, exclusive: bool) -> bool:
        if not taken:  # somebody else comes before the builder has the lock
            taken.extend(os.listdir(tmp_path))
            os.unlink(tmp_path / taken[0])
        return lock(descriptor, exclusive)

    monkeypatch.setattr(file_module, "_try_lock", slow)
    with limpet.open(path) as db:
        put(db, 1)
    assert numbers(Path(path)) == [1]
    assert os.listdir(tmp_path) == ["app.limpet"]
    assert taken


def test_a_builder_whose_file_another_thread_is_looking_at_makes_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = file_module._enter
    looking: list[file_module.File] = []

    def late(file: file_module.OSFile) -> str | None:
        if not looking:  # the other one comes between creation and registry
            monkeypatch.undo()
            looking.append(OSFileSystem().open(file.path, writable=True))
        return enter(file)

    monkeypatch.setattr(file_module, "_enter", late)
    path = tmp_path / "app.limpet"
    with limpet.open(path) as db:
        put(db, 1)
    looking[0].close()
    assert numbers(path) == [1]
    assert os.listdir(tmp_path) == ["app.limpet"]


def test_openings_and_backups_of_many_threads_do_not_remove_each_others_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, target = tmp_path / "app.limpet", tmp_path / "copy.limpet"
    wrong: list[BaseException] = []
    with limpet.open(path) as db:
        for number in range(50):
            put(db, number)

        def back_up(seed_: int) -> None:
            mine = random.Random(seed_)
            try:
                for _ in range(8):
                    db.backup(target, overwrite=True)
                    if mine.random() < 0.5:
                        limpet.open(tmp_path / f"{seed_}.limpet").close()
            except BaseException as error:  # noqa: BLE001 whatever it is, the test shows it
                wrong.append(error)

        threads = [threading.Thread(target=back_up, args=(rng.randrange(1 << 30),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert numbers(target) == list(range(50))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


# -- a file that loses its name --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced", "moved", "its folder is gone"])
def test_a_file_that_loses_its_name_is_said_at_the_next_checkpoint_and_at_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A file that was removed while it was open was written to, and closed, without a word."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "app.limpet"
    caplog.set_level(logging.WARNING, "limpet")
    with limpet.open(path) as db:
        put(db, 1)
        checkpoint(db, "one")
        assert not caplog.records
        if how == "removed":
            path.unlink()
        elif how == "replaced":
            (folder / "else").write_bytes(b"something else")
            os.replace(folder / "else", path)
        elif how == "moved":
            path.rename(folder / "elsewhere")
        else:
            folder.rename(tmp_path / "moved")
            folder.write_bytes(b"a file of that name")
        put(db, 2)
        assert not caplog.records, "a commit does not look"
        checkpoint(db, "two")
        assert len(caplog.records) == 1
        db.backup(tmp_path / "saved")  # as the warning says
        caplog.clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path}: was removed, moved or replaced" in caplog.text
    assert numbers(tmp_path / "saved") == [1, 2]


def test_a_look_at_the_name_costs_one_call_a_checkpoint_and_none_a_commit(
    db_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limpet.open(db_path) as db:
        put(db, 0)
        looks: list[str] = []
        look = os.stat

        def counted(name: Any, *rest: Any, **options: Any) -> os.stat_result:
            looks.append(str(name))
            return look(name, *rest, **options)

        monkeypatch.setattr(os, "stat", counted)
        for number in range(10):
            put(db, number)
        assert looks == []
        checkpoint(db, "two")
        assert looks == [str(db_path)]
        db.compact()
        put(db, 10)
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "its own compaction is no loss"


# -- who may read ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no such modes")
def test_new_files_are_their_owners_alone_and_copies_are_like_their_source(tmp_path: Path) -> None:
    """A new database could be read by everybody."""
    mask = os.umask(0o022)
    try:
        path = tmp_path / "app.limpet"

        def mode(name: str) -> int:
            return stat.S_IMODE((tmp_path / name).stat().st_mode)

        with limpet.open(path) as db:
            assert mode("app.limpet") == 0o600
            db.backup(tmp_path / "one")
            path.chmod(0o640)
            db.backup(tmp_path / "two")
            assert (mode("one"), mode("two")) == (0o600, 0o640)
            db.compact()
            assert mode("app.limpet") == 0o640
        with limpet.open(":memory:") as db:
            db.backup(tmp_path / "three")
        assert mode("three") == 0o600
    finally:
        os.umask(mask)


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no such modes")
def test_where_modes_or_owners_cannot_be_set_a_copy_is_made_that_no_other_group_can_read(
    db_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without modes (FAT) a backup failed; and its own group could read what another one might."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with limpet.open(db_path) as db:
        put(db, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fchmod", refuse)
            db.backup(tmp_path / "one")
        assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
        db_path.chmod(0o664)
        look = os.fstat

        def of_others(number: int) -> os.stat_result:
            """As if the database belonged to another user and another group."""
            found = look(number)
            if os.path.samestat(found, db_path.stat()):
                fields = list(found)
                fields[4] += 1
                fields[5] += 1
                return os.stat_result(fields)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(os, "fchown", refuse)
            patch.setattr(os, "fstat", of_others)
            db.backup(tmp_path / "two")
        assert stat.S_IMODE((tmp_path / "two").stat().st_mode) == 0o604
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two") == [1]
