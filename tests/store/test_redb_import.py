"""Moving in from the reference gateway's file: nothing lost, nothing twice, every row accounted for."""

from __future__ import annotations

import json
import lzma
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from limpet import CorruptError, FormatError, LockedError
from limpet_store import MemoryTier, Store, schema
from limpet_store.redb import BytesSource, RedbFile
from limpet_store.redb.account import (
    GONE_ON,
    OTHER,
    OTHER_MESSAGE,
    QUARANTINED,
    THERE,
    TWICE,
    UNKNOWN_TABLE,
    RedbImport,
    TableAccount,
)
from limpet_store.redb.creation import create
from limpet_store.redb.importer import import_redb
from limpet_store.redb.testing import I64, STR, RedbMaker

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "tests" / "data" / "redb"
SHARED = Path(os.environ.get("LIMPET_REDB_DATA") or ROOT.parent / "shared" / "data" / "redb")
NAMES = ("v2-crashed", "v2-small", "v3-by-2.6", "v3-crashed", "v3-small", "v2-medium", "v3-nul")
S = "agent:main:telegram:direct:u1"
NOW = 1_780_000_000


def unpack(name: str) -> bytes:
    for folder in (CHECKED_IN, SHARED):
        path = folder / f"{name}.xz"
        if path.exists():
            return lzma.decompress(path.read_bytes())
    pytest.skip(f"{name}.xz is not checked in, and {SHARED} (LIMPET_REDB_DATA) does not have it either")


def text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def message(content: str) -> str:
    return text({"role": "user", "content": content})


def meta(key: str = S, *, count: int = 0, generation: int = 1, **fields: Any) -> str:
    row = {
        "session_key": key,
        "message_count": count,
        "last_active": NOW,
        "created_at": NOW - 9,
        "generation": generation,
    }
    return text(row | fields)


def made(tables: Mapping[str, Mapping[str, str | bytes | int]]) -> bytes:
    maker = RedbMaker()
    for name, rows in tables.items():
        value_type = I64 if name == "idem_keys" else STR
        maker.add_table(name, [(key, rows[key]) for key in sorted(rows)], STR, value_type)
    return maker.file()


def imported(data: bytes, store: Store | None, *, dry_run: bool = False) -> RedbImport:
    with RedbFile(BytesSource(data)) as file:
        report = import_redb(file, store, dry_run=dry_run)
    assert report.adds_up, list(report.lines())
    return report


def account(report: RedbImport, name: str) -> TableAccount:
    return next(table for table in report.tables if table.name == name)


def contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [found["content"] for found in messages]


def everything(store: Store) -> list[tuple[str, str, object]]:
    """The store in the form of the JSON lines of the reference."""
    rows: list[tuple[str, str, object]] = []
    with store.read() as tx:
        for key, session in tx.sessions.items():
            rows.append(("session_meta", key, json.loads(session.to_json())))
            rows += [("messages", f"{key}:{seq:016}", found) for seq, found in enumerate(tx.messages.load(key))]
            rows += [
                ("messages", f"archive:{key}:gen{row.generation}:{row.seq:016}", row.message)
                for row in tx.archive.load(key)
            ]
        rows += [("kv", key, value) for key, value in tx.kv.items()]
        rows += [("session_aliases", key, value) for key, value in tx.aliases.all().items()]
        rows += [("task_queue", task.id, json.loads(task.to_json())) for task in tx.tasks.list()]
        rows += [("cron_jobs", key, value) for key, value in tx.cron.items()]
        rows += [("computer_permissions", f"{agent}\0{app}", value) for (agent, app), value in tx.permissions.items()]
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_the_reference_arrives(name: str, tmp_path: Path) -> None:
    data = unpack(f"{name}.redb")
    lines = [json.loads(line) for line in unpack(f"{name}.jsonl").decode().split("\n") if line]
    path = tmp_path / "data.limpet"
    with RedbFile(BytesSource(data)) as file:
        report = create(file, path, lambda part: Store.open(part, durability="os"))
    assert report.adds_up
    assert not report.notes
    assert report.changed == len(lines)
    assert {table.name: table.read for table in report.tables} == dict(Counter(table for table, _, _ in lines))

    expected: dict[tuple[str, str], object] = {}
    for table, key, value in lines:
        if table == "messages":
            key = key.replace("\0", ":")
        if table in ("session_meta", "messages", "task_queue"):
            value = json.loads(value)
        if table == "session_meta":  # rows of the older release have no titles
            value = {"title": None, "title_source": None, "pinned": False, "archived": False, "peer_name": None} | value
        expected[table, key] = value
    with Store.open(path) as store:
        found = {(table, key): value for table, key, value in everything(store)}
        others = ("pairing", "external_jobs", "idem_keys")
        assert found == {key: value for key, value in expected.items() if key[0] not in others}
        for (table, key), value in expected.items():
            if table == "pairing":
                state = store.pairing.get(*key.split(":", 1))
                assert state is not None
                assert state.to_json() == value
            elif table == "external_jobs":
                job = store.jobs.get(key)
                assert job is not None
                row = json.loads(job.to_json())
                assert {"account": None} | row["delivery"] == {"account": None} | json.loads(str(value))["delivery"]
                assert row | {"delivery": None} == json.loads(str(value)) | {"delivery": None}
            elif table == "idem_keys":
                assert store.idempotency.is_delivered(key)
        assert len(found) + sum(key[0] in others for key in expected) == len(lines)


