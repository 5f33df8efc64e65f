"""JSON lines into a store that has rows of its own: a number in a line says an order, not which row it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from limpet_store import QueuedTask, Store, schema


def quarantined(store: Store, *texts: str) -> None:
    with store.writing() as work:
        for text in texts:
            row = {"table": "kv", "key": ["k"], "at": 1, "reason": "r", "text": text}
            work.put(schema.QUARANTINE, work.next_number(schema.QUARANTINE), row, None)


def texts(store: Store) -> list[str]:
    with store.reading() as work:
        return [row["text"] for _, row in work.scan(schema.QUARANTINE)]


def exported(store: Store) -> io.StringIO:
    lines = io.StringIO()
    store.export_jsonl(lines)
    lines.seek(0)
    return lines


def test_quarantined_rows_of_two_stores_come_together_whatever_their_numbers(store: Store) -> None:
    """The number of a row was taken for its identity, so that a row of another store under a number that was taken
    could never be imported."""
    quarantined(store, "ours", "both")
    with Store.open(":memory:") as other:
        quarantined(other, "theirs", "both", "more")
        report = store.import_jsonl(exported(other))
        assert (report.errors, report.changed) == ([], 2)
        assert texts(store) == ["ours", "both", "theirs", "more"]
        assert store.import_jsonl(exported(other)).changed == 0


def test_tasks_of_two_stores_come_together_whatever_their_numbers(
    store: Store, make_task: Callable[..., QueuedTask], clock: Any
) -> None:
    store.tasks.enqueue(make_task("ours"))
    with Store.open(":memory:", clock=clock) as other:
        other.tasks.enqueue(make_task("theirs"))
        assert store.import_jsonl(exported(other)).ok
        assert [task.messages[0].text for task in store.tasks.list()] == ["ours", "theirs"]
        assert store.import_jsonl(exported(other)).changed == 0
