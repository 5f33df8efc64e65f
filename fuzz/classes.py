"""The list of all fault classes, in order."""

from __future__ import annotations

from . import (
    f01_power_cut,
    f02_unsynced_subsets,
    f03_torn_sectors,
    f04_broken_engines,
    f05_failed_syncs,
    f06_failing_calls,
    f07_crash_in_recovery,
    f08_file_sizes,
    f09_cut_files,
    f10_flipped_bits,
    f11_stale_pages,
    f12_hostile_files,
    f13_kills,
    f14_readers,
    f15_locks,
    f16_interrupts,
    f17_upgrade,
    f18_reentry,
    s01_store,
)
from .harness import FaultClass


def fault_classes() -> list[FaultClass]:
    """All of them, in order."""

    return [
        f01_power_cut.CLASS,
        f02_unsynced_subsets.CLASS,
        f03_torn_sectors.CLASS,
        f04_broken_engines.CLASS,
        f05_failed_syncs.CLASS,
        f06_failing_calls.CLASS,
        f07_crash_in_recovery.CLASS,
        f08_file_sizes.CLASS,
        f09_cut_files.CLASS,
        f10_flipped_bits.CLASS,
        f11_stale_pages.CLASS,
        f12_hostile_files.CLASS,
        f13_kills.CLASS,
        f14_readers.CLASS,
        f15_locks.CLASS,
        f16_interrupts.CLASS,
        f17_upgrade.CLASS,
        f18_reentry.CLASS,
        s01_store.CLASS,
    ]
