"""The simulated disk and its monitors, on their own: what a power cut keeps, and that each rule is enforced."""

import errno
import random

import pytest

from limpet.database import open_on
from limpet.testing import (
    GARBAGE,
    HALF,
    NEW,
    OLD,
    SPLIT,
    ZERO,
    Fault,
    Monitor,
    SimDisk,
    SyncFailure,
    Violation,
    choices_for,
    layout_of,
)

PATH = "/sim/file"


def written(data: bytes = b"n" * 1024, before: bytes = b"o" * 1024) -> SimDisk:
    disk = SimDisk.of({PATH: before})
    disk.file_system().open(PATH, writable=True).write(0, data)
    return disk


def test_what_was_not_synced_is_a_unit_a_sector() -> None:
    assert [unit.size for unit in written().units()] == [512, 512]
    assert [unit.offset for unit in written().units()] == [0, 512]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (OLD, b"o" * 512),
        (NEW, b"n" * 512),
        (ZERO, bytes(512)),
        (HALF, b"n" * 256 + b"o" * 256),
        (SPLIT + 3, b"n" * 3 + b"o" * 509),
        (-3, b"o" * 3 + b"n" * 509),
    ],
)
def test_a_power_cut_does_to_a_sector_what_it_is_told(choice: int, expected: bytes) -> None:
    disk = written()
    after = disk.crash(disk.units(), [choice, OLD])
    assert after.content(PATH) == expected + b"o" * 512


def test_garbage_is_neither_old_nor_new() -> None:
    disk = written()
    after = disk.crash(disk.units(), [GARBAGE, NEW], seed=1)
    assert after.content(PATH)[:512] not in (b"o" * 512, b"n" * 512)
    assert after.content(PATH)[512:] == b"n" * 512


def test_what_was_synced_survives_and_a_size_need_not_come_with_it() -> None:
    disk = SimDisk.of({PATH: b""})
    file = disk.file_system().open(PATH, writable=True)
    file.write(0, b"x" * 512)
    file.sync()
    (unit,) = disk.units()
    assert not unit.is_content
    assert disk.crash([unit], [OLD]).content(PATH) == b""
    assert disk.crash([unit], [NEW]).content(PATH) == b"x" * 512
    file.sync_all()
    assert disk.units() == []


def test_a_synced_write_makes_nothing_else_durable() -> None:
    disk = SimDisk.of({PATH: b"o" * 1024})
    file = disk.file_system().open(PATH, writable=True)
    file.write(512, b"a" * 512)
    file.write_synced(0, b"b" * 512)
    (unit,) = disk.units()
    assert unit.offset == 512
    assert disk.crash([unit], [OLD]).content(PATH) == b"b" * 512 + b"o" * 512


def test_a_name_is_not_durable_before_the_directory_is() -> None:
    disk = SimDisk()
    system = disk.file_system()
    system.create("/sim/a.new").sync_all()
    system.link("/sim/a.new", "/sim/a")
    units = disk.units()
    assert set(disk.crash(units, [OLD] * len(units)).names) == set()
    assert set(disk.crash(units, [NEW] * len(units)).names) == {"/sim/a"}
    system.sync_directory("/sim/a")
    assert disk.units() == []


@pytest.mark.parametrize(
    ("mode", "seen", "retried"),
    [("eio", b"n", b"n"), ("ext4-ordered", b"n", None), ("btrfs", b"o", b"o"), ("ext4-data", b"n", None)],
)
def test_a_failing_sync_behaves_like_its_file_system(mode: str, seen: bytes, retried: bytes | None) -> None:
    disk = SimDisk.of({PATH: b"o" * 4096})
    disk.failure = SyncFailure(0, mode, seed=5)
    file = disk.file_system().open(PATH, writable=True)
    file.write(0, b"n" * 4096)
    if mode == "ext4-data":
        file.sync()
    else:
        with pytest.raises(OSError):
            file.sync()
    assert file.read(0, 1) == seen
    if mode == "ext4-data":
        with pytest.raises(OSError):
            file.sync()
    file.sync()
    (inode,) = disk.inodes()
    if retried is None:  # some of it was lost, and no later sync brings it back
        assert inode.on_disk() != b"n" * 4096
        file.drop_cache()
        assert file.read(0, 4096) == inode.on_disk()
    else:
        assert inode.on_disk() == retried * 4096


