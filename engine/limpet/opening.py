"""From a path to a locked file of the right kind: finding it, creating it, waiting for it, and saying who holds it."""

from __future__ import annotations

import json
import logging
import time

from .backup import create_beside, first_meta, initialise, new_header, put_in_place, remove_leftovers, remove_quietly
from .errors import FormatError
from .file import File, FileSystem, describe_process, is_another_process, wait_for_lock
from .format import HEADER_SIZE, HOLDER_PGNO, Header, decode_header

_log = logging.getLogger("limpet")

DEFAULT_LOCK_TIMEOUT_S = 10.0
_HOLDER_SIZE = 256  # bytes of the note that says who has the file open


def open_file(
    file_system: FileSystem, path: str, create: bool, read_only: bool, timeout_s: float, page_size: int, kind: int
) -> File:
    """Open and lock the file, and create it if need be. The lock comes before any look at the content."""
    started = time.monotonic()
    while True:
        try:
            file = file_system.open(path, writable=not read_only)
        except FileNotFoundError:
            if not create:
                raise
            create_file(file_system, path, new_header(page_size, kind))
            continue
        try:
            wait_for_lock(
                file,
                exclusive=not read_only,
                started=started,
                timeout_s=timeout_s,
                on_wait=lambda: _log.info("%s is held by another process; waiting up to %g s", path, timeout_s),
                holder=lambda: read_holder(file),  # noqa: B023 used before the next round
            )
            if file.is_at_path():
                if not read_only:
                    remove_leftovers(file_system, path, file)
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # replaced while we waited: by a compaction or an upgrade; the new one is what we want


def create_file(file_system: FileSystem, path: str, header: Header) -> None:
    """Make an empty database appear under its name, whole."""
    file = create_beside(file_system, path)
    temporary = file.path
    try:
        initialise(file, header, first_meta())
        file.sync_all()
        put_in_place(file_system, file, path, overwrite=False)
    except FileExistsError:
        file_system.remove(temporary)  # another process was faster
    except BaseException:
        remove_quietly(file_system, temporary)
        raise
    finally:
        file.close()


def warn_if_lost(file: File) -> None:
    """Say so in the log if the path does not name this file any more: what is written to it may be lost.

    cost     one call of the system, 2 us
    """
    try:
        if file.is_at_path():
            return
    except OSError as error:
        _log.debug("%s: could not see whether it is still there: %s", file.path, error)
        return
    _log.warning(
        "%s: was removed, moved or replaced while it was open. Commits still go to the file that was opened, and are "
        "lost with it when it is closed, unless it has another name; Database.backup() to another path saves them",
        file.path,
    )


def read_holder(file: File) -> str | None:
    """What the process that has the file open wrote about itself. Advisory: it may be stale.

    Readers leave no note. So where the one that is there is our own, or that of a process of this machine that has
    died, it is told as what it is.
    """
    head = file.read(0, HEADER_SIZE)
    try:
        page_size = decode_header(head, file.path).page_size
        text = file.read(HOLDER_PGNO * page_size, _HOLDER_SIZE).rstrip(b"\0").decode()
        note = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        who = f"pid {note['pid']} on {note['host']} ({note['program']}) since {since}"
        if note["host"] == describe_process(0.0)["host"] and not is_another_process(note["pid"]):
            return f"another process, perhaps a reader; the last to write to it was {who}"
        return who
    except (FormatError, ValueError, KeyError, TypeError, OverflowError):
        return None


def write_holder(file: File, page_size: int) -> None:
    """Note in the file who holds it, for whoever waits."""
    note = json.dumps(describe_process(time.time()))[:_HOLDER_SIZE].encode()[:_HOLDER_SIZE]
    try:
        file.write(HOLDER_PGNO * page_size, note.ljust(_HOLDER_SIZE, b"\0"))
    except OSError as error:
        _log.debug("%s: could not note who holds the file: %s", file.path, error)