def test_importing_again_changes_nothing_and_a_dry_run_says_so(store: Store) -> None:
    data = unpack("v2-small.redb")
    before = imported(data, store, dry_run=True)
    assert store.sessions.list() == []
    first = imported(data, store)
    assert first.changed == before.changed == imported(data, None).changed == 333
    with store.read() as tx:
        txid = tx.txid
    again = imported(data, store)
    dry = imported(data, store, dry_run=True)
    with store.read() as tx:
        assert tx.txid == txid
    for report in (again, dry):
        assert report.changed == 0
        assert {reason for table in report.tables for reason in table.skipped} == {THERE}


def test_the_account_is_told(store: Store) -> None:
    report = imported(unpack("v3-small.redb"), store)
    told = "\n".join(report.lines())
    assert "messages" in told
    assert "349 rows read, 349 added; the account adds up" in told
    assert "would be added" in "\n".join(imported(unpack("v3-small.redb"), store, dry_run=True).lines())


# ---------------------------------------------------------------------------------------------- keys and dialects


def test_sessions_whose_keys_begin_alike_stay_apart(store: Store) -> None:
    group, topic = "agent:a:c:group:G", "agent:a:c:group:G:topic:5"
    rows = {
        f"{group}:{0:016}": message("group"),
        f"{topic}:{0:016}": message("topic"),
        f"archive:{0:016}": message("own"),
    }
    rows |= {f"archive:{topic}:gen1:{0:016}": message("topic")}
    report = imported(
        made({"session_meta": {key: meta(key) for key in (group, topic, "archive")}, "messages": rows}), store
    )
    assert {key: contents(store.messages.load(key)) for key in (group, topic, "archive")} == {
        group: ["group"],
        topic: ["topic"],
        "archive": ["own"],
    }
    assert [row.message["content"] for row in store.archive.load(group)] == ["group"]  # the import archives it
    assert store.archive.stat(topic).total_messages == 1
    assert not [note for note in report.notes if "taken as" in note]


def test_an_archive_of_both_dialects_is_one_conversation_where_the_numbers_go_on(store: Store) -> None:
    rows = {f"archive:{S}:gen2:{seq:016}": message(f"old {seq}") for seq in range(3)}
    rows |= {f"archive\0{S}\0gen2\0{seq:016}": message(f"new {seq}") for seq in range(3, 5)}
    rows |= {f"{S}:{2:016}": message("old 2"), f"{S}\0{3:016}": message("new 3"), f"{S}\0{4:016}": message("new 4")}
    report = imported(made({"session_meta": {S: meta(count=5, generation=2)}, "messages": rows}), store)
    assert contents(store.messages.load(S)) == ["old 2", "new 3", "new 4"]
    assert [(row.generation, row.seq) for row in store.archive.load(S)] == [(2, seq) for seq in range(5)]
    assert not [note for note in report.notes if "generation" in note]


