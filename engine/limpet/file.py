"""The only module that talks to the operating system.

`File` is one open file, `FileSystem` opens, creates, links and replaces files by name. The engine
sees nothing else of the machine, so that a simulated disk (limpet.testing) can stand in for it.

    File                 OSFile        a real file: pread, pwrite, fdatasync, a read-only map; and a second descriptor
                                       for writes that pass the system's cache by
                         MemoryFile    a bytearray; what ":memory:" lives in
    FileSystem           OSFileSystem  the real one

Rules kept here:
- Every call completes or raises: short reads mean end of file, short writes are continued.
- An OSError carries the name of the file.
- A page is sliced from the map only after the file was seen to be long enough: touching a mapped
  page behind the end of a file that somebody cut short kills the process. Asking for the size
  costs 0.2 us a page; map and check together are still faster than pread (0.45 against 0.55 us).
- Growth writes zeros. Filling space that was only reserved costs a sync half as much again as
  overwriting blocks that exist, and a reserved block can still be refused later.
- The lock is `flock`, by way of `portalocker` where that is installed: it belongs to the open
  file description, so closing another descriptor of the file does not drop it (POSIX locks do).
- After a fork the child closes what it inherited. Closing does not release the parent's lock.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from .errors import ClosedError, FormatError, LimpetError, LockedError
from .native import network_file_system, punch_hole

_portalocker: Any  # the module, or None
try:
    import portalocker as _portalocker
except ImportError:  # optional: the same lock is taken by hand below
    _portalocker = None

ZERO_CHUNK = bytes(1 << 20)  # growth is written in pieces of 1 MiB
ALLOW_NETWORK = "LIMPET_ALLOW_NETWORK_FS"  # environment variable: open files on network file systems
_LARGE_READ = 1 << 20  # bytes
_FIRST_PAUSE_S = 0.005  # between two tries for the lock; doubled each time
_LONGEST_PAUSE_S = 0.1


class File(ABC):
    """One open file. Offsets and sizes are in bytes."""

    path: str

    @abstractmethod
    def size(self) -> int:
        """The size of the file now."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file. Never through a map."""

    @abstractmethod
    def page(self, offset: int, size: int) -> bytes:
        """As `read`, by the fastest way there is."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""

    def write_synced(self, offset: int, data: bytes) -> None:
        """Write all of `data` and return when it is on stable storage; what else was written need not be."""
        self.write(offset, data)
        self.sync()

    @abstractmethod
    def grow(self, size: int) -> None:
        """Extend the file to `size` with zeros that occupy real space. On failure the size is as before."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Cut the file to `size`."""

    def punch(self, offset: int, size: int) -> bool:
        """Give a stretch back to the file system; it then reads as zeros. False where that is not possible."""
        return False

    @abstractmethod
    def sync(self) -> None:
        """Return when all written data is on stable storage."""

    @abstractmethod
    def sync_all(self) -> None:
        """As `sync`, and the size of the file as well."""

    @abstractmethod
    def drop_cache(self, size: int = 0) -> bool:
        """Make later reads come from the disk.

        size     bytes from the beginning of the file; 0: all of it
        returns  whether the cache is known to be empty now
        """

    @abstractmethod
    def try_lock(self, *, exclusive: bool) -> bool:
        """Take the lock if it is free."""

    def copy_mode(self, other: File) -> None:
        """Let those read and write this file who may do so with the other one; as far as the system allows it."""
        return

    @abstractmethod
    def is_at_path(self) -> bool:
        """Whether the path still names this file, and not one that replaced it."""

    @abstractmethod
    def close(self) -> None:
        """Release the lock and the file. May be called twice."""


class FileSystem(ABC):
    """Operations on files by name."""

    @abstractmethod
    def resolve(self, path: str) -> str:
        """The path with symbolic links followed, so that replacing it replaces the file itself."""

    @abstractmethod
    def open(self, path: str, *, writable: bool) -> File:
        """Open an existing file. FileNotFoundError if there is none, LockedError if this process has it open."""

    @abstractmethod
    def create(self, path: str) -> File:
        """Create a new file. FileExistsError if there is one."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the path names anything."""

    @abstractmethod
    def link(self, source: str, target: str) -> None:
        """Give the file at `source` the name `target` instead. FileExistsError if that is taken."""

    @abstractmethod
    def replace(self, source: str, target: str) -> None:
        """Give the file at `source` the name `target` instead, atomically, whatever had that name."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a name."""

    @abstractmethod
    def sync_directory(self, path: str) -> None:
        """Make the names in the directory of `path` durable."""


