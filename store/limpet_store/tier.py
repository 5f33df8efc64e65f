"""How much memory the store's page cache may have, from how much the machine, or the container, has.

Gateways run on anything from a 1 GB board to a server. The limit that counts is the smaller of the physical memory and
what the control group allows; when neither can be read, the machine is treated as a small one.

Sources: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst; proc(5) for /proc/self/cgroup.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MIB = 1024 * 1024
OVERRIDE = "LIMPET_MEMORY_TIER"  # the environment variable that decides, whatever the machine has

LOW_UP_TO_KB = 1_200_000  # "1 GB" machines show a little more or less than 1,048,576 kB
STANDARD_UP_TO_KB = 2_500_000  # the same for "2 GB"


class MemoryTier(enum.Enum):
    """A size class of machine; the value is its name in lower case.

    LOW       up to 1,200,000 kB of memory: 16 MiB of page cache
    STANDARD  up to 2,500,000 kB: 32 MiB
    HIGH      more: 64 MiB
    """

    LOW = "low"
    STANDARD = "standard"
    HIGH = "high"

    @property
    def cache_size(self) -> int:
        """The size of the page cache in bytes."""
        return {MemoryTier.LOW: 16 * MIB, MemoryTier.STANDARD: 32 * MIB, MemoryTier.HIGH: 64 * MIB}[self]

    @classmethod
    def from_kb(cls, kilobytes: int) -> MemoryTier:
        """The tier of a machine with this much memory.

        kilobytes  in units of 1024 bytes, as /proc/meminfo counts; 0 or less means unknown, which is LOW
        """
        if kilobytes <= LOW_UP_TO_KB:
            return cls.LOW
        return cls.STANDARD if kilobytes <= STANDARD_UP_TO_KB else cls.HIGH

    @classmethod
    def detect(cls, *, environ: Mapping[str, str] | None = None, root: str | os.PathLike[str] = "/") -> MemoryTier:
        """The tier of this machine or container.

        environ  where LIMPET_MEMORY_TIER ("low", "standard" or "high", in any case) is looked up; default os.environ
        root     where /proc and /sys are looked up; for tests
        returns  the override when it is set, else the tier of the smaller of physical memory and cgroup limit
        raises   ValueError when the override names no tier
        cost     a few small files read
        """
        override = (os.environ if environ is None else environ).get(OVERRIDE, "").strip()
        if override:
            try:
                return cls(override.lower())
            except ValueError:
                names = ", ".join(tier.value for tier in cls)
                raise ValueError(f"{OVERRIDE}={override!r} names no memory tier; it is one of {names}") from None
        base = Path(root)
        known = [limit for limit in (_physical_kb(base), *_cgroup_limits_kb(base)) if limit > 0]
        return cls.from_kb(min(known, default=0))


def _physical_kb(root: Path) -> int:
    """Physical memory in kB, or 0 when nobody tells."""
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return _number(rest.split()[0] if rest.split() else "")
    if root != Path("/"):
        return 0
    try:  # macOS and the BSDs have no /proc/meminfo
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    except (AttributeError, OSError, ValueError):
        return 0


def _cgroup_limits_kb(root: Path) -> Iterator[int]:
    """Every memory limit on the way from this process's control group up to the top, v1 and v2, in kB."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" and not controllers:  # v2: one hierarchy for everything
            mounted, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):  # v1: the memory controller's own hierarchy
            mounted, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's and not exist here; the mount point itself then is the group.
        parts = [part for part in group.split("/") if part not in {"", ".", ".."}]
        for depth in range(len(parts), -1, -1):
            yield _number(_read(mounted.joinpath(*parts[:depth], name)).strip()) // 1024


def _number(text: str) -> int:
    """A number of bytes or kB; 0 for "max" and anything else that limits nothing."""
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return ""
