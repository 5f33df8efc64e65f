"""What the standard library lacks, by way of `cffi` where it is installed.

Every function has a plain fallback, so that the package is optional (ABI mode: no compiler).
"""

from __future__ import annotations

import os
import sys

_REMOTE_NAMES = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "fuse.sshfs", "fuse.s3fs"})


def network_file_system(descriptor: int) -> str | None:
    """The name of the network file system that an open file lies on, or None for a local one.

    What cannot be found out counts as local.
    """
    return _from_mount_table(descriptor)


def _from_mount_table(descriptor: int) -> str | None:
    if not sys.platform.startswith("linux"):
        return None
    device = os.fstat(descriptor).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            for line in table:
                before, _, after = line.partition(" - ")
                fields = before.split(" ", 3)
                if len(fields) > 2 and fields[2] == wanted:
                    name = after.split(" ", 1)[0]
                    if name in _REMOTE_NAMES:
                        return name
    except OSError:
        return None
    return None
