"""`limpet-store`: arguments are checked, what is not there is 1, --yes before much is deleted, exports are whole."""

import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from limpet_store import Store, cli
from limpet_store.new_file import give_name, new_file

KEY = "agent:main:telegram:direct:u1"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], db_path: Path) -> Run:
    def main(verb: str, *args: str) -> Outcome:
        try:
            code = cli.main([verb, "--store", str(db_path), *args])
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return main


@pytest.fixture
def filled(db_path: Path, clock: Any) -> Path:
    """Eleven sessions, the oldest of eleven days ago, with a message each; the first has a second generation."""
    clock.now = int(time.time()) - 11 * 86_400 - 3600  # the verbs have the machine's clock
    with Store.open(db_path, clock=clock, durability="os") as store:
        for number in range(11):
            store.messages.append(f"{KEY}:{number}", {"role": "user", "content": f"hello {number}"})
            clock.advance(86_400)
        store.sessions.new_generation(f"{KEY}:0")
        store.kv.set("note", "x")
    return db_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("messages", "nope"), 1),
        (("messages", "nope", "--json"), 1),
        (("messages", f"{KEY}:0"), 0),  # it is there, and has no active messages
        (("archive", "nope"), 1),
        (("archive", "nope", "--json"), 1),
        (("archive", "nope", "--all"), 1),
        (("archive", f"{KEY}:0", "--all", "--generation", "9"), 1),
        (("archive", f"{KEY}:0", "--slice", "5-9"), 1),
        (("archive", f"{KEY}:0", "--grep", "nope"), 1),
        (("kv", "nope"), 1),
        (("cron", "nope"), 1),
        (("sessions", "--prefix", "nope"), 0),  # an empty list is a list
        (("archive", f"{KEY}:0", "--generation", "1"), 2),
        (("archive", f"{KEY}:0", "--generation", "1", "--head", "1"), 2),
        (("archive", f"{KEY}:0", "--slice", "2-1"), 2),
        (("archive", f"{KEY}:0", "--slice", "0-" + "9" * 5000), 2),
        (("archive", f"{KEY}:0", "--head", "9" * 30), 2),
        (("sessions", "--limit", "9" * 30), 2),
        (("sessions", "--wait", "-1"), 2),
        (("sessions", "--wait", "nan"), 2),
        (("kv", "note", "--prefix", "n"), 2),
        (("backup", ":memory:"), 2),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_arguments_are_checked_and_what_is_not_there_is_1(
    arguments: tuple[str, ...], code: int, run: Run, filled: Path
) -> None:
    """`messages nope` was exit code 0, `kv nope` 1; `--generation` was ignored; large numbers were tracebacks."""
    outcome = run(*arguments)
    assert outcome.code == code, outcome
    assert outcome.out or outcome.err
    if code == 2:
        assert outcome.out == ""


