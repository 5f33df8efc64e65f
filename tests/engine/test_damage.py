"""Damaged files: a typed error or the right values, never wrong ones, never a crash, and the file stays as it is.

Every sweep runs in a child process, because touching a mapped page behind the end of a file would kill it: the promise
is that this does not happen.
"""

# ruff: noqa: PT012 - what is done inside a block before an exception leaves it is the subject here

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet import format

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
Opener = Callable[..., limpet.Database]
PAGE_SIZE = 512

# Makes a database of a few dozen pages of every kind in memory of the child, damages a copy of it in many ways, and
# looks what becomes of each. Prints how often which outcome was met.
SWEEP = """
    import collections, os, random, sys, limpet
    from limpet.errors import CorruptError, FormatError

    folder, way, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    numbers = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
    texts = limpet.Table("texts", key=(limpet.STR, limpet.INT), value=limpet.JSON)
    path, copy = os.path.join(folder, "db"), os.path.join(folder, "copy")
    clean = way != "unclean"
    contents = []  # what each commit holds
    db = limpet.open(path, page_size=512)
    for turn in range(3):
        with db.write() as txn:
            txn[numbers].update({number: bytes([turn]) * (number % 90) for number in range(turn, 150)})
            txn[numbers][-1] = bytes([turn]) * 3000
            txn[texts].update({("\u00e9", number): {"turn": turn} for number in range(40)})
            contents.append((dict(txn[numbers]), dict(txn[texts])))
    if clean:
        db.close()
        image = open(path, "rb").read()
    else:
        image = open(path, "rb").read()  # as a killed process leaves it
        db.close()
    outcomes = collections.Counter()

    def examine(data, what):
        with open(copy, "wb") as file:
            file.write(data)
        for read_only in (True, False):
            try:
                db = limpet.open(copy, read_only=read_only)
            except (FormatError, CorruptError) as error:
                assert str(error), what
                outcomes[type(error).__name__] += 1
                assert open(copy, "rb").read() == data, f"{what}: the file was changed"
                continue
            try:
                with db.read() as txn:
                    found = []
                    for table in (numbers, texts):
                        try:
                            found.append(dict(txn[table]))
                        except CorruptError as error:
                            assert error.table == table.name, (what, error)
                            assert error.pgno is not None, (what, error)
                            found.append(None)
                    whole = any(
                        all(mine is None or mine == theirs for mine, theirs in zip(found, content))
                        for content in contents
                    )
                    assert whole, f"{what}: wrong values"
                    outcomes["damage found" if None in found else "right"] += 1
                if way == "cut":
                    db.check()  # reports, does not raise
            finally:
                try:
                    db.close()
                except (CorruptError, limpet.PoisonedError):
                    pass
            if read_only:
                assert open(copy, "rb").read() == data, f"{what}: reading changed the file"

    if way == "cut":
        anywhere = (rng.randrange(len(image)) for _ in range(40))
        lengths = sorted({*range(0, 600, 37), *range(512, len(image), 512), *anywhere})
        for length in lengths:
            examine(image[:length], f"cut to {length} bytes")
    elif way == "zeroed":
        for start in range(0, len(image), 512):
            examine(image[:start] + bytes(512) + image[start + 512 :], f"zeros at {start}")
    elif way == "swapped":
        for start in range(512, len(image) - 512, 512):
            end = start + 512
            swapped = image[:start] + image[end : end + 512] + image[start:end] + image[end + 512 :]
            examine(swapped, f"swapped at {start}")
    else:
        for _ in range(300):
            at, bit = rng.randrange(len(image)), rng.randrange(8)
            data = bytearray(image)
            data[at] ^= 1 << bit
            examine(bytes(data), f"bit {bit} of byte {at} flipped, seed {seed}")
    print(dict(outcomes))
"""


@pytest.mark.parametrize("way", ["cut", "zeroed", "swapped", "flipped", "unclean"])
def test_no_damage_gives_a_wrong_value_or_kills_the_process(tmp_path: Path, seed: int, way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SWEEP), str(tmp_path), way, str(seed)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    assert "right" in done.stdout or way == "cut"
    assert "Error" in done.stdout or "damage" in done.stdout


CUT_WHILE_OPEN = """
    import os, sys, limpet

    table = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
    db = limpet.open(sys.argv[1], cache_size=0)
    with db.write() as txn:
        txn[table].update({number: bytes(100) for number in range(3000)})
    with db.read() as txn:
        assert len(list(txn[table])) == 3000  # the whole file is mapped now
        os.truncate(sys.argv[1], 5 * 4096)
        try:
            list(txn[table].items())
        except limpet.CorruptError as error:
            assert error.table == "numbers" and error.pgno >= 5 and "cut short" in str(error), error
            print("reported", flush=True)  # _exit() leaves in the buffer what is there
    os._exit(0)
"""


