"""The command `limpet`: every verb, as text and as JSON, on files that are whole, damaged, cut off, foreign, empty."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import limpet
from limpet.cli import main
from limpet.cli.terminal import UsageError, parse_key, progress

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)
NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.STR)
VERBS = ["info", "check", "tables", "get", "dump", "pages", "page", "path", "backup", "compact", "trim", "upgrade"]
READING = ["info", "check", "tables", "get", "dump", "pages", "page", "path"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.limpet"
    with limpet.open(path, page_size=512, durability="os") as db:
        for turn in range(3):
            with db.write() as txn:
                txn[USERS].update({f"user-{number:05}": {"n": number, "turn": turn} for number in range(300)})
                txn[EVENTS].update({("log", number): b"e" * (number * 100) for number in range(20)})
                txn[NUMBERS].update({-3: "minus three", 42: "answer\nin two lines"})
    return path


@pytest.fixture
def whole(base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "whole.limpet"
    shutil.copyfile(base, path)
    return path


@pytest.fixture
def damaged(whole: Path) -> Path:
    """One leaf of users is broken."""
    with limpet.inspect(whole) as inspection:
        pgno = inspection.path("users", "user-00100")[-1].pgno
    with whole.open("r+b") as file:
        file.seek(pgno * 512 + 300)
        file.write(b"\xff\xff\xff")
    return whole.rename(whole.with_name("damaged.limpet"))


@pytest.fixture
def headless(whole: Path) -> Path:
    """The header is destroyed."""
    with whole.open("r+b") as file:
        file.write(bytes(100))
    return whole.rename(whole.with_name("headless.limpet"))


@pytest.fixture
def cut(whole: Path) -> Path:
    """The end is missing."""
    os.truncate(whole, whole.stat().st_size // 4)
    return whole.rename(whole.with_name("cut.limpet"))


def arguments(verb: str, path: Path) -> list[str]:
    """A sensible call of a verb."""
    more = {
        "get": ["users", "user-00007"],
        "path": ["users", "user-00007"],
        "page": ["1"],
        "backup": [f"{path}.backup"],
    }
    return [verb, str(path), *more.get(verb, [])]


class Run:
    """What one call printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *call: str | Path) -> None:
        try:
            self.code = main(list(map(str, call)))
        except SystemExit as end:
            self.code = int(end.code or 0)
        self.out, self.err = capsys.readouterr()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


