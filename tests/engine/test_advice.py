"""Every sentence that advises a command is true: files are damaged in many ways, and what is advised is run on them.

`limpet check` said that the commit before was whole and that `limpet dump` writes what can be read, and dump wrote
nothing: what could be saved was in the older commit, which no command could reach. With the head of a file zeroed the
advice was the same, and there was nothing to write either.
"""

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import limpet
from limpet.cli import main
from limpet.format import LEAF, PAGE

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
BLOBS = limpet.Table("blobs", key=limpet.INT, value=limpet.BYTES)
Rows = dict[tuple[str, object], object]


class Sample(NamedTuple):
    """A file, and the rows of each of its commits as `dump` writes them."""

    path: Path
    page_size: int
    rows: dict[int, Rows]


def dumped(output: str) -> Rows:
    rows = [json.loads(line) for line in output.splitlines()]
    return {(row["table"], row["key"]): row["value"] for row in rows}


def contents(db: limpet.Database) -> Rows:
    with db.read() as txn:
        users = {("users", key): value for key, value in txn[USERS].items()}
        return users | {("blobs", key): f"0x{value.hex()}" for key, value in txn[BLOBS].items()}


def build(path: Path, page_size: int, state: str) -> Sample:
    """A file of two tables with overflow runs.

    state   killed: both metas name the newest checkpoint, and there is a log on top. young: the newest checkpoint has
            just been made, and the other meta names the one before, with the log on top of that. closed: likewise, and
            the newest holds the same as the commit before it
    """
    rows: dict[int, Rows] = {1: {}}
    live = path.with_name("live")
    db = limpet.open(live, page_size=page_size)

    def commit(change: Callable[[limpet.WriteTransaction], None]) -> None:
        with db.write() as txn:
            change(txn)
        rows[db.stats().txid] = contents(db)

    def fill(txn: limpet.WriteTransaction) -> None:
        txn[USERS].update({f"user-{number:04}": {"n": number} for number in range(150)})
        txn[BLOBS].update({number: bytes([number]) * page_size * 2 for number in range(5)})

    def change(number: int) -> Callable[[limpet.WriteTransaction], None]:
        return lambda txn: txn[USERS].update({f"user-{number:04}": "changed", f"new-{number}": number})

    def end_epoch(txn: limpet.WriteTransaction) -> None:
        txn[USERS].update({f"late-{number}": number for number in range(100)})
        txn.create(limpet.Table("made"))  # which only a checkpoint can do

    commit(fill)
    for number in (7, 8):
        commit(change(number))
    if state == "young":
        commit(end_epoch)
    if state == "closed":
        db.close()
        rows[max(rows) + 1] = rows[max(rows)]
    shutil.copyfile(live, path)
    db.close()
    return Sample(path, page_size, rows)


@pytest.fixture(scope="module", params=[(512, "closed"), (512, "killed"), (4096, "young")])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    page_size, state = request.param
    return build(tmp_path_factory.mktemp("a place") / "it's a file.limpet", page_size, state)


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("young") / "young.limpet", 512, "young")


def run(*call: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(call))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def advised(text: str) -> list[tuple[list[str], str]]:
    """(the arguments of a command, the sentence that advises it) for each one in a text."""
    text = re.sub(r"\n +", " ", text)  # sentences are wrapped, commands are not
    return [(shlex.split(found[1])[1:], found[0]) for found in re.finditer(r"[^\n]*?`(limpet [^`]+)`[^\n]*", text)]


# -- ways to damage a file -----------------------------------------------------------------------


