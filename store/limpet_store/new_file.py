"""A file that appears under its name whole and synced, or not at all, and never in the place of another one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

_NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
_NO_HARD_LINKS: Final = _NOT_SUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK}  # of this file system


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, like: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a new file: it gets its name when the block ends, and is gone when that raises.

    It is made beside its place, under a name that begins with a dot and ends in ".part". Only a process that is killed
    leaves that behind.

    like    a file; whoever may read and write it may do so with the new one
    raises  FileExistsError when there is something at `path`, before the block or, if it came meanwhile, after it;
            OSError
    """
    name = os.fspath(path)
    folder, base = os.path.split(name)
    if os.path.lexists(name):
        raise FileExistsError(errno.EEXIST, "there is something already; choose another name", name)
    mode = stat.S_IMODE(os.stat(like).st_mode) & 0o666
    try:
        number, part = tempfile.mkstemp(prefix=f".{base[:40]}.", suffix=".part", dir=folder or ".")
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None  # nobody has asked for the other name
    try:
        with open(number, "wb") as stream:
            yield stream
            stream.flush()
            if hasattr(os, "fchmod"):  # not on Windows, where the folder decides who may read
                os.fchmod(number, mode)
            os.fsync(number)
        give_name(part, name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    _sync_folder(folder or ".")


def give_name(part: str, name: str) -> None:
    """Give a finished file its name, unless there is something of that name: FileExistsError."""
    try:
        os.link(part, name)  # unlike a rename it never replaces anything
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, "there is something already", name) from None
        os.rename(part, name)
    else:
        os.unlink(part)


def _sync_folder(path: str) -> None:
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        sync_folder(number)
    finally:
        os.close(number)


def sync_folder(number: int) -> None:
    """Make the names in an open folder durable, where the file system has something to do for that."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
