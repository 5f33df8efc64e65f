"""`limpet-store import-redb` and `inspect-redb`: what they say, what they leave behind, and their exit codes."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest

from limpet_store import Store
from limpet_store.cli import main
from limpet_store.redb.testing import RedbMaker

DATA = Path(__file__).parents[1] / "data" / "redb"


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.redb"
    path.write_bytes(lzma.decompress((DATA / "v3-small.redb.xz").read_bytes()))
    return path


@pytest.fixture
def new_file(tmp_path: Path) -> Path:
    return tmp_path / "data.limpet"


def test_import_moves_in_and_repeats_without_effect(
    old_file: Path, new_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-redb", str(old_file), str(new_file), "--dry-run"]) == 0
    assert "349 would be added; the account adds up" in capsys.readouterr().out
    assert not new_file.exists()
    assert main(["import-redb", str(old_file), str(new_file)]) == 0
    out = capsys.readouterr().out
    assert "349 rows read, 349 added; the account adds up" in out
    assert "verified, OK" in out
    with Store.open(new_file) as store:
        assert len(store.sessions.list()) == 12
    for extra in ([], ["--dry-run"]):
        assert main(["import-redb", str(old_file), "--store", str(new_file), "--json", *extra]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["changed"], told["complete"], told["adds_up"], told["errors"]) == (0, True, True, [])


def test_import_says_with_its_exit_code_that_rows_were_set_aside(
    tmp_path: Path, new_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = RedbMaker()
    maker.add_table("cron_jobs", [("a", "text"), ("b", b"\xff")])
    old = tmp_path / "data.redb"
    old.write_bytes(maker.file())
    assert main(["import-redb", str(old), str(new_file)]) == 1
    assert "1 to cron; 1 to quarantine" in capsys.readouterr().out
    with Store.open(new_file) as store:
        assert store.cron.get("a") == "text"


def test_import_of_something_else_leaves_nothing(
    tmp_path: Path, new_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"SQLite format 3\0")
    assert main(["import-redb", str(other), str(new_file)]) == 3
    assert main(["import-redb", str(tmp_path / "missing"), str(new_file)]) == 3
    assert "not a redb file" in capsys.readouterr().err
    assert not new_file.exists()


def test_inspect_tells_what_is_there(old_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect-redb", str(old_file)]) == 0
    out = capsys.readouterr().out
    assert "redb file format 3" in out
    assert "closed cleanly: the primary slot is the newest commit" in out
    assert "&str -> i64" in out
    assert main(["inspect-redb", str(old_file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert {table["name"]: table["entry_count"] for table in told["tables"]}["messages"] == 293


def test_inspect_finds_damage_and_salvage_reads_the_other_commit(
    old_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(old_file.read_bytes())
    at = data.rindex(b'{"role":')
    os.truncate(old_file, 0)
    old_file.write_bytes(data[: at + 9] + b"X" + data[at + 10 :])
    assert main(["inspect-redb", str(old_file)]) == 1
    assert "does not match its checksum" in capsys.readouterr().out
    data[9] ^= 1  # the flag byte names the older commit
    old_file.write_bytes(data)
    assert main(["inspect-redb", str(old_file)]) == 1
    assert "salvage with slot=" in capsys.readouterr().err
    assert main(["inspect-redb", str(old_file), "--slot", "0"]) == 0
    assert "slot 0 was asked for" in capsys.readouterr().out
