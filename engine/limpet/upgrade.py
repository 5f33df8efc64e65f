"""Bringing a file of an older format up to date.

    1  the old file is locked, so that nobody else has it, and read from the disk
    2  a copy of it is kept as <path>.v1.bak, unless there is a file of that name already: that is never touched
    3  its tables are written into a new file beside it
    4  the new file is synced, read again by the code that will read it from now on, and compared
    5  it takes the old one's place, by one rename, which is made durable

A crash at any point leaves the old file or the new one under the name, whole; a second run begins
again, or finds nothing to do. Nothing is ever written to the old file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .backup import Progress, TableSource, create_beside, new_header, put_in_place, remove_quietly, write_tables
from .codecs import describe_key
from .errors import CorruptError, FormatError, LimpetError, LockedError, UpgradeRequiredError
from .file import File, FileSystem, OSFileSystem, wait_for_lock
from .format import FORMAT_VERSION, HEADER_SIZE, MAGIC, Txid, decode_header
from .legacy.v1 import OldFile, OldTable
from .opening import DEFAULT_LOCK_TIMEOUT_S, read_holder
from .overlay import SnapshotTree
from .pager import Pager
from .recovery import load_tables, recover

_log = logging.getLogger("limpet")

_CHUNK = 1 << 20  # bytes copied at once
_SHARES = 3  # progress counts every entry when it is written, and when it is read again, twice as fast


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What `upgrade` found and did.

    path           the file
    from_version   its format before; None if there is no file, or none whose format this code knows: not
                   a Limpet file, a damaged header, a newer format. Opening it says which
    to_version     its format now
    upgraded       whether it was rewritten
    backup         where the original is kept, None if it was not rewritten, or not kept
    entries        how many entries were taken over, in all tables
    """

    path: str
    from_version: int | None
    to_version: int | None
    upgraded: bool
    backup: str | None = None
    entries: int = 0


def upgrade(
    path: str | os.PathLike[str],
    *,
    backup: bool = True,
    in_child: bool = False,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT_S,
    progress: Progress | None = None,
) -> UpgradeResult:
    """Bring a file to the newest format. Doing it again changes nothing.

    path          a file; a missing one, and one that is not ours, are left alone
    backup        keep the original as <path>.v1.bak; one that is there already stays as it is
    in_child      do it in a process of its own, so that nothing in a damaged file can harm this one
    lock_timeout  seconds to wait for another process to let go of the file
    progress      called now and then with (steps done, steps in all); not with in_child
    raises        LockedError if another process, or this one, has the file open; CorruptError if it is
                  damaged; FileExistsError if <path>.v1.bak is a symbolic link to the file itself; OSError. The
                  file is then as it was
    cost          reads the old file, and writes and reads the new one: about 20 MB a second
    """
    name = os.fspath(path)
    if in_child:
        return _upgrade_in_child(name, backup, lock_timeout)
    return upgrade_on(OSFileSystem(), name, backup=backup, lock_timeout=lock_timeout, progress=progress)


def upgrade_on(
    file_system: FileSystem,
    path: str,
    *,
    backup: bool = True,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT_S,
    progress: Progress | None = None,
) -> UpgradeResult:
    """As `upgrade`, on any file system: the way in for a simulated disk."""
    path = file_system.resolve(path)
    version = format_of(file_system, path)
    if version != 1:
        return UpgradeResult(path, version, version, upgraded=False)
    file = _open_locked(file_system, path, lock_timeout)
    if file is None:  # gone, or somebody else was faster
        version = format_of(file_system, path)
        return UpgradeResult(path, version, version, upgraded=False)
    try:
        file.drop_cache()  # after a failed sync the system may show bytes that are not on the disk
        old = OldFile(file)
        tables = old.tables()
        kept = _keep(file_system, file, f"{path}.v1.bak") if backup else None
        _replace(file_system, old, tables, path, progress)
    finally:
        file.close()
    count = sum(table.entry_count for table in tables)
    _log.info("%s: brought from format 1 to format %d, %d entries", path, FORMAT_VERSION, count)
    return UpgradeResult(path, 1, FORMAT_VERSION, upgraded=True, backup=kept, entries=count)