def test_numbers_used_twice_for_different_messages_become_two_generations(store: Store) -> None:
    # The older release deleted a session and with it the counter of its generations; then the newer one began at
    # generation 1 again, in the other dialect: two conversations under one number.
    rows = {f"archive:{S}:gen{gen}:{seq:016}": message(f"first {gen} {seq}") for gen in (1, 2) for seq in range(3)}
    rows |= {f"archive\0{S}\0gen1\0{seq:016}": message(f"second {seq}") for seq in range(2)}
    data = made({"session_meta": {S: meta(count=2, generation=1)}, "messages": rows})
    report = imported(data, store)
    assert contents([row.message for row in store.archive.load(S, 1)]) == ["second 0", "second 1"]
    assert contents([row.message for row in store.archive.load(S, 2)]) == ["first 2 0", "first 2 1", "first 2 2"]
    assert contents([row.message for row in store.archive.load(S, 3)]) == ["first 1 0", "first 1 1", "first 1 2"]
    assert any("used twice" in note for note in report.notes)
    assert any("goes on in generation 4" in note for note in report.notes)
    assert imported(data, store).changed == 0


def test_the_same_message_in_both_dialects_is_one_message(store: Store) -> None:
    # The newer release fills archives in with numbers that are not padded.
    rows = {f"archive\0{S}\0gen1\0{seq}": message(f"m {seq}") for seq in range(3)}
    rows |= {f"archive\0{S}\0gen1\0{seq:016}": message(f"m {seq}") for seq in range(1, 4)}
    rows |= {f"{S}:{0:016}": message("a"), f"{S}\0{0:016}": message("a")}
    data = made({"session_meta": {S: meta(count=4)}, "messages": rows})
    report = imported(data, store)
    assert contents([row.message for row in store.archive.load(S, 1)]) == ["m 0", "m 1", "m 2", "m 3"]
    assert account(report, "messages").skipped == {TWICE: 3}
    assert imported(data, store).changed == 0


def test_two_different_active_messages_under_one_number_are_both_kept(store: Store) -> None:
    rows = {f"{S}:{0:016}": message("old"), f"{S}\0{0:016}": message("new")}
    data = made({"session_meta": {S: meta(count=1)}, "messages": rows})
    report = imported(data, store)
    assert contents(store.messages.load(S)) == ["new"]
    assert account(report, "messages").quarantined == 1
    assert any("set aside" in note and "number 0" in note for note in report.notes)
    again = imported(data, store)
    assert again.changed == 0
    assert account(again, "messages").skipped == {THERE: 1, QUARANTINED: 1}


def test_what_can_be_read_in_two_ways_is_in_the_notes(store: Store) -> None:
    sessions = {key: meta(key) for key in ("x", "archive:x:gen1", S)}
    data = made(
        {
            "session_meta": sessions,
            "messages": {f"archive:x:gen1:{0:016}": message("?")},
            "pairing": {"telegram:u:1": '"Approved"', "matrix:@u:server": '"Approved"', "nobody": '"Approved"'},
            "computer_permissions": {"main\0a\0b": "{}", "other\0a\0b": "{}", "alone": "{}"},
        }
    )
    report = imported(data, store)
    assert [note.split("[")[0] for note in report.notes if "taken as" in note] == [
        "messages",
        "pairing",
        "computer_permissions",
    ]
    assert store.archive.stat("x").total_messages == 1
    assert store.pairing.approved("matrix") == ["@u:server"]
    assert store.pairing.approved("telegram") == ["u:1"]
    assert store.permissions.get("main", "a\0b") == "{}"
    assert account(report, "pairing").quarantined == account(report, "computer_permissions").quarantined == 1


# ---------------------------------------------------------------------------------------------- numbers


def test_no_generation_is_used_again(store: Store) -> None:
    rows = {f"archive:{key}:gen{gen}:{0:016}": message("old") for key in (S, "deleted", "reset") for gen in (1, 2, 10)}
    sessions = {S: meta(count=1, generation=10), "reset": meta("reset", count=1, generation=1)}
    report = imported(made({"session_meta": sessions, "messages": rows}), store)
    # A session as it should be goes on where it was.
    assert store.messages.append(S, {"role": "user", "content": "new"}) == 1
    assert [(row.generation, row.seq) for row in store.archive.load(S)] == [(1, 0), (2, 0), (10, 0), (10, 1)]
    assert store.sessions.new_generation(S) == 11
    # A deleted one begins after its archive, one whose counter was lost goes on after it.
    for key in ("deleted", "reset"):
        store.messages.append(key, {"role": "user", "content": "new"})
        assert store.archive.tail(key, 1)[0].generation == 11
        assert store.archive.stat(key).total_messages == 4
    assert [note for note in report.notes if "goes on in generation" in note] == [
        "session 'reset' goes on in generation 11: its row says 1, but its archive has generations up to 10"
    ]


def test_a_counter_that_lags_behind_does_not_overwrite_anything(store: Store) -> None:
    rows = {f"{S}:{seq:016}": message(f"m {seq}") for seq in range(5)}
    rows |= {f"archive:{S}:gen1:{seq:016}": message(f"m {seq}") for seq in range(7)}
    imported(made({"session_meta": {S: meta(count=2)}, "messages": rows}), store)
    assert store.messages.append(S, {"role": "user", "content": "new"}) == 7
    assert store.archive.stat(S).total_messages == 8


