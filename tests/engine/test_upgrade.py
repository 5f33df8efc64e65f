"""Upgrading a file: what is kept, what is refused, and that a killed upgrade leaves the old file or the new one.

That every old file comes out right is in test_old_formats.py; power cuts and failing calls are fault class F17.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet

FOLDER = Path(__file__).parent.parent / "data" / "v1"
Opener = Callable[..., limpet.Database]


@pytest.fixture
def old_path(tmp_path: Path) -> Path:
    path = tmp_path / "old.limpet"
    path.write_bytes(lzma.decompress((FOLDER / "4096-crc32-left-open.limpet.xz").read_bytes()))
    return path


def content() -> list[list[str]]:
    text = lzma.decompress((FOLDER / "4096-crc32-left-open.jsonl.xz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def entries(path: Path) -> list[list[str]]:
    with limpet.open(path) as db, db.read() as txn:
        assert db.check().ok
        return [[name, key.hex(), value.hex()] for name in txn.tables() for key, value in txn.table(name).items()]


def bak(path: Path) -> Path:
    return path.with_name(path.name + ".v1.bak")


def test_a_backup_that_is_there_is_never_overwritten(old_path: Path) -> None:
    bak(old_path).write_bytes(b"somebody's only copy")
    result = limpet.upgrade(old_path)
    assert result.upgraded
    assert bak(old_path).read_bytes() == b"somebody's only copy"
    assert entries(old_path) == content()


def test_a_backup_that_is_a_link_to_the_file_itself_keeps_nothing_and_is_refused(old_path: Path) -> None:
    """<path>.v1.bak as a symbolic link to the file counted as a backup; then the new file took the original's place."""
    bak(old_path).symlink_to(old_path.name)
    before = old_path.read_bytes()
    with pytest.raises(FileExistsError, match="symbolic link"):
        limpet.upgrade(old_path)
    assert old_path.read_bytes() == before
    bak(old_path).unlink()
    os.link(old_path, bak(old_path))  # this one keeps the original
    assert limpet.upgrade(old_path).upgraded
    assert bak(old_path).read_bytes() == before
    assert entries(old_path) == content()


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no such modes")
def test_what_was_private_stays_private(old_path: Path) -> None:
    old_path.chmod(0o600)
    limpet.upgrade(old_path)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old_path, bak(old_path))] == [0o600, 0o600]


def test_a_damaged_file_is_refused_and_left_alone(old_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = old_path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        at = rng.randrange(4 * 4096, len(whole))
        damaged[at] ^= 1 << rng.randrange(8)
        old_path.write_bytes(damaged)
        bak(old_path).unlink(missing_ok=True)
        try:
            limpet.upgrade(old_path)
        except limpet.CorruptError:
            refused += 1
            assert old_path.read_bytes() == damaged
            assert not [each for each in old_path.parent.iterdir() if each.suffix == ".new"]
        else:
            assert entries(old_path) == content(), f"seed {seed}, byte {at}"
    assert refused, f"seed {seed}"


def test_a_file_of_another_kind_is_left_for_open_to_judge(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("text", b"hello"), ("newer", b"\x89LMPT\r\n\x1a\x63\0\0\0" + bytes(100))):
        path = tmp_path / name
        path.write_bytes(data)
        result = limpet.upgrade(path)
        assert (result.upgraded, result.from_version, result.to_version) == (False, None, None)
        assert path.read_bytes() == data
        with pytest.raises(limpet.FormatError):
            limpet.open(path)


def test_an_old_file_that_is_held_is_waited_for_and_then_refused(old_path: Path) -> None:
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'rb+'); fcntl.flock(f, fcntl.LOCK_EX); print(1); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", script, old_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(limpet.LockedError):
            limpet.upgrade(old_path, lock_timeout=0.3)
        assert time.monotonic() - started >= 0.3
        holder.kill()
    assert limpet.upgrade(old_path).upgraded


def test_progress_is_told_and_reaches_its_end(old_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    limpet.upgrade(old_path, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    assert seen == sorted(seen)


def test_a_child_process_does_it_when_asked(old_path: Path, tmp_path: Path) -> None:
    result = limpet.upgrade(old_path, in_child=True)
    assert (result.upgraded, result.from_version, result.to_version) == (True, 1, 2)
    assert entries(old_path) == content()
    assert not limpet.upgrade(old_path, in_child=True).upgraded
    damaged = tmp_path / "damaged.limpet"
    data = bytearray(bak(old_path).read_bytes())
    for at in range(4 * 4096 + 100, len(data), 4096):
        data[at] ^= 255
    damaged.write_bytes(data)
    with pytest.raises(limpet.CorruptError):
        limpet.upgrade(damaged, in_child=True)
    assert damaged.read_bytes() == data


def test_killed_upgrades_leave_the_old_file_or_the_new_one(old_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    original = old_path.read_bytes()
    script = "import limpet, sys; limpet.upgrade(sys.argv[1]); print('done')"
    killed = 0
    for _ in range(12):
        old_path.write_bytes(original)
        bak(old_path).unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", script, old_path], stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed += process.returncode == -signal.SIGKILL
        if bak(old_path).exists():
            assert bak(old_path).read_bytes() == original
        limpet.upgrade(old_path)
        assert entries(old_path) == content(), f"seed {seed}"
        for each in old_path.parent.glob("*.new"):
            os.unlink(each)
    assert killed, f"seed {seed}"


def test_two_upgrades_at_once_do_it_once(old_path: Path) -> None:
    script = "import limpet, sys; print(limpet.upgrade(sys.argv[1]).upgraded)"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, old_path], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    answers = [process.communicate()[0].strip() for process in processes]
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert entries(old_path) == content()


def test_the_command_checks_and_upgrades(old_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "limpet", "upgrade", str(old_path), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    before = old_path.read_bytes()
    due = command("--check")
    assert due.returncode == 1
    assert "an upgrade is due" in due.stdout
    assert old_path.read_bytes() == before
    done = command("--no-backup", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["upgraded"] is True
    assert not bak(old_path).exists()
    assert command("--check").returncode == 0
    assert "up to date" in command().stdout
    damaged = bytearray(before)
    for at in range(4 * 4096 + 100, len(damaged), 4096):
        damaged[at] ^= 255
    old_path.write_bytes(damaged)
    assert command("--check").returncode == 2
