"""How long an open file lives: closing against calls that are under way, the lock, what others inherit."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import limpet
from limpet import file as file_module
from limpet.errors import ClosedError, LockedError
from limpet.file import OSFile, OSFileSystem

SYSTEM = OSFileSystem()
PAGE = 4096
ROWS = limpet.Table("rows", key=limpet.INT, value=limpet.BYTES)
READERS = 8
CYCLES = 40

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs fork and inherited descriptors")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of four pages, each full of its own number."""
    (tmp_path / "f").write_bytes(b"".join(bytes([number]) * PAGE for number in range(4)))
    return str(tmp_path / "f")


def opened(path: str) -> OSFile:
    """The file, open and locked for writing."""
    file = SYSTEM.open(path, writable=True)
    assert isinstance(file, OSFile)
    assert file.try_lock(exclusive=True)
    return file


def lock_is_free(path: str) -> bool:
    """Whether another open file description gets the lock."""
    file = OSFile(path, os.open(path, os.O_RDWR), writable=True)
    try:
        return file.try_lock(exclusive=True)
    finally:
        file.close()


def descriptors_of(path: str) -> int:
    """How many descriptors of this process lead to the file; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    found = [os.path.realpath(each) for each in folder.iterdir()] if folder.exists() else []
    return found.count(os.path.realpath(path))


# -- closing in the middle of a call ---------------------------------------------------------------


CALLS: dict[str, tuple[str, Callable[[OSFile], object], object]] = {
    "read": ("_pread", lambda file: file.read(PAGE, PAGE), b"\1" * PAGE),
    "page": ("_size_of", lambda file: file.page(PAGE, PAGE), b"\1" * PAGE),
    "write": ("_pwrite", lambda file: file.write(0, b"w" * PAGE), None),
    "grow": ("_pwrite", lambda file: file.grow(5 * PAGE), None),
    "sync": ("_sync_data", lambda file: file.sync(), None),
    "write_synced": ("_pwritev", lambda file: file.write_synced(0, b"w" * PAGE), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_under_way_when_the_file_is_closed_ends_on_its_own_descriptor(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """close() closed the descriptor under a reader, which then got EBADF, or read, wrote or moved somebody else's file.

    And the lock was free while the reader was still at it.
    """
    seam, call, expected = CALLS[name]
    original = getattr(file_module, seam)
    if original is None:
        pytest.skip("this system has no such call")
    file = opened(path)
    file.page(0, PAGE)  # now the map is there,
    file.write_synced(0, bytes(PAGE))  # and the descriptor for this
    theirs: list[int] = []

    def closing(descriptor: int, *arguments: Any) -> Any:
        if not theirs:
            file.close()
            theirs.append(os.open(tmp_path / "theirs", os.O_CREAT | os.O_RDWR))  # gets the number, if it is free
            os.write(theirs[0], b"their own text, and more of it")
            os.lseek(theirs[0], 7, os.SEEK_SET)
            assert not lock_is_free(path), "while a call is under way, the lock is not free"
        return original(descriptor, *arguments)

    monkeypatch.setattr(file_module, seam, closing)
    assert call(file) == expected
    assert lock_is_free(path)
    assert descriptors_of(path) == 0
    with pytest.raises(ClosedError):
        call(file)
    assert os.lseek(theirs[0], 0, os.SEEK_CUR) == 7
    assert os.pread(theirs[0], 100, 0) == b"their own text, and more of it"
    os.close(theirs[0])


def test_a_map_that_is_made_while_the_file_is_closed_does_not_keep_the_lock(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader stored its new map after close() had cleared the old one; it kept the lock until it was collected."""
    file = opened(path)
    make = mmap.mmap

    def closing(*arguments: Any, **options: Any) -> mmap.mmap:
        file.close()
        return make(*arguments, **options)

    monkeypatch.setattr(mmap, "mmap", closing)
    assert file.page(PAGE, PAGE) == b"\1" * PAGE
    monkeypatch.undo()
    assert lock_is_free(path)
    assert descriptors_of(path) == 0


