"""What the old store would have archived when it was next read is archived by the import.

The import took active rows over as active rows only. A session that the old store had never read since it learned to
archive was then not in the archive here either, and the next fresh start deleted its conversation for good.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from limpet_store import Store
from limpet_store.cli import main
from limpet_store.redb import BytesSource, RedbFile
from limpet_store.redb.account import BACKFILLED, GONE_ON, OTHER_MESSAGE, THERE, RedbImport, TableAccount
from limpet_store.redb.importer import import_redb
from limpet_store.redb.testing import RedbMaker

S = "agent:main:telegram:direct:u1"
NOW = 1_780_000_000


def meta(key: str = S, *, count: int, generation: int = 1) -> str:
    row = {
        "session_key": key,
        "message_count": count,
        "last_active": NOW,
        "created_at": NOW - 9,
        "generation": generation,
    }
    return json.dumps(row, separators=(",", ":"))


def message(content: str) -> str:
    return json.dumps({"role": "user", "content": content}, separators=(",", ":"))


def active(*seqs: int, key: str = S, glue: str = ":") -> dict[str, str]:
    return {f"{key}{glue}{seq:016}": message(f"m {seq}") for seq in seqs}


def archived(generation: int, *seqs: int, key: str = S, glue: str = ":") -> dict[str, str]:
    return {f"archive{glue}{key}{glue}gen{generation}{glue}{seq:016}": message(f"m {seq}") for seq in seqs}


def made(sessions: Mapping[str, str], messages: Mapping[str, str | bytes]) -> bytes:
    maker = RedbMaker()
    maker.add_table("session_meta", sorted(sessions.items()))
    maker.add_table("messages", [(key, messages[key]) for key in sorted(messages)])
    return maker.file()


def imported(data: bytes, store: Store | None, *, dry_run: bool = False) -> RedbImport:
    with RedbFile(BytesSource(data)) as file:
        report = import_redb(file, store, dry_run=dry_run)
    assert report.adds_up, list(report.lines())
    return report


def account(report: RedbImport) -> TableAccount:
    return next(table for table in report.tables if table.name == "messages")


def numbers(store: Store, key: str = S) -> list[tuple[int, int]]:
    rows = store.archive.load(key)
    assert all(row.message == {"role": "user", "content": f"m {row.seq}"} for row in rows)
    return [(row.generation, row.seq) for row in rows]


def txid(store: Store) -> int:
    with store.read() as tx:
        return tx.txid


def test_a_session_that_was_never_archived_is_archived_as_the_old_store_would_have(store: Store) -> None:
    """Generation 1 whatever the session's row says, under the numbers of the active rows: so did the old store."""
    data = made({S: meta(count=12, generation=3)}, active(2, 9, 10, 11))
    dry = imported(data, store, dry_run=True)
    report = imported(data, store)
    assert dict(account(report).backfill) == {BACKFILLED: 4} == dict(account(dry).backfill)
    assert (report.backfilled, report.changed) == (4, dry.changed) == (4, 9)
    assert report.complete
    assert numbers(store) == [(1, 2), (1, 9), (1, 10), (1, 11)]
    assert any("4 of these the old store had not archived: 4 archived by the import" in line for line in report.lines())
    # A fresh start forgets the active rows; that is why they have to be in the archive.
    assert store.messages.append(S, {"role": "user", "content": "m 12"}) == 12
    assert store.sessions.new_generation(S) == 4
    assert numbers(store) == [(1, 2), (1, 9), (1, 10), (1, 11), (3, 12)]


def test_importing_again_archives_nothing_again(store: Store) -> None:
    data = made({S: meta(count=3)}, active(0, 1, 2))
    imported(data, store)
    before = txid(store)
    for dry_run in (False, True):
        again = imported(data, store, dry_run=dry_run)
        assert (again.changed, again.complete) == (0, True)
        assert dict(account(again).backfill) == {THERE: 3}
    assert txid(store) == before
    assert numbers(store) == [(1, 0), (1, 1), (1, 2)]