def wait_for_lock(
    file: File,
    *,
    exclusive: bool,
    started: float,
    timeout_s: float,
    on_wait: Callable[[], None],
    holder: Callable[[], str | None],
) -> None:
    """Take the lock on a file, waiting for another process to let go.

    started    when waiting began, by time.monotonic()
    timeout_s  how long to try since then, 0 or more; tries are 5 ms apart at first, 100 ms later
    on_wait    called once, when the first try has failed
    holder     asked at the end for what is known about the process in the way
    raises     LockedError with the holder and the time waited
    """
    pause = _FIRST_PAUSE_S
    while not file.try_lock(exclusive=exclusive):
        waited = time.monotonic() - started
        if pause == _FIRST_PAUSE_S:
            on_wait()
        if waited >= timeout_s:
            who = holder()
            raise LockedError(
                f"{file.path}: held by {who or 'another process'}; waited {waited:.1f} s "
                f"(lock_timeout={timeout_s:g}). Close it there, or wait longer",
                waited_s=waited,
                holder=who,
            )
        time.sleep(min(pause, timeout_s - waited))
        pause = min(pause * 2, _LONGEST_PAUSE_S)


# -- memory --------------------------------------------------------------------------------------


class MemoryFile(File):
    """A file that lives and dies with the process."""

    def __init__(self, path: str = ":memory:") -> None:
        self.path = path
        self._data = bytearray()

    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    page = read

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self._data):
            self.grow(end)
        self._data[offset:end] = data

    def grow(self, size: int) -> None:
        self._data.extend(bytes(size - len(self._data)))

    def truncate(self, size: int) -> None:
        del self._data[size:]

    def sync(self) -> None:
        """Nothing to do: no power cut spares this memory."""

    def sync_all(self) -> None:
        """Nothing to do, as for `sync`."""

    def drop_cache(self, size: int = 0) -> bool:
        return True

    def try_lock(self, *, exclusive: bool) -> bool:
        return True

    def is_at_path(self) -> bool:
        return True

    def close(self) -> None:
        self._data = bytearray()


# -- the operating system ------------------------------------------------------------------------

_open_files: weakref.WeakValueDictionary[tuple[int, int], OSFile] = weakref.WeakValueDictionary()
_open_lock = threading.RLock()  # collecting a forgotten file closes it, also in the middle of opening another


