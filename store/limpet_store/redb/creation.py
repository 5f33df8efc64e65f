"""A new store with the content of an old file: it appears complete and verified, or not at all.

It is made beside its place, at the path with ".import" added, and gets its name when it is done. A lock on the folder
keeps two processes that start at the same time apart, and makes it safe to throw away what a crash has left of an
earlier attempt. Where folders cannot be locked, the file's own lock and the exclusive link are what is left of that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from limpet import CorruptError, LockedError

from ..new_file import give_name, sync_folder
from .account import RedbImport
from .importer import Progress, import_redb
from .reader import RedbFile
from .source import lock

logger = logging.getLogger("limpet_store")

SUFFIX: Final = ".import"
SHOWN_ERRORS: Final = 5


def create(
    source: RedbFile,
    path: str | os.PathLike[str],
    open_store: Callable[[str], Any],
    *,
    lock_timeout: float = 10.0,
    progress: Progress | None = None,
) -> RedbImport:
    """Make a new store at `path` with the content of an old file.

    open_store    opens a store at a path (`Store.open`, with what options it takes)
    lock_timeout  seconds to wait for another process that is doing the same
    returns       the account; the store is closed
    raises        FileExistsError: there is something at `path` already, or the old file is where the new one would be
                  made; LockedError; CorruptError: the old file is damaged, or the new one does not verify; otherwise
                  as `import_redb`
    """
    name = os.fspath(path)
    part = name + SUFFIX
    with _folder(os.path.dirname(name) or ".", lock_timeout) as fd:
        if os.path.lexists(name):
            raise FileExistsError(17, "there is something already, nothing was imported", name)
        if _is_same(part, source.path):
            raise FileExistsError(
                errno.EEXIST, "the old file is where the new one would be made; give one of them another name", part
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        try:
            with open_store(part) as store:
                report = import_redb(source, store, progress=progress)
                found = store.check()
                if not found.ok:
                    raise CorruptError(f"the new store does not verify: {'; '.join(found.errors[:SHOWN_ERRORS])}")
                store.database.flush()
            give_name(part, name)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            if isinstance(error, OSError) and error.filename == os.path.realpath(part):  # nobody has asked for that one
                raise OSError(error.errno, error.strerror, name) from error
            raise
        if fd is not None:
            sync_folder(fd)
    return report


def move_in(
    old: str | os.PathLike[str],
    path: str | os.PathLike[str],
    open_store: Callable[[str], Any],
    *,
    lock_timeout: float = 10.0,
) -> RedbImport | None:
    """On the first start of a gateway, bring over what it kept in the old file; on every other one, do nothing.

    The old file stays as it is. Whether this is the first start is told by the new file alone: once it is there, the
    old one is never looked at again.

    old           the old file; where there is none either, the gateway starts with nothing, and the log says so
    lock_timeout  seconds to wait for the old gateway to close its file, and for another process doing the same
    returns       the account, or None when there was nothing to do
    raises        ValueError for ":memory:"; otherwise as `RedbFile` and `create`; there is no file at `path` then, and
                  the next start tries again
    """
    if os.fspath(path) == ":memory:":
        raise ValueError("a store in memory begins anew with every start: import_from needs a file")
    if os.path.lexists(path):
        _drop_second_name(os.fspath(path))
        return None
    try:
        source = RedbFile(old, lock_timeout=lock_timeout)
    except FileNotFoundError:
        logger.warning("there is neither %s nor %s to import: starting with an empty store", path, old)
        return None
    with source:
        logger.info("first start: importing %s into %s", old, path)
        try:
            report = create(source, path, open_store, lock_timeout=lock_timeout)
        except FileExistsError:
            if os.path.lexists(path):
                return None  # another process was quicker
            raise
    log(report)
    return report


def log(report: RedbImport) -> None:
    """Tell the log what became of an import, the choices that were made included."""
    level = logging.INFO if report.adds_up else logging.ERROR
    for line in report.lines():
        logger.log(logging.WARNING if line.startswith(("note", "warning")) else level, "%s", line)


def _drop_second_name(name: str) -> None:
    """A crash between the two steps of `give_name` leaves the finished file with both names.

    A symbolic link from one to the other is no second name: without what it points to, nothing would be left.
    """
    with contextlib.suppress(OSError):
        first, second = os.lstat(name), os.lstat(name + SUFFIX)
        if stat.S_ISREG(first.st_mode) and os.path.samestat(first, second):
            os.unlink(name + SUFFIX)


def _is_same(path: str, other: str) -> bool:
    """Whether both paths lead to one file, whatever way."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return False


@contextlib.contextmanager
def _folder(path: str, timeout: float) -> Iterator[int | None]:
    """The folder, locked; None where folders cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:  # Windows
        yield None
        return
    try:
        waited_s = lock(fd, shared=False, timeout=timeout)
        if waited_s is not None:
            raise LockedError(f"another process imports into {path}", waited_s=waited_s)
        yield fd
    finally:
        os.close(fd)