def test_a_file_from_before_and_one_from_after_the_old_stores_own_backfill_give_the_same(store: Store) -> None:
    sessions = {S: meta(count=12, generation=2)}
    rows = active(0, 1, 10)
    imported(made(sessions, rows), store)
    found = numbers(store)
    loaded = {f"archive\0{S}\0gen1\0{seq}": message(f"m {seq}") for seq in (0, 1, 10)}  # not padded: so it wrote them
    report = imported(made(sessions, rows | loaded), store)
    assert (report.changed, report.complete, not account(report).backfill) == (0, True, True)
    assert numbers(store) == found == [(1, 0), (1, 1), (1, 10)]


def test_a_generation_that_is_not_archived_gets_archived_although_others_are(store: Store) -> None:
    earlier = {f"archive:{S}:gen{generation}:{0:016}": message("earlier") for generation in (1, 2)}
    rows = earlier | active(0, 1, 2)
    report = imported(made({S: meta(count=3, generation=3)}, rows), store)
    assert dict(account(report).backfill) == {BACKFILLED: 3}
    assert [(row.generation, row.seq, row.message["content"]) for row in store.archive.load(S)] == [
        (1, 0, "earlier"),
        (2, 0, "earlier"),
        (3, 0, "m 0"),
        (3, 1, "m 1"),
        (3, 2, "m 2"),
    ]


def test_a_session_whose_row_lags_behind_its_archive_is_archived_where_it_goes_on(store: Store) -> None:
    rows = archived(4, 0, 1) | active(0, 1, 2)
    imported(made({S: meta(count=3, generation=2)}, rows), store)
    assert numbers(store) == [(4, 0), (4, 1), (5, 0), (5, 1), (5, 2)]
    assert store.messages.append(S, {"role": "user", "content": "m 3"}) == 3
    assert numbers(store)[-1] == (5, 3)


def test_the_beginning_of_a_conversation_that_was_updated_in_its_middle_is_archived(store: Store) -> None:
    """The old store never archived it: it took the archive rows from after the update for all there had to be."""
    rows = active(0, 1, 2, 3, 4) | archived(1, 3, 4)
    report = imported(made({S: meta(count=5)}, rows), store)
    assert dict(account(report).backfill) == {BACKFILLED: 3}
    assert numbers(store) == [(1, seq) for seq in range(5)]


def test_what_a_compaction_left_stays_active_only(store: Store) -> None:
    rows = archived(1, *range(6)) | active(6, 7, 8)  # a summary, and the last two under new numbers
    report = imported(made({S: meta(count=9)}, rows), store)
    assert not account(report).backfill
    assert store.messages.count(S) == 3
    assert numbers(store) == [(1, seq) for seq in range(6)]


def test_the_archive_of_a_topic_does_not_stand_for_that_of_its_group(store: Store) -> None:
    group, topic = "agent:a:c:group:G", "agent:a:c:group:G:topic:5"
    rows = active(0, 1, key=group) | active(0, key=topic) | archived(1, 0, key=topic)
    imported(made({group: meta(group, count=2), topic: meta(topic, count=1)}, rows), store)
    assert (numbers(store, group), numbers(store, topic)) == ([(1, 0), (1, 1)], [(1, 0)])


def test_a_row_that_does_not_decode_is_set_aside_and_the_others_are_archived(store: Store) -> None:
    rows: dict[str, str | bytes] = {**active(0, 1, 3), f"{S}:{2:016}": "[1]", f"{S}:{4:016}": b"\xff"}
    report = imported(made({S: "{}"}, rows), store)  # the session's own row does not decode either
    assert (account(report).quarantined, dict(account(report).backfill)) == (2, {BACKFILLED: 3})
    assert numbers(store) == [(1, 0), (1, 1), (1, 3)]
    assert imported(made({S: "{}"}, rows), store).changed == 0


