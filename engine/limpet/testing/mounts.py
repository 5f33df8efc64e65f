"""Small real file systems: a disk that is full is best tested on a disk that is full.

Mounting takes a privileged user and a system that has the tools; where it cannot be done,
`small_disk` raises CannotMountError, and a test is skipped by its name.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = {"tmpfs": 3 << 20, "ext4": 6 << 20}  # and their sizes in bytes


class CannotMountError(Exception):
    """This machine, or this user, cannot mount such a file system."""


@contextmanager
def small_disk(kind: str) -> Iterator[Path]:
    """A folder that is a file system of its own, as small as KINDS says; gone afterwards, whatever happens.

    kind    "tmpfs", or "ext4" in a file by way of a loop device
    raises  CannotMountError
    """
    with tempfile.TemporaryDirectory() as folder:
        place, image = Path(folder, "disk"), Path(folder, "image")
        place.mkdir()
        if kind == "tmpfs":
            _call("mount", "-t", "tmpfs", "-o", f"size={KINDS[kind]}", "none", place)
        else:
            with open(image, "wb") as file:
                file.truncate(KINDS[kind])
            _call("mkfs.ext4", "-q", "-m", "0", image)
            _call("mount", "-o", "loop", image, place)
        try:
            yield place
        finally:
            try:
                _call("umount", place)
            except CannotMountError:  # a failed test has left a file open
                _call("umount", "-l", place)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill a file system with a file of its own but for `leave` bytes; returns the file."""
    path = folder / "ballast"
    with open(path, "ab", buffering=0) as file:
        piece = 1 << 20
        while piece >= 512:
            try:
                file.write(b"\xa5" * piece)
            except OSError:
                piece //= 2
        file.truncate(max(0, file.tell() - leave))
    return path


def _call(*command: object) -> None:
    program = str(command[0])
    if shutil.which(program) is None:
        raise CannotMountError(f"there is no {program}")
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMountError(f"{program}: {done.stderr.strip()}")
