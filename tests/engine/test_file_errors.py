"""Errors of the system: which of them say "not supported here", and that all others are raised."""

import errno
import importlib.util
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import limpet
from limpet import file as file_module
from limpet import native
from limpet.database import open_on
from limpet.file import OSFileSystem

fcntl: Any = pytest.importorskip("fcntl", reason="the calls of Unix are what fails here")
SYSTEM = OSFileSystem()
ROWS = limpet.Table("rows", key=limpet.INT, value=limpet.BYTES)
PAGE = 4096
FULL_SYNC = 51  # F_FULLFSYNC

NOT_SUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
FAILED = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.ENXIO)


def failing(number: int) -> Any:
    """A call of the system that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# -- macOS -----------------------------------------------------------------------------------------


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as it is on macOS: its flush of the drive is a call that `full_sync` decides about."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        patch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
        patch.delattr(os, "RWF_DSYNC", raising=False)
        patch.delattr(os, "register_at_fork", raising=False)
        spec = importlib.util.spec_from_file_location("limpet.file_on_macos", file_module.__file__)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
    return module


def full_sync(monkeypatch: pytest.MonkeyPatch, numbers: list[int]) -> list[str]:
    """From now on F_FULLFSYNC fails with these errors, one after the other, then works; returns what was called."""
    calls: list[str] = []
    control, sync = fcntl.fcntl, os.fsync

    def fcntl_(descriptor: int, command: int, *rest: Any) -> Any:
        if command != FULL_SYNC:
            return control(descriptor, command, *rest)
        calls.append("full")
        if numbers:
            failing(numbers.pop(0))()
        return 0

    def fsync(descriptor: int) -> None:
        calls.append("fsync")
        sync(descriptor)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_)
    monkeypatch.setattr(os, "fsync", fsync)
    return calls


@pytest.mark.parametrize("number", FAILED)
def test_a_flush_of_the_drive_that_fails_on_macos_is_an_error(
    macos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Any error of F_FULLFSYNC was read as "not supported": EIO was swallowed, and the commit acknowledged."""
    system = macos.OSFileSystem()
    file = system.create(str(tmp_path / "f"))
    file.write(0, b"x")
    for call in (
        file.sync,
        file.sync_all,
        lambda: file.write_synced(0, b"y"),
        lambda: system.sync_directory(file.path),
    ):
        calls = full_sync(monkeypatch, [number])
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            call()
        assert caught.value.errno == number
        assert str(tmp_path) in str(caught.value.filename)
        assert calls == ["full"]
    file.close()