def test_a_file_that_is_cut_short_while_it_is_open_is_reported_and_kills_nobody(db_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CUT_WHILE_OPEN), str(db_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "reported\n"), done.stderr


# -- single cases --------------------------------------------------------------------------------


def make(path: Path, *, rows: int = 500) -> dict[int, bytes]:
    model = {number: b"%d" % number * 9 for number in range(rows)} | {-1: bytes(range(256)) * 20}
    with limpet.open(path, page_size=PAGE_SIZE) as db, db.write() as txn:
        txn[NUMBERS].update(model)
    return model


def pages_of_kind(path: Path, kind: int, level: int = 0) -> list[int]:
    data = path.read_bytes()
    found = []
    for pgno in range(format.FIRST_NODE_PGNO, len(data) // PAGE_SIZE):
        header = format.decode_page_header(data[pgno * PAGE_SIZE :][: format.PAGE_HEADER_SIZE])
        if (header.kind, header.level, header.pgno) == (
            kind,
            level,
            pgno,
        ) and header.tree_id >= format.FIRST_TABLE_TREE:
            found.append(pgno)
    return found


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(("kind", "level"), [(format.LEAF, 0), (format.BRANCH, 1), (format.OVERFLOW, 0)])
def test_a_flipped_bit_is_reported_with_its_page_its_offset_and_its_table(db_path: Path, kind: int, level: int) -> None:
    make(db_path)
    pgno = pages_of_kind(db_path, kind, level)[0]
    flip(db_path, pgno * PAGE_SIZE + 100)
    with limpet.open(db_path, read_only=True) as db, db.read() as txn:
        with pytest.raises(limpet.CorruptError) as caught:
            dict(txn[NUMBERS])
        error = caught.value
        assert (error.pgno, error.offset, error.table) == (pgno, pgno * PAGE_SIZE, "numbers")
        assert isinstance(error.expected, int)
        assert isinstance(error.found, int)
        for words in (f"page {pgno}", f"offset {pgno * PAGE_SIZE}", "'numbers'", "checksum"):
            assert words in str(error)
        assert not db.check().ok


def test_what_is_not_damaged_can_still_be_read_and_a_commit_elsewhere_goes_through(db_path: Path) -> None:
    model = make(db_path)
    damaged = pages_of_kind(db_path, format.LEAF)[0]
    flip(db_path, damaged * PAGE_SIZE + 100)
    with limpet.open(db_path) as db:
        right = wrong = 0
        with db.read() as txn:
            for key, value in model.items():
                try:
                    assert txn[NUMBERS][key] == value
                    right += 1
                except limpet.CorruptError:
                    wrong += 1
        assert wrong > 0
        assert right > 400
        with db.write() as txn:
            txn["other"][b"k"] = b"v"
        with pytest.raises(limpet.CorruptError), db.write() as txn:
            txn["another"][b"k"] = b"v"
            txn.drop(NUMBERS)  # has to read every page, to free it
        with db.read() as txn:  # the failed transaction left nothing
            assert txn.tables() == ["numbers", "other"]


def test_a_damaged_page_met_while_committing_aborts_and_the_handle_goes_on(db_path: Path) -> None:
    make(db_path)
    damaged = pages_of_kind(db_path, format.LEAF)[0]
    flip(db_path, damaged * PAGE_SIZE + 100)
    with limpet.open(db_path) as db:
        with pytest.raises(limpet.CorruptError) as caught, db.write() as txn:
            txn["other"][b"k"] = b"v"
            txn[NUMBERS].update(dict.fromkeys(range(500), b""))
        assert caught.value.table == "numbers"
        assert db.tables() == ["numbers"]
        with db.write() as txn:
            txn["other"][b"k"] = b"v"
        assert db.tables() == ["numbers", "other"]


@pytest.mark.parametrize("target", ["backup", "compact"])
def test_a_copy_of_a_damaged_database_does_not_appear(db_path: Path, tmp_path: Path, target: str) -> None:
    make(db_path)
    flip(db_path, pages_of_kind(db_path, format.OVERFLOW)[0] * PAGE_SIZE + 200)
    before = db_path.read_bytes()
    with limpet.open(db_path) as db:
        with pytest.raises(limpet.CorruptError) as caught:
            if target == "backup":
                db.backup(tmp_path / "copy")
            else:
                db.compact()
        assert caught.value.table == "numbers"
    assert os.listdir(tmp_path) == [db_path.name]
    assert db_path.read_bytes()[4 * PAGE_SIZE :] == before[4 * PAGE_SIZE :]


def test_a_torn_meta_brings_the_commit_before_it_back(open_db: Opener, db_path: Path) -> None:
    states = []
    db = limpet.open(db_path, page_size=PAGE_SIZE)
    for number in range(3):
        with db.write() as txn:
            txn[NUMBERS][number] = b"x"
        states.append(db_path.read_bytes())
    db.close()
    for slot in format.META_PGNOS:
        data = bytearray(states[-1])
        data[slot * PAGE_SIZE + 8] ^= 0xFF
        db_path.write_bytes(data)
        with open_db(db_path) as db:
            with db.read() as txn:
                assert list(txn[NUMBERS]) in ([0, 1], [0, 1, 2])
                known = len(txn[NUMBERS])
            with db.write() as txn:
                txn[NUMBERS][100] = b"goes on"
        with open_db(db_path) as db, db.read() as txn:
            assert len(txn[NUMBERS]) == known + 1


def test_two_damaged_metas_are_a_corrupt_error_and_the_file_stays(db_path: Path) -> None:
    make(db_path)
    for slot in format.META_PGNOS:
        flip(db_path, slot * PAGE_SIZE + 20)
    before = db_path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(limpet.CorruptError):
            limpet.open(db_path, read_only=read_only)
    assert db_path.read_bytes() == before


def test_a_damaged_map_of_free_space_stops_writing_and_not_reading(db_path: Path) -> None:
    model = make(db_path)
    with limpet.open(db_path) as db, db.write() as txn:
        txn[NUMBERS][0] = model[0] = b"frees something"
    data = db_path.read_bytes()
    for pgno in range(format.FIRST_NODE_PGNO, len(data) // PAGE_SIZE):
        header = format.decode_page_header(data[pgno * PAGE_SIZE :][: format.PAGE_HEADER_SIZE])
        if header.kind == format.FREE_SPACE:
            flip(db_path, pgno * PAGE_SIZE + 40)
    with limpet.open(db_path) as db:
        with db.read() as txn:
            assert dict(txn[NUMBERS]) == model
        for _ in range(2):
            with pytest.raises(limpet.CorruptError):
                db.write()
        assert not db.check().ok


HEADER_DAMAGE = [
    (3, "header is damaged"),  # the magic
    (8, "header is damaged"),  # the version
    (12, "header is damaged"),
    (16, "header is damaged"),
    (20, "header is damaged"),
    (30, "header is damaged"),
    (52, "header is damaged"),
]


@pytest.mark.parametrize(("offset", "words"), HEADER_DAMAGE)
def test_a_damaged_header_is_a_format_error_and_the_file_stays(db_path: Path, offset: int, words: str) -> None:
    make(db_path, rows=5)
    flip(db_path, offset)
    before = db_path.read_bytes()
    with pytest.raises(limpet.FormatError, match=words):
        limpet.open(db_path)
    assert db_path.read_bytes() == before


def reheader(path: Path, **fields: int) -> None:
    """Write the header anew with other fields and a right checksum."""
    header = format.decode_header(path.read_bytes()[: format.HEADER_SIZE], str(path))
    values = {name: getattr(header, name) for name in header.__slots__} | fields
    with path.open("r+b") as file:
        file.write(format.encode_header(format.Header(**values)))


def test_an_unknown_incompatible_feature_refuses_the_file(db_path: Path) -> None:
    make(db_path, rows=5)
    reheader(db_path, features_incompatible=4)
    with pytest.raises(limpet.FormatError, match="0x4"):
        limpet.open(db_path, read_only=True)


def test_an_unknown_read_only_feature_opens_the_file_for_reading_only(
    db_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(db_path, rows=5)
    reheader(db_path, features_read_only=8)
    with limpet.open(db_path) as db:
        assert db.read_only
        with db.read() as txn:
            assert dict(txn[NUMBERS]) == model
        with pytest.raises(limpet.ReadOnlyError):
            db.write()
    assert "read-only" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("checksum_kind", 9), ("page_size", 1000), ("page_size", 1 << 20)])
def test_a_header_with_impossible_fields_is_a_format_error(db_path: Path, field: str, value: int) -> None:
    make(db_path, rows=5)
    reheader(db_path, **{field: value})
    with pytest.raises(limpet.FormatError, match=str(value)):
        limpet.open(db_path)


def test_an_older_format_is_an_upgrade_required_error_that_names_the_way(db_path: Path) -> None:
    make(db_path, rows=5)
    reheader(db_path, format_version=1)
    with pytest.raises(limpet.UpgradeRequiredError, match=r"limpet\.upgrade"):
        limpet.open(db_path)
