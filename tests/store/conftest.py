"""What the store's tests share: a store on a clock that stands still, records to put in, and a check afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from limpet_store import (
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    MemoryTier,
    QueuedMessage,
    QueuedTask,
    Store,
)

START = 1_780_000_000


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now + 0.25  # clocks give fractions, rows have none

    def advance(self, seconds: int) -> int:
        self.now += seconds
        return self.now


class Commits(Protocol):
    """How many commits a call makes."""

    def __call__(self, call: Callable[[], object]) -> int: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def expect_damage() -> list[str]:
    """A test that damages its store says here, word by word, what the check afterwards must complain about."""
    return []


@pytest.fixture
def store(db_path: Path, clock: Clock, expect_damage: list[str]) -> Iterator[Store]:
    """A store on disk; verified when the test is over."""
    # No test here is about power loss, and a sync takes longer than the rest of a test.
    with Store.open(db_path, tier=MemoryTier.LOW, durability="os", clock=clock) as opened:
        yield opened
        report = opened.check()
        unexpected = [error for error in report.errors if not any(word in error for word in expect_damage)]
        assert not unexpected, unexpected


@pytest.fixture
def commits(store: Store) -> Commits:
    """Counts the commits of a call."""

    def count(call: Callable[[], object]) -> int:
        before = newest(store)
        call()
        return newest(store) - before

    return count


def newest(store: Store) -> int:
    with store.read() as tx:
        return tx.txid


@pytest.fixture
def make_message() -> Callable[..., QueuedMessage]:
    def make(text: str = "hello", **fields: Any) -> QueuedMessage:
        return QueuedMessage(**{"text": text, "sender": "u1", "channel": "telegram", "chat_id": "u1", **fields})

    return make


@pytest.fixture
def make_task(make_message: Callable[..., QueuedMessage]) -> Callable[..., QueuedTask]:
    def make(text: str = "hello", session_key: str = "agent:main:telegram:direct:u1", **fields: Any) -> QueuedTask:
        return QueuedTask(**{"session_key": session_key, "messages": [make_message(text)], **fields})

    return make


@pytest.fixture
def make_job() -> Callable[..., ExternalJob]:
    def make(**fields: Any) -> ExternalJob:
        defaults: dict[str, Any] = {
            "session_key": "agent:main:feishu:direct:ou_x",
            "delivery": ExternalJobDelivery(channel="feishu", target_id="oc_1"),
            "origin": ExternalJobOrigin.AGENT,
            "provider": "seedance",
            "external_task_id": "cgt-2026",
            "kind": ExternalJobKind.VIDEO_GEN,
            "prompt": "a crab surfing",
        }
        return ExternalJob(**(defaults | fields))

    return make


@pytest.fixture
def overwrite(store: Store) -> Callable[[str, Any, bytes], None]:
    """Puts bytes under a key of a table behind the store's back, as damage or a newer release would."""

    def write(table: str, key: Any, raw: bytes) -> None:
        from limpet_store import schema

        (rows,) = [rows for rows in schema.ROWS if rows.name == table]
        with store.database.write() as txn:
            txn[rows.table][key] = raw

    return write
