"""Files: reads, writes and growth that complete or raise, the registry of open files, the lock loop."""

import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet import file as file_module
from limpet.errors import ClosedError, LockedError
from limpet.file import File, MemoryFile, OSFile, OSFileSystem, wait_for_lock

SYSTEM = OSFileSystem()


@pytest.fixture(params=["file", "memory"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[File]:
    """A new empty file of each kind."""
    opened: File = MemoryFile() if request.param == "memory" else SYSTEM.create(str(tmp_path / "f"))
    yield opened
    opened.close()


def test_what_was_written_is_read_by_both_ways(file: File) -> None:
    file.write(0, b"hello")
    file.write(3, b"LO world")
    assert file.size() == 11
    for read in (file.read, file.page):
        assert read(0, 11) == b"helLO world"
        assert read(6, 3) == b"wor"
        assert read(6, 100) == b"world"
        assert read(100, 5) == b""
        assert isinstance(read(0, 4), bytes)


def test_a_page_sees_later_writes_growth_and_cuts(file: File) -> None:
    file.grow(8192)
    first = file.page(0, 4096)
    file.write(0, b"x" * 4096)
    assert first == bytes(4096), "what was read stays as it was"
    assert file.page(0, 4096) == b"x" * 4096
    file.grow(20_000)
    file.write(16_000, b"end")
    assert file.page(16_000, 3) == b"end"
    file.truncate(4096)
    assert file.page(16_000, 3) == b""
    assert file.page(4000, 200) == b"x" * 96
    file.grow(8192)
    assert file.page(4000, 200) == b"x" * 96 + bytes(104)


def test_growing_writes_zeros_and_keeps_what_is_there(file: File) -> None:
    file.write(0, b"abc")
    file.grow(3_000_000)
    assert file.size() == 3_000_000
    assert file.read(0, 5) == b"abc\0\0"
    assert not any(file.read(2_999_000, 1000))


def test_a_closed_file_refuses_everything(tmp_path: Path) -> None:
    file = SYSTEM.create(str(tmp_path / "f"))
    file.write(0, b"x")
    file.close()
    file.close()
    for use in (
        file.size,
        lambda: file.read(0, 1),
        lambda: file.page(0, 1),
        lambda: file.write(0, b"y"),
        lambda: file.grow(5),
        lambda: file.truncate(0),
        file.sync,
        file.sync_all,
        lambda: file.try_lock(exclusive=True),
    ):
        with pytest.raises(ClosedError):
            use()
    assert (tmp_path / "f").read_bytes() == b"x"


def test_grown_space_is_real_and_not_a_hole(tmp_path: Path) -> None:
    file = SYSTEM.create(str(tmp_path / "f"))
    file.grow(1 << 20)
    file.sync_all()
    assert os.stat(tmp_path / "f").st_blocks * 512 >= 1 << 20
    file.close()


def test_short_writes_are_continued_and_short_reads_too(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(file, MemoryFile):
        return
    write, read = file_module._pwrite, file_module._pread
    monkeypatch.setattr(file_module, "_pwrite", lambda fd, data, at: write(fd, bytes(data)[:7], at))
    file.write(5, b"a long line of text that takes several calls")
    monkeypatch.setattr(file_module, "_pread", lambda fd, size, at: read(fd, min(size, 3), at))
    assert file.read(0, 200) == bytes(5) + b"a long line of text that takes several calls"


def test_a_write_that_gets_nowhere_is_an_error_with_the_name(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(file, MemoryFile):
        return
    parts = iter([3, 0])
    write = file_module._pwrite
    monkeypatch.setattr(file_module, "_pwrite", lambda fd, data, at: write(fd, bytes(data)[: next(parts)], at))
    with pytest.raises(OSError) as caught:
        file.write(0, b"hello")
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == file.path


def test_a_growth_that_fails_leaves_the_size_as_it_was(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(file, MemoryFile):
        return
    file.grow(5000)
    calls = iter([None, OSError(errno.ENOSPC, "no space")])
    write = file_module._pwrite

    def failing(descriptor: int, data: Any, at: int) -> int:
        if error := next(calls):
            raise error
        return write(descriptor, data, at)

    monkeypatch.setattr(file_module, "_pwrite", failing)
    with pytest.raises(OSError) as caught:
        file.grow(5_000_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, file.path)
    assert file.size() == 5000


def test_without_maps_pages_are_read_all_the_same(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "no maps here")

    monkeypatch.setattr(mmap, "mmap", refuse)
    file.write(0, b"hello")
    assert file.page(1, 3) == b"ell"


def test_threads_that_read_while_the_file_grows_never_see_garbage(tmp_path: Path) -> None:
    file = SYSTEM.create(str(tmp_path / "f"))
    file.write(0, b"\1" * 4096)
    stop = threading.Event()
    wrong: list[bytes] = []

    def look() -> None:
        while not stop.is_set():
            size = file.size()
            page = file.page(size - 4096, 4096)
            if len(page) != 4096 or page.strip(b"\0\1"):  # a write may be seen half done
                wrong.append(page)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 200):
        file.grow(4096 * (number + 1))
        file.write(4096 * number, b"\1" * 4096)
    stop.set()
    for thread in threads:
        thread.join(20)
    file.close()
    assert not wrong


# -- names ---------------------------------------------------------------------------------------


def test_the_same_file_is_not_opened_twice_whatever_its_name(tmp_path: Path) -> None:
    path, other = str(tmp_path / "a"), str(tmp_path / "b")
    file = SYSTEM.create(path)
    os.link(path, other)
    descriptors = len(os.listdir("/proc/self/fd"))
    for name in (path, other):
        with pytest.raises(LockedError, match=str(os.getpid())):
            SYSTEM.open(name, writable=False)
    assert len(os.listdir("/proc/self/fd")) == descriptors, "no descriptor is left behind, and none closed twice"
    file.close()
    SYSTEM.open(other, writable=True).close()


def test_a_refused_opening_does_not_close_a_descriptor_that_somebody_else_got_meanwhile(tmp_path: Path) -> None:
    """The refused object closed its number a second time when it was collected, by then perhaps another file's."""
    path = str(tmp_path / "a")
    file = SYSTEM.create(path)
    try:
        SYSTEM.open(path, writable=False)
    except LockedError as error:
        kept: Exception | None = error  # its traceback keeps the refused object alive
    somebody = os.open(tmp_path / "theirs", os.O_CREAT | os.O_RDWR)
    kept = None
    assert kept is None
    os.write(somebody, b"still open")
    os.close(somebody)
    file.close()


def test_a_collected_file_releases_its_place(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    file: File | None = SYSTEM.create(path)
    del file
    SYSTEM.open(path, writable=True).close()


def test_create_refuses_an_existing_file_and_link_an_existing_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    SYSTEM.create(path).close()
    with pytest.raises(FileExistsError):
        SYSTEM.create(path)
    temporary = str(tmp_path / "new")
    SYSTEM.create(temporary).close()
    with pytest.raises(FileExistsError):
        SYSTEM.link(temporary, path)
    SYSTEM.link(temporary, str(tmp_path / "c"))
    assert sorted(os.listdir(tmp_path)) == ["a", "c"]
    SYSTEM.replace(path, str(tmp_path / "c"))
    SYSTEM.sync_directory(str(tmp_path / "c"))
    assert os.listdir(tmp_path) == ["c"]
    assert SYSTEM.exists(str(tmp_path / "c"))
    SYSTEM.remove(str(tmp_path / "c"))
    assert not SYSTEM.exists(str(tmp_path / "c"))


def test_link_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    for name in ("a", "b"):
        SYSTEM.create(str(tmp_path / name)).close()
    with pytest.raises(FileExistsError):
        SYSTEM.link(str(tmp_path / "a"), str(tmp_path / "b"))
    SYSTEM.link(str(tmp_path / "a"), str(tmp_path / "c"))
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_a_file_knows_whether_its_path_still_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    file = SYSTEM.create(path)
    assert file.is_at_path()
    os.rename(path, tmp_path / "b")
    assert not file.is_at_path()
    (tmp_path / "a").write_bytes(b"")
    assert not file.is_at_path()
    file.close()


def test_the_cache_of_a_file_can_be_dropped(tmp_path: Path) -> None:
    file = SYSTEM.create(str(tmp_path / "a"))
    file.write(0, b"x" * 100_000)
    assert file.page(0, 5) == b"xxxxx"
    assert file.drop_cache() in (True, False)
    assert file.page(99_995, 5) == b"xxxxx"
    file.close()


def test_the_cache_of_a_part_can_be_dropped_although_the_system_keeps_it_in_larger_units(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * (3 << 20))
    whole, part = (SYSTEM.open(str(tmp_path / name), writable=True) for name in ("a", "b"))
    if whole.drop_cache():  # not where there is no cache, or no way to look into it
        assert part.drop_cache(12288)
    whole.close()
    part.close()


def test_looking_whether_pages_are_cached_does_not_bring_the_next_ones_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the first page made Linux read the second one ahead, and that was then taken for one never dropped.

    It depended on which was faster, the disk or the next question: on a busy machine, the disk.
    """
    path = tmp_path / "a"
    path.write_bytes(b"x" * (3 << 20))
    file = SYSTEM.open(str(path), writable=True)
    if file.drop_cache(12288):  # not where there is no cache, or no way to look into it
        preadv = os.preadv

        def slowly(*arguments: Any) -> int:
            try:
                return preadv(*arguments)
            finally:
                time.sleep(0.01)  # what is read ahead arrives meanwhile

        monkeypatch.setattr(os, "preadv", slowly)
        assert file.drop_cache(12288)
    file.close()


def synced_writes_of(file: OSFile) -> None:
    """What is written past the cache is seen by all who read, and what they read before is not in their way."""
    file.grow(5 << 20)
    file.sync_all()
    for offset, size in ((8192, 4096), (1 << 20, 40960), (2 << 20, 256 << 10), (3 << 20, 1 << 20), (4096, 512)):
        assert file.page(offset, size) == file.read(offset, size) == bytes(size)
        data = random.Random(offset).randbytes(size)
        file.write_synced(offset, data)
        assert file.page(offset, size) == file.read(offset, size) == data
        file.write(offset, bytes(size))
        assert file.page(offset, size) == bytes(size)
        file.write_synced(offset, data)
        assert file.read(offset, size) == file.page(offset, size) == data


def test_synced_writes_agree_with_all_ways_of_reading(tmp_path: Path) -> None:
    file = SYSTEM.create(str(tmp_path / "a"))
    assert isinstance(file, OSFile)
    synced_writes_of(file)
    file.close()


@pytest.mark.parametrize("missing", ["the flag", "the rights", "memory", "alignment", "the call"])
def test_synced_writes_are_done_where_the_cache_cannot_be_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    file = SYSTEM.create(str(tmp_path / "a"))
    assert isinstance(file, OSFile)
    handle = file._handle
    assert handle is not None
    write = file_module._pwritev
    if write is None:
        pytest.skip("this system has no such call")

    def refuse(descriptor: int, *arguments: Any) -> int:
        if missing == "the call" or descriptor != handle.descriptor:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return int(write(descriptor, *arguments))

    if missing == "the flag":
        monkeypatch.setattr(file_module, "_DIRECT_FLAGS", 0)
    elif missing == "the rights":
        monkeypatch.setattr(file_module, "_DIRECT_FLAGS", file_module._DIRECT_FLAGS | os.O_DIRECTORY)
    elif missing == "memory":
        monkeypatch.setattr(file_module, "_LARGEST_DIRECT", 1 << 62)
    else:
        monkeypatch.setattr(file_module, "_pwritev", refuse)
    synced_writes_of(file)
    assert handle.direct is not None
    assert not handle.direct.is_open
    file.close()


def test_a_file_system_whose_cache_does_not_notice_is_found_out_by_the_first_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def into_the_void(writer: Any, offset: int, data: bytes) -> int:
        """As if it had gone to the disk, and the cache went on showing what it has."""
        del writer, offset
        return len(data)

    monkeypatch.setattr(file_module._DirectWriter, "write_synced", into_the_void)
    file = SYSTEM.create(str(tmp_path / "a"))
    assert isinstance(file, OSFile)
    handle = file._handle
    assert handle is not None
    file.grow(8192)
    file.write_synced(4096, b"y" * 4096)
    assert file.read(4096, 4096) == b"y" * 4096
    assert handle.direct is not None
    assert not handle.direct.is_open
    file.close()


def test_a_synced_write_goes_to_the_file_that_was_opened_whatever_has_its_name_now(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = SYSTEM.create(str(path))
    file.grow(8192)
    path.rename(tmp_path / "b")
    path.write_bytes(b"x" * 8192)
    file.write_synced(4096, b"y" * 4096)
    file.close()
    assert path.read_bytes() == b"x" * 8192
    file = SYSTEM.open(str(path), writable=True)
    path.unlink()
    os.mkfifo(path)
    file.write_synced(0, b"z" * 4096)  # and does not wait for somebody to read the pipe
    assert file.read(0, 4097) == b"z" * 4096 + b"x"
    file.close()
    assert (tmp_path / "b").read_bytes() == bytes(4096) + b"y" * 4096


def test_a_failed_synced_write_names_the_file_and_a_closed_one_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a")
    file = SYSTEM.create(path)
    file.grow(8192)
    if file_module._pwritev is not None:

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(file_module, "_pwritev", fail)
            with pytest.raises(OSError, match="Input/output") as caught:
                file.write_synced(0, bytes(4096))
            assert caught.value.filename == path
    file.write_synced(0, b"z" * 4096)
    file.close()
    with pytest.raises(ClosedError):
        file.write_synced(0, bytes(4096))
    assert Path(path).read_bytes() == b"z" * 4096 + bytes(4096)


# -- the lock loop -------------------------------------------------------------------------------


class Held(MemoryFile):
    """A file whose lock is free after some tries."""

    def __init__(self, tries: int) -> None:
        super().__init__("held")
        self.tries = tries

    def try_lock(self, *, exclusive: bool) -> bool:
        self.tries -= 1
        return self.tries < 0


def take_lock(file: File, timeout_s: float, waits: list[None]) -> None:
    wait_for_lock(
        file,
        exclusive=True,
        started=time.monotonic(),
        timeout_s=timeout_s,
        on_wait=lambda: waits.append(None),
        holder=lambda: "pid 7 elsewhere",
    )


def test_the_loop_ends_with_the_lock_and_says_once_that_it_waits() -> None:
    waits: list[None] = []
    take_lock(Held(0), 0, waits)
    assert waits == []
    take_lock(Held(4), 5, waits)
    assert len(waits) == 1


@pytest.mark.parametrize("timeout", [0, 0.03, 10])
def test_the_loop_gives_up_after_its_time_and_names_the_holder(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        now[0] += pause

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(LockedError, match="pid 7") as caught:
        take_lock(Held(10**6), timeout, [])
    assert caught.value.waited_s == pytest.approx(timeout)
    assert caught.value.holder == "pid 7 elsewhere"
    assert sum(pauses) == pytest.approx(timeout)
    assert all(0 < pause <= 0.1 for pause in pauses)


def test_two_open_files_of_one_process_exclude_each_other_through_the_system_too(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    SYSTEM.create(path).close()
    files = [OSFile(path, os.open(path, os.O_RDWR), writable=True) for _ in range(2)]
    assert files[0].try_lock(exclusive=True)
    assert not files[1].try_lock(exclusive=True)
    assert not files[1].try_lock(exclusive=False)
    files[0].close()
    assert files[1].try_lock(exclusive=False)
    files[1].close()