def check_on(file_system: FileSystem, path: str, *, lock_timeout: float = DEFAULT_LOCK_TIMEOUT_S) -> UpgradeResult:
    """What an upgrade would do: reads a file of an older format whole, and writes nothing.

    raises   CorruptError, LockedError, OSError, as the upgrade would
    """
    path = file_system.resolve(path)
    version = format_of(file_system, path)
    file = _open_locked(file_system, path, lock_timeout) if version == 1 else None
    if file is None:
        return UpgradeResult(path, version, version, upgraded=False)
    try:
        old = OldFile(file)
        count = sum(1 for table in old.tables() for _ in old.entries(table))
    finally:
        file.close()
    return UpgradeResult(path, 1, FORMAT_VERSION, upgraded=False, entries=count)


def format_of(file_system: FileSystem, path: str) -> int | None:
    """The format of a file, None if there is none or this code does not know it."""
    try:
        file = file_system.open(path, writable=False)
    except FileNotFoundError:
        return None
    try:
        return decode_header(file.read(0, HEADER_SIZE), path).format_version
    except UpgradeRequiredError:
        return 1
    except FormatError:
        return None
    finally:
        file.close()


def _open_locked(file_system: FileSystem, path: str, timeout_s: float) -> File | None:
    """The file, locked for writing; None if it is not of an older format any more when that is achieved."""
    started = time.monotonic()
    while True:
        try:
            file = file_system.open(path, writable=True)
        except FileNotFoundError:
            return None
        try:
            wait_for_lock(
                file,
                exclusive=True,
                started=started,
                timeout_s=timeout_s,
                on_wait=lambda: _log.info("%s is held by another process; waiting up to %g s", path, timeout_s),
                holder=lambda: read_holder(file),  # noqa: B023 used before the next round
            )
            if file.is_at_path():
                if file.read(len(MAGIC), 4) == (1).to_bytes(4, "little"):
                    return file
                file.close()
                return None
        except BaseException:
            file.close()
            raise
        file.close()


def _keep(file_system: FileSystem, file: File, target: str) -> str:
    """Copy the old file to `target`, whole or not at all, unless there is a file of that name."""
    if file.is_at(target) and file_system.resolve(target) != target:  # a hard link would keep it
        raise FileExistsError(
            errno.EEXIST,
            f"a symbolic link to {file.path} itself, where the original is to be kept; remove it first",
            target,
        )
    if file_system.exists(target):
        _log.info("%s is there already and stays as it is", target)
        return target
    copy = create_beside(file_system, target, file)
    temporary = copy.path
    try:
        size = file.size()
        for at in range(0, size, _CHUNK):
            copy.write(at, file.read(at, min(_CHUNK, size - at)))
        copy.sync_all()
        put_in_place(file_system, copy, target, overwrite=False)
    except FileExistsError:
        remove_quietly(file_system, temporary)
    except BaseException:
        if copy.path != target:
            remove_quietly(file_system, temporary)
        raise
    finally:
        copy.close()
    return target