def test_an_environment_that_names_no_memory_tier_is_wrong_usage(
    run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in a traceback."""
    monkeypatch.setenv("LIMPET_MEMORY_TIER", "bogus")
    outcome = run("sessions")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'bogus' names no memory tier" in outcome.err


def test_a_limit_holds_whatever_is_asked_for(run: Run, filled: Path) -> None:
    with Store.open(filled) as store:
        store.messages.append_many(KEY, [{"role": "user", "content": "hello"}] * 60)
    assert len(run("archive", KEY, "--all", "--limit", "5").out.splitlines()) == 5 + 2
    assert len(run("archive", KEY, "--all").out.splitlines()) == 60 + 2
    assert len(run("archive", KEY, "--grep", "hello").out.splitlines()) == 50 + 2


# --- retention -------------------------------------------------------------------------------------------------------


def test_retention_counts_before_it_deletes_and_asks_when_it_is_much(run: Run, filled: Path) -> None:
    """`retention --archive 0s` deleted 17,734 rows without a question."""
    before = run("export").out
    dry = run("retention", "--archive", "0s", "--sessions", "0s", "--dry-run")
    assert (dry.code, dry.out) == (0, "would be deleted: 11 sessions, 11 archive, 0 idempotency, 0 jobs\n")
    refused = run("retention", "--archive", "0s", "--sessions", "0s")
    assert (refused.code, refused.out) == (1, "")
    assert "11 of 11 sessions and 11 of 11 archived messages" in refused.err
    assert "--yes" in refused.err
    assert run("export").out == before, "neither of them deletes anything"
    done = run("retention", "--archive", "0s", "--sessions", "0s", "--yes", "--step", "2")
    assert (done.code, done.out) == (0, "deleted: 11 sessions, 11 archive, 0 idempotency, 0 jobs\n")


def test_retention_of_a_tenth_asks_nobody(run: Run, filled: Path) -> None:
    outcome = run("retention", "--archive", "250h")
    assert (outcome.code, outcome.out) == (0, "deleted: 0 sessions, 1 archive, 0 idempotency, 0 jobs\n")


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_a_dry_run_counts_what_the_run_deletes(
    store: Store, clock: Any, make_job: Callable[..., Any], limit: int
) -> None:
    for number in range(5):
        store.messages.append_many(f"s{number % 3}", [{"role": "user", "content": "x"}] * 2)
        store.idempotency.mark_delivered(f"k{number}")
        clock.advance(4000)
    ages: dict[str, Any] = {"sessions_s": 5000, "archive_s": 9000, "idempotency_s": 9000}
    while True:
        stream = io.StringIO()
        store.export_jsonl(stream)
        told = store.retention(**ages, limit=limit, dry_run=True)
        again = io.StringIO()
        store.export_jsonl(again)
        assert again.getvalue() == stream.getvalue()
        assert told == store.retention(**ages, limit=limit)
        if not any(told.values()):
            break
    with pytest.raises(ValueError, match="a limit is 1 or more"):
        store.retention(limit=0, dry_run=True)


# --- export and import -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_an_export_can_be_read_by_those_who_can_read_the_store(
    mode: int, run: Run, filled: Path, tmp_path: Path
) -> None:
    """An export of a private store could be read by everybody on the machine."""
    filled.chmod(mode)
    target = tmp_path / "all.jsonl"
    assert run("export", str(target)).code == 0
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_an_export_that_is_interrupted_leaves_nothing(
    run: Run, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted export left half a file under the name of a whole one."""
    target = tmp_path / "exports" / "all.jsonl"
    target.parent.mkdir()

    def interrupt(_store: Store, stream: Any) -> int:
        stream.write(b"half a li")
        assert not target.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "export_jsonl", interrupt)
    assert run("export", str(target)).code == 130
    assert os.listdir(target.parent) == []


def test_an_export_is_synced_before_it_has_its_name(
    run: Run, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "all.jsonl"
    seen = []
    real = os.fsync

    def fsync(number: int) -> None:
        if stat.S_ISREG(os.fstat(number).st_mode):
            seen.append((os.fstat(number).st_size, target.exists()))
        real(number)

    monkeypatch.setattr("limpet_store.new_file.os.fsync", fsync)
    assert run("export", str(target)).code == 0
    assert (target.stat().st_size, False) in seen


def test_an_export_never_replaces_what_came_meanwhile(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"

    def export() -> None:
        with new_file(target, like=filled) as stream:
            stream.write(b"ours")
            target.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        export()
    assert target.read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", filled.name]


def test_where_there_are_no_links_a_name_is_given_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise PermissionError(1, "not here", source)

    monkeypatch.setattr("limpet_store.new_file.os.link", link)
    part, name = tmp_path / "part", tmp_path / "name"
    part.write_bytes(b"ours")
    give_name(str(part), str(name))
    assert name.read_bytes() == b"ours"
    part.write_bytes(b"again")
    with pytest.raises(FileExistsError):
        give_name(str(part), str(name))
    assert name.read_bytes() == b"ours"


def test_an_export_names_the_path_that_was_asked_for(run: Run, filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "all.jsonl"
    outcome = run("export", str(target))
    assert outcome.code == 3
    assert str(target) in outcome.err
    assert ".part" not in outcome.err


@pytest.mark.parametrize("path", ["all.jsonl", b"all.jsonl", Path("all.jsonl")], ids=["str", "bytes", "path"])
def test_a_path_is_not_taken_for_lines(path: Any, store: Store) -> None:
    """`import_jsonl("path")` read the letters of the path as lines, and reported a broken one for each."""
    with pytest.raises(TypeError, match="lines are needed"):
        store.import_jsonl(path)