class OSFile(File):
    """A real file. Any thread may call any method; the engine sees to it that writes do not overlap."""

    def __init__(self, path: str, descriptor: int, *, writable: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._writable = writable
        self._map: mmap.mmap | None = None
        self._direct: _DirectWriter | None = None
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)

    def size(self) -> int:
        if sys.platform == "win32":
            return os.fstat(self._checked()).st_size  # reads and writes seek there
        return os.lseek(self._checked(), 0, os.SEEK_END)  # a quarter of the time of fstat

    def read(self, offset: int, size: int) -> bytes:
        if size > _LARGE_READ:  # the system sets aside as much memory as it is asked for, and a file may lie
            size = max(0, min(size, self.size() - offset))
        try:
            data = _pread(self._checked(), size, offset)
            if 0 < len(data) < size:  # interrupted, or the end: only the end gives nothing more
                while piece := _pread(self._descriptor, size - len(data), offset + len(data)):
                    data += piece
        except OSError as error:
            raise self._named(error) from error
        return data

    def page(self, offset: int, size: int) -> bytes:
        end = offset + size
        view = self._map
        if view is None or end > len(view):
            view = self._remap()
            if view is None or end > len(view):
                return self.read(offset, size)
        if self.size() < end:
            return self.read(offset, size)
        return view[offset:end]

    def write(self, offset: int, data: bytes) -> None:
        descriptor = self._checked()
        try:
            written = _pwrite(descriptor, data, offset)
            while written < len(data):
                more = _pwrite(descriptor, memoryview(data)[written:], offset + written)
                if more == 0:
                    raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
                written += more
        except OSError as error:
            raise self._named(error) from error

    def write_synced(self, offset: int, data: bytes) -> None:
        """One call of the system where it has one: 130 us for a meta, where pwrite and fdatasync take 150 to 220.

        Whole blocks, as log records are, go past the system's cache where that can be: a little less again, and a sixth
        where the cache keeps what was written at once in large units and looks through all of one to write a page
        (`benchmarks media`).
        """
        descriptor = self._descriptor if self._descriptor >= 0 else self._checked()
        if _pwritev is None:
            super().write_synced(offset, data)
            return
        size = len(data)
        written = 0
        try:
            if not (offset | size) % _DIRECT_UNIT and size <= _LARGEST_DIRECT:
                direct = self._direct
                written = self._first_direct(offset, data) if direct is None else direct.write_synced(offset, data)
            if not written:
                written = _pwritev(descriptor, [data], offset, _SYNCED)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise self._named(error) from error
        if written < size:
            super().write_synced(offset + written, data[written:])

    def _first_direct(self, offset: int, data: bytes) -> int:
        """As `_DirectWriter.write_synced`, and a look whether the cache notices: not all file systems see to that.

        Where it goes on showing what was there before, everything is written by way of the cache, this too.
        """
        direct = self._direct = _DirectWriter(self.path, self.identity)
        if direct.is_open:
            self.read(offset, len(data))  # now it is in the cache
        written = direct.write_synced(offset, data)
        if written and self.read(offset, written) != data[:written]:
            direct.close()
            return 0
        return written

    def grow(self, size: int) -> None:
        start = position = self.size()
        try:
            while position < size:
                piece = ZERO_CHUNK[: size - position]
                self.write(position, piece)
                position += len(piece)
        except BaseException:
            try:
                os.ftruncate(self._descriptor, start)
            except OSError:
                pass  # the tail holds zeros that nothing refers to; the first error is the one to report
            raise

    def truncate(self, size: int) -> None:
        try:
            self._map = None
            os.ftruncate(self._checked(), size)
        except OSError as error:
            raise self._named(error) from error

    def punch(self, offset: int, size: int) -> bool:
        return punch_hole(self._checked(), offset, size)

    def sync(self) -> None:
        try:
            _sync_data(self._checked())
        except OSError as error:
            raise self._named(error) from error

    def sync_all(self) -> None:
        try:
            _sync_everything(self._checked())
        except OSError as error:
            raise self._named(error) from error

    def drop_cache(self, size: int = 0) -> bool:
        if not hasattr(os, "posix_fadvise"):
            return False
        descriptor = self._checked()
        self._map = None  # a mapped page stays cached
        try:
            if self._writable:
                _sync_data(descriptor)  # dirty pages are not dropped, and they are the newest truth
            for unit in (mmap.PAGESIZE, _LARGEST_CACHE_UNIT):  # one that would be dropped in part is not
                os.posix_fadvise(descriptor, 0, -(-size // unit) * unit, os.POSIX_FADV_DONTNEED)
                if _is_evicted(descriptor, min(size or _HEAD_SIZE, self.size())):
                    return True
        except OSError as error:
            raise self._named(error) from error
        return False

    def try_lock(self, *, exclusive: bool) -> bool:
        try:
            return _try_lock(self._checked(), exclusive=exclusive)
        except OSError as error:
            raise self._named(error) from error

    def copy_mode(self, other: File) -> None:
        if not isinstance(other, OSFile) or not hasattr(os, "fchmod") or not hasattr(os, "fchown"):
            return
        try:
            theirs, ours = os.fstat(other._checked()), os.fstat(self._checked())
            if (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid):
                try:
                    os.fchown(self._descriptor, theirs.st_uid, theirs.st_gid)
                except PermissionError:
                    pass  # only the owner of both may; the mode is what keeps others out
            os.fchmod(self._descriptor, theirs.st_mode & 0o777)
        except OSError as error:
            raise self._named(error) from error

    def is_at_path(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        self._map = None
        if descriptor >= 0:
            with _open_lock:
                if _open_files.get(self.identity) is self:
                    del _open_files[self.identity]
            os.close(descriptor)
        if self._direct is not None:
            self._direct.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()  # compact() leaves the old file to the readers that are still at it

    def _remap(self) -> mmap.mmap | None:
        """Map the file as it is now. Slices taken from the old map are copies and stay valid."""
        size = self.size()
        if size == 0:
            return None
        try:
            view = mmap.mmap(self._checked(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None  # no maps here (some network and container file systems): pread serves
        self._map = view
        return view

    def _checked(self) -> int:
        if self._descriptor < 0:
            raise ClosedError(f"{self.path}: the file is closed (a forked child has to open its own)")
        return self._descriptor

    def _named(self, error: OSError) -> OSError:
        if error.filename is None and error.errno is not None:
            return OSError(error.errno, error.strerror, self.path)
        return error


class _DirectWriter:
    """Writes past the system's cache, from a buffer that is aligned as such writes need it.

    They go through a descriptor of their own. Where the system, the file system or the rights do not allow it, or
    memory is short, this one writes nothing, and the caller goes the other way. One thread at a time.
    """

    __slots__ = ("_block", "_buffer", "_descriptor")

    def __init__(self, path: str, identity: tuple[int, int]) -> None:
        self._descriptor = -1
        if not _DIRECT_FLAGS:
            return
        try:
            self._buffer = mmap.mmap(-1, _LARGEST_DIRECT)  # takes memory only as far as it is used
            self._block = [memoryview(self._buffer)[:_DIRECT_UNIT]]
            self._descriptor = os.open(path, _DIRECT_FLAGS)
            status = os.fstat(self._descriptor)
        except OSError:
            self.close()  # no such thing here, or the file has another name now
            return
        if (status.st_dev, status.st_ino) != identity:
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether it may write anything."""
        return self._descriptor >= 0

    def write_synced(self, offset: int, data: bytes) -> int:
        """Write, and return when it is on stable storage; returns how many bytes were written, 0 if it cannot be."""
        if self._descriptor < 0:
            return 0
        assert _pwritev is not None
        size = len(data)
        self._buffer[:size] = data
        block = self._block if size == _DIRECT_UNIT else [memoryview(self._buffer)[:size]]
        try:
            written: int = _pwritev(self._descriptor, block, offset, _SYNCED)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            self.close()
            return 0
        return written

    def close(self) -> None:
        """Write nothing any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class InspectedFile(OSFile):
    """A file that is only looked at: never locked, never mapped, and perhaps open elsewhere at the same time."""

    @classmethod
    def open(cls, path: str) -> InspectedFile:
        """Open a file for reading, whoever else has it open, this process included."""
        flags = os.O_RDONLY | _EXTRA_FLAGS | _NO_WAIT
        return cls(path, os.open(path, flags), writable=False)

    def page(self, offset: int, size: int) -> bytes:
        return self.read(offset, size)


class OSFileSystem(FileSystem):
    """The machine's own file system."""

    def resolve(self, path: str) -> str:
        return os.path.realpath(path)

    def open(self, path: str, *, writable: bool) -> File:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | _EXTRA_FLAGS | _NO_WAIT
        return self._register(path, os.open(path, flags), writable=writable)

    def create(self, path: str) -> File:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _EXTRA_FLAGS
        descriptor = os.open(path, flags, 0o666)
        try:
            return self._register(path, descriptor, writable=True)
        except BaseException:
            os.unlink(path)
            raise

    def _register(self, path: str, descriptor: int, *, writable: bool) -> OSFile:
        file: OSFile | None = None
        try:
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(kind):
                raise FormatError(f"{path}: not a Limpet file, nor any regular file ({stat.filemode(kind)})")
            remote = network_file_system(descriptor)
            if remote and not os.environ.get(ALLOW_NETWORK):
                raise LimpetError(
                    f"{path}: lies on a network file system ({remote}), where locks and caches of several machines "
                    f"may disagree and commits can be lost. Use a local disk, or set {ALLOW_NETWORK}=1 to insist"
                )
            file = OSFile(path, descriptor, writable=writable)
            with _open_lock:
                other = _open_files.setdefault(file.identity, file)
            if other is not file:
                raise LockedError(
                    f"{path}: already open in this process (pid {os.getpid()}, as {other.path}); "
                    "share that Database, it may be used from all threads",
                    holder=f"pid {os.getpid()}, this process",
                )
            return file
        except BaseException:
            if file is None:
                os.close(descriptor)
            else:
                file.close()  # the descriptor is its own now, and closing it twice could hit somebody else's file
            raise

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def link(self, source: str, target: str) -> None:
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the check is then not part of the renaming
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            os.rename(source, target)
        else:
            os.unlink(source)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        if sys.platform == "win32":
            return  # directories cannot be opened there; the rename itself is journaled
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have nothing to sync here
                raise OSError(error.errno, error.strerror, os.path.dirname(path)) from error
        finally:
            os.close(descriptor)


def on_fork(target: Forkable) -> None:
    """Tell `target` when it finds itself in a forked child."""
    _forkables.add(target)


class Forkable(Protocol):
    """Something that must know that it was inherited by a fork."""

    def forked(self) -> None:
        """Called once, in the child, before anything else runs there."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def describe_process(now: float) -> dict[str, object]:
    """What a holder of the lock says about itself: pid, host, since when (Unix seconds), program."""
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return {"pid": os.getpid(), "host": host, "since": int(now), "program": os.path.basename(sys.argv[0] or "python")}


def is_another_process(pid: object) -> bool:
    """Whether a process of this machine with that number, other than this one, may be alive."""
    if not isinstance(pid, int) or pid == os.getpid() or not 0 < pid < 1 << 31:
        return False
    if sys.platform == "win32":
        return True  # sending it a signal there ends it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return True


def random_bytes(size: int) -> bytes:
    """Random bytes from the operating system: file ids and nonces."""
    return os.urandom(size)


_EXTRA_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a named pipe must not make us wait


if sys.platform == "win32":
    _position_lock = threading.Lock()

    def _pread(descriptor: int, size: int, offset: int) -> bytes:
        with _position_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)

    def _pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        with _position_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)

else:
    _pread = os.pread
    _pwrite = os.pwrite


if sys.platform == "darwin":
    import fcntl

    def _sync_everything(descriptor: int) -> None:
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves the data in the drive's cache
        except OSError:
            os.fsync(descriptor)

    _sync_data = _sync_everything
else:
    _sync_everything = os.fsync
    _sync_data = getattr(os, "fdatasync", os.fsync)


# macOS has no such call, and its plain sync is not one either (see above).
_SYNCED = getattr(os, "RWF_DSYNC", 0)
_pwritev = getattr(os, "pwritev", None) if _SYNCED else None
_NOT_OFFERED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})  # by this file system

_DIRECT_FLAGS = os.O_WRONLY | os.O_DIRECT | _EXTRA_FLAGS | _NO_WAIT if hasattr(os, "O_DIRECT") and _pwritev else 0
_DIRECT_UNIT = 4096  # bytes: the largest block of a disk that is about
_LARGEST_DIRECT = 256 << 10

_HEAD_SIZE = 4 * 65536  # bytes: the metas are in here, whatever the page size
_LARGEST_CACHE_UNIT = 2 << 20  # bytes: a huge page, which Linux's largest folios are


def _is_evicted(descriptor: int, size: int) -> bool:
    """Whether the first `size` bytes of the file are out of the page cache."""
    if not hasattr(os, "preadv") or not hasattr(os, "RWF_NOWAIT"):
        return False
    # From the end to the beginning: asking for a page makes Linux read that one and those behind it ahead.
    for offset in reversed(range(0, size, mmap.PAGESIZE)):
        try:
            if os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT):
                return False
        except BlockingIOError:
            continue  # it would have to come from the disk
        except OSError:
            return False
    return True


_LOCK_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)

if _portalocker is not None:

    def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
        kind = _portalocker.LockFlags.EXCLUSIVE if exclusive else _portalocker.LockFlags.SHARED
        try:
            _portalocker.lock(descriptor, kind | _portalocker.LockFlags.NON_BLOCKING)
        except _portalocker.AlreadyLocked:
            return False
        except _portalocker.LockException as error:
            for cause in (error.__cause__, error.__context__):
                if isinstance(cause, OSError):
                    raise cause from error
            raise OSError(errno.ENOLCK, f"cannot lock: {error}") from error
        return True

elif sys.platform == "win32":
    import msvcrt

    _LOCK_OFFSET = 0x7FFFFFFF - 1  # far behind the data: locks are mandatory there and would stop readers

    def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
        with _position_lock:
            os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno in _LOCK_TAKEN:
                    return False
                raise
        return True

else:
    import fcntl

    def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _LOCK_TAKEN:
                return False
            raise
        return True


def _close_inherited_files() -> None:
    """In a forked child: let go of the parent's files without a word to the parent's lock."""
    global _open_lock
    _open_lock = threading.RLock()  # another thread of the parent may have held it
    inherited = list(_open_files.values())
    _open_files.clear()
    for file in inherited:
        descriptor, file._descriptor = file._descriptor, -1
        file._map = None
        if file._direct is not None:
            file._direct.close()
        if descriptor >= 0:
            os.close(descriptor)
    for target in list(_forkables):
        target.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_files)