# -- every verb, every file ----------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_on_a_whole_file(verb: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Run(capsys, *arguments(verb, whole))
    assert (text.code, text.err) == (0, "")
    assert text.out
    if verb not in ("dump", "compact", "backup", "upgrade"):  # these print paths or data
        assert all(len(line) <= 100 for line in text.out.splitlines()), text.out
    (whole.parent / f"{whole.name}.backup").unlink(missing_ok=True)
    as_json = Run(capsys, *arguments(verb, whole), "--json")
    assert (as_json.code, as_json.err) == (0, "")
    assert as_json.objects
    if verb != "dump":
        assert {found["v"] for found in as_json.objects} == {1}
        assert all(found["type"] for found in as_json.objects)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("verb", "code"),
    [
        ("info", 0), ("check", 2), ("tables", 0), ("get", 0), ("dump", 2), ("pages", 2), ("page", 0), ("path", 0),
        ("backup", 2), ("compact", 2), ("upgrade", 0),
    ],
)  # fmt: skip  # verb and code side by side
def test_every_verb_on_a_damaged_file(
    verb: str, code: int, as_json: bool, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, *arguments(verb, damaged), *["--json"] * as_json)
    assert run.code == code
    if as_json:
        assert run.objects
    elif verb in ("backup", "compact"):
        assert "table 'users'" in run.err
    if verb == "backup":
        assert not Path(f"{damaged}.backup").exists()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_a_file_without_a_header(
    verb: str, as_json: bool, headless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = headless.read_bytes()
    run = Run(capsys, *arguments(verb, headless), *["--json"] * as_json)
    assert run.code == (2 if verb in READING else 3)
    assert run.out or not as_json
    if verb in READING and not as_json and verb != "info":
        assert "page size 512" in run.err
    assert headless.read_bytes() == before


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_a_file_that_was_cut_off(
    verb: str, as_json: bool, cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, *arguments(verb, cut), *["--json"] * as_json)
    assert run.code == (0 if verb == "upgrade" else 2)
    if as_json and verb not in ("tables", "dump"):  # of which nothing is left
        assert run.objects


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(9000)], ids=["empty", "foreign"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_a_file_that_is_not_ours(
    verb: str, content: bytes, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    run = Run(capsys, *arguments(verb, path), *["--json"] * as_json)
    assert run.code == 3
    assert path.read_bytes() == content
    words = "empty" if not content else "not a Limpet file"
    assert words in run.out + run.err
    if as_json:
        assert [found["type"] for found in run.objects] == ["info" if verb == "info" else "failure"]
        assert run.objects[0]["exit"] == 3


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_a_file_that_is_missing(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, *arguments(verb, tmp_path / "missing"))
    assert run.code == 4
    assert "No such file" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_beside_a_live_writer(
    verb: str, as_json: bool, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with limpet.open(whole, create=False) as db:
        with db.write() as txn:
            txn[USERS]["new"] = 1
        locked = ["--lock-timeout", "0"] if verb in ("backup", "compact", "trim") else []
        run = Run(capsys, *arguments(verb, whole), *locked, *["--json"] * as_json)
        assert run.code == (4 if locked or verb == "upgrade" else 0), run.err
        assert run.out if run.code == 0 or as_json else run.err
        if as_json:
            assert run.objects


# -- what they say -------------------------------------------------------------------------------


def test_info_explains_the_choice(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Run(capsys, "info", whole).out
    for words in (
        "512 bytes",
        "format",
        "meta 1",
        "meta 2",
        "chosen",
        "live",
        "free",
        "closed  cleanly",
        f"{os.getpid()}",
    ):
        assert words in text
    found = Run(capsys, "info", whole, "--json").objects[0]
    assert found["header"]["page_size"] == 512
    assert [meta["chosen"] for meta in found["metas"]].count(True) == 1
    assert found["exit"] == 0


def test_info_says_when_a_meta_is_bad(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with whole.open("r+b") as file:
        file.seek(512 + 40)
        file.write(b"\xff")
    run = Run(capsys, "info", whole)
    assert run.code == 1
    assert "does not match" in run.out
    assert Run(capsys, "check", whole).code == 1


def test_check_names_page_table_path_and_keys(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "check", damaged)
    assert run.code == 2
    flat = re.sub(r"\s+", " ", run.out)
    assert re.search(r"error: page \d+, table 'users': the page is damaged", flat)
    assert re.search(r"reached by \d+ -> \d+", flat)
    assert re.search(r"keys from 'user-\d+' up to 'user-\d+' cannot be read", flat)
    assert "DAMAGED" in flat
    *findings, report = Run(capsys, "check", damaged, "--json").objects
    assert [finding["type"] for finding in findings] == ["error"] * report["errors"]
    assert (report["type"], report["ok"], report["exit"]) == ("report", False, 2)
    assert findings[0]["kind"] == "checksum"
    assert findings[0]["table"] == "users"
    limited = Run(capsys, "check", damaged, "--max-errors", "1")
    assert limited.code == 2
    assert "and 1 more errors" in limited.out


def test_check_quick_leaves_out_decoding(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(capsys, "check", "--quick", whole).out.endswith("clean\n")


def test_get_finds_keys_of_each_kind(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(capsys, "get", whole, "users", "user-00007").out == '{"n":7,"turn":2}\n'
    assert Run(capsys, "get", whole, "events", '["log", 1]').out == f"0x{b'e'.hex() * 100}\n"
    assert Run(capsys, "get", whole, "numbers", "42").out == "answer\nin two lines\n"
    assert Run(capsys, "get", whole, "numbers", "-3").out == "minus three\n"
    found = Run(capsys, "get", whole, "numbers", "0x2a", "--json").objects[0]
    assert (found["key"], found["value"], found["found"]) == (42, "answer\nin two lines", True)


def test_get_raw_gives_the_stored_bytes(whole: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "limpet", "get", str(whole), "events", '["log", 2]', "--raw"],
        capture_output=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"e" * 200, b"")


def test_what_is_not_there_has_its_own_exit_code(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("get", "path"):
        assert Run(capsys, verb, whole, "users", "nobody").code == 1
        run = Run(capsys, verb, whole, "nope", "nobody")
        assert run.code == 1
        assert "'nope'" in run.err
    assert Run(capsys, "get", whole, "users", "nobody", "--json").objects[0]["found"] is False
    assert Run(capsys, "dump", whole, "nope").code == 1
    assert Run(capsys, "pages", whole, "--table", "nope").code == 1


def test_a_key_that_is_lost_is_damage(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "get", damaged, "users", "user-00100")
    assert run.code == 2
    assert "table 'users'" in run.err
    run = Run(capsys, "path", damaged, "users", "user-00100")
    assert run.code == 2
    assert "unreadable" in run.out


@pytest.mark.parametrize(
    "call",
    [
        ["get", "events", "no json"],
        ["get", "events", '["log"]'],
        ["get", "events", '["log", "1"]'],
        ["get", "events", "[1, 1]"],
        ["get", "numbers", "many"],
        ["get", "numbers", str(2**70)],
        ["path", "numbers", "many"],
        ["page", "100000"],
        ["page", "-1"],
        ["page", "one"],
        ["info", "--page-size", "1000"],
        ["pages", "--state", "lost"],
        ["check", "--max-errors", "-1"],
        ["dump", "--limit", "-1"],
        ["dump", "--limit", "1.5"],
        ["compact", "--lock-timeout", "-1"],
        ["trim", "--lock-timeout", "nan"],
        ["backup", ":memory:"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_64(call: list[str], whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, call[0], str(whole), *call[1:])
    assert run.code == 64, run.err
    assert run.err
    assert not run.out


def test_no_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(capsys).code == 64


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_has_examples_and_fits(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run = Run(capsys, *[verb] * bool(verb), "--help")
    assert run.code == 0
    assert "example" in run.out
    assert f"limpet {verb}" in run.out
    assert all(len(line) <= 103 for line in run.out.splitlines())


def test_the_version_names_the_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"limpet .*file format 2", Run(capsys, "--version").out)


def test_dump_writes_every_entry_in_order(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Run(capsys, "dump", whole).objects
    assert [row["table"] for row in rows] == ["events"] * 20 + ["numbers"] * 2 + ["users"] * 300
    assert rows[0] == {"table": "events", "key": ["log", 0], "value": "0x"}
    assert rows[-1] == {"table": "users", "key": "user-00299", "value": {"n": 299, "turn": 2}}
    assert len(Run(capsys, "dump", whole, "users", "--limit", "10").objects) == 10
    assert Run(capsys, "dump", whole, "--limit", "0").out == ""


def test_dump_saves_what_is_left(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, "dump", damaged, "users")
    assert run.code == 2
    keys = [row["key"] for row in run.objects]
    assert 250 < len(keys) < 300
    assert keys == sorted(keys)
    assert "left out: page" in run.err


def test_dump_saves_all_entries_of_a_file_without_a_header(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Run(capsys, "dump", whole).out
    with whole.open("r+b") as file:
        file.write(bytes(512))
    run = Run(capsys, "dump", whole)
    assert run.out == before
    assert run.code == 2


def test_pages_can_be_filtered(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = Run(capsys, "pages", damaged, "--json").objects
    assert [page["pgno"] for page in everything] == list(range(damaged.stat().st_size // 512))
    bad = Run(capsys, "pages", damaged, "--json", "--state", "damaged").objects
    assert [page["table"] for page in bad] == ["users"]
    assert "checksum" in bad[0]["problem"]
    tables = {page["table"] for page in Run(capsys, "pages", damaged, "--json", "--table", "events").objects}
    assert tables == {"events"}
    text = Run(capsys, "pages", damaged).out.splitlines()
    assert text[0].split()[:4] == ["PAGE", "KIND", "STATE", "TABLE"]
    assert re.match(r"4 head, \d+ reached, .*1 damaged", text[-1])


def test_every_page_can_be_shown(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with limpet.inspect(whole) as inspection:
        pages = list(inspection.pages())
    for page in pages:
        if page.state in ("head", "reached"):
            run = Run(capsys, "page", whole, str(page.pgno))
            assert run.code == 0, run.out
            assert all(len(line) <= 100 for line in run.out.splitlines()), run.out
    leaf = next(page for page in pages if (page.table, page.kind, page.state) == ("users", "leaf", "reached"))
    run = Run(capsys, "page", whole, str(leaf.pgno), "--hex")
    assert "user-0" in run.out
    assert f"{leaf.pgno * 512:08x}      0  " in run.out
    found = Run(capsys, "page", whole, str(leaf.pgno), "--hex", "--json").objects[0]
    assert len(bytes.fromhex(found["hex"])) == 512
    assert len(found["entries"]) == leaf.entries


def test_path_shows_the_way(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Run(capsys, "path", whole, "events", '["log", 19]').out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == [
        "meta",
        "leaf",
        *["branch"] * (len(lines) - 5),
        "leaf",
        "overflow",
    ]
    run = Run(capsys, "path", whole, "users", "nobody")
    assert run.out.endswith("the key is not there\n")


def test_path_of_a_key_that_is_only_in_the_log_finds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The way to such a key ended in the log, which `path` did not know: it said that the table was empty, and exit 1.
    # Of a table that is empty it said that the key was not there.
    copy = tmp_path / "logged.limpet"
    with limpet.open(tmp_path / "open.limpet", page_size=512) as db:
        with db.write() as txn:
            txn[USERS].update({"ada": 1, "bob": 2})
            txn.create(NUMBERS)
        with db.write() as txn:
            txn[USERS]["eve"] = 3
            del txn[USERS]["bob"]
        shutil.copyfile(tmp_path / "open.limpet", copy)
    new, deleted, empty = (
        Run(capsys, "path", copy, *way) for way in (["users", "eve"], ["users", "bob"], ["numbers", "1"])
    )
    assert (new.code, deleted.code, empty.code) == (0, 1, 1)
    assert new.out.endswith("has the newest value\n")
    assert deleted.out.endswith("deletes the key\nthe key is not there\n")
    assert empty.out.endswith("the table is empty\n")


def test_backup_and_compact_do_what_they_say(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Run(capsys, "dump", whole).out
    target = whole.with_name("copy.limpet")
    assert Run(capsys, "backup", whole, target).code == 0
    assert Run(capsys, "dump", target).out == before
    again = Run(capsys, "backup", whole, target)
    assert again.code == 4
    assert "overwrite" in again.err
    assert Run(capsys, "backup", whole, target, "--overwrite").code == 0
    size = whole.stat().st_size
    assert Run(capsys, "compact", whole).code == 0
    assert whole.stat().st_size < size
    assert Run(capsys, "dump", whole).out == before
    assert Run(capsys, "check", target).code == 0


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "codec", "key"),
    [
        ("ada", limpet.STR, "ada"),
        ("0x00ff", limpet.BYTES, b"\x00\xff"),
        ("-7", limpet.INT, -7),
        ("0x10", limpet.INT, 16),
        ("2.5", limpet.FLOAT, 2.5),
        ("-inf", limpet.FLOAT, float("-inf")),
        ("true", limpet.BOOL, True),
        ("12345678-1234-5678-1234-567812345678", limpet.UUID, uuid.UUID("12345678123456781234567812345678")),
        ("2026-01-02T03:04:05Z", limpet.DATETIME, datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)),
        ("2026-01-02", limpet.DATETIME, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        ('["a", 1]', (limpet.STR, limpet.INT), ("a", 1)),
        ('["0xff", false, 1]', (limpet.BYTES, limpet.BOOL, limpet.FLOAT), (b"\xff", False, 1.0)),
    ],
)
def test_keys_are_parsed_by_their_codec(text: str, codec: Any, key: object) -> None:
    parsed = parse_key(text, codec)
    assert parsed == key
    assert type(parsed) is type(key)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("ff", limpet.BYTES),
        ("0xf", limpet.BYTES),
        ("1.5", limpet.INT),
        ("yes", limpet.BOOL),
        ("x", limpet.UUID),
        ("today", limpet.DATETIME),
        ("a", (limpet.STR,)),
        ("[true]", (limpet.INT,)),
        ("[1]", (limpet.STR,)),
    ],
)
def test_a_key_of_another_kind_is_refused(text: str, codec: Any) -> None:
    with pytest.raises(UsageError, match="is no key of"):
        parse_key(text, codec)


# -- as a program --------------------------------------------------------------------------------


def test_python_m_limpet_is_the_command(whole: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "limpet", "check", str(whole)], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("clean\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end in another way there")
def test_a_reader_that_stops_reading_is_no_error(whole: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "limpet", "dump", str(whole)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) in (0, 141)


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "names.limpet"
    with limpet.open(path, page_size=512) as db, db.write() as txn:
        txn[limpet.Table("t\x1b[31m\u00e9", key=limpet.STR)]["k\u00e9y"] = b""
    run = subprocess.run(
        [sys.executable, "-m", "limpet", "tables", str(path)],
        capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip  # one line for the command, one for how it runs
    assert run.returncode == 0
    assert b"t\\x1b[31m\\xe9" in run.stdout


def test_a_backup_onto_the_file_itself_is_wrong_usage(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ended in a traceback."""
    before = whole.read_bytes()
    run = Run(capsys, "backup", whole, whole, "--overwrite")
    assert run.code == 64
    assert "a backup cannot replace the database itself" in run.err
    assert whole.read_bytes() == before


def test_bytes_are_not_given_to_a_terminal(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert Run(capsys, "get", whole, "events", '["log", 2]', "--raw").code == 64
    assert Run(capsys, "get", whole, "numbers", "42").out == "answer\\nin two lines\n"


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("checking") as show:
        assert show is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = [0.0]
    monkeypatch.setattr("limpet.cli.terminal.time.monotonic", lambda: now[0])
    with progress("checking") as show:
        assert show is not None
        show(1, 100)
        assert capsys.readouterr().err == ""
        now[0] = 2.0
        show(50, 100)
        assert capsys.readouterr().err == "\rchecking:  50% of 100"
    assert capsys.readouterr().err.strip() == ""
