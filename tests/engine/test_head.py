"""Header and metas: what `Database.check` and `limpet check` say when these are not what they should be.

`Database.check` looked at the pages behind the head only: with pages 0 to 2 zeroed under an open database it said that
all was well, and the file did not open any more. `limpet check` said "clean" of a file whose newest meta was zeroed.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import limpet
from limpet.cli import main
from limpet.format import HEADER_SIZE, META_SIZE

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
SIZE = 512
Opener = Callable[..., limpet.Database]


def put(db: limpet.Database, number: int, *, durability: str = "sync") -> None:
    with db.write(durability=durability) as txn:
        txn[NUMBERS][number] = b"x" * 100


def checkpoint(db: limpet.Database, rows: range = range(0)) -> None:
    """A commit that a log record cannot hold."""
    with db.write() as txn:
        txn[NUMBERS].update(dict.fromkeys(rows, b"y" * 100))
        txn.create(limpet.Table(f"made by {db.stats().txid}"))


def newest_slot(path: Path) -> int:
    with limpet.inspect(path) as inspection:
        return next(meta.pgno for meta in inspection.info().metas if meta.chosen)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def words(findings: list[limpet.Finding]) -> str:
    return " | ".join(map(str, findings))


# -- of an open database -------------------------------------------------------------------------


def fresh(db: limpet.Database) -> None:
    """Nothing was committed yet."""


def doubled(db: limpet.Database) -> None:
    """Both metas name the newest checkpoint, and there is a log on top."""
    put(db, 1)
    put(db, 2)


def young(db: limpet.Database) -> None:
    """The newest checkpoint has just been made; the other meta names the one before, with the log on top of it."""
    doubled(db)
    checkpoint(db)


def unsynced(db: limpet.Database) -> None:
    """There is a log on top of a checkpoint that only one meta names, and a commit in memory."""
    young(db)
    put(db, 3, durability="os")
    put(db, 4, durability="none")


def head_damages(data: bytes, rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """(offset, what is written there): pages of the head and of the log zeroed, bits of header and metas flipped."""
    for first, count in ((0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (1, 2), (4, 60)):
        yield first * SIZE, bytes(count * SIZE)
    for start, size in ((0, HEADER_SIZE), (SIZE, META_SIZE), (2 * SIZE, META_SIZE)):
        for _ in range(8):
            at = start + rng.randrange(size)
            yield at, bytes([data[at] ^ 1 << rng.randrange(8)])
    yield SIZE, data[2 * SIZE :][:META_SIZE]  # a meta in the place of the other
    yield 0, data[:16] + b"\x02\0\0\0" + data[20:28] + bytes(16) + data[44:56]


@pytest.mark.parametrize("state", [fresh, doubled, young, unsynced])
def test_what_check_says_of_the_head_is_what_the_next_opening_finds(
    db_path: Path, tmp_path: Path, seed: int, state: Callable[[limpet.Database], None]
) -> None:
    rng = random.Random(seed)
    copy, backup = tmp_path / "copy.limpet", tmp_path / "backup.limpet"
    db = limpet.open(db_path, page_size=SIZE)
    state(db)
    report = db.check()
    assert (report.errors, report.warnings) == ([], [])
    data = db_path.read_bytes()
    content = content_of(db_path, copy)
    found = {True: 0, False: 0}
    for offset, damage in head_damages(data, rng):
        overwrite(db_path, offset, damage)
        context = f"seed {seed}: {len(damage)} bytes at {offset}"
        report = db.check()
        opened = content_of(db_path, copy)
        assert report.ok == (opened == content), f"{context}: {words(report.errors)}; opens with {opened}"
        found[report.ok] += 1
        if offset < 3 * SIZE and damage != data[offset : offset + len(damage)]:
            assert report.errors or report.warnings, context
        if any("backup(path) writes" in error.message for error in report.errors):
            db.backup(backup, overwrite=True)  # what is advised works
            with limpet.open(backup) as other, db.read() as mine, other.read() as theirs:
                assert dict(theirs[NUMBERS]) == dict(mine[NUMBERS])
                assert other.check().ok
        overwrite(db_path, offset, data[offset : offset + len(damage)])
    assert db.check().ok
    assert found[False] > 5, found
    assert found[True] > 2, found
    db.close()


def content_of(path: Path, copy: Path) -> tuple[list[int], list[str]] | None:
    """The keys and the tables that the file would open with; None if it would not."""
    shutil.copyfile(path, copy)
    try:
        with limpet.open(copy, read_only=True) as db, db.read() as txn:
            return list(txn[NUMBERS]), txn.tables()
    except (limpet.FormatError, limpet.CorruptError):
        return None


def test_zeros_in_the_place_of_the_head_are_errors_of_an_open_database(db_path: Path) -> None:
    with limpet.open(db_path, page_size=SIZE) as db:
        doubled(db)
        data = db_path.read_bytes()
        overwrite(db_path, 0, bytes(3 * SIZE))
        report = db.check()
        assert not report.ok
        assert [finding.kind for finding in report.errors] == ["header", "meta"]
        assert "there are zeros in its place" in words(report.errors)
        assert "neither meta can be read" in words(report.errors)
        assert "backup(path) writes" in words(report.errors)
        overwrite(db_path, 0, data[: 3 * SIZE])
        assert db.check().ok


def test_what_another_program_wrote_into_the_file_is_an_error(db_path: Path, tmp_path: Path) -> None:
    with limpet.open(db_path, page_size=SIZE) as db:
        put(db, 1)
        shutil.copyfile(db_path, tmp_path / "copy.limpet")
        with limpet.open(tmp_path / "copy.limpet") as other:
            put(other, 2)
            overwrite(db_path, 0, (tmp_path / "copy.limpet").read_bytes())
        assert "another program has written to the file" in words(db.check().errors)


def test_a_torn_meta_is_no_damage_to_the_database_that_recovered_from_it(open_db: Opener, db_path: Path) -> None:
    db = limpet.open(db_path, page_size=SIZE)
    young(db)
    torn = db_path.with_name("torn.limpet")
    shutil.copyfile(db_path, torn)
    db.close()
    overwrite(torn, newest_slot(torn) * SIZE + 50, b"\xff\xff")  # the checkpoint was not acknowledged
    with open_db(torn) as db:
        report = db.check()
        assert report.ok
        assert [finding.kind for finding in report.warnings] == ["meta"]
        assert "a commit that was interrupted leaves that" in words(report.warnings)
        put(db, 5)
        checkpoint(db)
        checkpoint(db)
        assert db.check().warnings == []


# -- of a file -----------------------------------------------------------------------------------


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["check", str(path)])
    return code, " ".join(capsys.readouterr().out.split())


def left(db_path: Path, state: Callable[[limpet.Database], None], *, close: bool = False) -> Path:
    """The file as a process leaves it that is killed in this state, or closes it."""
    copy = db_path.with_name("left.limpet")
    db = limpet.open(db_path, page_size=SIZE)
    state(db)
    if close:
        db.close()
    shutil.copyfile(db_path, copy)
    db.close()
    return copy


@pytest.mark.parametrize("close", [False, True], ids=["killed", "closed"])
@pytest.mark.parametrize("state", [fresh, doubled, young, unsynced])
def test_a_file_is_clean_however_it_was_left_and_never_with_a_meta_zeroed(
    db_path: Path, state: Callable[[limpet.Database], None], close: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = left(db_path, state, close=close)
    assert check(path, capsys)[0] == 0
    data = path.read_bytes()
    for slot in (1, 2):
        overwrite(path, slot * SIZE, bytes(SIZE))
        code, out = check(path, capsys)
        assert code in (1, 2)
        assert "interrupted leaves no zeros" in out or "it was whole" in out
        for verb in ("info", "page"):
            assert main([verb, str(path), *[str(slot)] * (verb == "page")]) in (1, 2)
        path.write_bytes(data)
    capsys.readouterr()


@pytest.mark.parametrize("damage", [bytes(SIZE), b"\xff"], ids=["zeroed", "flipped"])
def test_what_a_bad_meta_means_is_told_by_the_rest_of_the_file(
    db_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = left(db_path, young)
    data = path.read_bytes()
    newest = newest_slot(path)
    overwrite(path, (3 - newest) * SIZE, damage)
    code, out = check(path, capsys)
    assert code == 1
    assert "Nothing else in the file is newer, so nothing is missing" in out
    path.write_bytes(data)
    overwrite(path, newest * SIZE, damage)
    code, out = check(path, capsys)
    assert code == 1
    assert "Commit 3 is used. There are pages of commit 4, which is newer" in out
    assert "if not, commit 4 is lost" in out


def test_a_log_record_on_top_of_a_checkpoint_proves_that_its_meta_was_whole(
    db_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The log of the newer checkpoint is in another place than that of the older, where nobody looked for its records.
    def moved(db: limpet.Database) -> None:
        doubled(db)
        checkpoint(db, range(10, 3000))
        put(db, 5, durability="os")

    path = left(db_path, moved)
    with limpet.inspect(path) as inspection:
        starts = {meta.meta.log_start for meta in inspection.info().metas if meta.meta is not None}
        assert len(starts) == 2
    overwrite(path, newest_slot(path) * SIZE, bytes(SIZE))
    code, out = check(path, capsys)
    assert code == 2
    assert "and it was whole: the log has a record, of commit 5" in out
    assert "What was committed after commit 3 is lost with it" in out
