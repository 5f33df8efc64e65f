"""Bringing a file of an older format up to date.

Format 1 is the first, so there is nothing to bring up to date yet. What callers rely on holds
already: a missing file, a file that is not ours and a file that is up to date are left alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import FormatError
from .file import FileSystem, OSFileSystem
from .format import FORMAT_VERSION, HEADER_SIZE, decode_header


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What `upgrade` found and did.

    path           the file
    from_version   its format before; None if there is no file, or none whose format this code knows: not
                   a Limpet file, a damaged header, a newer format. Opening it says which
    to_version     its format now
    upgraded       whether it was rewritten
    backup         where the original was kept, None if it was not rewritten
    """

    path: str
    from_version: int | None
    to_version: int | None
    upgraded: bool
    backup: str | None = None


def upgrade(path: str | os.PathLike[str]) -> UpgradeResult:
    """Bring a file to the newest format. Doing it again changes nothing.

    path     a file; a missing one, and one that is not ours, are left alone
    raises   OSError; LockedError if this process has the file open
    """
    name = os.fspath(path)
    return _upgrade(OSFileSystem(), name)


def _upgrade(file_system: FileSystem, path: str) -> UpgradeResult:
    try:
        file = file_system.open(path, writable=False)
    except FileNotFoundError:
        return UpgradeResult(path, None, None, upgraded=False)
    try:
        decode_header(file.read(0, HEADER_SIZE), path)
    except FormatError:
        return UpgradeResult(path, None, None, upgraded=False)
    finally:
        file.close()
    return UpgradeResult(path, FORMAT_VERSION, FORMAT_VERSION, upgraded=False)
