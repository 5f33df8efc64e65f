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
- A descriptor is closed by its last user and not before: its number may be another file's a moment
  later (`_Handle`).
- An error is read as "not supported here" only where its number says so. Any other one is raised.
- New files can be read and written by their owner only.
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
from typing import Any, Protocol, TypeVar, TypeVarTuple

from .errors import ClosedError, FormatError, LimpetError, LockedError
from .native import network_file_system, punch_hole

if sys.platform != "win32":
    import fcntl

_portalocker: Any  # the module, or None
try:
    import portalocker as _portalocker
except ImportError:  # optional: the same lock is taken by hand below
    _portalocker = None

ZERO_CHUNK = bytes(1 << 20)  # growth is written in pieces of 1 MiB
ALLOW_NETWORK = "LIMPET_ALLOW_NETWORK_FS"  # environment variable: open files on network file systems
_T = TypeVar("_T")
_A = TypeVarTuple("_A")
_NEW_FILE_MODE = 0o600  # what is in a database is nobody else's business until its owner says so
_LARGE_READ = 1 << 20  # bytes
_LARGEST_READ = 1 << 30  # bytes; a 32-bit process cannot ask the system for 2 GiB at once
_FIRST_PAUSE_S = 0.005  # between two tries for the lock; doubled each time
_LONGEST_PAUSE_S = 0.1


class File(ABC):
    """One open file. Offsets and sizes are in bytes.

    path       where it is
    built_for  the path that it will get when it is whole, None if it has its name already. Errors of the
               system name this one, since nobody has asked for the other
    """

    path: str
    built_for: str | None = None

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

    def disk_free(self) -> int | None:
        """Bytes that the disk has for us, as far as it says; None where that is not known. A quota may be smaller."""
        return None

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Cut the file to `size`."""

    def punch(self, offset: int, size: int) -> bool:
        """Give a stretch back to the file system; it then reads as zeros. False where that is not possible."""
        return False

    def holes(self) -> list[tuple[int, int]]:
        """Stretches without space on the disk, as (offset, size); none where that is not known."""
        return []

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
    def is_at(self, path: str) -> bool:
        """Whether a path names this file, by whatever way it leads there: links, other names of folders, case."""

    def is_at_path(self) -> bool:
        """Whether the file's own path still names it, and not one that replaced it."""
        return self.is_at(self.path)

    @abstractmethod
    def close(self) -> None:
        """Release the lock and the file: at once, or when the calls end that are under way. May be called twice."""


