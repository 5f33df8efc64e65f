"""Every error that Limpet raises on purpose.

    LimpetError
      FormatError            not a Limpet file, a damaged header, or newer than this code
        UpgradeRequiredError an older format: run limpet.upgrade(path) or `limpet upgrade`
      CorruptError           bytes on disk are wrong
      LockedError            another process, or this one, already holds the file
      BusyError              another thread holds the writer
      ClosedError            the database or the transaction has ended
      ReadOnlyError          a write through a read transaction or a read-only database
      TableTypeError         the table was created with other codecs
      NoSuchTableError       drop or rename of a table that does not exist (also a KeyError)
      NoSuchCommitError      the inspector was asked for a commit that is not in the file (also a LookupError)
      LimitError             a key, value or number is too large (also a ValueError)
      PoisonedError          an earlier write or sync failed: close and open again

A missing key is no error of ours: `KeyError` from `[]`, `None` from `get`. A wrong Python
type is `TypeError`, a value that its codec cannot hold is `ValueError`; both are raised
before anything changes. What the operating system refuses (`OSError`: no space, I/O error)
passes through with the name of the file.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable

_DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class LimpetError(Exception):
    """The root of all errors that Limpet raises on purpose. They can be pickled, attributes and all."""

    def __reduce__(self) -> tuple[Callable[..., LimpetError], tuple[object, ...], dict[str, object]]:
        return _made_again, (type(self), self.args), self.__dict__


class FormatError(LimpetError):
    """The file is not a Limpet file, its header is damaged, or it is newer than this code."""


class UpgradeRequiredError(FormatError):
    """The file has an older format; `limpet.upgrade(path)` brings it up to date."""


class CorruptError(LimpetError):
    """Bytes on disk are not what was written.

    pgno      the page, or None where no single page is to blame
    offset    byte offset in the file of the page or field
    expected  what the field should hold
    found     what it holds
    table     name of the table whose tree the page belongs to, where known
    """

    def __init__(
        self,
        message: str,
        *,
        pgno: int | None = None,
        offset: int | None = None,
        expected: object = None,
        found: object = None,
        table: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.pgno = pgno
        self.offset = offset
        self.expected = expected
        self.found = found
        self.table = table

    def __str__(self) -> str:
        where = []
        if self.pgno is not None:
            where.append(f"page {self.pgno}")
        if self.offset is not None:
            where.append(f"offset {self.offset}")
        if self.table is not None:
            where.append(f"table {self.table!r}")
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        if self.expected is not None or self.found is not None:
            text += f" (expected {_shown(self.expected)}, found {_shown(self.found)})"
        return text


class LockedError(LimpetError):
    """The file is held by another process, or already open in this one.

    waited_s  seconds spent waiting before giving up
    holder    what the holder wrote about itself ("pid 41 on host since ..."), advisory only
    """

    def __init__(self, message: str, *, waited_s: float = 0.0, holder: str | None = None) -> None:
        super().__init__(message)
        self.waited_s = waited_s
        self.holder = holder


class BusyError(LimpetError):
    """Another thread of this process holds the writer and did not finish in time."""


class ClosedError(LimpetError):
    """The database or transaction has ended, or belongs to the parent process of a fork."""


class ReadOnlyError(LimpetError):
    """A change was asked of something that was opened for reading."""


class TableTypeError(LimpetError):
    """The file records other codecs for this table than the ones it was asked for with."""


class NoSuchTableError(LimpetError, KeyError):
    """The table does not exist."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


class NoSuchCommitError(LimpetError, LookupError):
    """The commit that an inspection was asked to show is not in the file, or not any more."""


class LimitError(LimpetError, ValueError):
    """A key, a value or a number does not fit.

    size   what was asked for (bytes, unless the message says otherwise)
    limit  the largest that fits
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class PoisonedError(LimpetError):
    """An earlier write or sync failed, so memory may no longer agree with the disk.

    Close the database and open it again: everything acknowledged before the failure is there.
    """


def command(verb: str, path: str, *options: str) -> str:
    """A call of the command `limpet`, for a message that advises it: in backquotes, and as a shell wants it."""
    name = f"./{path}" if path.startswith("-") else path
    return f"`limpet {shlex.join([verb, *options, name])}`"


def _made_again(kind: type[LimpetError], arguments: tuple[object, ...]) -> LimpetError:
    """An error without its constructor, which may ask for what is among the attributes."""
    return kind.__new__(kind, *arguments)


def _shown(value: object) -> str:
    return f"{value:#x}" if type(value) is int and value > 0xFFFF else repr(value)


def is_disk_full(error: BaseException) -> bool:
    """Whether the system refused more space: the disk or the quota is full, or the file as long as it may be."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL
