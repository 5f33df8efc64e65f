"""Moving in from OpenClaw: every message once, the right ones active, every line accounted for.

The importer kept its place as a count for each session id. Whatever changed before that place, or shared the id, was
lost without a word: a second session, a second file, a repaired line, all that a compaction had written anew.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limpet_store import Store
from limpet_store.openclaw import Account, import_openclaw
from limpet_store.openclaw import session as session_module

K = "agent:main:telegram:direct:u1"
T = 1_760_000_000_000
RESET = "reset.2026-03-0{}T05-00-00.000Z"


class Home:
    """An OpenClaw home under construction: one agent, its index, its transcripts."""

    def __init__(self, path: Path, agent: str = "main") -> None:
        self.path = path
        self.folder = path / "agents" / agent / "sessions"
        self.folder.mkdir(parents=True)
        self.index: dict[str, dict[str, Any]] = {}
        self.write_index()

    def name(self, key: str, session_id: str, **fields: Any) -> None:
        """Let the index name a session."""
        self.index[key] = {"sessionId": session_id, "updatedAt": T + 1000 * len(self.index), **fields}
        self.write_index()

    def write_index(self) -> None:
        (self.folder / "sessions.json").write_text(json.dumps(self.index))

    def file(self, name: str, *lines: str) -> Path:
        """Write a transcript with a header."""
        path = self.folder / name
        path.write_text("".join(line + "\n" for line in (header(name), *lines)))
        return path

    def append(self, name: str, *lines: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("".join(line + "\n" for line in lines))


def header(name: str) -> str:
    return json.dumps(
        {"type": "session", "version": 3, "id": name.partition(".")[0], "timestamp": "2026-03-01T00:00:00Z"}
    )


def entry(entry_id: str, parent: str | None, role: str = "user", content: Any = None, **fields: Any) -> str:
    """A message that says its id, unless it says something else."""
    value = {"type": "message", "id": entry_id, "parentId": parent, "timestamp": "2026-03-01T00:00:00Z"}
    content = entry_id if content is None else content
    return json.dumps(value | {"message": {"role": role, "content": content, **fields}})


def chain(*ids: str, parent: str | None = None) -> list[str]:
    """Messages that follow each other, of the user and the agent in turn."""
    parents = [parent, *ids]
    return [entry(one, parents[at], ("user", "assistant")[at % 2]) for at, one in enumerate(ids)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "openclaw")


@pytest.fixture(autouse=True)
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MESSAGES_PER_COMMIT", 3)


def moved(home: Home | Path, store: Store) -> Account:
    """Import, after a dry run that has to foretell it; a second import must change nothing."""
    path = home.path if isinstance(home, Home) else home
    dry = import_openclaw(path, store, dry_run=True)
    account = import_openclaw(path, store)
    assert account.adds_up
    assert account.to_dict() == dry.to_dict()
    before = newest(store)
    again = import_openclaw(path, store)
    assert (again.messages, again.aliases, again.activated, again.adds_up) == (0, 0, 0, True)
    assert newest(store) == before
    assert again.line_count == account.line_count
    return account


def newest(store: Store) -> int:
    with store.read() as tx:
        return tx.txid


def active(store: Store, key: str = K) -> list[str]:
    return [message["content"] for message in store.messages.load(key)]


def archive(store: Store, key: str = K) -> list[tuple[int, int, str]]:
    return [(row.generation, row.seq, row.message["content"]) for row in store.archive.load(key)]


def generations(store: Store, key: str = K) -> list[list[str]]:
    """What each generation of the archive says, in order."""
    rows = archive(store, key)
    return [[text for _, _, text in run] for _, run in itertools.groupby(rows, key=lambda row: row[0])]


# ---------------------------------------------------------------------------------------------- whose message it is


def test_two_session_keys_with_one_session_id_both_get_the_transcript(home: Home, store: Store) -> None:
    home.name("agent:main:cron:j1", "S1")
    home.name("agent:main:cron:j1:run:S1", "S1")
    home.file("S1.jsonl", *chain("a", "b", "c"), "broken")
    account = moved(home, store)
    assert (account.sessions, account.messages, account.lines["imported"], len(account.errors)) == (2, 6, 3, 1)
    assert active(store, "agent:main:cron:j1") == active(store, "agent:main:cron:j1:run:S1") == ["a", "b", "c"]


def test_one_session_id_with_two_files_brings_both_whole(home: Home, store: Store) -> None:
    home.name("agent:main:one", "S", sessionFile="/elsewhere/one.jsonl")
    home.name("agent:main:two", "S", sessionFile="two.jsonl")
    home.file("one.jsonl", *chain("a", "b", "c"))
    home.file("two.jsonl", *chain("d", "e", "f", "g"))
    assert moved(home, store).messages == 7
    assert (active(store, "agent:main:one"), active(store, "agent:main:two")) == (["a", "b", "c"], ["d", "e", "f", "g"])


def test_a_transcript_that_compaction_rewrote_brings_its_new_messages(home: Home, store: Store) -> None:
    old = [f"old{number}" for number in range(10)]
    home.name(K, "S")
    home.file("S.jsonl", *chain(*old))
    moved(home, store)
    home.file("S.jsonl", *chain("summary", "new1", "new2", "new3"))
    account = moved(home, store)
    assert (account.messages, account.activated) == (4, 1)
    assert active(store) == ["summary", "new1", "new2", "new3"]
    assert generations(store) == [[*old, "summary", "new1", "new2", "new3"]]


def test_a_transcript_that_compaction_left_a_part_of_is_the_same_conversation(home: Home, store: Store) -> None:
    """The successor has another name and another session id; what it kept has its ids."""
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b", "c", "d"))
    moved(home, store)
    home.name(K, "S2", usageFamilySessionIds=["S", "S2"])
    home.file("S2.jsonl", entry("s", None, content="summary"), *chain("c", "d", "e", parent="s"))
    assert moved(home, store).messages == 2
    assert active(store) == ["summary", "c", "d", "e"]
    assert generations(store) == [["a", "b", "c", "d", "summary", "e"]]


def test_two_files_that_share_entries_are_one_conversation_when_they_come_together(home: Home, store: Store) -> None:
    home.name(K, "S2", usageFamilySessionIds=["S", "S2"])
    home.file("S.jsonl", *chain("a", "b", "c", "d"))
    home.file("S2.jsonl", entry("s", None, content="summary"), *chain("c", "d", "e", parent="s"))
    account = moved(home, store)
    assert (account.messages, account.lines["there already"]) == (6, 2)
    assert active(store) == ["summary", "c", "d", "e"]
    assert generations(store) == [["a", "b", "c", "d", "summary", "e"]]


def test_a_broken_line_that_was_repaired_comes_once_and_doubles_nothing(home: Home, store: Store) -> None:
    home.name(K, "S")
    lines = chain("a", "b", "c", "d")
    home.file("S.jsonl", lines[0], lines[1][:40], *lines[2:])
    account = moved(home, store)
    assert (account.messages, account.lines["cannot be read"], len(account.errors)) == (3, 1, 1)
    assert active(store) == ["a", "c", "d"], "a line that cannot be read does not cut off what came before it"
    home.file("S.jsonl", *lines)
    account = moved(home, store)
    assert (account.messages, account.lines["there already"], account.errors) == (1, 3, [])
    assert active(store) == ["a", "b", "c", "d"]
    assert generations(store) == [["a", "c", "d", "b"]], "an archive row keeps its number"


def test_an_entry_that_stands_twice_in_a_file_comes_once(home: Home, store: Store) -> None:
    home.name(K, "S")
    lines = chain("a", "b")
    home.file("S.jsonl", lines[0], lines[0], lines[1], entry("b", "a", "assistant", "another with the same id"))
    account = moved(home, store)
    assert (account.messages, account.lines["the same entry twice in the file"]) == (3, 1)
    assert [text for *_, text in archive(store)] == ["a", "b", "another with the same id"]
    home.append("S.jsonl", entry("b", "a", "assistant", "a third one"))
    assert moved(home, store).messages == 1


def test_an_entry_that_says_something_else_now_is_active_as_it_is_now(home: Home, store: Store) -> None:
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b", "c"))
    moved(home, store)
    home.file("S.jsonl", entry("a", None), entry("b", "a", "assistant", "redacted"), *chain("c", parent="b"))
    account = moved(home, store)
    assert (account.messages, account.lines["there already, in other words"]) == (0, 1)
    assert (active(store), generations(store)) == (["a", "redacted", "c"], [["a", "b", "c"]])
    assert store.messages.replace(K, store.messages.load(K)) == [0, 3, 4], "no number stands for two messages"
    home.append("S.jsonl", *chain("d", parent="c"))
    moved(home, store)
    assert (archive(store)[-1], active(store)) == ((1, 5, "d"), ["a", "redacted", "c", "d"])


def test_a_file_without_ids_gets_them_and_nothing_comes_twice(home: Home, store: Store) -> None:
    """Files of the first versions have none; OpenClaw writes them anew when it opens them."""
    home.name(K, "S")
    texts = ["ok", "ok", "well", "ok"]
    lines = [json.dumps({"type": "message", "message": {"role": "user", "content": text}}) for text in texts]
    home.file("S.jsonl", *lines)
    assert moved(home, store).messages == 4
    home.append("S.jsonl", lines[0])
    assert moved(home, store).messages == 1
    named = [
        json.loads(line) | {"id": f"i{at}", "parentId": f"i{at - 1}"} for at, line in enumerate([*lines, lines[0]])
    ]
    home.file("S.jsonl", *map(json.dumps, named), entry("i5", "i4", content="new"))
    assert moved(home, store).messages == 1
    assert active(store) == [*texts, "ok", "new"]


def test_what_two_conversations_say_without_ids_and_times_comes_twice(home: Home, store: Store) -> None:
    line = json.dumps({"type": "message", "message": {"role": "user", "content": "ok"}})
    home.name(K, "S")
    home.file("S.jsonl", line, line)
    moved(home, store)
    (home.folder / "S.jsonl").rename(home.folder / f"S.jsonl.{RESET.format(1)}")
    home.file("S.jsonl", line)
    assert moved(home, store).messages == 1
    assert generations(store) == [["ok", "ok"], ["ok"]]


def test_what_every_conversation_says_does_not_make_two_of_them_one(home: Home, store: Store) -> None:
    def said(text: str) -> str:
        return json.dumps({"type": "message", "message": {"role": "user", "content": text}})

    home.name(K, "S")
    home.file("S.jsonl", said("ok"), said("a"))
    moved(home, store)
    (home.folder / "S.jsonl").unlink()
    home.name(K, "S2")
    home.file("S2.jsonl", said("ok"), said("x"), said("y"))
    assert moved(home, store).messages == 3
    assert generations(store) == [["ok", "a"], ["ok", "x", "y"]]


def test_ids_of_another_session_mean_nothing(home: Home, store: Store) -> None:
    home.name("agent:main:a", "A")
    home.name("agent:main:b", "B")
    home.file("A.jsonl", *chain("x", "y"))
    home.file("B.jsonl", *chain("x", "y", "z"))
    assert moved(home, store).messages == 5
    assert active(store, "agent:main:b") == ["x", "y", "z"]


# ---------------------------------------------------------------------------------------------- what becomes active

CALL = {"type": "toolCall", "id": "call_1", "name": "exec", "arguments": {"command": "ls"}}


def test_tool_calls_and_their_results_stay_behind_both(home: Home, store: Store) -> None:
    home.name(K, "S")
    text = {"type": "text", "text": "I look"}
    home.file(
        "S.jsonl",
        entry("a", None),
        entry("b", "a", "assistant", [CALL]),
        entry("c", "b", "toolResult", [{"type": "text", "text": "a.txt"}], toolCallId="call_1"),
        entry("d", "c", "assistant", [text, CALL | {"id": "call_2"}]),
        entry("e", "d", "toolResult", "b.txt", toolCallId="call_2"),
        entry("f", "e", "tool", "c.txt"),
        entry("g", "f", "user", [{"type": "tool_result", "tool_use_id": "call_2", "content": "d.txt"}]),
        entry("h", "g", "bashExecution", "ls"),
        entry("i", "h", "assistant", "two files"),
        entry("j", "i", "assistant", [{"type": "image", "data": "AAAA"}]),
    )
    account = moved(home, store)
    assert active(store) == [text for *_, text in archive(store)] == ["a", "I look", "two files"]
    assert {message["role"] for message in store.messages.load(K)} <= {"user", "assistant", "system"}
    assert account.lines == {
        "the index": 1,
        "the transcript's header": 1,
        "imported": 3,
        "tool call or result": 5,
        "not a message": 1,
        "a message without text": 1,
    }


def test_branches_that_were_given_up_go_to_the_archive_only(home: Home, store: Store) -> None:
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b", "c"), *chain("d", "e", parent="b"))
    account = moved(home, store)
    assert (account.lines["imported"], account.lines["imported, to the archive only"]) == (4, 1)
    assert active(store) == ["a", "b", "d", "e"]
    assert generations(store) == [["a", "b", "c", "d", "e"]]
    home.append("S.jsonl", entry("f", "c"))  # and back to the first branch
    account = moved(home, store)
    assert (account.messages, account.activated) == (1, 1)
    assert active(store) == ["a", "b", "c", "f"]
    home.append("S.jsonl", json.dumps({"type": "leaf", "id": "g", "parentId": "f", "targetId": "e"}))
    moved(home, store)
    assert active(store) == ["a", "b", "d", "e"]
    home.append("S.jsonl", json.dumps({"type": "custom", "id": "h", "parentId": None}), entry("i", "h", content="new"))
    moved(home, store)
    assert active(store) == ["new"]
    assert generations(store) == [["a", "b", "c", "d", "e", "f", "new"]]


def test_active_and_archived_rows_have_the_same_numbers_and_the_next_one_follows(home: Home, store: Store) -> None:
    home.name(K, "S", updatedAt=T, sessionStartedAt=T - 5000, origin={"label": "Ada"})
    home.file("S.jsonl", *chain("a", "b", "c"), *chain("d", parent="b"))
    moved(home, store)
    meta = store.sessions.get(K)
    assert meta is not None
    assert (meta.message_count, meta.generation, meta.peer_name) == (4, 1, "Ada")
    assert (meta.last_active, meta.created_at) == (T // 1000, T // 1000 - 5)
    assert store.messages.append(K, {"role": "user", "content": "on"}) == 4
    assert archive(store) == [(1, 0, "a"), (1, 1, "b"), (1, 2, "c"), (1, 3, "d"), (1, 4, "on")]
    assert store.messages.replace(K, store.messages.load(K)) == [0, 1, 3, 4]


# ---------------------------------------------------------------------------------------------- generations


def test_each_reset_archive_is_a_generation_of_its_own_before_the_active_one(home: Home, store: Store) -> None:
    home.name(K, "S")
    home.file(f"S.jsonl.{RESET.format(2)}", *chain("c", "d"))
    home.file(f"S.jsonl.{RESET.format(1)}", *chain("a", "b"))
    home.file("S.jsonl", *chain("e", "f"))
    account = moved(home, store)
    assert generations(store) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert active(store) == ["e", "f"]
    assert account.lines["imported, to the archive only"] == 4
    assert store.sessions.new_generation(K) == 4


def test_a_reset_between_two_imports_begins_a_new_generation(home: Home, store: Store) -> None:
    home.name(K, "S1")
    home.file("S1.jsonl", *chain("a", "b"))
    moved(home, store)
    home.append("S1.jsonl", *chain("late", parent="b"))
    (home.folder / "S1.jsonl").rename(home.folder / f"S1.jsonl.{RESET.format(1)}")
    home.name(K, "S2")  # the index forgets the old id
    home.file("S2.jsonl", *chain("c", "d"))
    account = moved(home, store)
    assert account.messages == 3
    assert generations(store) == [["a", "b", "late"], ["c", "d"]]
    assert active(store) == ["c", "d"]


def test_a_reset_that_keeps_the_name_of_the_file_begins_a_new_generation(home: Home, store: Store) -> None:
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b"))
    moved(home, store)
    (home.folder / "S.jsonl").rename(home.folder / f"S.jsonl.{RESET.format(1)}")
    home.file("S.jsonl")
    moved(home, store)
    assert active(store) == ["a", "b"], "nothing has been said since"
    home.append("S.jsonl", *chain("c"))
    moved(home, store)
    assert (generations(store), active(store)) == ([["a", "b"], ["c"]], ["c"])


def test_earlier_ids_in_the_index_lead_to_their_files(home: Home, store: Store) -> None:
    home.name(K, "S4", usageFamilySessionIds=["S3", "S2", "S1", "S4"])
    home.file("S1.jsonl", *chain("a"))  # its header says when it began
    home.file(f"S2.jsonl.{RESET.format(1)}", *chain("b"))
    home.file(f"S3.jsonl.{RESET.format(2)}", *chain("c"))
    home.file("S4.jsonl", *chain("d"))
    moved(home, store)
    assert (generations(store), active(store)) == ([["a"], ["b"], ["c"], ["d"]], ["d"])


def test_a_key_that_the_index_names_twice_is_one_session(home: Home, store: Store) -> None:
    home.name("main", "S1")
    home.name("agent:main:main", "S2")
    home.file("S1.jsonl", *chain("a"))
    home.file("S2.jsonl", *chain("b"))
    moved(home, store)
    assert generations(store, "agent:main:main") == [["a"], ["b"]]
    assert active(store, "agent:main:main") == ["b"]


def test_what_the_gateway_said_since_is_never_touched(home: Home, store: Store) -> None:
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b", "c"))
    moved(home, store)
    store.messages.append(K, {"role": "user", "content": "here"})
    home.append("S.jsonl", *chain("d", parent="c"), *chain("e", "f", parent="b"))  # d is given up
    account = moved(home, store)
    assert (account.messages, account.activated) == (3, 0)
    assert active(store) == ["a", "b", "c", "here", "e", "f"]
    assert store.sessions.new_generation(K) == 2
    store.messages.append(K, {"role": "user", "content": "afresh"})
    home.append("S.jsonl", *chain("g", parent="f"))
    assert moved(home, store).lines["imported, to the archive only"] == 1
    assert active(store) == ["afresh"]
    assert generations(store) == [["a", "b", "c", "here", "d", "e", "f", "g"], ["afresh"]]
    store.sessions.delete(K)
    home.append("S.jsonl", *chain("h", parent="g"))
    moved(home, store)
    assert (store.sessions.get(K), active(store)) == (None, [])
    assert generations(store)[0][-1] == "h"


def test_a_conversation_that_began_in_the_store_stays_the_active_one(home: Home, store: Store) -> None:
    store.messages.append(K, {"role": "user", "content": "here"})
    home.name(K, "S")
    home.file("S.jsonl", *chain("a", "b"))
    moved(home, store)
    assert (active(store), generations(store)) == (["here"], [["here"], ["a", "b"]])
    store.messages.append(K, {"role": "user", "content": "on"})
    home.append("S.jsonl", *chain("c", parent="b"))
    moved(home, store)
    assert (active(store), generations(store)) == (["here", "on"], [["here", "on"], ["a", "b", "c"]])
    assert store.sessions.new_generation(K) == 3


# ---------------------------------------------------------------------------------------------- interruptions

KILL = """
import os, sys
from limpet_store import MemoryTier, Store
from limpet_store.openclaw import import_openclaw, session

session.MESSAGES_PER_COMMIT = 2
left = int(sys.argv[3])
with Store.open(sys.argv[2], tier=MemoryTier.LOW, durability="os") as store:
    writing = store.writing

    def counted(**options):
        global left
        if not left:
            os._exit(9)
        left -= 1
        return writing(**options)

    store.writing = counted
    import_openclaw(sys.argv[1], store)
"""


class Stopped(BaseException):
    """The end of an import that a test interrupts."""


def interrupted(home: Home) -> tuple[list[list[str]], list[str]]:
    """A home with all that takes several commits, and what its sessions have to be like in the end."""
    home.name(K, "S")
    home.name("agent:main:other", "S")
    home.file(f"S.jsonl.{RESET.format(1)}", *chain("a", "b", "c", "d"))
    home.file("S.jsonl", *chain("e", "f", "g"), *chain("h", "i", "j", parent="f"))
    return [["a", "b", "c", "d"], ["e", "f", "g", "h", "i", "j"]], ["e", "f", "h", "i", "j"]


def finish(home: Home, store: Store, wanted: tuple[list[list[str]], list[str]]) -> int:
    account = moved(home, store)
    for key in (K, "agent:main:other"):
        assert (generations(store, key), active(store, key)) == wanted
    assert store.check().ok
    return account.messages


def stopped(home: Home, store: Store, commits: int) -> bool:
    """Import, and stop before a commit; returns whether there were so many."""
    writing, left = store.writing, iter(range(commits))

    def counted(**options: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return writing(**options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "writing", counted)
        try:
            import_openclaw(home.path, store)
        except Stopped:
            return True
    return False


def test_an_import_that_stopped_before_any_of_its_commits_is_finished_by_the_next(home: Home) -> None:
    wanted = interrupted(home)
    for commits in itertools.count():
        with Store.open(":memory:") as store:
            if not stopped(home, store, commits):
                break
            finish(home, store, wanted)
    assert commits >= 12


def test_a_change_of_the_branch_that_stopped_before_any_of_its_commits_is_finished_by_the_next(home: Home) -> None:
    (before, after), _ = interrupted(home)
    for commits in itertools.count():
        interrupted(home)
        with Store.open(":memory:") as store:
            moved(home, store)
            home.append("S.jsonl", *chain("k", "l", "m", "n", parent="g"))
            if not stopped(home, store, commits):
                break
            finish(home, store, ([before, [*after, "k", "l", "m", "n"]], ["e", "f", "g", "k", "l", "m", "n"]))
    assert commits >= 8


@pytest.mark.parametrize("commits", [3, 9])
def test_an_import_that_was_killed_is_finished_by_the_next(home: Home, db_path: Path, commits: int) -> None:
    wanted = interrupted(home)
    killed = subprocess.run([sys.executable, "-c", KILL, home.path, db_path, str(commits)])
    assert killed.returncode == 9
    with Store.open(db_path) as store:
        assert 0 < finish(home, store, wanted) < 20


# ---------------------------------------------------------------------------------------------- characters


def test_half_a_character_becomes_a_sign_of_its_own_and_is_reported(home: Home, store: Store) -> None:
    home.name("agent:main:\ud83d", "S", origin={"label": "A\ud83d"})
    path = home.file("S.jsonl", entry("a", None, content="cut \ud83d off", model="m\udc00"), entry("b", "a"))
    path.write_bytes(path.read_bytes() + entry("c", "b", content="latin xx").encode().replace(b"xx", b"\xe9"))
    account = moved(home, store)
    assert active(store, "agent:main:\ufffd") == ["cut \ufffd off", "b", "latin \ufffd"]
    assert [where.rpartition(":")[2] for where in account.mended] == ["2", "4"]
    assert (account.messages, account.errors) == (3, [])
    meta = store.sessions.get("agent:main:\ufffd")
    assert meta is not None
    assert meta.peer_name == "A\ufffd"


def test_a_record_that_cannot_be_read_is_reported_and_nothing_comes_twice_without_it(home: Home, store: Store) -> None:
    for key in (K, "agent:main:other"):
        home.name(key, "S")
    home.file("S.jsonl", *chain("a", "b"))
    moved(home, store)
    [name, _] = [name for name, _ in store.kv.items("import-openclaw:session:")]
    for text in ('{"live": 1}', "not JSON", "[]"):
        store.kv.set(name, text)
        account = import_openclaw(home.path, store)
        assert (account.adds_up, account.messages, len(account.errors)) == (True, 0, 1)
        assert f"kv['{name}']" in account.errors[0]
    store.kv.delete(name)
    assert moved(home, store).messages == 0
    assert active(store) == active(store, "agent:main:other") == ["a", "b"]


def test_a_session_that_the_store_cannot_hold_is_reported_and_the_others_come(home: Home, store: Store) -> None:
    home.name("agent:main:" + "k" * 2000, "S1")
    home.name("agent:main:z" + "k" * 2000, "S2")
    home.name(K, "S2")
    home.file("S1.jsonl", *chain("a", "b"))
    home.file("S2.jsonl", *chain("c"))
    account = import_openclaw(home.path, store)
    assert (account.adds_up, account.messages, len(account.errors)) == (True, 1, 2)
    assert (account.lines["of a session that was left out for an error"], account.lines["imported"]) == (2, 1)
    assert active(store) == ["c"]