def test_a_key_too_long_for_the_store_leaves_no_half_of_a_row_and_no_count(store: Store) -> None:
    sessions = {f"{'k' * size}{size}": meta(f"{'k' * size}{size}", count=1) for size in range(900, 1030, 3)}
    rows = {f"{key}:{0:016}": message("m 0") for key in sessions}
    report = imported(made(sessions, rows), store)
    found = account(report)
    assert 0 < found.quarantined < len(rows)
    assert sum(found.backfill.values()) == found.written["messages"] == len(rows) - found.quarantined
    assert all(numbers(store, key) == [(1, 0)] for key in sessions if store.messages.count(key))


def test_rows_nested_beyond_reason_are_counted_once(store: Store) -> None:
    rows = {f"{S}:{depth:016}": '{"a":' + "[" * depth + "]" * depth + "}" for depth in range(100, 1500, 7)}
    report = imported(made({S: meta(count=1500)}, rows), store)
    found = account(report)
    assert 0 < found.quarantined < len(rows)
    assert found.written["messages"] == sum(found.backfill.values()) == len(rows) - found.quarantined


def test_what_the_store_has_deleted_since_comes_back_into_the_archive(store: Store) -> None:
    """An import of an earlier version archived nothing; a fresh start then deleted the conversation."""
    data = made({S: meta(count=2)}, active(0, 1))
    imported(data, store)
    store.archive.purge(S)  # as the earlier version left it
    assert store.sessions.new_generation(S) == 2
    report = imported(data, store)
    assert account(report).skipped == {GONE_ON: 2}
    assert (numbers(store), store.messages.count(S)) == ([(1, 0), (1, 1)], 0)
    assert store.check().ok


def test_another_conversation_in_the_stores_archive_is_not_written_over_and_told(store: Store) -> None:
    store.messages.append(S, {"role": "user", "content": "m 0"})
    store.messages.append(S, {"role": "user", "content": "another"})
    report = imported(made({S: meta(count=2)}, active(0, 1)), store)
    assert dict(account(report).backfill) == {THERE: 1, OTHER_MESSAGE: 1}
    assert not report.complete
    assert [row.message["content"] for row in store.archive.load(S)] == ["m 0", "another"]


def test_whatever_was_archived_no_active_row_from_before_the_archive_is_missing(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(30):
        sessions: dict[str, str] = {}
        rows: dict[str, str | bytes] = {}
        expected: dict[str, set[tuple[int, int]]] = {}
        for number in range(4):
            key, glue = f"s{number}", source.choice((":", "\0"))
            generation = source.randrange(1, 4)
            seqs = set(source.sample(range(12), source.randrange(1, 8)))
            before = {
                gen: set(source.sample(range(12), source.randrange(1, 6)))
                for gen in range(1, generation + 1)
                if source.random() < 0.5
            }
            sessions[key] = meta(key, count=12, generation=generation)
            rows |= active(*seqs, key=key, glue=glue)
            expected[key] = {(gen, seq) for gen, found in before.items() for seq in found}
            for gen, found in before.items():
                rows |= archived(gen, *found, key=key, glue=glue)
            if not before:
                expected[key] |= {(1, seq) for seq in seqs}
            else:
                first = min(before.get(generation, {12}))
                done = before.get(1, set())  # in generation 1 word for word, as the old store's own backfill has it
                expected[key] |= {(generation, seq) for seq in seqs - done if seq < first}
        with Store.open(":memory:") as store:
            imported(made(sessions, rows), store)
            assert {key: set(numbers(store, key)) for key in sessions} == expected, seed
            assert imported(made(sessions, rows), store).changed == 0
            assert store.check().ok


def test_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "data.redb", tmp_path / "data.limpet"
    old.write_bytes(made({S: meta(count=2)}, active(0, 1)))
    assert main(["import-redb", str(old), str(new), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["backfilled"], told["changed"], told["complete"]) == (2, 5, True)
    assert main(["import-redb", str(old), str(new)]) == 0
    assert "2 of these the old store had not archived: 2 in the store already" in capsys.readouterr().out
    with Store.open(new) as store:
        assert numbers(store) == [(1, 0), (1, 1)]