class FileSystem(ABC):
    """Operations on files by name."""

    @abstractmethod
    def resolve(self, path: str) -> str:
        """The path with symbolic links followed, so that replacing it replaces the file itself."""

    @abstractmethod
    def open(self, path: str, *, writable: bool) -> File:
        """Open an existing file. FileNotFoundError if there is none, LockedError if this process has it open."""

    @abstractmethod
    def create(self, path: str, *, built_for: str | None = None) -> File:
        """Create a new file. FileExistsError if there is one.

        built_for  the path that it will get when it is whole; see `File`
        """

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the path names anything."""

    @abstractmethod
    def is_held(self, path: str) -> bool:
        """Whether somebody, this process included, holds the file at `path` for writing; False if nobody can tell."""

    @abstractmethod
    def beside(self, path: str) -> list[str]:
        """The paths of the regular files beside `path` whose names begin with its name and a dot."""

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

    def is_at(self, path: str) -> bool:
        return path == self.path

    def close(self) -> None:
        self._data = bytearray()


# -- the operating system ------------------------------------------------------------------------


class _Handle:
    """What the system has given for one open file: the descriptor, with the lock; the map; a descriptor to write by.

    The OSFile holds it, and so does whoever is in the middle of using it: each call takes a reference first, and works
    with that. When the last one lets go, the finalizer gives everything back. So a number is never used when it may be
    another file's already, and no map outlives the lock.

    The lock is given back by a call of its own, and not only by closing. It belongs to the open file description, which
    lives on in the descriptors and maps that a child has inherited, if only until its `exec`. A child does not do that:
    the lock is its parent's.
    """

    __slots__ = ("__weakref__", "_pid", "descriptor", "direct", "lock", "map", "owner")

    def __init__(self, descriptor: int, owner: OSFile) -> None:
        self.descriptor = descriptor  # -1: given back
        self.map: mmap.mmap | None = None
        self.direct: _DirectWriter | None = None
        self.lock: bool | None = None  # True: an exclusive one; False: a shared one; None: none
        self.owner = weakref.ref(owner)
        self._pid = os.getpid()

    def close(self) -> None:
        """Give everything back. Only for who knows that nobody uses it. Does the rest when it was interrupted."""
        if self.descriptor >= 0:
            if self._pid == os.getpid():
                _unlock(self.descriptor)
            descriptor, self.descriptor = self.descriptor, -1
            try:
                os.close(descriptor)
            except OSError:
                pass  # what was to be on the disk has been synced, and whoever syncs hears of errors
        if self.map is not None:
            self.map.close()
        if self.direct is not None:
            self.direct.close()
        _handles.pop(id(self), None)

    __del__ = close


def _count_of_one_user() -> int:
    probe = object()
    return _reference_count(probe)


_reference_count: Callable[[object], int] = getattr(sys, "getrefcount", lambda _: sys.maxsize)
_ONE_USER = _count_of_one_user()  # what is counted of an object that one local variable refers to, and nothing else


# Of the files opened by name, until the last user of each has let go; by id. Changing it, and copying its values, are
# single steps of the interpreter. So it needs no lock, which a signal handler or a finalizer might find taken.
_handles: dict[int, weakref.ref[_Handle]] = {}


def _enter(file: OSFile) -> str | None:
    """Put a file among those that are open; returns under which path it was among them already.

    Of two that enter at the same time, the later one sees the earlier one.
    """
    handle = file._handle
    assert handle is not None
    mine = weakref.ref(handle)
    _handles[id(handle)] = mine
    for reference in list(_handles.values()):
        if reference is mine:
            break
        other = reference()
        owner = other.owner() if other is not None else None
        if owner is not None and owner._handle is other and owner.identity == file.identity:
            return owner.path
    return None


class OSFile(File):
    """A real file. Any thread may call any method; the engine sees to it that writes do not overlap.

    Any call on a closed one raises ClosedError. A call that is under way when another thread, a signal handler or a
    finalizer closes the file is either completed or raises ClosedError, and only then the lock is free.
    """

    def __init__(self, path: str, descriptor: int, *, writable: bool) -> None:
        """Take over an open descriptor. It is closed with this object, also when this fails."""
        self.path = path
        self._writable = writable
        self._handle: _Handle | None = _Handle(descriptor, self)
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)

    def kind(self) -> int:
        """What kind of file it is: the mode, as `stat` has it."""
        return self._call(os.fstat).st_mode

    def network(self) -> str | None:
        """The kind of network file system that it lies on, None for a local one."""
        return self._call(network_file_system)

    def size(self) -> int:
        return self._call(os.fstat).st_size

    def read(self, offset: int, size: int) -> bytes:
        if size > _LARGE_READ:  # the system sets aside as much memory as it is asked for, and a file may lie
            size = max(0, min(size, self.size() - offset))
        handle = self._handle
        if handle is None:
            raise self._closed()
        try:  # as `_call`, in two thirds of its time
            piece_size = size if size < _LARGEST_READ else _LARGEST_READ  # noqa: FURB136 `min` takes 5 % of the call
            data = _pread(handle.descriptor, piece_size, offset)
            if 0 < len(data) < size:  # interrupted, or the end: only the end gives nothing more
                while piece := _pread(handle.descriptor, min(size - len(data), _LARGEST_READ), offset + len(data)):
                    data += piece
        except OSError as error:
            raise self._failed(handle, error) from error
        finally:
            del handle
        return data

    def page(self, offset: int, size: int) -> bytes:
        handle = self._handle
        if handle is None:
            raise self._closed()
        view = handle.map
        end = offset + size
        try:
            if view is None or end > len(view):
                view = self._remap()
                if view is None or end > len(view):
                    return self.read(offset, size)
            if _size_of(handle.descriptor, 0, _END) < end:
                return self.read(offset, size)
            return view[offset:end]
        except (OSError, ValueError) as error:  # ValueError: the map is closed
            raise self._failed(handle, error) from error
        finally:
            del handle, view  # who keeps an exception keeps what the functions of its traceback have

    def write(self, offset: int, data: bytes) -> None:
        handle = self._handle
        if handle is None:
            raise self._closed()
        try:
            written = _pwrite(handle.descriptor, data, offset)
            while written < len(data):
                more = _pwrite(handle.descriptor, memoryview(data)[written:], offset + written)
                if more == 0:
                    raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
                written += more
        except OSError as error:
            raise self._failed(handle, error) from error
        finally:
            del handle

    def write_synced(self, offset: int, data: bytes) -> None:
        """One call of the system where it has one: 130 us for a meta, where pwrite and fdatasync take 150 to 220.

        Whole blocks, as log records are, go past the system's cache where that can be: a little less again, and a sixth
        where the cache keeps what was written at once in large units and looks through all of one to write a page
        (`benchmarks media`).
        """
        handle = self._handle
        if handle is None:
            raise self._closed()
        size = len(data)
        written = 0
        try:
            if _pwritev is not None:
                if not (offset | size) % _DIRECT_UNIT and size <= _LARGEST_DIRECT:
                    direct = handle.direct
                    if direct is None:
                        direct = handle.direct = _DirectWriter(self.path, self.identity)
                        written = self._first_direct(direct, offset, data)
                    else:
                        written = direct.write_synced(offset, data)
                if not written:
                    written = _pwritev(handle.descriptor, [data], offset, _SYNCED)
        except OSError as error:
            if handle.descriptor < 0 or error.errno not in _NOT_SUPPORTED:
                raise self._failed(handle, error) from error
        finally:
            del handle
        if written < size:
            super().write_synced(offset + written, data[written:])

    def _first_direct(self, direct: _DirectWriter, offset: int, data: bytes) -> int:
        """As `_DirectWriter.write_synced`, and a look whether the cache notices: not all file systems see to that.

        Where it goes on showing what was there before, everything is written by way of the cache, this too.
        """
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
                self._call(os.ftruncate, start)
            except (OSError, ClosedError):
                pass  # the tail holds zeros that nothing refers to; the first error is the one to report
            raise

    def disk_free(self) -> int | None:
        try:
            return self._call(_disk_free)
        except OSError:
            return None

    def truncate(self, size: int) -> None:
        self._forget_map()
        self._call(os.ftruncate, size)

    def punch(self, offset: int, size: int) -> bool:
        return self._call(punch_hole, offset, size)

    def holes(self) -> list[tuple[int, int]]:
        try:
            return self._call(_holes)
        except OSError:
            return []  # a file system that cannot tell

    def sync(self) -> None:
        self._call(_sync_data)

    def sync_all(self) -> None:
        self._call(_sync_everything)

    def drop_cache(self, size: int = 0) -> bool:
        if not hasattr(os, "posix_fadvise"):
            return False
        self._forget_map()  # a mapped page stays cached
        if self._writable:
            self._call(_sync_data)  # dirty pages are not dropped, and they are the newest truth
        for unit in (mmap.PAGESIZE, _LARGEST_CACHE_UNIT):  # one that would be dropped in part is not
            self._call(os.posix_fadvise, 0, -(-size // unit) * unit, os.POSIX_FADV_DONTNEED)
            if self._call(_is_evicted, min(size or _HEAD_SIZE, self.size())):
                return True
        return False

    def try_lock(self, *, exclusive: bool) -> bool:
        handle = self._handle
        if handle is None:
            raise self._closed()
        try:
            if handle.lock is not exclusive:  # Windows refuses a lock to who has it already
                if not self._call(_try_lock, exclusive):
                    return False
                handle.lock = exclusive
        finally:
            del handle
        return True

    def copy_mode(self, other: File) -> None:
        if not isinstance(other, OSFile) or not hasattr(os, "fchmod") or not hasattr(os, "fchown"):
            return
        theirs, ours = other._call(os.fstat), self._call(os.fstat)
        mode = theirs.st_mode & 0o777
        if (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid) and not self._give_to(
            theirs.st_uid, theirs.st_gid
        ):
            mode &= ~0o070  # the group is another one
        try:
            self._call(os.fchmod, mode)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED and error.errno != errno.EPERM:
                raise  # EPERM: the file is ours, so it is the file system that has no such modes

    def _give_to(self, user: int, group: int) -> bool:
        """Make the file another user's and another group's, or that group's at least; returns whether that was done."""
        for owner in (user, -1):  # only root may give files away
            try:
                self._call(os.fchown, owner, group)
                return True
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED and error.errno != errno.EPERM:
                    raise
        return False

    def is_at(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def close(self) -> None:
        """Let go of the file; calling it again does nothing.

        If no other call is under way, the lock is free and the descriptors are closed when this returns; else when the
        last one returns. In a forked child the lock stays the parent's.
        """
        handle, self._handle = self._handle, None
        # If nobody else uses it, it is closed here. The finalizer would do it too, but it swallows what a signal
        # handler raises in the middle of it, and an interpreter without a global lock may call it later.
        if handle is not None and _reference_count(handle) <= _ONE_USER:
            handle.close()

    def _call(self, function: Callable[[int, *_A], _T], *arguments: *_A) -> _T:
        """Call a function of the system with the descriptor, which stays open until it returns."""
        handle = self._handle
        if handle is None:
            raise self._closed()
        try:
            return function(handle.descriptor, *arguments)
        except OSError as error:
            raise self._failed(handle, error) from error
        finally:
            del handle  # who keeps an exception keeps what the functions of its traceback have, and so the lock

    def _remap(self) -> mmap.mmap | None:
        """Map the file as it is now. Slices taken from the old map are copies and stay valid."""
        handle = self._handle
        if handle is None:
            raise self._closed()
        try:
            size = self._call(os.fstat).st_size
            descriptor = handle.descriptor
            if descriptor < 0:  # which would map memory
                raise self._closed()
            if size == 0:
                return None
            view = handle.map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
            return view
        except (OSError, ValueError, OverflowError):
            return None  # no maps here, or the file is too large for the addresses of a 32-bit process: pread serves
        finally:
            del handle

    def _forget_map(self) -> None:
        handle = self._handle
        if handle is not None:
            handle.map = None

    def _closed(self) -> ClosedError:
        return ClosedError(f"{self.path}: the file is closed (a forked child has to open its own)")

    def _failed(self, handle: _Handle, error: OSError | ValueError) -> Exception:
        """What to raise for an error of the system, or of a map that was closed (ValueError)."""
        if handle.descriptor < 0 or not isinstance(error, OSError):
            return self._closed()  # this is a forked child, and its parent was in the middle of a call
        return OSError(error.errno, error.strerror, self.built_for or self.path)


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
            if error.errno not in _NOT_SUPPORTED:
                raise
            self.close()
            return 0
        return written

    def close(self) -> None:
        """Write nothing any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


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
        return self._register(OSFile(path, os.open(path, flags), writable=writable), path)

    def create(self, path: str, *, built_for: str | None = None) -> File:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _EXTRA_FLAGS
        descriptor = os.open(path, flags, _NEW_FILE_MODE)
        try:
            file = OSFile(path, descriptor, writable=True)
            file.built_for = built_for
            return self._register(file, built_for or path)
        except BaseException:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # another thread has taken it for a leftover; what it holds the file for is the error to tell
            raise

    def _register(self, file: OSFile, path: str) -> OSFile:
        """Take up a file that was just opened, or close it and say of `path` why it is not for us."""
        try:
            kind = file.kind()
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(kind):
                raise FormatError(f"{path}: not a Limpet file, nor any regular file ({stat.filemode(kind)})")
            remote = file.network()
            if remote and not os.environ.get(ALLOW_NETWORK):
                raise LimpetError(
                    f"{path}: lies on a network file system ({remote}), where locks and caches of several machines "
                    f"may disagree and commits can be lost. Use a local disk, or set {ALLOW_NETWORK}=1 to insist"
                )
            other = _enter(file)
            if other is not None:
                raise LockedError(
                    f"{path}: already open in this process (pid {os.getpid()}, as {other}); "
                    "share that Database, it may be used from all threads",
                    holder=f"pid {os.getpid()}, this process",
                )
            return file
        except BaseException:
            file.close()
            raise

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def is_held(self, path: str) -> bool:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return False
            file = InspectedFile.open(path)
        except OSError:
            return False
        try:
            return not file.try_lock(exclusive=False)
        except OSError:
            return False
        finally:
            file.close()

    def beside(self, path: str) -> list[str]:
        folder, name = os.path.split(path)
        with os.scandir(folder or ".") as entries:
            return [
                os.path.join(folder, entry.name)
                for entry in entries
                if entry.name.startswith(f"{name}.") and entry.is_file(follow_symlinks=False)
            ]

    def link(self, source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # The check is then not part of the renaming.
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
            _sync_everything(descriptor)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:  # some file systems have nothing to sync here
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

# The errors that say: not here, by this system or on this file system. All others say that something went wrong.
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
# Of a link. Linux says EPERM on file systems without them, Android EACCES to programs, and where a file has one name
# and no more, that is the most it can have.
_NO_HARD_LINKS = _NOT_SUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK}


_END = os.SEEK_END

if sys.platform == "win32":
    _position_lock = threading.Lock()

    def _size_of(descriptor: int, _offset: int, _whence: int) -> int:
        return os.fstat(descriptor).st_size  # reads and writes seek there

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
    _size_of = os.lseek  # to the end, and nobody needs the position: a third of the time of fstat


if sys.platform == "darwin":

    def _sync_everything(descriptor: int) -> None:
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves the data in the drive's cache
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            os.fsync(descriptor)

    _sync_data = _sync_everything
else:
    _sync_everything = os.fsync
    _sync_data = getattr(os, "fdatasync", os.fsync)


# macOS has no such call, and its plain sync is not one either (see above).
_SYNCED = getattr(os, "RWF_DSYNC", 0)
_pwritev = getattr(os, "pwritev", None) if _SYNCED else None

_DIRECT_FLAGS = os.O_WRONLY | os.O_DIRECT | _EXTRA_FLAGS | _NO_WAIT if hasattr(os, "O_DIRECT") and _pwritev else 0
_DIRECT_UNIT = 4096  # bytes: the largest block of a disk that is about
_LARGEST_DIRECT = 256 << 10

_HEAD_SIZE = 4 * 65536  # bytes: the metas are in here, whatever the page size
_LARGEST_CACHE_UNIT = 2 << 20  # bytes: a huge page, which Linux's largest folios are


def _disk_free(descriptor: int) -> int | None:
    if not hasattr(os, "fstatvfs"):
        return None
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize


def _holes(descriptor: int) -> list[tuple[int, int]]:
    status = os.fstat(descriptor)
    if not hasattr(os, "SEEK_HOLE") or status.st_blocks * 512 >= status.st_size:
        return []
    found, end = [], 0
    while (start := os.lseek(descriptor, end, os.SEEK_HOLE)) < status.st_size:
        try:
            end = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            end = status.st_size  # no data behind it
        found.append((start, end - start))
    return found


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

    def _try_lock(descriptor: int, exclusive: bool) -> bool:
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

    def _try_lock(descriptor: int, exclusive: bool) -> bool:
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

    def _try_lock(descriptor: int, exclusive: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _LOCK_TAKEN:
                return False
            raise
        return True


if sys.platform == "win32":

    def _unlock(descriptor: int) -> None:
        """Closing does it there, and there are no forks."""

else:

    def _unlock(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError:
            pass  # no locks here, so there was none; or closing has to do


def _close_inherited_files() -> None:
    """In a forked child: let go of the parent's files without a word to the parent's lock.

    Those too that were closed, and that a thread of the parent, which is not here to let go of them, was still using.
    """
    inherited = list(_handles.values())
    _handles.clear()
    for reference in inherited:
        handle = reference()
        if handle is not None:
            owner = handle.owner()
            if owner is not None and owner._handle is handle:
                owner._handle = None
            handle.close()
    for target in list(_forkables):
        target.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_files)