def zeroed(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + bytes(min(size, max(0, len(data) - start))) + data[start + size :]


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def damages(sample: Sample, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    data = sample.path.read_bytes()
    size = sample.page_size
    with limpet.inspect(sample.path) as inspection:
        pages = list(inspection.pages())
        catalogue = inspection.path("users", "user-0100")[1].pgno
    for pgno in range(4):
        yield f"page {pgno} zeroed", zeroed(data, pgno * size, size)
    yield "the catalogue's root zeroed", zeroed(data, catalogue * size, size)
    for kind in ("leaf", "branch", "overflow", "free-space", "log"):
        for page in rng.sample(found := [page for page in pages if page.kind == kind], min(2, len(found))):
            yield f"page {page.pgno}, {kind}, zeroed", zeroed(data, page.pgno * size, size)
    log = [page.pgno for page in pages if page.kind == "log" and page.state in ("reached", "idle")]
    if log:
        yield "the log zeroed", zeroed(data, log[0] * size, len(log) * size)
    for length in (4 << 10, 16 << 10, 64 << 10):
        yield f"{length} bytes zeroed", zeroed(data, 0, length)
    yield "header and one meta zeroed", zeroed(data, 0, 2 * size)
    yield "header random", rng.randbytes(size) + data[size:]
    for bit in (*range(0, 448, 61), *range(64, 96, 9)):
        yield f"bit {bit} of the header flipped", flipped(data, bit)
    for slot in (1, 2):
        for bit in range(0, 768, 256):
            yield f"bit {bit} of meta {slot} flipped", flipped(data, slot * size * 8 + bit + rng.randrange(256))
    yield "both metas flipped", flipped(flipped(data, size * 8), size * 16)
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"cut to {share}", data[: int(len(data) * share)]
    for length in (0, 5, 8, 30, 56, size, 2 * size, 4 * size):
        yield f"cut to {length} bytes", data[:length]


def test_what_is_advised_does_what_is_said(sample: Sample, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / sample.path.name
    told: dict[str, int] = {}
    for what, data in damages(sample, rng):
        path.write_bytes(data)
        code, out, err = run("check", str(path))
        context = f"seed {seed}, {what}:\n{out}{err}"
        texts = [out, err, run("info", str(path))[1], run("dump", str(path))[2]]
        try:
            limpet.open(path, create=False, read_only=True).close()
            opens = True
        except (limpet.FormatError, limpet.CorruptError) as error:
            opens = False
            texts.append(str(error))
            assert advised(texts[-1]) or "Move it away" in texts[-1], f"{what}: {texts[-1]}"
        assert code in ((0, 1, 2) if opens else (2, 3)), f"{context}\nwhat opening says: {texts[-1]}"
        assert code != 2 or advised(out) or "restore a backup" in out, context
        assert not any("upgrade" in text for text in texts), context
        for sentence, call in {sentence: call for text in texts for call, sentence in advised(text)}.items():
            told[call[0]] = told.get(call[0], 0) + 1
            verify(sample, call, sentence, f"{context}\nadvised: {sentence}")
        assert path.read_bytes() == data, context
    assert told["dump"] > 10, told
    assert told["check"] > 10, told


def verify(sample: Sample, call: list[str], sentence: str, context: str) -> None:
    """Run what was advised, and compare it with what was said of it."""
    code, out, err = run(*call)
    assert code in (0, 1, 2) or (call[0] == "check" and "looks whether" in sentence), f"{context}\n{code} {err}"
    assert call[0] in ("check", "dump", "pages"), context
    if call[0] == "dump":
        txid = int(re.search(r"commit (\d+)", sentence)[1])  # type: ignore[index]  # or the test fails, as it should
        rows = dumped(out)
        if "all there is" in sentence:
            assert not rows, context
            return
        assert rows, context
        if "all rows" in sentence:
            assert rows == sample.rows[txid], context
        else:
            every = {pair for found in sample.rows.values() for pair in map(repr, found.items())}
            assert set(map(repr, rows.items())) <= every, context


# -- the commit before ---------------------------------------------------------------------------


def break_catalogue(path: Path, page_size: int) -> None:
    with limpet.inspect(path) as inspection:
        root = inspection.path("users", "user-0100")[1].pgno
    path.write_bytes(zeroed(path.read_bytes(), root * page_size, page_size))


def test_one_page_of_the_newest_commit_does_not_keep_the_one_before_from_being_saved(
    young: Sample, tmp_path: Path
) -> None:
    path = tmp_path / "broken.limpet"
    shutil.copyfile(young.path, path)
    break_catalogue(path, young.page_size)
    older, newest = sorted(young.rows)[-2:]
    code, out, _ = run("check", str(path))
    assert code == 2
    assert f"`limpet dump --commit older {path}` writes all rows of commit {older}, the one before" in out
    assert f"no row of commit {newest} can be read" in out
    code, out, err = run("dump", str(path))
    assert (code, out) == (2, "")
    assert "3 tables could not be found" in err
    assert "--commit older" in err
    assert run("dump", str(path), "--commit", "newest")[1] == ""
    code, out, err = run("dump", "--commit", "older", str(path))
    assert (code, err) == (0, "")
    assert dumped(out) == young.rows[older]


def test_every_commit_that_is_in_the_file_can_be_dumped_by_its_number(young: Sample) -> None:
    there = sorted(young.rows)[1:]  # not the empty one that the file was made with
    for txid in there:
        rows = young.rows[txid]
        code, out, err = run("dump", "--commit", str(txid), str(young.path))
        assert (code, err, dumped(out)) == (0, "", rows), txid
    code, out, err = run("dump", "--commit", "99", str(young.path))
    assert (code, out) == (1, "")
    assert "those that are: " + ", ".join(map(str, there)) in err
    code, _, err = run("dump", "--commit", "oldest", str(young.path))
    assert code == 64


def test_a_file_whose_metas_name_the_same_checkpoint_has_no_older_commit(db_path: Path) -> None:
    limpet.open(db_path).close()
    code, out, err = run("dump", "--commit", "older", str(db_path))
    assert (code, out) == (1, "")
    assert "both metas name checkpoint 1" in err
    with limpet.inspect(db_path) as inspection:
        assert inspection.older_with_rows() is None
        with pytest.raises(limpet.NoSuchCommitError):
            inspection.show("older")
        with pytest.raises(ValueError):
            inspection.show("oldest")
        assert inspection.txid == 1


def test_what_is_left_of_a_header_is_enough_where_a_meta_proves_it(db_path: Path) -> None:
    # Without it the seed of the checksums had to come from two pages that are whole, and here there is but one meta.
    limpet.open(db_path).close()
    data = zeroed(db_path.read_bytes(), 8192, 4096)
    for bit in (3, 70, 100, 130, 440):
        db_path.write_bytes(flipped(data, bit))
        code, out, err = run("check", str(db_path))
        assert code == 2
        assert "by these a meta is whole" in err
        assert f"`limpet dump {db_path}` writes all there is, no rows, of commit 1" in out


def test_the_page_size_is_the_one_by_which_checksums_hold_not_the_one_that_most_pages_suggest(
    young: Sample, tmp_path: Path
) -> None:
    # Behind the end of the file there is what looks like many pages of another size, as another file may have left it.
    path = tmp_path / "tail.limpet"
    data = zeroed(young.path.read_bytes(), 0, 512)
    data += bytes(-len(data) % 1024)
    pages = range(len(data) // 1024, len(data) // 1024 + 2000)
    path.write_bytes(data + b"".join(PAGE.pack(0, LEAF, 0, 1, pgno, 2, 1).ljust(1024, b"\0") for pgno in pages))
    code, out, err = run("dump", str(path))
    assert code == 2
    assert "page size 512" in err
    assert dumped(out) == young.rows[max(young.rows)]


# -- how much is lost ----------------------------------------------------------------------------


def test_dump_says_how_many_entries_of_which_table_are_lost(young: Sample, tmp_path: Path) -> None:
    path = tmp_path / "broken.limpet"
    with limpet.inspect(young.path) as inspection:
        pages = [page for page in inspection.pages() if page.state == "reached"]
    leaf = next(page for page in pages if (page.table, page.kind) == ("users", "leaf"))
    run_head = next(page for page in pages if (page.table, page.kind, page.level) == ("blobs", "overflow", 0))
    data = zeroed(young.path.read_bytes(), leaf.pgno * 512, 512)
    path.write_bytes(zeroed(data, run_head.pgno * 512, 512))
    code, out, err = run("dump", str(path))
    assert code == 2
    total = sum(table == "users" for table, _ in young.rows[max(young.rows)])
    rows = dumped(out)
    assert sum(table == "users" for table, _ in rows) == total - (leaf.entries or 0)
    assert f"table 'users': {total - (leaf.entries or 0)} of {total} entries written, {leaf.entries} lost" in err
    assert "table 'blobs': 4 of 5 entries written, 1 lost" in err
    code, _, err = run("dump", str(path), "made")
    assert (code, err) == (0, "")  # nothing is lost of this one


def test_a_path_that_a_shell_would_take_apart_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "two words; rm $x"
    limpet.open(path).close()
    path.write_bytes(zeroed(path.read_bytes(), 0, 4096))
    _, out, _ = run("check", str(path))
    assert advised(out) == [(["dump", str(path)], out.splitlines()[-2])]
    os.chdir(tmp_path)
    shutil.copyfile(path, "-x")
    _, out, _ = run("check", "--", "-x")
    assert [call for call, _ in advised(out)] == [["dump", "./-x"]]
