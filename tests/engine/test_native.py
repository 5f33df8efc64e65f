"""Which file systems are recognised as a network's, from either source, and what is done about them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import limpet
from limpet import native

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux is asked about mounts")

TABLE = [
    "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n",
    "31 22 0:25 /home /home rw,noatime - btrfs /dev/sda3 rw,subvol=/home\n",
    "40 22 0:52 / /mnt/two\\040words rw - nfs4 server:/export rw,vers=4.2\n",
    "41 22 0:53 / /mnt/shell rw - fuse.sshfs somebody@server: rw\n",
    "cut off",
]


class Libc:
    """Stands in for the C library: answers every fstatfs alike."""

    def __init__(self, magic: int, status: int = 0) -> None:
        self.magic = magic
        self.status = status

    def new(self, _: str) -> list[int]:
        return [0] * 64

    def fstatfs(self, _: int, result: list[int]) -> int:
        result[0] = self.magic
        return self.status


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path, os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(
    ("mount_id", "device", "kind"),
    [
        ("22", "9:9", "ext4"),
        ("31", "0:99", "btrfs"),  # a subvolume has a device number of its own, which the table does not list
        ("40", "0:52", "nfs4"),
        ("", "0:53", "fuse.sshfs"),
        ("", "7:7", None),
        ("77", "8:2", None),
    ],
)
def test_a_mount_is_found_by_its_number_or_else_by_its_device(mount_id: str, device: str, kind: str | None) -> None:
    assert native._kind_in_table(TABLE, mount_id, device) == kind


def test_the_mount_of_an_open_file_is_known(descriptor: int) -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no /proc here")
    assert native._kind_by_mount(descriptor)


@pytest.mark.parametrize(
    ("magic", "kind"), [(0x6969, "nfs"), (0xFF534D42, "cifs"), (0xFF534D42 - (1 << 32), "cifs"), (0xEF53, None)]
)
def test_network_file_systems_are_known_by_their_magic_number(
    monkeypatch: pytest.MonkeyPatch, magic: int, kind: str | None
) -> None:
    library = Libc(magic)
    monkeypatch.setattr(native, "_libc", lambda: (library, library))
    monkeypatch.setattr(native, "_kind_by_mount", lambda _: None)
    assert native.network_file_system(0) == kind


def test_what_nobody_knows_counts_as_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_kind_by_mount", lambda _: None)
    monkeypatch.setattr(native, "_libc", lambda: None)
    assert native.network_file_system(0) is None
    failing = Libc(0x6969, status=-1)
    monkeypatch.setattr(native, "_libc", lambda: (failing, failing))
    assert native.network_file_system(0) is None


def test_the_c_library_gives_a_magic_number(descriptor: int) -> None:
    pytest.importorskip("cffi", reason="without cffi the table of mounts is the only source")
    library = native._libc()
    assert library is not None
    ffi, libc = library
    result = ffi.new("long[64]")
    assert libc.fstatfs(descriptor, result) == 0
    assert result[0] != 0
    assert libc.fstatfs(-1, result) != 0


def test_a_database_on_a_network_is_refused_unless_insisted_on(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limpet.open(db_path).close()
    monkeypatch.setattr("limpet.file.network_file_system", lambda _: "nfs4")
    with pytest.raises(limpet.LimpetError, match="network file system \\(nfs4\\)"):
        limpet.open(db_path)
    monkeypatch.setenv("LIMPET_ALLOW_NETWORK_FS", "1")
    limpet.open(db_path).close()
