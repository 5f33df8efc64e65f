"""A simulated disk: files, directory and cache of a machine whose power may fail at any moment.

Three views of a file are kept apart, because a power cut tells them apart:

    cache      what reads see: everything written so far
    durable    what the disk has, and how long it believes the file to be
    pending    the writes and changes of size since the last good sync, in order

`units()` lists the pieces of what is pending, a sector of each write, each change of size, each
change of a name, and `crash(choices)` gives the disk after a power cut: every unit is either old
or new, or, for the bytes of a sector, garbage, zeros or half new. Sizes and names are chosen
independently of content. What was synced is always there; what was never written never is.

Failing syncs behave as file systems do (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020):

    "eio"           nothing reached the disk, what is pending stays so, and a later sync retries
    "ext4-ordered"  some of it did, all content counts as clean from now on; the cache shows the new
                    bytes until it is dropped, the next sync succeeds (XFS does the same)
    "btrfs"         nothing did, and the cache shows the old bytes again
    "ext4-data"     as ext4-ordered, but this sync succeeds and the next one reports the error

`sync` is fdatasync at its most literal: the content reaches the disk, the size need not.
The crash model follows ALICE (Pillai et al., OSDI 2014), the failing calls SQLite's test VFS.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ClosedError, LockedError
from ..file import File, FileSystem

SECTOR = 512

# What becomes of a unit at a power cut.
OLD, NEW, GARBAGE, ZERO, HALF = range(5)
SPLIT = 16  # SPLIT + n: the first n bytes are new, the others old; -n: the first n are old, the others new
CHOICE_NAMES = ("old", "new", "garbage", "zero", "half")

SYNC_FAILURES = ("eio", "ext4-ordered", "btrfs", "ext4-data")

# Calls that change something: the points at which a power cut can make a difference.
MUTATIONS = frozenset({"write", "grow", "truncate", "sync", "sync_all", "sync_range", "drop_cache"}) | frozenset(
    {"create", "link", "replace", "remove", "sync_directory"}
)


class Write(NamedTuple):
    """Bytes written and not yet synced."""

    offset: int
    data: bytes


class Resize(NamedTuple):
    """A change of size that is not yet synced."""

    size: int


class Rename(NamedTuple):
    """One atomic change of a directory: names and the files they then stand for."""

    names: tuple[tuple[str, Inode | None], ...]


class Inode:
    """A file apart from its names."""

    __slots__ = ("cache", "durable", "durable_size", "handles", "locked", "number", "pending")

    def __init__(self, number: int, content: bytes = b"") -> None:
        self.number = number
        self.cache = bytearray(content)
        self.durable = bytearray(content)  # may reach beyond durable_size: content synced, size not
        self.durable_size = len(content)
        self.pending: list[Write | Resize] = []
        self.handles: list[SimFile] = []
        self.locked: list[SimFile] = []

    def settle(self, *, with_size: bool) -> None:
        """What is pending has reached the disk."""
        sizes: list[Write | Resize] = []
        for change in self.pending:
            if type(change) is Write:
                _put(self.durable, change.offset, change.data)
            elif with_size:
                assert type(change) is Resize
                self._resize(change.size)
            else:
                sizes.append(change)
        self.pending = sizes

    def _resize(self, size: int) -> None:
        if size < self.durable_size:
            del self.durable[size:]
        self.durable_size = size  # what lies behind was synced before its size was, and is there already

    def take(self, region: range | None) -> list[Write | Resize]:
        """Remove from what is pending the writes that touch a region of the file; None: everything."""
        taken: list[Write | Resize] = []
        kept: list[Write | Resize] = []
        for change in self.pending:
            hit = region is None or (
                type(change) is Write
                and change.offset < region.stop
                and change.offset + len(change.data) > region.start
            )
            (taken if hit else kept).append(change)
        self.pending = kept
        return taken

    def settle_region(self, region: range) -> None:
        """The writes to a region have reached the disk, and nothing else need have."""
        for change in self.take(region):
            assert type(change) is Write
            _put(self.durable, change.offset, change.data)

    def lose(self, rng: random.Random, region: range | None) -> None:
        """A failed sync: some of what is pending has reached the disk, and all content counts as clean.

        Sizes are another matter: the file system keeps them in its journal, and a later sync writes them.
        """
        for change in self.take(region):
            if type(change) is not Write:
                self.pending.append(change)
                continue
            for start in range(0, len(change.data), SECTOR):
                if rng.random() < 0.3:
                    _put(self.durable, change.offset + start, change.data[start : start + SECTOR])

    def on_disk(self) -> bytes:
        """The content as the disk has it, were the power cut before anything more is written."""
        return bytes(self.durable[: self.durable_size]).ljust(self.durable_size, b"\0")

    def fresh_cache(self) -> bytearray:
        """The content as reads see it when only what is still to be written is in the cache."""
        content = bytearray(self.durable)
        size = self.durable_size
        for change in self.pending:
            if type(change) is Write:
                _put(content, change.offset, change.data)
            else:
                assert type(change) is Resize
                size = change.size
        _fit(content, size)
        return content


class Unit(NamedTuple):
    """The smallest thing that a power cut keeps or loses.

    inode   None for a change of names
    change  index among what is pending there
    offset  of the piece within the file; -1: a change of size or of names
    """

    inode: Inode | None
    change: int
    offset: int
    size: int

    @property
    def is_content(self) -> bool:
        """Whether the unit is bytes of a file."""
        return self.offset >= 0


@dataclass(slots=True)
class Call:
    """One call of the engine, as observers see it."""

    kind: str
    path: str
    file: SimFile | None = None
    offset: int = 0
    size: int = 0
    data: bytes = b""
    source: str = ""


@dataclass(slots=True)
class Fault:
    """The calls that fail.

    at       index of the first one, counted from when the fault was set
    error    errno of the OSError
    forever  whether all later ones fail as well
    kinds    calls that count; empty: all
    partial  a failing write leaves half of its bytes behind
    """

    at: int
    error: int
    forever: bool = False
    kinds: frozenset[str] = frozenset()
    partial: bool = False
    seen: int = 0
    fired: int = 0

    def strikes(self, kind: str) -> bool:
        """Whether this call fails; counts it."""
        if self.kinds and kind not in self.kinds:
            return False
        index = self.seen
        self.seen += 1
        if index == self.at or (self.forever and index > self.at):
            self.fired += 1
            return True
        return False


@dataclass(slots=True)
class SyncFailure:
    """One sync that goes wrong: the one with index `at`, in one of the modes SYNC_FAILURES."""

    at: int
    mode: str
    seed: int = 0
    seen: int = 0
    fired: bool = False
    late: bool = False  # ext4-data: the error is still to be reported


Observer = Callable[[Call], None]


@dataclass(slots=True)
class SimDisk:
    """The machine: files by name, and everything that can go wrong.

    sector    bytes that are written as one; 512, or 4096
    before    called before each call takes effect; an exception stops the call
    after     called after each call has taken effect
    fault     calls that fail
    failure   a sync that goes wrong
    droppable whether the cache can be dropped (it cannot where another process maps the file)
    capacity  bytes that all files together may have; None: no limit
    """

    sector: int = SECTOR
    names: dict[str, Inode] = field(default_factory=dict)
    durable_names: dict[str, Inode] = field(default_factory=dict)
    pending_names: list[Rename] = field(default_factory=list)
    before: list[Observer] = field(default_factory=list)
    after: list[Observer] = field(default_factory=list)
    fault: Fault | None = None
    failure: SyncFailure | None = None
    droppable: bool = True
    capacity: int | None = None
    refuse_locks: int = 0  # so many tries for a lock find it taken by another process
    lock_error: int = 0  # errno of every try for a lock
    inode_count: int = 0

    @classmethod
    def of(cls, files: dict[str, bytes], *, sector: int = SECTOR) -> SimDisk:
        """A disk that holds these files, all of it durable."""
        disk = cls(sector)
        for path, content in files.items():
            disk.names[path] = disk.new_inode(content)
        disk.durable_names = dict(disk.names)
        return disk

    def new_inode(self, content: bytes = b"") -> Inode:
        """A file without a name."""
        self.inode_count += 1
        return Inode(self.inode_count, content)

    def file_system(self) -> SimFileSystem:
        """The way in for `limpet.database.open_on`."""
        return SimFileSystem(self)

    def content(self, path: str) -> bytes:
        """What reads of the file would see now."""
        return bytes(self.names[path].cache)

    def kill(self) -> None:
        """The process dies: its handles and locks are gone, the cache stays."""
        for inode in {id(inode): inode for inode in self.names.values()}.values():
            for handle in list(inode.handles):
                handle.release()

    # -- power cuts ------------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """Everything that a power cut now might keep or lose, in the order in which it was done."""
        found = []
        for inode in self.inodes():
            for index, change in enumerate(inode.pending):
                if type(change) is not Write:
                    found.append(Unit(inode, index, -1, 0))
                    continue
                start, end = change.offset, change.offset + len(change.data)
                while start < end:
                    stop = min(end, (start // self.sector + 1) * self.sector)
                    found.append(Unit(inode, index, start, stop - start))
                    start = stop
        found += [Unit(None, index, -1, 0) for index in range(len(self.pending_names))]
        return found

    def inodes(self) -> list[Inode]:
        """All files that have a name, or might have one after a power cut."""
        found = {inode.number: inode for inode in (*self.durable_names.values(), *self.names.values())}
        for change in self.pending_names:
            found.update((inode.number, inode) for _, inode in change.names if inode is not None)
        return [found[number] for number in sorted(found)]

    def crash(self, units: Sequence[Unit], choices: Sequence[int], seed: int = 0) -> SimDisk:
        """The disk after a power cut.

        units    as `units()` gives them
        choices  what becomes of each: OLD, NEW, GARBAGE, ZERO, HALF, or a SPLIT
        seed     of the garbage
        """
        garbage = random.Random(seed)
        contents: dict[int, bytearray] = {}
        sizes: dict[int, int] = {}
        fills: dict[int, bool] = {}
        names = dict(self.durable_names)
        for unit, choice in zip(units, choices, strict=True):
            inode = unit.inode
            if inode is None:
                if choice != OLD:
                    _rename(names, self.pending_names[unit.change])
                continue
            number = inode.number
            change = inode.pending[unit.change]
            if type(change) is not Write:
                assert type(change) is Resize
                if choice != OLD:
                    sizes[number] = change.size
                    fills[number] = choice == GARBAGE
                continue
            if choice == OLD:
                continue
            content = contents.get(number)
            if content is None:
                content = contents[number] = bytearray(inode.durable)
            start = unit.offset - change.offset
            data = change.data[start : start + unit.size]
            if choice >= SPLIT:
                data = data[: choice - SPLIT]
            elif choice < 0:
                _put(content, unit.offset - choice, data[-choice:])
                continue
            elif choice == GARBAGE:
                data = garbage.randbytes(unit.size)
            elif choice == ZERO:
                data = bytes(unit.size)
            elif choice == HALF:
                data = data[: unit.size // 2]
            _put(content, unit.offset, data)
        after = SimDisk(self.sector)
        copies: dict[int, Inode] = {}
        for path, inode in names.items():
            number = inode.number
            copy = copies.get(number)
            if copy is None:
                size = sizes.get(number, inode.durable_size)
                data = bytes(contents.get(number, inode.durable)[:size])
                if len(data) < size:
                    missing = size - len(data)
                    data += garbage.randbytes(missing) if fills.get(number) else bytes(missing)
                copy = copies[number] = after.new_inode(data)
            after.names[path] = copy
        after.durable_names = dict(after.names)
        return after

    def image(self) -> dict[str, bytes]:
        """The files by name, as reads see them."""
        return {path: bytes(inode.cache) for path, inode in self.names.items()}

    # -- what every call passes through ----------------------------------------------------------

    def enter(self, call: Call) -> None:
        """Tell the observers of a call, and let it fail if it has to."""
        for observer in self.before:
            observer(call)
        fault = self.fault
        if fault is not None and fault.strikes(call.kind):
            if call.kind == "write" and fault.partial and call.file is not None:
                call.file.store(call.offset, call.data[: len(call.data) // 2])
            raise OSError(fault.error, os.strerror(fault.error), call.path)

    def free(self) -> int | None:
        """Bytes that are left of the capacity."""
        if self.capacity is None:
            return None
        return self.capacity - sum(len(inode.cache) for inode in self.inodes())

    def make_room(self, inode: Inode, size: int, path: str) -> None:
        """A file is to have at least `size` bytes: ENOSPC if there is no room for them."""
        free = self.free()
        if free is not None and size - len(inode.cache) > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def leave(self, call: Call) -> None:
        """Tell the observers that a call has taken effect."""
        for observer in self.after:
            observer(call)

    def sync_goes_wrong(self, inode: Inode, path: str, region: range | None = None) -> bool:
        """Apply the planned failure of a sync; returns whether this sync is to do nothing more."""
        failure = self.failure
        if failure is None:
            return False
        if failure.late:
            failure.late = False
            raise _io_error(path)
        index = failure.seen
        failure.seen += 1
        if index != failure.at:
            return False
        failure.fired = True
        if failure.mode == "eio":
            raise _io_error(path)
        if failure.mode == "btrfs":
            inode.take(region)
            inode.cache = inode.fresh_cache()
            raise _io_error(path)
        inode.lose(random.Random(failure.seed), region)
        if failure.mode == "ext4-data":
            failure.late = True
            return True
        raise _io_error(path)


class SimFile(File):
    """One open file of a simulated disk."""

    def __init__(self, disk: SimDisk, inode: Inode, path: str, *, writable: bool) -> None:
        self.path = path
        self.disk = disk
        self.inode = inode
        self.writable = writable
        self.is_open = True

    def size(self) -> int:
        return len(self.checked().cache)

    def read(self, offset: int, size: int) -> bytes:
        inode = self.checked()
        if self.disk.fault is not None or self.disk.before:
            self.disk.enter(Call("read", self.path, self, offset, size))
        return bytes(inode.cache[offset : offset + size])

    page = read

    def write(self, offset: int, data: bytes) -> None:
        self.checked()
        call = Call("write", self.path, self, offset, len(data), bytes(data))
        self.disk.enter(call)
        self.store(offset, call.data)
        self.disk.leave(call)

    def store(self, offset: int, data: bytes) -> None:
        """Write without anybody noticing."""
        inode = self.inode
        if not self.writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        end = offset + len(data)
        if end > len(inode.cache):
            self.disk.make_room(inode, end, self.path)
            inode.pending.append(Resize(end))
        _put(inode.cache, offset, data)
        inode.pending.append(Write(offset, data))

    def write_synced(self, offset: int, data: bytes) -> None:
        self.write(offset, data)
        call = Call("sync_range", self.path, self, offset, len(data))
        region = range(offset, offset + len(data))
        self.disk.enter(call)
        if not self.disk.sync_goes_wrong(self.inode, self.path, region):
            self.inode.settle_region(region)
        self.disk.leave(call)

    def grow(self, size: int) -> None:
        self.checked()
        call = Call("grow", self.path, self, 0, size)
        self.disk.enter(call)
        self.disk.make_room(self.inode, size, self.path)
        self._resize(size)
        self.disk.leave(call)

    def disk_free(self) -> int | None:
        return self.disk.free()

    def truncate(self, size: int) -> None:
        self.checked()
        call = Call("truncate", self.path, self, 0, size)
        self.disk.enter(call)
        self._resize(size)
        self.disk.leave(call)

    def _resize(self, size: int) -> None:
        _fit(self.inode.cache, size)
        self.inode.pending.append(Resize(size))

    def sync(self) -> None:
        self._sync("sync", with_size=False)

    def sync_all(self) -> None:
        self._sync("sync_all", with_size=True)

    def _sync(self, kind: str, *, with_size: bool) -> None:
        self.checked()
        call = Call(kind, self.path, self)
        self.disk.enter(call)
        if not self.disk.sync_goes_wrong(self.inode, self.path):
            self.inode.settle(with_size=with_size)
        self.disk.leave(call)

    def drop_cache(self, size: int = 0) -> bool:
        self.checked()
        call = Call("drop_cache", self.path, self)
        self.disk.enter(call)
        if self.writable and not self.disk.sync_goes_wrong(self.inode, self.path):
            self.inode.settle(with_size=False)
        if self.disk.droppable:
            fresh = self.inode.fresh_cache()
            self.inode.cache[: size or len(self.inode.cache)] = fresh[: size or len(fresh)]
        self.disk.leave(call)
        return self.disk.droppable

    def try_lock(self, *, exclusive: bool) -> bool:
        inode = self.checked()
        self.disk.enter(Call("try_lock", self.path, self))
        if self.disk.lock_error:
            raise OSError(self.disk.lock_error, os.strerror(self.disk.lock_error), self.path)
        if self.disk.refuse_locks:
            self.disk.refuse_locks -= 1
            return False
        if self not in inode.locked:
            inode.locked.append(self)
        return True

    def is_at(self, path: str) -> bool:
        return self.disk.names.get(path) is self.inode

    def close(self) -> None:
        if self.is_open:
            self.release()

    def release(self) -> None:
        """Let go of the file and its lock."""
        self.is_open = False
        for owners in (self.inode.handles, self.inode.locked):
            if self in owners:
                owners.remove(self)

    def checked(self) -> Inode:
        """The file, if the handle is still open."""
        if not self.is_open:
            raise ClosedError(f"{self.path}: the file is closed")
        return self.inode


class SimFileSystem(FileSystem):
    """The file system of a simulated disk."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk

    def resolve(self, path: str) -> str:
        return path

    def open(self, path: str, *, writable: bool) -> File:
        self.disk.enter(Call("open", path))
        inode = self.disk.names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._handle(inode, path, writable=writable)

    def create(self, path: str, *, built_for: str | None = None) -> File:
        call = Call("create", path)
        self.disk.enter(call)
        if path in self.disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        inode = self.disk.new_inode()
        self._change(Rename(((path, inode),)))
        handle = self._handle(inode, path, writable=True)
        handle.built_for = built_for
        self.disk.leave(call)
        return handle

    def _handle(self, inode: Inode, path: str, *, writable: bool) -> SimFile:
        if inode.handles:
            raise LockedError(f"{path}: already open in this process")
        handle = SimFile(self.disk, inode, path, writable=writable)
        inode.handles.append(handle)
        return handle

    def exists(self, path: str) -> bool:
        return path in self.disk.names

    def is_held(self, path: str) -> bool:
        inode = self.disk.names.get(path)
        return inode is not None and any(handle.writable for handle in inode.locked)

    def beside(self, path: str) -> list[str]:
        return [name for name in self.disk.names if name.startswith(f"{path}.")]

    def link(self, source: str, target: str) -> None:
        call = Call("link", target, source=source)
        self.disk.enter(call)
        if target in self.disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        inode = self._named(source)
        self._change(Rename(((target, inode),)))
        self._change(Rename(((source, None),)))
        self.disk.leave(call)

    def replace(self, source: str, target: str) -> None:
        call = Call("replace", target, source=source)
        self.disk.enter(call)
        self._change(Rename(((target, self._named(source)), (source, None))))
        self.disk.leave(call)

    def remove(self, path: str) -> None:
        call = Call("remove", path)
        self.disk.enter(call)
        self._named(path)
        self._change(Rename(((path, None),)))
        self.disk.leave(call)

    def sync_directory(self, path: str) -> None:
        call = Call("sync_directory", path)
        self.disk.enter(call)
        self.disk.durable_names = dict(self.disk.names)
        self.disk.pending_names = []
        self.disk.leave(call)

    def _named(self, path: str) -> Inode:
        inode = self.disk.names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def _change(self, change: Rename) -> None:
        _rename(self.disk.names, change)
        self.disk.pending_names.append(change)


def choices_for(count: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Ways in which `count` units may fare, the telling ones first: none, all, prefixes, all but one, only one.

    Up to ten units: also every subset. Without end after that: random ones, with garbage among them.
    """
    yield (OLD,) * count
    yield (NEW,) * count
    for index in range(1, count):
        yield (NEW,) * index + (OLD,) * (count - index)
    for index in range(count):
        yield (NEW,) * index + (OLD,) + (NEW,) * (count - index - 1)
        yield (OLD,) * index + (NEW,) + (OLD,) * (count - index - 1)
        yield (NEW,) * index + (GARBAGE,) + (NEW,) * (count - index - 1)
    if count <= 10:
        for bits in range(1 << count):
            yield tuple(NEW if bits >> index & 1 else OLD for index in range(count))
    while count:
        weights = rng.choice(((4, 4, 1, 1, 1), (1, 6, 1, 0, 0), (6, 1, 1, 0, 0), (1, 1, 1, 1, 1)))
        yield tuple(rng.choices(range(5), weights, k=count))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _fit(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _rename(names: dict[str, Inode], change: Rename) -> None:
    for path, inode in change.names:
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def _io_error(path: str) -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO), path)
