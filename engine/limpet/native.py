"""What the standard library cannot say or do about an open file.

    network_file_system   which kind of file system it lies on
    punch_hole            give a stretch of it back to the file system

Locks and caches of a network file system may disagree between machines, so file.py refuses to open
a database there. Two sources, and what neither knows counts as local:

    /proc/self/fdinfo, mountinfo   the mount that the descriptor belongs to, by its number: exact, and
                                   0.1 ms for both files
    fstatfs(2), by way of `cffi`   where /proc says nothing (not mounted, or an emulated kernel); the
                                   kind is told by its magic number

The table comes first because of what the second costs: `cffi` is optional, and parsing even one line
of C takes it 60 ms, at the first open of a process. ABI mode, so no compiler is needed.

Sources: proc_pid_fdinfo(5), proc_pid_mountinfo(5), statfs(2) and the kernel's linux/magic.h.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

# The kinds that the kernel's own clients have, and the clients in user space that are known by name.
_REMOTE_MAGIC = {
    0x00006969: "nfs",
    0x0000517B: "smbfs",
    0x0000564C: "ncpfs",
    0x00C36400: "ceph",
    0x01021997: "9p",
    0x0BD00BD0: "lustre",
    0x19830326: "beegfs",
    0x47504653: "gpfs",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x73757245: "coda",
    0xFE534D42: "smb3",
    0xFF534D42: "cifs",
}
_REMOTE_KINDS = frozenset(_REMOTE_MAGIC.values()) | {
    "davfs",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "nfs4",
}


def network_file_system(descriptor: int) -> str | None:
    """The kind of network file system that an open file lies on ("nfs4"), or None for a local one.

    What cannot be found out counts as local. Linux only.
    cost     0.1 ms; 60 ms the first time if /proc does not know and `cffi` is installed
    """
    if not sys.platform.startswith("linux"):
        return None
    kind = _kind_by_mount(descriptor) or _kind_by_magic(descriptor)
    return kind if kind in _REMOTE_KINDS else None


def _kind_by_mount(descriptor: int) -> str | None:
    """The kind of any file system, as the table of mounts has it; None if that does not know."""
    mount_id = ""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("mnt_id:"):
                    mount_id = line.partition(":")[2].strip()
        device = os.fstat(descriptor).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            return _kind_in_table(table, mount_id, f"{os.major(device)}:{os.minor(device)}")
    except OSError:
        return None


def _kind_in_table(table: Iterable[str], mount_id: str, device: str) -> str | None:
    """Look a mount up by its number, or where that is not known ("") by its device, major:minor."""
    for line in table:
        before, _, after = line.partition(" - ")
        fields = before.split(" ", 3)
        if len(fields) > 3 and (fields[0] == mount_id if mount_id else fields[2] == device):
            return after.split(" ", 1)[0]
    return None


def _kind_by_magic(descriptor: int) -> str | None:
    """The kind of a network file system, by its magic number; None for all others."""
    library = _libc()
    if library is None:
        return None
    ffi, libc = library
    result = ffi.new("long[64]")  # struct statfs takes 120 bytes at most; the magic number is its first field
    if libc.fstatfs(descriptor, result) != 0:
        return None
    return _REMOTE_MAGIC.get(result[0] & 0xFFFFFFFF)


_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
# What the kernel says where there are no holes: not on this file system, not in this kind of file, not allowed here.
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM, errno.ETXTBSY})


def punch_hole(descriptor: int, offset: int, size: int) -> bool:
    """Give a stretch of a file back to the file system; it reads as zeros, and the file stays as long as it is.

    offset, size  in bytes; the file system rounds inwards to its blocks
    returns       False where that is not possible: not Linux, without `cffi`, on a file system that cannot
    raises        OSError if the file system can, and failed
    source        fallocate(2)
    """
    library = _libc() if sys.platform.startswith("linux") else None
    if library is None:
        return False
    ffi, libc = library
    while libc.fallocate64(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, size) != 0:
        number = ffi.errno
        if number in _NO_HOLES:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


@lru_cache(maxsize=1)
def _libc() -> tuple[Any, Any] | None:
    """(the foreign function interface, the C library), or None without `cffi`, or where it does not work."""
    try:
        from cffi import FFI
    except ImportError:  # optional: DESIGN.md, "Zero-dependency embedding"
        return None
    try:
        ffi = FFI()
        ffi.cdef("int fstatfs(int descriptor, long *result);")
        ffi.cdef("int fallocate64(int descriptor, int mode, int64_t offset, int64_t size);")
        libc: Any = ffi.dlopen(None)
        libc.fstatfs, libc.fallocate64  # noqa: B018 looked up here, so that a C library without it is found out now
    except (OSError, AttributeError):
        return None
    return ffi, libc