def _replace(
    file_system: FileSystem, old: OldFile, tables: list[OldTable], path: str, progress: Progress | None
) -> None:
    """Write the new file, compare it with the old one, and put it in place."""
    target = create_beside(file_system, path, old.file)
    total = sum(table.entry_count for table in tables)

    def report(share: int, done: int) -> None:
        if progress is not None:
            progress(2 * done if share == 0 else 2 * total + done, _SHARES * total)

    try:
        digest = hashlib.sha256()
        sources = [
            TableSource(
                table.name,
                table.tree_id,
                table.value_codec,
                table.key_shape,
                table.key_codecs,
                table.entry_count,
                _hashed(digest, table.name, table.key_shape, table.key_codecs, table.value_codec, old.entries(table)),
            )
            for table in tables
        ]
        header = new_header(old.page_size, old.checksum_kind)
        write_tables(target, header, sources, Txid(max(1, old.txid)), old.next_tree_id, lambda done, _: report(0, done))
        target.drop_cache()
        found = _digest_of(target, path, lambda done: report(1, done))
        if found != digest.digest():
            raise CorruptError(
                f"{path}: the new file does not hold what the old one holds; the old one stays in place",
                expected=digest.hexdigest(),
                found=found.hex(),
            )
        if not target.try_lock(exclusive=True):
            raise LockedError(f"{path}: the new file was locked by another process as soon as it was made")
        put_in_place(file_system, target, path, overwrite=True)
    except BaseException:
        if target.path != path:
            remove_quietly(file_system, target.path)
        raise
    finally:
        target.close()


def _hashed(
    digest: hashlib._Hash,
    name: str,
    key_shape: int,
    key_codecs: bytes,
    value_codec: int,
    entries: Iterable[tuple[bytes, bytes]],
) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table, which go into the digest on their way: the table first, then each with its sizes."""
    digest.update(json.dumps([name, key_shape, key_codecs.hex(), value_codec]).encode())
    for key, value in entries:
        digest.update(b"%d %d:" % (len(key), len(value)))
        digest.update(key)
        digest.update(value)
        yield key, value


def _digest_of(file: File, path: str, report: Callable[[int], None]) -> bytes:
    """The digest of a file of the newest format, read as opening it would."""
    pager = Pager(file, decode_header(file.read(0, HEADER_SIZE), path), 0)
    choice = recover(pager)
    if choice.problem is not None or choice.meta is None:
        raise choice.problem or CorruptError("no commit can be read")
    digest = hashlib.sha256()
    done = 0
    tables = load_tables(pager, choice.meta)
    for name in sorted(tables, key=str.encode):
        info = tables[name]
        tree = SnapshotTree(name, pager, info)
        shape, codecs = describe_key(info.key)
        loaded = (
            (key, tree.load(value))
            for keys, values in tree.scan(None, None)
            for key, value in zip(keys, values, strict=True)
        )
        for _ in _hashed(digest, name, shape, codecs, info.value.number, loaded):
            done += 1
            if not done & 0x3FF:
                report(done)
    return digest.digest()


# -- in a process of its own ---------------------------------------------------------------------


def _upgrade_in_child(path: str, backup: bool, lock_timeout: float) -> UpgradeResult:
    command = [sys.executable, "-c", _CHILD, __package__ or "limpet", path, str(int(backup)), repr(lock_timeout)]
    environment = {**os.environ, "LIMPET_UPGRADE_PATH": json.dumps(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise LimpetError(f"{path}: the process that upgraded it died by signal {-done.returncode}; the file is whole")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise LimpetError(f"{path}: the process that upgraded it failed: {done.stderr.strip()[-500:]}") from None
    if "error" in answer:
        kinds: dict[str, type[Exception]] = {
            kind.__name__: kind for kind in (CorruptError, FormatError, LockedError, LimpetError)
        }
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"], path)
        raise kinds.get(answer["kind"], LimpetError)(answer["error"])
    return UpgradeResult(**answer)


_CHILD = """
import dataclasses, importlib, json, os, sys
sys.path[:] = json.loads(os.environ["LIMPET_UPGRADE_PATH"])
upgrade = importlib.import_module(sys.argv[1] + ".upgrade")
try:
    result = upgrade.upgrade(sys.argv[2], backup=sys.argv[3] == "1", lock_timeout=float(sys.argv[4]))
    answer = dataclasses.asdict(result)
except OSError as error:
    answer = {"error": error.strerror or str(error), "errno": error.errno}
except Exception as error:
    answer = {"error": str(error), "kind": type(error).__name__}
print(json.dumps(answer))
"""