@pytest.mark.parametrize("number", NOT_SUPPORTED)
def test_where_macos_cannot_flush_the_drive_a_plain_sync_is_what_there_is(
    macos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = macos.OSFileSystem().create(str(tmp_path / "f"))
    calls = full_sync(monkeypatch, [number])
    file.write_synced(0, b"x")
    file.sync_all()
    assert calls == ["full", "fsync", "full"]
    file.close()


def test_a_commit_whose_flush_fails_on_macos_is_not_acknowledged(
    macos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "app.limpet")
    monkeypatch.setattr("limpet.database.OSFileSystem", macos.OSFileSystem)
    db = open_on(macos.OSFileSystem(), path)
    with db.write() as txn:
        txn[ROWS][1] = b"there"
    full_sync(monkeypatch, [errno.EIO])
    with pytest.raises(OSError, match="Input/output"), db.write() as txn:
        txn[ROWS][2] = b"perhaps"
    with pytest.raises(limpet.PoisonedError):
        db.read()
    db.close()
    monkeypatch.undo()
    with limpet.open(path) as db, db.read() as txn:
        assert txn[ROWS][1] == b"there"


# -- synced writes, names, holes -------------------------------------------------------------------


@pytest.mark.parametrize("number", FAILED)
def test_a_synced_write_that_fails_is_not_tried_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if file_module._pwritev is None:
        pytest.skip("this system has no such call")
    file = SYSTEM.create(str(tmp_path / "f"))
    file.write_synced(0, bytes(PAGE))
    monkeypatch.setattr(file_module, "_pwritev", failing(number))
    for size in (PAGE, 700):  # past the cache, and through it
        with pytest.raises(OSError, match=os.strerror(number)):
            file.write_synced(0, b"x" * size)
    assert file.read(0, PAGE) == bytes(PAGE)
    file.close()


@pytest.mark.parametrize("number", [*FAILED, errno.EROFS, errno.ENOENT])
def test_a_name_that_cannot_be_given_is_an_error_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Any error of a link was read as "no hard links here": a renaming followed, which can replace another's file."""
    source, target = tmp_path / "new", tmp_path / "file"
    source.write_bytes(b"ours")

    def fail(*_: object) -> None:
        target.write_bytes(b"of another process, which came just now")
        failing(number)()

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # as seen a moment before
    with pytest.raises(OSError, match=os.strerror(number)):
        SYSTEM.link(str(source), str(target))
    assert target.read_bytes().startswith(b"of another process")


@pytest.mark.parametrize("number", [*NOT_SUPPORTED, errno.EPERM, errno.EACCES, errno.EMLINK])
def test_where_there_are_no_hard_links_a_new_file_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    limpet.open(tmp_path / "app.limpet").close()
    assert os.listdir(tmp_path) == ["app.limpet"]


class Punching:
    """A C library whose `fallocate` fails with one error after the other, and then works; and its foreign interface."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.errno = 0

    def fallocate64(self, *_: int) -> int:
        self.errno = self.numbers.pop(0) if self.numbers else 0
        return -1 if self.errno else 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="holes are made on Linux only")
def test_a_hole_that_fails_is_an_error_and_one_that_cannot_be_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error of the call was read as "this file system cannot": EIO was swallowed."""
    file = SYSTEM.create(str(tmp_path / "f"))
    for numbers, expected in (
        ([], True),
        ([errno.EINTR, errno.EINTR], True),
        *(([number], False) for number in native._NO_HOLES),
    ):
        library = Punching(list(numbers))
        monkeypatch.setattr(native, "_libc", lambda library=library: (library, library))
        assert file.punch(0, PAGE) is expected
    for number in (errno.EIO, errno.ENOSPC):
        library = Punching([number])
        monkeypatch.setattr(native, "_libc", lambda library=library: (library, library))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            file.punch(0, PAGE)
        assert caught.value.filename == str(tmp_path / "f")
    file.close()


# -- files that are larger than the addresses ------------------------------------------------------


def test_a_file_too_large_for_a_map_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a 32-bit Python a file over 2 GiB gave OverflowError on reads, for its size is no size of a map there."""

    def too_large(_: int, size: int, **__: object) -> None:
        raise OverflowError("cannot fit 'int' into an index-sized integer")

    path = tmp_path / "app.limpet"
    with limpet.open(path) as db, db.write() as txn:
        for number in range(200):
            txn[ROWS][number] = bytes([number]) * 500
    with limpet.open(path, cache_size=0) as db:
        monkeypatch.setattr(mmap, "mmap", too_large)
        with db.read() as snapshot:
            assert [value[:1] for value in snapshot[ROWS].values()] == [bytes([number]) for number in range(200)]
        assert db.check().ok
        monkeypatch.undo()


def test_a_read_larger_than_the_system_takes_at_once_is_done_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 1 << 20
    read = file_module._pread

    def bounded(descriptor: int, size: int, offset: int) -> bytes:
        if size > largest:
            raise OverflowError("signed integer is greater than maximum")
        return read(descriptor, size, offset)

    monkeypatch.setattr(file_module, "_LARGEST_READ", largest)
    monkeypatch.setattr(file_module, "_pread", bounded)
    file = SYSTEM.create(str(tmp_path / "f"))
    content = os.urandom(3 * largest + 77)
    file.write(0, content)
    assert file.read(0, 1 << 40) == content
    assert file.read(5, 2 * largest + 1) == content[5 : 2 * largest + 6]
    file.close()
