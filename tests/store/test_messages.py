"""Active messages and the archive they leave behind."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from limpet import LimitError
from limpet_store import ArchiveRow, ArchiveStat, Store

KEY = "agent:main:telegram:direct:u1"


def say(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"message {number}"}


def test_append_numbers_from_zero_and_load_gives_them_back_in_order(store: Store) -> None:
    assert [store.messages.append(KEY, say(n)) for n in range(12)] == list(range(12))
    assert store.messages.load(KEY) == [say(n) for n in range(12)]
    assert store.messages.count(KEY) == 12


def test_the_order_of_a_messages_keys_is_kept(store: Store) -> None:
    store.messages.append(KEY, {"z": 1, "a": {"y": 1, "b": 2}})
    (message,) = store.messages.load(KEY)
    assert list(message) == ["z", "a"]
    assert list(message["a"]) == ["y", "b"]


def test_append_many_is_one_commit(store: Store, commits: Callable[..., int]) -> None:
    assert commits(lambda: store.messages.append_many(KEY, (say(n) for n in range(5)))) == 1
    assert store.messages.append_many(KEY, [say(5), say(6)]) == [5, 6]
    assert store.messages.load(KEY) == [say(n) for n in range(7)]
    assert commits(lambda: store.messages.append_many(KEY, [])) == 0


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"a": math.nan}, ValueError),
        ({"a": "\ud800"}, ValueError),
        ({"a": 2**64}, ValueError),
        ({1: "a"}, ValueError),
        ({"a": 1j}, ValueError),
        ([], TypeError),
        ("text", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_a_message_that_cannot_be_stored_changes_nothing(
    store: Store, commits: Callable[..., int], message: Any, error: type[Exception]
) -> None:
    def attempt() -> None:
        with pytest.raises(error):
            store.messages.append_many(KEY, [say(0), message])
        with pytest.raises(error):
            store.messages.append(KEY, message)
        with pytest.raises(error):
            store.messages.replace(KEY, [message])

    assert commits(attempt) == 0
    assert store.sessions.list() == []


def test_a_session_key_that_is_too_long_or_no_text_leaves_no_trace_in_a_larger_transaction(store: Store) -> None:
    with store.write() as tx:
        tx.messages.append(KEY, say(0))
        with pytest.raises(LimitError):
            tx.messages.append("k" * 1010, say(1))  # a key of its own, and with one number, but not with two
        with pytest.raises(TypeError):
            tx.messages.append(7, say(1))  # type: ignore[arg-type]  # that is the point
        with pytest.raises(ValueError):
            tx.messages.append("\ud800", say(1))
    assert store.sessions.list() == [KEY]


def test_load_recent_gives_the_last_ones_oldest_first(store: Store) -> None:
    store.messages.append_many(KEY, [say(n) for n in range(10)])
    store.messages.append(KEY + "0", say(99))
    assert store.messages.load_recent(KEY, 3) == [say(7), say(8), say(9)]
    assert store.messages.load_recent(KEY, 99) == [say(n) for n in range(10)]
    assert store.messages.load_recent(KEY, 0) == []
    assert store.messages.load_recent("nobody", 5) == []
    with pytest.raises(ValueError):
        store.messages.load_recent(KEY, -1)


def test_replace_changes_the_active_rows_only(store: Store, commits: Callable[..., int]) -> None:
    store.messages.append_many(KEY, [say(n) for n in range(4)])
    assert store.messages.replace(KEY, [{"summary": 1}, say(3)]) == [4, 5]
    assert store.messages.load(KEY) == [{"summary": 1}, say(3)]
    assert store.messages.count(KEY) == 2
    assert [row.message for row in store.archive.load(KEY)] == [say(n) for n in range(4)]
    assert store.messages.append(KEY, say(4)) == 6
    assert [row.seq for row in store.archive.load(KEY)] == [0, 1, 2, 3, 6]
    assert commits(lambda: store.messages.replace(KEY, store.messages.load(KEY))) == 0
    assert store.messages.replace(KEY, []) == []
    assert store.messages.load(KEY) == []
    assert store.messages.append(KEY, say(5)) == 7
    assert commits(lambda: store.messages.replace("nobody", [])) == 0


def test_a_message_of_a_megabyte_comes_back(store: Store) -> None:
    large = {"content": "\u4e16" * 400_000}
    store.messages.append(KEY, large)
    assert store.messages.load(KEY) == [large]
    assert store.archive.tail(KEY, 1)[0].message == large


@pytest.fixture
def archived(store: Store) -> Store:
    """Twelve generations, so that 10 comes after 2; generation g has the messages 10g to 10g + 2."""
    for generation in range(1, 13):
        store.messages.append_many(KEY, [say(10 * generation + n) for n in range(3)])
        if generation < 12:
            store.sessions.new_generation(KEY)
    store.messages.append(KEY + ":topic:1", say(0))
    return store


def test_the_archive_is_in_chronological_order(archived: Store) -> None:
    rows = archived.archive.load(KEY)
    assert rows == [ArchiveRow(n, g, say(10 * g + n)) for g in range(1, 13) for n in range(3)]
    assert archived.archive.load(KEY, generation=10) == rows[27:30]
    assert archived.archive.load(KEY, generation=99) == []
    assert archived.archive.head(KEY, 4) == rows[:4]
    assert archived.archive.tail(KEY, 4) == rows[-4:]
    assert archived.archive.tail(KEY, 99) == rows
    assert archived.archive.tail(KEY, 0) == []
    seq, generation, message = rows[0]
    assert (seq, generation, message) == (0, 1, say(10))


def test_stat_counts_without_reading(archived: Store) -> None:
    assert archived.archive.stat(KEY) == ArchiveStat(36, 0, 2, list(range(1, 13)))
    assert archived.archive.stat("nobody") == ArchiveStat(0, None, None, [])


def test_slice_is_inclusive_and_covers_every_generation(archived: Store) -> None:
    assert [(row.generation, row.seq) for row in archived.archive.slice(KEY, 1, 2)][:3] == [(1, 1), (1, 2), (2, 1)]
    assert archived.archive.slice(KEY, 1, 1, generation=11) == [ArchiveRow(1, 11, say(111))]
    assert len(archived.archive.slice(KEY, -5, 2**70)) == 36
    assert archived.archive.slice(KEY, 2, 1) == []


def test_purge_before_a_generation_keeps_the_rest(archived: Store, commits: Callable[..., int]) -> None:
    assert archived.archive.purge(KEY, before_generation=11) == 30
    assert archived.archive.stat(KEY) == ArchiveStat(6, 0, 2, [11, 12])
    assert archived.messages.load(KEY) == [say(120), say(121), say(122)]
    assert commits(lambda: archived.archive.purge(KEY, before_generation=11)) == 0


def test_purge_removes_everything_and_the_numbers_stay_used(archived: Store) -> None:
    assert archived.archive.purge(KEY) == 36
    assert archived.archive.stat(KEY) == ArchiveStat(0, None, None, [])
    assert archived.archive.load(KEY + ":topic:1")
    assert archived.messages.append(KEY, say(123)) == 3
    assert archived.archive.stat(KEY) == ArchiveStat(1, 3, 3, [12])
    archived.sessions.delete(KEY)
    archived.archive.purge(KEY)
    archived.messages.append(KEY, say(0))
    assert archived.archive.stat(KEY).generations == [13]


def test_a_lost_session_row_loses_neither_messages_nor_numbers(
    store: Store, overwrite: Callable[[str, Any, bytes], None]
) -> None:
    store.messages.append_many(KEY, [say(0), say(1)])
    overwrite("sessions", KEY, b"{garbage")
    assert store.messages.append(KEY, say(2)) == 2
    assert store.messages.load(KEY) == [say(0), say(1), say(2)]
    assert [(row.generation, row.seq) for row in store.archive.load(KEY)] == [(1, 0), (1, 1), (2, 2)]
    meta = store.sessions.get(KEY)
    assert meta is not None
    assert meta.generation == 2
    assert any("quarantine" in warning for warning in store.check().warnings)
