"""Moving in where names are in each other's way: the old file, the new one, and the one that is made beside it."""

from __future__ import annotations

import errno
import lzma
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from limpet import ClosedError
from limpet_store import Store
from limpet_store.redb import RedbFile, creation
from limpet_store.redb.source import FileSource

OLD = Path(__file__).parents[1] / "data" / "redb" / "v3-small.redb.xz"


@pytest.fixture
def old_content() -> bytes:
    return lzma.decompress(OLD.read_bytes())


def test_the_old_file_is_never_removed_whatever_it_is_called(tmp_path: Path, old_content: bytes) -> None:
    """An old file that had the name of the new one in the making was taken for what a crash had left, and removed."""
    path, old = tmp_path / "data.limpet", tmp_path / "data.limpet.import"
    old.write_bytes(old_content)
    with pytest.raises(FileExistsError, match="the old file is where the new one would be made"):
        Store.open(path, import_from=old)
    assert old.read_bytes() == old_content
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.link(old, elsewhere / "data.redb")  # the same file, by another name
    with pytest.raises(FileExistsError, match="the old file is where the new one would be made"):
        Store.open(path, import_from=elsewhere / "data.redb")
    assert old.read_bytes() == old_content
    old.unlink()
    with Store.open(path, import_from=elsewhere / "data.redb") as store:
        assert len(store.sessions.list()) == 12


def test_a_store_behind_a_symbolic_link_is_not_taken_for_a_second_name(tmp_path: Path) -> None:
    """With data.limpet a link to data.limpet.import, the next start removed the store itself."""
    path, real = tmp_path / "data.limpet", tmp_path / "data.limpet.import"
    with Store.open(real) as store:
        store.kv.set("kept", "yes")
    path.symlink_to(real)
    for _ in range(2):
        with Store.open(path, import_from=tmp_path / "none.redb") as store:
            assert store.kv.get("kept") == "yes"
    assert real.exists()


def test_errors_name_the_store_that_was_asked_for(
    tmp_path: Path, old_content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "data.redb"
    old.write_bytes(old_content)
    path = tmp_path / "data.limpet"
    open_file = os.open

    def refuse(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT and str(name).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return open_file(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    for options in ({}, {"import_from": old}):
        with pytest.raises(PermissionError) as caught:
            Store.open(path, **options)  # type: ignore[arg-type]  # one of them is a path
        assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["data.redb"]


def test_a_name_that_cannot_be_given_replaces_nothing(
    tmp_path: Path, old_content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "data.redb"
    old.write_bytes(old_content)
    path = tmp_path / "data.limpet"
    link = os.link

    def fail(source: Any, target: Any) -> None:
        if str(target) == str(path):
            path.write_bytes(b"of another process")
            raise OSError(errno.EIO, os.strerror(errno.EIO), source)
        link(source, target)

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="Input/output"), RedbFile(old) as source:
        creation.create(source, path, lambda part: Store.open(part, durability="os"))
    assert path.read_bytes() == b"of another process"
    assert sorted(os.listdir(tmp_path)) == ["data.limpet", "data.redb"]


@pytest.mark.skipif(sys.platform == "win32", reason="redb's lock is mandatory there")
def test_having_no_locks_left_does_not_mean_that_the_old_gateway_has_none(
    tmp_path: Path, old_content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOLCK was read as "no locks on this file system", and the file of a running gateway was read."""
    import fcntl

    old = tmp_path / "data.redb"
    old.write_bytes(old_content)

    def full(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        RedbFile(old)


@pytest.mark.skipif(os.name != "posix", reason="the system has no such modes")
def test_a_new_store_is_its_owners_alone_and_a_backup_is_like_it(tmp_path: Path, old_content: bytes) -> None:
    """A new store could be read by everybody."""
    mask = os.umask(0o022)
    try:
        old = tmp_path / "data.redb"
        old.write_bytes(old_content)
        with Store.open(tmp_path / "one"), Store.open(tmp_path / "two", import_from=old) as store:
            store.backup(tmp_path / "three")
            (tmp_path / "two").chmod(0o660)
            store.backup(tmp_path / "four")
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("one", "two", "three", "four")]
        assert modes == [0o600, 0o660, 0o600, 0o660]
    finally:
        os.umask(mask)


@pytest.mark.skipif(sys.platform == "win32", reason="reads seek there")
def test_a_read_that_is_under_way_when_the_old_file_is_closed_is_completed(
    tmp_path: Path, old_content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() closed the descriptor under a reader in another thread: EBADF, or the bytes of another file."""
    old = tmp_path / "data.redb"
    old.write_bytes(old_content)
    source = FileSource(old)
    read = os.pread
    theirs: list[int] = []

    def closing(fd: int, size: int, offset: int) -> bytes:
        if not theirs:
            source.close()
            (tmp_path / "theirs").write_bytes(b"of somebody else" * 100)
            theirs.append(os.open(tmp_path / "theirs", os.O_RDONLY))
        return read(fd, size, offset)

    monkeypatch.setattr(os, "pread", closing)
    assert source.read(0, 100) == old_content[:100]
    with pytest.raises(ClosedError):
        source.read(0, 100)
    os.close(theirs[0])