def test_a_fault_strikes_once_or_for_ever_and_may_leave_half_a_write() -> None:
    disk = SimDisk.of({PATH: b"o" * 1024})
    file = disk.file_system().open(PATH, writable=True)
    disk.fault = Fault(1, errno.ENOSPC, kinds=frozenset({"write"}), partial=True)
    file.write(0, b"1")
    with pytest.raises(OSError, match="No space") as caught:
        file.write(0, b"n" * 1024)
    assert caught.value.filename == PATH
    assert file.read(0, 1024) == b"n" * 512 + b"o" * 512
    file.write(0, b"3")
    disk.fault = Fault(0, errno.EIO, forever=True)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            file.sync()


def test_all_subsets_of_a_few_units_are_tried() -> None:
    choices = choices_for(4, random.Random(0))
    seen = {next(choices) for _ in range(60)}
    assert {choice for choice in seen if set(choice) <= {OLD, NEW}} == {
        tuple(NEW if bits >> index & 1 else OLD for index in range(4)) for bits in range(16)
    }


# -- monitors ------------------------------------------------------------------------------------


@pytest.fixture
def disk() -> SimDisk:
    """A database with some commits, closed."""
    disk = SimDisk()
    with open_on(disk.file_system(), PATH, page_size=512) as db:
        for number in range(4):
            with db.write() as txn:
                txn.table("t")[b"key-%d" % number] = b"value" * 10
    return disk


def test_the_layout_sees_the_commits_and_their_pages(disk: SimDisk) -> None:
    image = disk.content(PATH)
    layout = layout_of(image)
    assert layout is not None
    older, newest = layout.commits(image)
    assert (older.txid, newest.txid) == (2, 6)  # the table was made by the first, the log folded on closing
    assert newest.clean
    assert layout.problems(image, newest) == []
    pages = layout.pages(image, newest)
    assert min(pages) >= 4
    damaged = bytearray(image)
    damaged[max(pages) * 512 + 100] ^= 1
    assert layout.problems(damaged, newest)


def test_a_write_over_a_page_in_use_is_a_violation(disk: SimDisk) -> None:
    monitor = Monitor(disk)
    layout = layout_of(disk.content(PATH))
    assert layout is not None
    pages = layout.pages(disk.content(PATH), layout.commits(disk.content(PATH))[-1])
    file = disk.file_system().open(PATH, writable=True)
    with pytest.raises(Violation, match="M1"):
        file.write(min(pages) * 512, bytes(512))
    with pytest.raises(Violation, match=r"M1: .*header"):
        file.write(0, bytes(8))
    with pytest.raises(Violation, match="M4"):
        file.truncate(1024)
    with pytest.raises(Violation, match="M2"):
        file.write(512, bytes(96))
    assert len(monitor.violations) == 4


def test_a_write_into_the_log_that_does_not_continue_it_is_a_violation(disk: SimDisk) -> None:
    Monitor(disk)
    layout = layout_of(disk.content(PATH))
    assert layout is not None
    region, records = layout.log(disk.content(PATH), layout.commits(disk.content(PATH))[-1])
    assert records == []
    file = disk.file_system().open(PATH, writable=True)
    with pytest.raises(Violation, match=r"M10: .*goes on at page"):
        file.write((region.start + 1) * 512, bytes(512))
    with pytest.raises(Violation, match=r"M10: .*not a record"):
        file.write(region.start * 512, bytes(512))


def test_a_write_after_a_failed_sync_is_a_violation(disk: SimDisk) -> None:
    Monitor(disk)
    disk.failure = SyncFailure(0, "eio")
    file = disk.file_system().open(PATH, writable=True)
    with pytest.raises(OSError):
        file.sync()
    with pytest.raises(Violation, match="M5"):
        file.grow(1 << 16)


def test_a_write_while_opening_or_through_a_reader_is_a_violation(disk: SimDisk) -> None:
    monitor = Monitor(disk)
    reader = disk.file_system().open(PATH, writable=False)
    with pytest.raises(Violation, match="M8"):
        reader.write(3 * 512, b"note")
    reader.close()
    file = disk.file_system().open(PATH, writable=True)
    with monitor.opening(), pytest.raises(Violation, match="M7"):
        file.write(3 * 512, b"note")


def test_a_name_for_a_file_that_is_not_synced_is_a_violation(disk: SimDisk) -> None:
    Monitor(disk)
    system = disk.file_system()
    system.create("/sim/copy.new").write(0, b"x")
    with pytest.raises(Violation, match="M9"):
        system.replace("/sim/copy.new", PATH)
