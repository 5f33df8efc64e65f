"""For tests of the engine, and of programs that embed it: a disk that fails on command, and what must hold on it.

    SimDisk       files, cache and directory of a machine; power cuts, failing calls and syncs
    Monitor       the rules of writing, asserted at every call
    Layout        where a format keeps what; the one thing to write for a new format
    KillSwitch    a real file system that kills its process at a given call
    small_disk    a real file system that is soon full
    ShortCalls    real reads and writes that are cut short or interrupted

    disk = SimDisk()
    monitor = Monitor(disk)
    with open_on(disk.file_system(), "/sim/db", page_size=512) as db: ...
    after = disk.crash(units := disk.units(), [NEW] * len(units))

No part of a running database.
"""

from .disk import (
    CHOICE_NAMES,
    GARBAGE,
    HALF,
    MUTATIONS,
    NEW,
    OLD,
    SECTOR,
    SPLIT,
    SYNC_FAILURES,
    ZERO,
    Call,
    Fault,
    SimDisk,
    SimFile,
    SimFileSystem,
    SyncFailure,
    Unit,
    Write,
    choices_for,
)
from .layout import CommitRecord, FormatTwo, Layout, layout_of
from .monitors import Monitor, Violation
from .mounts import CannotMountError, small_disk
from .processes import KillSwitch, ShortCalls

__all__ = [
    "CHOICE_NAMES",
    "Call",
    "CannotMountError",
    "CommitRecord",
    "Fault",
    "FormatTwo",
    "GARBAGE",
    "HALF",
    "KillSwitch",
    "Layout",
    "MUTATIONS",
    "Monitor",
    "NEW",
    "OLD",
    "SECTOR",
    "SPLIT",
    "SYNC_FAILURES",
    "ShortCalls",
    "SimDisk",
    "SimFile",
    "SimFileSystem",
    "SyncFailure",
    "Unit",
    "Violation",
    "Write",
    "ZERO",
    "choices_for",
    "layout_of",
    "small_disk",
]
