"""Files written by earlier code are upgraded for ever, and hold what they held.

tests/data/v1 has files of format 1, of several page sizes and both kinds of checksum: closed
cleanly, copied while they were open, with a newest commit that was never synced, compacted.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

import limpet

FOLDER = Path(__file__).parent.parent / "data" / "v1"
NAMES = sorted(path.name.removesuffix(".limpet.xz") for path in FOLDER.glob("*.limpet.xz"))


@pytest.fixture(params=NAMES)
def old_file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[list[str]]]:
    if "crc32c" in request.param:
        request.getfixturevalue("crc32c_warns")
    path = tmp_path / "old.limpet"
    path.write_bytes(lzma.decompress((FOLDER / f"{request.param}.limpet.xz").read_bytes()))
    lines = lzma.decompress((FOLDER / f"{request.param}.jsonl.xz").read_bytes()).decode().splitlines()
    return path, [json.loads(line) for line in lines]


def entries(db: limpet.Database) -> list[list[str]]:
    with db.read() as txn:
        return [[name, key.hex(), value.hex()] for name in txn.tables() for key, value in txn.table(name).items()]


def test_there_are_files_of_every_shape() -> None:
    assert len(NAMES) >= 32


def test_a_file_of_format_1_is_upgraded_and_holds_what_it_held(old_file: tuple[Path, list[list[str]]]) -> None:
    path, expected = old_file
    before = path.read_bytes()
    with pytest.raises(limpet.UpgradeRequiredError, match="format 1"):
        limpet.open(path)
    assert path.read_bytes() == before

    result = limpet.upgrade(path)

    assert (result.upgraded, result.from_version, result.to_version) == (True, 1, 2)
    assert result.entries == len(expected)
    kept = path.with_name(path.name + ".v1.bak")
    assert result.backup == str(kept)
    assert kept.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, kept.name]
    with limpet.open(path) as db:
        assert db.format_version == 2
        assert entries(db) == expected
        assert db.check().ok
        with db.write() as txn:
            txn[limpet.Table("~new")][b"key"] = b"value"
    after = path.read_bytes()
    assert not limpet.upgrade(path).upgraded  # nothing is left to do
    assert path.read_bytes() == after
    assert kept.read_bytes() == before
    with limpet.open(path) as db:
        assert entries(db) == [*expected, ["~new", b"key".hex(), b"value".hex()]]
        assert db.check().ok


def test_the_header_keeps_page_size_and_checksums(old_file: tuple[Path, list[list[str]]]) -> None:
    path, _ = old_file
    before = path.read_bytes()[12:20]
    limpet.upgrade(path, backup=False)
    assert path.read_bytes()[12:20] == before
    assert not path.with_name(path.name + ".v1.bak").exists()
