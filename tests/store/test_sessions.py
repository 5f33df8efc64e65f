"""Conversations: their rows, and generation numbers that are never used twice."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from limpet_store import NotFoundError, SessionMeta, Store, TitleSource, schema

KEY = "agent:main:telegram:direct:u1"


def test_a_session_begins_with_its_first_message(store: Store, clock: Any) -> None:
    assert store.sessions.get(KEY) is None
    store.messages.append(KEY, {"role": "user"})
    created = clock.now
    clock.advance(5)
    store.messages.append(KEY, {"role": "assistant"})
    assert store.sessions.get(KEY) == SessionMeta(
        session_key=KEY, message_count=2, last_active=created + 5, created_at=created, generation=1
    )


def test_put_and_get(store: Store, clock: Any, commits: Callable[..., int]) -> None:
    meta = SessionMeta(session_key=KEY, title="x", title_source="auto", pinned=True, extra={"novel": [1]})  # type: ignore[arg-type]  # text is accepted
    assert commits(lambda: store.sessions.put(KEY, meta)) == 1
    stored = store.sessions.get(KEY)
    assert stored is not None
    assert stored.created_at == clock.now, "a time that was left out is the store's"
    assert stored.title_source is TitleSource.AUTO
    assert stored.extra == {"novel": [1]}
    assert commits(lambda: store.sessions.put(KEY, stored)) == 0


def test_put_refuses_another_sessions_row_and_numbers_out_of_range(store: Store) -> None:
    for wrong in (
        SessionMeta(session_key="other"),
        SessionMeta(session_key=KEY, generation=0),
        SessionMeta(session_key=KEY, message_count=-1),
        SessionMeta(session_key=KEY, message_count=2**63),
        SessionMeta(session_key=KEY, message_count=schema.NUMBER_MAX + 1),
        SessionMeta(session_key=KEY, generation=schema.NUMBER_MAX),
    ):
        with pytest.raises(ValueError):
            store.sessions.put(KEY, wrong)
    with pytest.raises(TypeError):
        store.sessions.put(KEY, {"session_key": KEY})  # type: ignore[arg-type]  # that is the point
    assert store.sessions.list() == []


def test_put_never_lowers_what_has_been_used(store: Store) -> None:
    store.messages.append_many(KEY, [{}, {}, {}])
    store.sessions.new_generation(KEY)
    store.messages.append_many(KEY, [{}, {}])
    store.sessions.put(KEY, SessionMeta(session_key=KEY, generation=1, message_count=99, title="old"))
    meta = store.sessions.get(KEY)
    assert meta is not None
    assert (meta.generation, meta.message_count, meta.title) == (2, 2, "old")
    store.sessions.put(KEY, SessionMeta(session_key=KEY, generation=2, message_count=0))
    assert store.messages.append(KEY, {}) == 2
    store.sessions.put(KEY, SessionMeta(session_key=KEY, generation=7, message_count=0))
    store.messages.append(KEY, {})
    assert store.archive.stat(KEY).generations == [1, 2, 7]


def test_put_after_delete_takes_a_fresh_generation(store: Store) -> None:
    meta = SessionMeta(session_key=KEY, generation=3)
    store.sessions.put(KEY, meta)
    assert store.sessions.delete(KEY)
    store.sessions.put(KEY, meta)
    again = store.sessions.get(KEY)
    assert again is not None
    assert again.generation == 4


def test_list_and_items_are_in_order_and_match_prefixes_as_text(store: Store) -> None:
    for key in ("b", "a:1", "a", "a:", "\u00e4", "a:2"):
        store.sessions.put(key, SessionMeta(session_key=key))
    assert store.sessions.list() == ["a", "a:", "a:1", "a:2", "b", "\u00e4"]
    assert [key for key, _ in store.sessions.items("a:")] == ["a:", "a:1", "a:2"]
    assert [meta.session_key for _, meta in store.sessions.items()] == store.sessions.list()
    assert store.sessions.items("zz") == []


def test_delete_removes_the_active_rows_and_keeps_the_archive(store: Store, commits: Callable[..., int]) -> None:
    store.messages.append(KEY, {"n": 0})
    assert store.sessions.delete(KEY) is True
    assert store.sessions.delete(KEY) is False
    assert store.messages.load(KEY) == []
    assert store.messages.count(KEY) == 0
    assert [row.message for row in store.archive.load(KEY)] == [{"n": 0}]
    assert commits(lambda: store.sessions.delete("never seen")) == 0


def test_new_generation_begins_at_zero_and_forgets_only_an_automatic_title(store: Store, clock: Any) -> None:
    for title, source in (("auto", TitleSource.AUTO), ("mine", TitleSource.USER)):
        store.messages.append_many(title, [{}, {}])
        meta = store.sessions.get(title)
        assert meta is not None
        changed = dataclasses.replace(meta, title=title, title_source=source, pinned=True, archived=True, peer_name="p")
        store.sessions.put(title, changed)
        clock.advance(3)
        assert store.sessions.new_generation(title) == 2
        kept = dict.fromkeys(("title", "title_source")) if source is TitleSource.AUTO else {}
        assert store.sessions.get(title) == dataclasses.replace(
            changed,
            generation=2,
            message_count=0,
            last_active=clock.now,
            **kept,  # type: ignore[arg-type]  # names of fields
        )
        assert store.messages.append(title, {}) == 0


def test_new_generation_of_an_unknown_session_creates_it(store: Store) -> None:
    assert store.sessions.new_generation(KEY) == 2
    assert store.sessions.new_generation(KEY) == 3
    assert store.sessions.list() == [KEY]


def test_patch_changes_what_was_given_and_nothing_else(store: Store, commits: Callable[..., int]) -> None:
    store.messages.append(KEY, {})
    meta = store.sessions.patch(KEY, title="mine", pinned=True)
    assert (meta.title, meta.title_source, meta.pinned, meta.archived) == ("mine", TitleSource.USER, True, False)
    assert store.sessions.get(KEY) == meta
    assert commits(lambda: store.sessions.patch(KEY, pinned=True)) == 0
    meta = store.sessions.patch(KEY, title=None, archived=True, peer_name="Ada")
    assert (meta.title, meta.title_source, meta.pinned, meta.archived, meta.peer_name) == (
        None,
        None,
        True,
        True,
        "Ada",
    )
    with pytest.raises(TypeError):
        store.sessions.patch(KEY, pinned="yes")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(NotFoundError) as caught:
        store.sessions.patch("nobody", pinned=True)
    assert (caught.value.family, caught.value.id) == ("sessions", "nobody")