@pytest.mark.parametrize("error", [OSError(errno.EIO, "a bad sector"), KeyboardInterrupt()])
def test_an_exception_that_somebody_keeps_does_not_keep_the_file(
    path: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> bytes:
        raise error

    kept: list[BaseException] = []
    file = opened(path)
    file.page(0, PAGE)
    for seam in ("_pread", "_size_of", "_pwrite", "_sync_data", "_pwritev"):
        monkeypatch.setattr(file_module, seam, fail)
    for name in CALLS:
        if file_module._pwritev is None and name == "write_synced":
            continue
        with pytest.raises(type(error)) as caught:
            CALLS[name][1](file)
        kept.append(caught.value)
    monkeypatch.undo()
    file.close()
    assert lock_is_free(path)
    assert descriptors_of(path) == 0
    assert kept


def test_closed_files_touch_no_number_that_is_somebody_elses_by_now(path: str, tmp_path: Path) -> None:
    """`size` moved the position of whatever file had got the number."""
    file = opened(path)
    assert file._handle is not None
    number = file._handle.descriptor
    file.close()
    theirs = os.open(tmp_path / "theirs", os.O_CREAT | os.O_RDWR)
    assert theirs == number
    os.write(theirs, b"theirs")
    os.lseek(theirs, 3, os.SEEK_SET)
    for call in (file.size, *(lambda call=call: call(file) for _, call, _ in CALLS.values())):
        with pytest.raises(ClosedError):
            call()
    file.close()
    assert os.lseek(theirs, 0, os.SEEK_CUR) == 3
    assert os.pread(theirs, 10, 0) == b"theirs"
    os.close(theirs)


def test_readers_against_opening_and_closing_get_closed_error_and_nothing_else(tmp_path: Path) -> None:
    """Readers got EBADF, and a map that came late kept the lock: "held by another process", with our own number."""
    path = tmp_path / "app.limpet"
    with limpet.open(path, durability="os") as db, db.write() as txn:
        for number in range(300):
            txn[ROWS][number] = bytes([number % 256]) * 700
    wrong: list[BaseException] = []
    current: list[limpet.Database] = []
    stop = threading.Event()
    busy = [threading.Event() for _ in range(READERS)]
    reads = [0] * READERS

    def read_for_ever(me: int) -> None:
        number = me
        while not stop.is_set():
            if not current:
                stop.wait(0.0005)
                continue
            db = current[0]
            busy[me].set()
            try:
                with db.read() as txn:
                    for _ in range(20):
                        number = (number + 37) % 300
                        assert txn[ROWS].get(number) == bytes([number % 256]) * 700
                        reads[me] += 1
            except ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 whatever it is, the test shows it
                wrong.append(error)
            finally:
                del db
                busy[me].clear()

    bystander = os.open(tmp_path / "theirs", os.O_CREAT | os.O_RDWR)
    os.write(bystander, b"x" * 100)
    os.lseek(bystander, 50, os.SEEK_SET)
    threads = [threading.Thread(target=read_for_ever, args=(me,)) for me in range(READERS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(CYCLES):
            # Nothing is cached, so each look-up reads; a reader that is still at the last one is waited for.
            db = limpet.open(path, cache_size=0, lock_timeout=10)
            before = sum(reads)
            current.append(db)
            while sum(reads) < before + 50 and not wrong:
                stop.wait(0.0005)
            current.clear()
            db.close()
            del db
            numbers = [os.dup(bystander) for _ in range(5)]  # who gets the numbers that have become free
            for number in numbers:
                os.close(number)
            while any(event.is_set() for event in busy):
                stop.wait(0.0005)
            assert lock_is_free(str(path)), "all readers have returned"
            assert not wrong
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(20)
    assert not wrong
    assert os.lseek(bystander, 0, os.SEEK_CUR) == 50
    os.close(bystander)
    assert descriptors_of(str(path)) == 0
    with limpet.open(path) as db:
        assert db.check().ok


# -- handlers and finalizers -----------------------------------------------------------------------


def test_an_opening_inside_an_opening_of_the_same_file_is_the_one_that_counts(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[OSFile] = []

    def handler(descriptor: int) -> None:
        """As if a signal had come between two lines of the opening."""
        del descriptor
        monkeypatch.undo()
        inner.append(opened(path))

    monkeypatch.setattr(file_module, "network_file_system", handler)
    with pytest.raises(LockedError, match="already open in this process"):
        SYSTEM.open(path, writable=True)
    with pytest.raises(LockedError, match="already open in this process"):
        SYSTEM.open(path, writable=True)
    assert not lock_is_free(path)
    assert inner[0].read(0, 1) == b"\0"
    inner[0].close()
    opened(path).close()
    assert lock_is_free(path)


def test_a_close_that_is_interrupted_at_any_line_gives_everything_back_all_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # the finalizer's lines are among them

    class Interruption(Exception):
        """What a signal handler raises."""

    lines = 0
    for at in range(100):
        file = opened(path)
        file.page(0, PAGE)
        file.write_synced(0, bytes(PAGE))
        seen = 0

        def trace(frame: FrameType, event: str, _: object, at: int = at) -> Any:
            nonlocal seen
            if frame.f_code.co_filename != file_module.__file__:
                return None
            seen += event == "line"
            if event == "line" and seen == at + 1:
                raise Interruption
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            file.close()
        except Interruption:
            lines += 1
        finally:
            sys.settrace(before)
        file.close()
        assert lock_is_free(path), f"interrupted at line {at}"
        opened(path).close()
        if seen <= at:
            break
    assert lines > 5


def test_a_file_that_is_forgotten_in_a_cycle_gives_everything_back(path: str) -> None:
    class Owner:
        """Something that refers to itself."""

    owner: Any = Owner()
    owner.itself = owner
    owner.file = opened(path)
    owner.file.page(0, PAGE)
    owner.file.write_synced(0, bytes(PAGE))
    del owner
    import gc

    gc.collect()
    assert lock_is_free(path)
    assert descriptors_of(path) == 0
    opened(path).close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that rings")
def test_a_handler_that_opens_and_closes_other_files_disturbs_nobody(path: str, tmp_path: Path) -> None:
    """The registry of open files is changed between any two lines of itself."""
    other = str(tmp_path / "other")
    Path(other).write_bytes(bytes(PAGE))
    rung = [0]
    ringing = [False]
    kept: list[OSFile] = []

    def ring(*_: object) -> None:
        rung[0] += 1
        if not ringing[0]:  # one handler can come in the middle of another
            ringing[0] = True
            kept[:] = [opened(other)] if not kept else []
            ringing[0] = False

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
        while rung[0] < 300:
            file = opened(path)
            assert file.page(PAGE, PAGE) == b"\1" * PAGE
            with pytest.raises(LockedError):
                SYSTEM.open(path, writable=False)
            file.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kept.clear()
    assert lock_is_free(path)
    assert lock_is_free(other)
    assert not file_module._handles or descriptors_of(path) == 0


# -- what children inherit -------------------------------------------------------------------------


@posix_only
def test_a_process_that_inherited_the_descriptor_does_not_keep_the_lock(path: str) -> None:
    """The lock belongs to what parent and child share; between its fork and its exec a child kept it."""
    file = opened(path)
    assert file._handle is not None
    number = file._handle.descriptor
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[number], close_fds=True
    ) as child:
        try:
            file.close()
            assert lock_is_free(path), "the child lives, and has the descriptor"
            assert child.poll() is None
        finally:
            child.kill()


@posix_only
@pytest.mark.parametrize("closed_first", [False, True])
def test_a_child_that_lives_on_keeps_nothing_of_what_a_thread_was_using_when_it_was_forked(
    path: str, monkeypatch: pytest.MonkeyPatch, closed_first: bool
) -> None:
    """The child cannot hear of the end of that call: the thread is not there. Nor may it release its parent's lock."""
    file = opened(path)
    file.page(0, PAGE)
    inside, leave = threading.Event(), threading.Event()
    original = file_module._size_of

    def slow(*arguments: Any) -> int:
        inside.set()
        assert leave.wait(20)
        return original(*arguments)

    monkeypatch.setattr(file_module, "_size_of", slow)
    thread = threading.Thread(target=file.page, args=(0, PAGE))
    thread.start()
    assert inside.wait(20)
    if closed_first:
        file.close()
    receiver, sender = os.pipe()
    back, forth = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 2 if descriptors_of(path) else 0
            with open("/proc/self/maps", encoding="utf-8") as maps:
                code = 3 if path in maps.read() else code
            file.close()
            os.write(sender, b"x")
            os.read(back, 1)
        except FileNotFoundError:
            os.write(sender, b"x")
            os.read(back, 1)
            code = 0  # no /proc here
        finally:
            os._exit(code)
    try:
        assert os.read(receiver, 1) == b"x"
        assert not lock_is_free(path), "the child has closed what it inherited, and the parent's call is under way"
        leave.set()
        thread.join(20)
        file.close()
        assert lock_is_free(path), "the child is alive"
        os.write(forth, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = 0
    finally:
        leave.set()
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for number in (receiver, sender, back, forth):
            os.close(number)
