"""Where the bytes of a redb file come from: the only module of this package that talks to the operating system.

It reads with `pread`, not through a memory map: a map of a file that somebody truncates, or whose disk fails, ends the
process with SIGBUS, which no Python code can catch, while a read ends short or raises `OSError`. The price, measured
over a 13 MB file in the page cache: 1.7 us a page instead of 1.3 us.

redb holds an exclusive `flock` while it has the file open for writing, and then reuses pages. So a shared one is taken
first; it is the only trace of us. The file is never opened for writing.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from typing import Final, Protocol

from limpet import ClosedError, FormatError, LockedError

_POLL_S: Final = 0.05


class Source(Protocol):
    """Something to read from."""

    name: str
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only where the file ends."""

    def close(self) -> None:
        """No reads after this."""


class BytesSource:
    """A file that is in memory already."""

    __slots__ = ("_data", "name", "size")

    def __init__(self, data: bytes | bytearray, name: str = "(memory)") -> None:
        self._data: memoryview | None = memoryview(data)
        self.name = name
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only where the file ends."""
        if self._data is None:
            raise ClosedError(f"{self.name} is closed")
        return bytes(self._data[offset : offset + size])

    def close(self) -> None:
        """No reads after this."""
        self._data = None


class _Descriptor:
    """An open descriptor, closed with this object: who is in the middle of a read has a reference to it.

    Were it closed at once, its number could be another file's before that read begins.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class FileSource:
    """A file on disk, opened for reading and locked against redb. Any thread may read; a closed one is ClosedError.

    lock_timeout   seconds to wait for a process that has the file open for writing
    raises         OSError; FormatError: not a regular file; LockedError
    """

    __slots__ = ("_descriptor", "_seek_lock", "name", "size")

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 0.0) -> None:
        self._descriptor: _Descriptor | None = None
        self.name = os.fspath(path)
        # O_NONBLOCK: opening a pipe by mistake must not wait for its other end.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        self._descriptor = descriptor = _Descriptor(os.open(self.name, flags))
        self._seek_lock = threading.Lock()
        try:
            status = os.fstat(descriptor.fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{self.name} is not a regular file")
            waited_s = lock(descriptor.fd, shared=True, timeout=lock_timeout)
            if waited_s is not None:
                raise _locked(self.name, waited_s)
            self.size = os.fstat(descriptor.fd).st_size  # again: it may have grown until the lock was ours
        except BaseException:
            self.close()
            raise
        finally:
            del descriptor  # who keeps an exception keeps what the functions of its traceback have

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only where the file ends."""
        descriptor = self._descriptor
        if descriptor is None:
            raise ClosedError(f"{self.name} is closed")
        try:
            data = self._read_once(descriptor.fd, offset, size)
            while len(data) < size:  # one read gives at most 2 GiB, and may give less
                more = self._read_once(descriptor.fd, offset + len(data), size - len(data))
                if not more:
                    break
                data += more
        finally:
            del descriptor
        return data

    def close(self) -> None:
        """Give the file and the lock back, at once or when the reads end that are under way; no reads after this."""
        self._descriptor = None

    if sys.platform == "win32":

        def _read_once(self, fd: int, offset: int, size: int) -> bytes:
            with self._seek_lock:
                os.lseek(fd, offset, os.SEEK_SET)
                try:
                    return os.read(fd, size)
                except PermissionError as error:  # redb's lock is mandatory there
                    raise _locked(self.name, 0.0) from error
    else:

        def _read_once(self, fd: int, offset: int, size: int) -> bytes:
            return os.pread(fd, size, offset)


def _locked(name: str, waited_s: float) -> LockedError:
    return LockedError(
        f"{name} is open for writing in another process (a running gateway?), which reuses its pages: stop that first, "
        f"or give a copy",
        waited_s=waited_s,
    )


if sys.platform == "win32":

    def lock(fd: int, *, shared: bool, timeout: float) -> float | None:
        """Nothing to do: where redb holds its lock, reads are refused."""
else:
    import errno
    import fcntl

    def lock(fd: int, *, shared: bool, timeout: float) -> float | None:
        """Lock an open file or directory against other processes.

        returns  None when it is locked, or on a file system without locks (redb could not have taken one there either);
                 else the seconds waited in vain
        """
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                waited_s = time.monotonic() - started
                if waited_s >= timeout:
                    return waited_s
                time.sleep(min(_POLL_S, timeout - waited_s))
            except OSError as error:
                # EBADF: a folder on NFS, which cannot be opened for writing. ENOLCK is not one of them: no more locks
                # does not mean that redb has none.
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
                    raise
                return None
            else:
                return None
