"""The account of an import from OpenClaw: every line of every file, once, with what became of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from limpet_store import Store
from limpet_store.cli import main
from limpet_store.openclaw import import_openclaw

TIME = "2026-03-06T05-00-00.000Z"
CHECKPOINT = "checkpoint.0b4cf1ba-5e0e-4f4e-8a51-0f4a7d3c2b10"


def line(number: int, **fields: Any) -> str:
    value = {"type": "message", "id": f"i{number}", "message": {"role": "user", "content": str(number)}}
    return json.dumps(value | fields) + "\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of its own: the store is beside it."""
    return tmp_path / "home"


def make(folder: Path, index: dict[str, Any], files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sessions.json").write_text(json.dumps(index, indent=1))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def line_count(folder: Path) -> int:
    return sum(
        len(path.read_bytes().split(b"\n")) - path.read_bytes().endswith(b"\n") - (not path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_files_that_stay_behind_are_counted_by_reason(home: Path, store: Store) -> None:
    files = {
        "S.jsonl": line(1),
        f"S.jsonl.reset.{TIME}": line(2),
        f"other.jsonl.reset.{TIME}": line(3) * 2,
        "orphan.jsonl": line(4) * 3,
        f"S.jsonl.deleted.{TIME}": line(5) * 4,
        f"S.jsonl.bak.{TIME}": line(6) * 2,
        "sessions.json.bak.1760000000": "{}\n",
        f"S.{CHECKPOINT}.jsonl": line(6) * 2,
        "S.trajectory.jsonl": line(7) * 6,
        "S.jsonl.lock": "{}",
        "empty.jsonl": "",
        "below/x.txt": "a\nb",
    }
    make(home / "agents" / "main" / "sessions", {"k": {"sessionId": "S"}}, files)
    make(home / "agents" / "lost" / "sessions", {}, {"left.jsonl": line(8)})
    (home / "agents" / "lost" / "sessions" / "sessions.json").unlink()
    account = import_openclaw(home, store)
    assert account.lines == {
        "imported": 1,
        "imported, to the archive only": 1,
        "of a transcript that no session names": 2 + 3 + 1,
        "of a session that was deleted": 4,
        "of a backup or a checkpoint": 2 + 1 + 2,
        "of a file that is no transcript": 6 + 1 + 2,
        "the index": 5,
    }
    assert account.line_count == line_count(home)
    assert account.adds_up
    assert not account.complete


@pytest.mark.parametrize("named", [True, False])
def test_a_transcript_in_another_folder_is_counted_once(home: Path, store: Store, named: bool) -> None:
    elsewhere = home / "agents" / "other" / "sessions" / "X.jsonl"
    make(elsewhere.parent, {"mine": {"sessionId": "X"}} if named else {}, {"X.jsonl": line(1) + line(2)})
    make(home / "agents" / "main" / "sessions", {"theirs": {"sessionId": "Y", "sessionFile": str(elsewhere)}}, {})
    account = import_openclaw(home, store)
    assert (account.sessions, account.messages, account.lines["imported"]) == (1 + named, 2 + 2 * named, 2)
    assert account.line_count == line_count(home)
    assert account.adds_up


def test_an_agent_in_two_places_is_read_once(home: Path, store: Store) -> None:
    make(home / "agents" / "main" / "sessions", {"k": {"sessionId": "S"}}, {"S.jsonl": line(1)})
    (home / "agents" / "same").symlink_to(home / "agents" / "main")
    account = import_openclaw(home, store)
    assert (account.messages, account.adds_up, account.line_count) == (1, True, 6)


def random_line(source: random.Random, number: int) -> str:
    parent = source.choice([None, f"i{source.randrange(number + 1)}", f"i{number - 1}", f"i{number - 1}", 7])
    content = source.choice(
        [str(number), "", "ok", [{"type": "toolCall"}], [{"type": "text", "text": "t"}], None, "\ud83d"]
    )
    role = source.choice(["user", "assistant", "toolResult", "system", None, 3, ["user"]])
    entry_id = source.choice([f"i{number}", f"i{number}", f"i{source.randrange(5)}", None, 5, "\udc00"])
    value: Any = {"type": source.choice(["message", "message", "message", "custom", "session", None]), "id": entry_id}
    value |= {
        "parentId": parent,
        "message": {"role": role, "content": content, "timestamp": source.choice([None, number])},
    }
    text = json.dumps(source.choice([value, value, value, value, [1], {}, 3]))
    kind = source.random()
    if kind < 0.1:
        text = text[: source.randrange(len(text) + 1)]
    elif kind < 0.2:
        text = source.choice(["", "   ", "null", "{", "\0\0", '{"a":' * 2000, "\ufeff" + text])
    return text


def random_home(source: random.Random, home: Path, stems: list[str]) -> None:
    """A folder in which everything may be there and anything may be wrong."""
    folder = home / "agents" / "main" / "sessions"
    files: dict[str, str] = {}
    for stem in stems:
        for suffix in ("", f".reset.{TIME}", f".reset.{TIME.replace('05', '06')}", f".deleted.{TIME}", ".lock"):
            if source.random() < 0.6:
                lines = [random_line(source, number) for number in range(source.randrange(25))]
                files[f"{stem}.jsonl{suffix}"] = "\n".join(lines) + source.choice(["", "\n"])
    index: dict[str, Any] = {}
    for number in range(6):
        session = {"sessionId": source.choice([*stems, "gone", 3]), "updatedAt": source.choice([number, None])}
        if source.random() < 0.3:
            session["sessionFile"] = f"{source.choice(stems)}.jsonl"
        if source.random() < 0.3:
            session["usageFamilySessionIds"] = source.sample(stems, 2)
        index[source.choice([f"agent:main:{number}", f"{number}", "agent:main:same"])] = session
    index["odd"] = 5
    make(folder, index, files)


def test_whatever_is_in_a_folder_its_lines_are_accounted_for(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    source = random.Random(seed)
    seen: Counter[str] = Counter()
    for number in range(12):
        home, stems = tmp_path / str(number), ["S1", "S2", "S3"]
        with Store.open(":memory:") as store:
            for _ in range(3):  # the same names with other contents: whatever a home became since
                random_home(source, home, stems)
                dry = import_openclaw(home, store, dry_run=True)
                account = import_openclaw(home, store)
                assert account.adds_up
                assert account.line_count == line_count(home)
                assert account.to_dict() == dry.to_dict()
                seen += account.lines
                with store.read() as tx:
                    before = tx.txid
                again = import_openclaw(home, store)
                assert (again.messages, again.activated, again.adds_up) == (0, 0, True)
                with store.read() as tx:
                    assert tx.txid == before
            report = store.check()
            assert report.ok, report.errors
    assert {
        "imported",
        "imported, to the archive only",
        "there already",
        "not a message",
        "cannot be read",
    } <= seen.keys()


def test_the_command_tells_the_account(tmp_path: Path, db_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(
        tmp_path / "sessions",
        {"k": {"sessionId": "S"}, "x": {"sessionId": "-"}},
        {"S.jsonl": line(1) + "{\n" + line(2)},
    )
    arguments = ["import-openclaw", str(tmp_path), "--store", str(db_path)]
    assert main([*arguments, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["lines"] == {"the index": 8, "imported": 2, "cannot be read": 1}
    assert (told["line_count"], told["adds_up"], told["complete"], len(told["errors"])) == (11, True, False, 1)
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "brought over: 0 messages of 0 sessions" in out
    assert "sessions without a transcript: 1" in out
    assert "2 lines there already" in out
    assert "11 lines in all; the account adds up" in out
