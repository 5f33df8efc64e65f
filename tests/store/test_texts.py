"""The small families: kv, aliases, permissions, cron, pairing, idempotency."""

from collections.abc import Callable
from typing import Any

import pytest

from limpet_store import Approved, NotFoundError, Pending, Store

Commits = Callable[..., int]


def test_kv(store: Store, commits: Commits) -> None:
    assert store.kv.get("todo:a") is None
    store.kv.set("todo:a", "[]")
    store.kv.set("todo:b", "caf\u00e9 \U0001f980")
    store.kv.set("other", "")
    assert store.kv.get("todo:b") == "caf\u00e9 \U0001f980"
    assert store.kv.items("todo:") == [("todo:a", "[]"), ("todo:b", "caf\u00e9 \U0001f980")]
    assert store.kv.items() == [("other", ""), *store.kv.items("todo:")]
    assert commits(lambda: store.kv.set("other", "")) == 0
    assert store.kv.delete("other") is True
    assert store.kv.delete("other") is False


@pytest.mark.parametrize(
    ("value", "error"), [(b"x", TypeError), (None, TypeError), (1, TypeError), ("\ud800", ValueError)]
)
def test_opaque_text_is_text(store: Store, commits: Commits, value: Any, error: type[Exception]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.kv.set("k", value),
        lambda: store.aliases.put("a", value),
        lambda: store.aliases.put_many({"a": "b", "c": value}),
        lambda: store.permissions.put("agent", "app", value),
        lambda: store.cron.put("id", value),
        lambda: store.cron.replace_all({"x": "y", "id": value}),
    ]

    def attempt() -> None:
        for call in calls:
            with pytest.raises(error):
                call()

    assert commits(attempt) == 0


def test_aliases(store: Store, commits: Commits) -> None:
    assert store.aliases.resolve("old") is None
    store.aliases.put("old", "new")
    assert commits(lambda: store.aliases.put_many({"a": "1", "b": "2", "old": "new"})) == 1
    assert commits(lambda: store.aliases.put_many({"a": "1", "b": "2"})) == 0
    assert store.aliases.resolve("old") == "new"
    assert store.aliases.all() == {"a": "1", "b": "2", "old": "new"}


def test_permissions_of_agents_whose_names_run_into_each_other(store: Store, commits: Commits) -> None:
    store.permissions.put("a\0b", "c", "1")
    store.permissions.put("a", "b\0c", "2")
    store.permissions.put("a", "", "3")
    assert store.permissions.items() == [(("a", ""), "3"), (("a", "b\0c"), "2"), (("a\0b", "c"), "1")]
    assert store.permissions.get("a\0b", "c") == "1"
    assert store.permissions.get("a", "c") is None
    assert commits(lambda: store.permissions.put("a", "", "3")) == 0
    assert store.permissions.delete("a", "") is True
    assert store.permissions.delete("a", "") is False


def test_pairing(store: Store, commits: Commits) -> None:
    store.pairing.put("telegram", "u2", Approved())
    store.pairing.put("telegram", "u1", Approved())
    store.pairing.put("telegram", "u3", Pending("ABCD-2345", 1_780_003_600))
    store.pairing.put("telegram:x", "u4", Approved())
    assert store.pairing.approved("telegram") == ["u1", "u2"]
    assert store.pairing.get("telegram", "u3") == Pending("ABCD-2345", 1_780_003_600)
    assert store.pairing.get("telegram", "u9") is None
    assert commits(lambda: store.pairing.put("telegram", "u1", Approved())) == 0
    assert store.pairing.delete("telegram", "u1") is True
    assert store.pairing.delete("telegram", "u1") is False
    with pytest.raises(TypeError):
        store.pairing.put("telegram", "u1", "Approved")  # type: ignore[arg-type]  # that is the point


def test_idempotency(store: Store, clock: Any, commits: Commits) -> None:
    store.idempotency.mark_delivered("a")
    assert store.idempotency.is_delivered("a")
    assert not store.idempotency.is_delivered("b")
    assert commits(lambda: store.idempotency.mark_delivered("a")) == 0
    clock.advance(50)
    store.idempotency.mark_delivered("b")
    clock.advance(50)
    store.idempotency.mark_delivered("a")
    assert commits(lambda: store.idempotency.cleanup(50)) == 0
    assert store.idempotency.cleanup(49) == 1
    assert store.idempotency.is_delivered("a")
    assert not store.idempotency.is_delivered("b")


def test_cron(store: Store, commits: Commits) -> None:
    store.cron.put("b", '{"every":60}')
    store.cron.put("a", "not even JSON")
    assert store.cron.get("a") == "not even JSON"
    assert store.cron.get("z") is None
    assert store.cron.items() == [("a", "not even JSON"), ("b", '{"every":60}')]
    assert commits(lambda: store.cron.put("a", "not even JSON")) == 0
    assert store.cron.delete("a") is True
    assert store.cron.delete("a") is False


def test_cron_replace_all_takes_a_mapping_or_pairs_and_writes_only_what_changed(store: Store, commits: Commits) -> None:
    store.cron.replace_all({"a": "1", "b": "2"})
    assert commits(lambda: store.cron.replace_all([("b", "2"), ("a", "1")])) == 0
    assert commits(lambda: store.cron.replace_all([("b", "3"), ("c", "4")])) == 1
    assert store.cron.items() == [("b", "3"), ("c", "4")]
    store.cron.replace_all({})
    assert store.cron.items() == []


def test_cron_update_changes_a_job_that_exists(store: Store, commits: Commits) -> None:
    store.cron.put("a", "1")
    assert store.cron.update("a", lambda text: text + "!") == "1!"
    assert store.cron.get("a") == "1!"
    assert commits(lambda: store.cron.update("a", lambda text: text)) == 0
    with pytest.raises(NotFoundError) as caught:
        store.cron.update("b", str.upper)
    assert (caught.value.family, caught.value.id) == ("cron", "b")
    with pytest.raises(ZeroDivisionError):
        store.cron.update("a", lambda _: str(1 / 0))
    with pytest.raises(TypeError):
        store.cron.update("a", lambda _: None)  # type: ignore[arg-type, return-value]  # that is the point
