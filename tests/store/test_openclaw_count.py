"""A store into which version 0.1 brought an OpenClaw home goes on without doubling what that brought.

Version 0.1 remembered how many messages of a session id it had brought. The fixture is a home, and the export of a
store that had imported it: `plain` has tool results and a branch that was given up, `run` two session keys, `repaired`
a line cut short, `compacted` ten messages, `old` no ids and no times.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from limpet_store import Store
from limpet_store.openclaw import Account, import_openclaw

DATA = Path(__file__).parents[1] / "data" / "openclaw"
PLAIN, COMPACTED, REPAIRED = "agent:main:telegram:direct:u1", "agent:main:compacted", "agent:main:repaired"


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """The folder of the home's one agent, to be changed."""
    shutil.copytree(DATA / "home", tmp_path / "home")
    return tmp_path / "home" / "agents" / "main" / "sessions"


@pytest.fixture
def counted(store: Store) -> Store:
    """The store as version 0.1 left it."""
    with (DATA / "imported-by-count.jsonl").open("rb") as lines:
        assert store.import_jsonl(lines).ok
    return store


def moved(sessions: Path, store: Store) -> Account:
    dry = import_openclaw(sessions, store, dry_run=True)
    account = import_openclaw(sessions, store)
    assert account.adds_up
    assert account.to_dict() == dry.to_dict()
    again = import_openclaw(sessions, store)
    assert (again.messages, again.activated) == (0, 0)
    return account


def active(store: Store, key: str) -> list[str]:
    return [message["content"] for message in store.messages.load(key)]


def archive(store: Store, key: str) -> list[str]:
    return [row.message["content"] for row in store.archive.load(key)]


def test_what_version_01_brought_does_not_come_again(sessions: Path, counted: Store) -> None:
    before = {key: archive(counted, key) for key in counted.sessions.list()}
    account = moved(sessions, counted)
    assert account.messages == 2, "the second session of the cron run, which had got nothing"
    assert active(counted, "agent:main:cron:j1:run:run") == ["[cron] brief", "the brief"]
    assert {key: archive(counted, key) for key in before} == before


def test_what_should_not_have_been_active_is_archived_only(sessions: Path, counted: Store) -> None:
    assert "a.txt\nb.txt" in active(counted, PLAIN)
    assert moved(sessions, counted).activated == 1
    assert active(counted, PLAIN) == [
        "what is in the folder?",
        "[thinking] look",
        "two files",
        "thanks",
        "you are welcome",
    ]
    assert {"a.txt\nb.txt", "not this"} <= set(archive(counted, PLAIN))


def test_what_is_new_since_comes_once(sessions: Path, counted: Store) -> None:
    line = {"type": "message", "id": "a0000008", "parentId": "a0000007", "message": {"role": "user", "content": "new"}}
    with (sessions / "plain.jsonl").open("a") as transcript:
        transcript.write(json.dumps(line) + "\n")
    with (sessions / "old.jsonl").open("a") as transcript:
        transcript.write(json.dumps({"type": "message", "message": {"role": "user", "content": "ok"}}) + "\n")
    assert moved(sessions, counted).messages == 4
    assert active(counted, PLAIN)[-2:] == ["you are welcome", "new"]
    assert active(counted, "agent:main:old") == ["ok", "ok", "ok", "ok"]


def test_a_repaired_line_comes_and_the_one_after_it_does_not_come_again(sessions: Path, counted: Store) -> None:
    lines = (sessions / "repaired.jsonl").read_text().splitlines()
    whole = {
        "type": "message",
        "id": "c0000002",
        "parentId": "c0000001",
        "message": {"role": "assistant", "content": "2"},
    }
    lines[2] = json.dumps(whole)
    (sessions / "repaired.jsonl").write_text("\n".join(lines) + "\n")
    assert moved(sessions, counted).messages == 3
    assert active(counted, REPAIRED) == ["one", "2", "three", "four"]


def test_a_transcript_that_compaction_has_rewritten_since_comes(sessions: Path, counted: Store) -> None:
    lines = (sessions / "compacted.jsonl").read_text().splitlines()
    new = [
        {"type": "message", "id": f"f{at}", "parentId": f"f{at - 1}" if at else None, "message": message}
        for at, message in enumerate({"role": "user", "content": f"new {number}"} for number in range(4))
    ]
    (sessions / "compacted.jsonl").write_text("\n".join([lines[0], *map(json.dumps, new)]) + "\n")
    assert moved(sessions, counted).messages == 6
    assert active(counted, COMPACTED) == ["new 0", "new 1", "new 2", "new 3"]
    assert archive(counted, COMPACTED)[:10] == [f"long ago {number}" for number in range(1, 11)]


def test_a_reset_since_begins_a_new_generation(sessions: Path, counted: Store) -> None:
    (sessions / "left.jsonl").rename(sessions / "left.jsonl.reset.2026-03-01T05-00-00.000Z")
    index = json.loads((sessions / "sessions.json").read_text())
    index["agent:main:main"] |= {"sessionId": "next", "usageFamilySessionIds": ["left", "next"]}
    (sessions / "sessions.json").write_text(json.dumps(index))
    line = {"type": "message", "id": "f0", "parentId": None, "message": {"role": "user", "content": "afresh"}}
    (sessions / "next.jsonl").write_text(json.dumps(line) + "\n")
    assert moved(sessions, counted).messages == 3
    assert active(counted, "agent:main:main") == ["afresh"]
    assert [row.generation for row in counted.archive.load("agent:main:main")] == [1, 1, 2]


@pytest.mark.parametrize("purge", [True, False])
def test_what_has_left_the_archive_since_does_not_come_back(sessions: Path, counted: Store, purge: bool) -> None:
    """Retention deletes an archive from its beginning; then the count is all that is known of what was there."""
    if purge:
        counted.archive.purge(COMPACTED)
    else:
        counted.retention(archive_s=0, limit=4)
    gone = 10 - len(archive(counted, COMPACTED))
    assert gone > 0
    assert counted.sessions.new_generation(COMPACTED) == 2
    assert moved(sessions, counted).messages == 2
    assert len(archive(counted, COMPACTED)) == 10 - gone
    assert active(counted, COMPACTED) == []


def test_a_session_that_has_gone_on_keeps_what_it_has(sessions: Path, counted: Store) -> None:
    counted.messages.append(PLAIN, {"role": "user", "content": "here"})
    counted.sessions.new_generation(COMPACTED)
    counted.sessions.delete(REPAIRED)
    before = active(counted, PLAIN)
    moved(sessions, counted)
    assert active(counted, PLAIN) == before
    assert active(counted, COMPACTED) == active(counted, REPAIRED) == []
    assert counted.sessions.get(REPAIRED) is None