def test_tasks_come_in_the_order_of_their_creation(store: Store, make_task: Callable[..., Any]) -> None:
    tasks = [make_task(f"t{n}", id=f"{9 - n:04}", created_at=NOW + n // 2, updated_at=NOW) for n in range(8)]
    store.tasks.enqueue(make_task("first", created_at=NOW, updated_at=NOW))
    data = made({"task_queue": {task.id: task.to_json() for task in tasks}})
    assert imported(data, store).changed == 8
    order = []
    while (task := store.tasks.dequeue()) is not None:
        order.append(task.messages[0].text)
    assert order == ["first", "t1", "t0", "t3", "t2", "t5", "t4", "t7", "t6"]  # within a second by id, as they came


def mixture(source: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """Sessions and message rows whose keys get in each other's way as much as they can."""
    names = ["s", "s:5", "s:topic:5", "archive", "archive:s", "archive:s:gen1", "s\0x", "s:gen1", "gen1"]
    sessions = {
        key: meta(key, count=source.randrange(9), generation=source.randrange(1, 5))
        for key in source.sample(names, source.randrange(len(names)))
    }
    rows: dict[str, str] = {}
    for number in range(250):
        session, glue = source.choice(names), source.choice((":", "\0"))
        seq = source.choice(("{:016}", "{:016}", "{}")).format(source.randrange(6))
        key = f"{session}{glue}{seq}"
        if source.random() < 0.7:
            key = f"archive{glue}{session}{glue}gen{source.randrange(1, 4)}{glue}{seq}"
        # Some messages are equal to those under the same number in the other dialect, the others are the only ones.
        rows[key] = message(f"{session} {int(seq)}" if source.random() < 0.3 else str(number))
    return sessions, rows


def test_whatever_the_mixture_no_message_is_lost(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(8):
        sessions, rows = mixture(source)
        data = made({"session_meta": sessions, "messages": rows})
        with Store.open(":memory:") as store:
            imported(data, store)
            assert imported(data, store).changed == 0
            kept: set[str] = set()
            with store.reading() as work:
                keys = {key[0] for table in (schema.MESSAGES, schema.ARCHIVE) for key in work.view(table.table)}
                kept.update(json.loads(entry["text"])["content"] for _, entry in work.scan(schema.QUARANTINE))
            for key in keys:
                kept.update(contents(store.messages.load(key)))
                kept.update(contents([row.message for row in store.archive.load(key)]))
            assert {json.loads(value)["content"] for value in rows.values()} <= kept
            assert store.check().ok
            for key in keys | sessions.keys():
                used = store.archive.stat(key).generations
                assert store.sessions.new_generation(key) > max(used, default=0)


# ---------------------------------------------------------------------------------------------- rows that do not fit


def test_rows_that_do_not_decode_go_to_quarantine_and_the_rest_goes_on(store: Store) -> None:
    data = made(
        {
            "session_meta": {S: meta(), "bad": "{}", "other key": meta(S)},
            "messages": {
                f"{S}:{0:016}": message("good"),
                f"{S}:{1:016}": "[1]",
                f"{S}:{2:016}": b"\xff",
                "no number": message("x"),
                f"archive:{S}:gen1:{0:016}": "not JSON",
            },
            "pairing": {"telegram:u": '"Perhaps"'},
            "task_queue": {"t": "{}"},
            "external_jobs": {"j": "null"},
            "cron_jobs": {"c": b"\xff\xfe"},
            "kv": {"k": "anything goes"},
        }
    )
    report = imported(data, store)
    assert report.quarantined == 10
    assert report.changed == 13
    assert store.messages.load(S) == [{"role": "user", "content": "good"}]
    check = store.check()
    assert check.ok
    assert "10 rows are in quarantine" in check.warnings[0]
    assert any("redb:task_queue['t']" in warning for warning in check.warnings)
    again = imported(data, store)
    assert again.changed == 0
    assert sum(table.skipped[QUARANTINED] for table in again.tables) == 10


def test_numbers_that_leave_none_for_what_follows_are_set_aside(store: Store) -> None:
    """A dry run counted such a session as written, and a message with the largest number was: nothing could be appended
    to its session any more."""
    data = made(
        {
            "session_meta": {
                "counts": meta("counts", count=2**63 - 1),
                "generations": meta("generations", generation=2**63 - 1),
                S: meta(S),
            },
            "messages": {f"{S}:{2**63 - 1}": message("far"), f"{S}:{0:016}": message("near")},
        }
    )
    dry = imported(data, None)
    report = imported(data, store)
    assert report.to_dict()["tables"] == dry.to_dict()["tables"]
    assert (account(report, "session_meta").quarantined, account(report, "messages").quarantined) == (2, 1)
    for key in (S, "counts", "generations"):
        store.messages.append(key, {"content": "and"})
        store.messages.append(key, {"content": "on"})
        store.sessions.new_generation(key)
    assert store.messages.append(S, {}) == 0


def test_a_key_too_long_for_the_store_leaves_no_half_of_a_row(store: Store) -> None:
    long = {f"{'k' * size}{size}": "v" for size in range(280, 1400, 7)}
    sessions = {key: meta(key) for key in long}
    messages = {f"{key}:{0:016}": message("m") for key in long}
    report = imported(made({"kv": long, "session_meta": sessions, "messages": messages}), store)
    assert 0 < account(report, "kv").quarantined < len(long)
    assert 0 < account(report, "session_meta").quarantined < len(long)
    assert store.check().ok


def test_unknown_fields_are_kept(store: Store) -> None:
    imported(made({"session_meta": {S: meta(colour="blue")}}), store)
    session = store.sessions.get(S)
    assert session is not None
    assert session.extra == {"colour": "blue"}


def test_other_tables_are_mentioned_and_other_types_refused(store: Store) -> None:
    report = imported(made({"something": {"a": "b"}}), store)
    assert account(report, "something").skipped == {UNKNOWN_TABLE: 1}
    maker = RedbMaker()
    maker.add_table("kv", [(1, 2)], I64, I64)
    with pytest.raises(FormatError, match="'kv' is a table of i64 -> i64"):
        imported(maker.file(), store)


def test_a_damaged_file_adds_nothing(store: Store) -> None:
    data = bytearray(
        made({"session_meta": {S: meta()}, "messages": {f"{S}:{n:016}": message("x" * 900) for n in range(50)}})
    )
    at = data.rindex(message("x" * 900).encode())
    data[at + 50] ^= 1
    with pytest.raises(CorruptError, match="messages"):
        imported(bytes(data), store)
    assert store.messages.load(S) == []
    assert store.sessions.list() == []


def test_rows_nested_beyond_reason_are_set_aside(store: Store) -> None:
    depths = range(100, 1500, 37)
    rows = {f"{S}:{depth:016}": '{"a":' + "[" * depth + "]" * depth + "}" for depth in depths}
    rows |= {f"{S}:{seq:016}": message("fine") for seq in range(3)}
    tasks = {"t": "[" * 990 + "]" * 990}
    report = imported(made({"messages": rows, "task_queue": tasks}), store)
    assert 0 < account(report, "messages").quarantined < len(depths)
    assert store.messages.count(S) == 3 + len(depths) - account(report, "messages").quarantined


# ---------------------------------------------------------------------------------------------- a store with a life


def test_the_rows_of_the_store_stay(store: Store) -> None:
    data = made(
        {
            "session_meta": {S: meta(count=2)},
            "messages": {
                **{f"{S}:{seq:016}": message(f"m {seq}") for seq in range(2)},
                **{f"archive:{S}:gen1:{seq:016}": message(f"m {seq}") for seq in range(2)},
            },
            "kv": {"a": "file", "b": "file"},
        }
    )
    store.kv.set("a", "store")
    assert account(imported(data, store), "kv").skipped == {OTHER: 1}
    assert (store.kv.get("a"), store.kv.get("b")) == ("store", "file")
    store.sessions.new_generation(S)
    store.messages.append(S, {"role": "user", "content": "newer"})
    again = imported(data, store)
    assert again.changed == 0
    assert account(again, "session_meta").skipped == {GONE_ON: 1}
    assert account(again, "messages").skipped == {THERE: 2, OTHER_MESSAGE: 1, GONE_ON: 1}
    assert contents(store.messages.load(S)) == ["newer"]


# ---------------------------------------------------------------------------------------------- a new file, or none


def opener(part: str) -> Store:
    return Store.open(part, durability="os", tier=MemoryTier.LOW)


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.redb"
    path.write_bytes(unpack("v3-small.redb"))
    return path


def test_a_new_store_appears_once_and_never_over_something(old_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.limpet"
    (tmp_path / "data.limpet.import").write_bytes(b"what a crash has left")
    before = old_file.read_bytes()
    with RedbFile(old_file) as file:
        assert create(file, path, opener).changed == 349
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.limpet", "data.redb"]
        with pytest.raises(FileExistsError):
            create(file, path, opener)
    assert old_file.read_bytes() == before
    with Store.open(path) as store:
        assert len(store.sessions.list()) == 12


def test_a_damaged_file_leaves_no_new_store(old_file: Path, tmp_path: Path) -> None:
    data = bytearray(old_file.read_bytes())
    at = data.rindex(b'{"role":')
    data[at + 12] ^= 1
    old_file.write_bytes(data)
    with RedbFile(old_file) as file, pytest.raises(CorruptError):
        for _ in file.table("messages").items():
            pass
    with RedbFile(old_file) as file, pytest.raises(CorruptError):
        create(file, tmp_path / "data.limpet", opener)
    assert list(tmp_path.iterdir()) == [old_file]


CRASH = """
import os, sys
from limpet_store import Store
from limpet_store.redb import RedbFile
from limpet_store.redb.creation import create

def die(table, done, total):
    if table == sys.argv[3]:
        os._exit(9)

with RedbFile(sys.argv[1]) as file:
    create(file, sys.argv[2], Store.open, progress=die)
"""


@pytest.mark.parametrize("table", ["session_meta", "messages", "cron_jobs"])
def test_a_crash_in_the_middle_leaves_the_start_as_it_was(old_file: Path, tmp_path: Path, table: str) -> None:
    path = tmp_path / "data.limpet"
    before = old_file.read_bytes()
    crashed = subprocess.run([sys.executable, "-c", CRASH, old_file, path, table])
    assert crashed.returncode == 9
    assert not path.exists()
    assert old_file.read_bytes() == before
    with RedbFile(old_file) as file:
        assert create(file, path, opener).changed == 349
    assert not (tmp_path / "data.limpet.import").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_imports_at_once_do_not_meet(old_file: Path, tmp_path: Path) -> None:
    import fcntl

    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with RedbFile(old_file) as file, pytest.raises(LockedError, match="another process imports"):
            create(file, tmp_path / "data.limpet", opener, lock_timeout=0.1)
    finally:
        os.close(fd)


def test_progress_is_told(old_file: Path, store: Store) -> None:
    told: list[tuple[str, int, int]] = []
    with RedbFile(old_file) as file:
        import_redb(file, store, progress=lambda *step: told.append(step))
    assert told[-1][1:] == (349, 349)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# ---------------------------------------------------------------------------------------------- the first start


def test_the_first_start_takes_over_once_and_never_again(old_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.limpet"
    before = old_file.read_bytes()
    with Store.open(path, import_from=old_file, read_only=False) as store:
        assert len(store.sessions.list()) == 12
        store.kv.set("todo:agent:main:cli:direct:u0", "changed")
        assert store.sessions.delete("agent:main:cli:direct:u0")
    assert old_file.read_bytes() == before
    os.link(path, f"{path}.import")  # a crash at the last moment leaves the finished file with both names
    with Store.open(path, import_from=old_file) as store:
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.limpet", "data.redb"]
        assert store.kv.get("todo:agent:main:cli:direct:u0") == "changed"
        assert store.sessions.get("agent:main:cli:direct:u0") is None
    old_file.unlink()
    with Store.open(path, import_from=old_file) as store:
        assert len(store.sessions.list()) == 11


def test_a_first_start_without_an_old_file_is_an_empty_store(
    old_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path / "data.limpet", import_from=tmp_path / "none.redb") as store:
        assert store.sessions.list() == []
    assert "there is neither" in caplog.text
    with Store.open(tmp_path / "data.limpet", import_from=old_file) as store:
        assert store.sessions.list() == []
    with pytest.raises(ValueError, match="needs a file"):
        Store.open(":memory:", import_from=old_file)


@pytest.mark.skipif(sys.platform == "win32", reason="redb's lock is mandatory there")
def test_a_first_start_waits_for_the_old_gateway_and_fails_without_a_trace(old_file: Path, tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "data.limpet"
    with old_file.open("r+b") as gateway:
        fcntl.flock(gateway, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="open for writing"):
            Store.open(path, import_from=old_file, lock_timeout=0.2)
    assert list(tmp_path.iterdir()) == [old_file]
    with Store.open(path, import_from=old_file) as store:
        assert len(store.sessions.list()) == 12


def test_a_first_start_with_a_damaged_file_fails_without_a_trace(old_file: Path, tmp_path: Path) -> None:
    data = old_file.read_bytes()
    old_file.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    with pytest.raises(CorruptError, match="older than slot"):
        Store.open(tmp_path / "data.limpet", import_from=old_file)
    assert list(tmp_path.iterdir()) == [old_file]


def test_what_was_chosen_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = tmp_path / "data.redb"
    old.write_bytes(made({"session_meta": {S: "{}"}}))
    with Store.open(tmp_path / "data.limpet", import_from=old):
        pass
    assert any("set aside" in record.message and record.levelname == "WARNING" for record in caplog.records)


# ---------------------------------------------------------------------------------------------- time and memory

MEASURE = """
import sys, threading, time
from limpet_store.cli import main

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

before = peak = anonymous()

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
assert main(["import-redb", *sys.argv[1:]]) == 0
print(f"{time.process_time():.1f} {(peak - before) / 1024:.0f}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_of_60_mb_takes_less_than_a_minute_and_100_mib(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[str, str]]:
        for user in range(310):
            for seq in range(5):
                yield f"agent:main:cli:direct:u{user:05}:{seq:016}", message("x" * (seq * 900))
        for user in range(310):
            for gen in (1, 2, 3):
                for seq in range(18 if gen < 3 else 5):
                    yield f"archive:agent:main:cli:direct:u{user:05}:gen{gen}:{seq:016}", message("y" * (seq * 397))

    maker = RedbMaker()
    keys = [f"agent:main:cli:direct:u{user:05}" for user in range(310)]
    maker.add_table("session_meta", [(key, meta(key, count=5, generation=3)) for key in keys])
    maker.add_table("messages", rows())
    old = tmp_path / "data.redb"
    old.write_bytes(maker.file(flags=2))  # a crash: everything is verified before anything is read
    print(old.stat().st_size)
    assert old.stat().st_size > 60_000_000
    command = [sys.executable, "-c", MEASURE, str(old), str(tmp_path / "data.limpet")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, mebibytes = out.splitlines()[-1].split()
    print(out)
    assert float(seconds) < 60
    assert float(mebibytes) < 100
