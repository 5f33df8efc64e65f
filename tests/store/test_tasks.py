"""The task queue."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from limpet_store import (
    ExistsError,
    NotFoundError,
    Priority,
    QueuedMessage,
    QueuedTask,
    Store,
    Submission,
    TaskStatus,
    tasks,
)

MakeTask = Callable[..., QueuedTask]
MakeMessage = Callable[..., QueuedMessage]


def test_a_task_comes_back_as_it_was_stored(store: Store, make_task: MakeTask, clock: Any) -> None:
    task = make_task("hello", extra={"novel": 1})
    assert store.tasks.enqueue(task) == task.id
    stored = store.tasks.get(task.id)
    assert stored is not None
    assert stored == task.stamped(clock.now)
    assert stored.messages[0].timestamp == clock.now
    assert stored.arrival == 1
    assert store.tasks.get("nobody") is None


def test_enqueue_refuses_what_is_no_new_task(store: Store, make_task: MakeTask) -> None:
    task = make_task()
    store.tasks.enqueue(task)
    with pytest.raises(ExistsError) as caught:
        store.tasks.enqueue(task)
    assert (caught.value.family, caught.value.id) == ("tasks", task.id)
    with pytest.raises(ValueError):
        store.tasks.enqueue(make_task(messages=[]))
    with pytest.raises(ValueError):
        store.tasks.enqueue(make_task(ttl_secs=-1))
    with pytest.raises(ValueError):
        store.tasks.enqueue(make_task("\ud800"))
    with pytest.raises(TypeError):
        store.tasks.enqueue("task")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(TypeError):
        store.tasks.enqueue(make_task(messages=[make_task().messages[0], "text"]))
    assert len(store.tasks.list()) == 1


def test_dequeue_takes_the_most_urgent_then_the_oldest_then_the_first(store: Store, make_task: MakeTask) -> None:
    order = [
        ("d", Priority.USER, 100),
        ("e", Priority.USER, 100),
        ("c", Priority.USER, 50),
        ("b", Priority.CRON, 200),
        ("a", Priority.SYSTEM, 300),
    ]
    for name, priority, created_at in order:
        store.tasks.enqueue(make_task(name, id=name, session_key=name, priority=priority, created_at=created_at))
    taken = [store.tasks.dequeue() for _ in range(6)]
    assert [task and task.id for task in taken] == ["a", "b", "c", "d", "e", None]
    assert taken[0] is not None
    assert taken[0].status is TaskStatus.RUNNING
    assert taken[0].messages[0].text == "a"
    assert store.tasks.list(TaskStatus.PENDING) == []
    assert [task.id for task in store.tasks.list(TaskStatus.RUNNING)] == ["a", "b", "c", "d", "e"]
    assert [task.id for task in store.tasks.list()] == ["d", "e", "c", "b", "a"]


def test_submit_is_new_then_a_duplicate_then_merged(
    store: Store, make_task: MakeTask, commits: Callable[..., int]
) -> None:
    first = make_task("hello")
    assert store.tasks.submit(first) == Submission("new", first.id)
    assert commits(lambda: store.tasks.submit(make_task("hello"))) == 0
    assert store.tasks.submit(make_task("hello")) == Submission("duplicate", first.id)
    assert store.tasks.submit(make_task("more")) == Submission("merged", first.id)
    assert store.tasks.submit(make_task("hello", session_key="other")).kind == "new"
    task = store.tasks.dequeue()
    assert task is not None
    assert [message.text for message in task.messages] == ["hello", "more"]
    assert store.tasks.submit(make_task("hello")).kind == "new", "a running task is no place to merge into"


def test_submit_merges_into_a_task_of_the_same_priority_only(store: Store, make_task: MakeTask) -> None:
    user = store.tasks.submit(make_task("a"))
    system = store.tasks.submit(make_task("b", priority=Priority.SYSTEM))
    assert system.kind == "new"
    assert store.tasks.submit(make_task("c", priority=Priority.SYSTEM)) == Submission("merged", system.task_id)
    assert store.tasks.submit(make_task("d")) == Submission("merged", user.task_id)


@pytest.mark.parametrize(("ttl", "other", "merged"), [(10, 20, 20), (20, 10, 20), (0, 10, 0), (10, 0, 0)])
def test_a_merged_task_gets_the_larger_budget(
    store: Store, make_task: MakeTask, ttl: int, other: int, merged: int
) -> None:
    first = store.tasks.submit(make_task("a", ttl_secs=ttl, max_turns=3))
    store.tasks.submit(make_task("b", ttl_secs=other, max_turns=5))
    task = store.tasks.get(first.task_id)
    assert task is not None
    assert (task.ttl_secs, task.max_turns) == (merged, 5)


def test_merge_into_pending_adds_to_the_task_that_goes_first(
    store: Store, make_task: MakeTask, make_message: MakeMessage, clock: Any
) -> None:
    assert store.tasks.merge_into_pending("s", make_message("early")) is False
    store.tasks.enqueue(make_task("user", session_key="s", id="user"))
    store.tasks.enqueue(make_task("system", session_key="s", id="system", priority=Priority.SYSTEM))
    clock.advance(3)
    assert store.tasks.merge_into_pending("s", make_message("late")) is True
    task = store.tasks.get("system")
    assert task is not None
    assert [message.text for message in task.messages] == ["system", "late"]
    assert task.messages[1].timestamp == clock.now
    assert task.updated_at == clock.now
    with pytest.raises(TypeError):
        store.tasks.merge_into_pending("s", "text")  # type: ignore[arg-type]  # that is the point


def test_has_duplicate_looks_at_waiting_tasks_of_the_session_only(store: Store, make_task: MakeTask) -> None:
    task = make_task("hello", session_key="s")
    store.tasks.enqueue(task)
    assert store.tasks.has_duplicate("s", task.content_hash)
    assert not store.tasks.has_duplicate("s", "0" * 32)
    assert not store.tasks.has_duplicate("t", task.content_hash)
    store.tasks.dequeue()
    assert not store.tasks.has_duplicate("s", task.content_hash)


def test_updates_change_one_thing_and_the_time(store: Store, make_task: MakeTask, clock: Any) -> None:
    id_ = store.tasks.enqueue(make_task())
    before = store.tasks.get(id_)
    assert before is not None
    steps: list[tuple[Callable[[], object], dict[str, Any]]] = [
        (lambda: store.tasks.set_turn(id_, 3), {"turns": 3}),
        (lambda: store.tasks.set_last_reply(id_, "hi"), {"last_reply": "hi"}),
        (lambda: store.tasks.set_status(id_, TaskStatus.DONE), {"status": TaskStatus.DONE}),
        (lambda: store.tasks.mark_notified(id_), {"notified": True}),
    ]
    for step, change in steps:
        clock.advance(1)
        step()
        expected = dataclasses.replace(before, updated_at=clock.now, **change)
        assert store.tasks.get(id_) == expected
        before = expected


def test_setting_what_is_set_commits_nothing(store: Store, make_task: MakeTask, commits: Callable[..., int]) -> None:
    id_ = store.tasks.enqueue(make_task())

    def again() -> None:
        store.tasks.set_turn(id_, 0)
        store.tasks.set_last_reply(id_, None)
        store.tasks.set_status(id_, TaskStatus.PENDING)

    assert commits(again) == 0


def test_finish_turn_records_everything_in_one_commit(
    store: Store, make_task: MakeTask, commits: Callable[..., int]
) -> None:
    id_ = store.tasks.enqueue(make_task())
    finish = store.tasks.finish_turn
    assert commits(lambda: finish(id_, turn=1, reply="r", idempotency_key="k", status=TaskStatus.RUNNING)) == 1
    task = store.tasks.get(id_)
    assert task is not None
    assert (task.turns, task.last_reply, task.status, task.notified) == (1, "r", TaskStatus.RUNNING, False)
    assert store.idempotency.is_delivered("k")
    finish(id_, 2, "s", None, TaskStatus.DONE, notified=True)
    assert store.idempotency.is_delivered(f"task:{id_}:turn:2")
    task = store.tasks.get(id_)
    assert task is not None
    assert task.notified
    with pytest.raises(NotFoundError):
        finish("nobody", 1, "r", "other", TaskStatus.DONE)
    with pytest.raises(ValueError):
        finish(id_, 3, "\ud800", "other", TaskStatus.DONE)
    assert not store.idempotency.is_delivered("other")


def test_fail_counts_and_is_dead_at_the_limit(store: Store, make_task: MakeTask) -> None:
    id_ = store.tasks.enqueue(make_task())
    assert store.tasks.fail(id_, 2, error="no answer") is TaskStatus.FAILED
    assert store.tasks.fail(id_, 2) is TaskStatus.DEAD
    task = store.tasks.get(id_)
    assert task is not None
    assert (task.retries, task.status, task.error) == (2, TaskStatus.DEAD, "no answer")
    other = store.tasks.enqueue(make_task())
    assert store.tasks.fail(other, 0) is TaskStatus.DEAD


def test_updating_what_does_not_exist_names_the_id(store: Store, commits: Callable[..., int]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.tasks.set_turn("nobody", 1),
        lambda: store.tasks.set_last_reply("nobody", "x"),
        lambda: store.tasks.mark_notified("nobody"),
        lambda: store.tasks.set_status("nobody", TaskStatus.DONE),
        lambda: store.tasks.fail("nobody", 1),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="nobody") as caught:
            call()
        assert (caught.value.family, caught.value.id) == ("tasks", "nobody")


def test_requeue_running_counts_attempts_and_not_retries(store: Store, make_task: MakeTask) -> None:
    store.tasks.enqueue(make_task(id="a", session_key="a"))
    store.tasks.enqueue(make_task(id="b", session_key="b"))
    store.tasks.enqueue(make_task(id="c", session_key="c"))
    store.tasks.dequeue()
    store.tasks.dequeue()
    assert store.tasks.requeue_running() == 2
    task = store.tasks.dequeue()
    assert task is not None
    assert (task.id, task.attempts, task.retries) == ("a", 1, 0)
    assert '"attempts"' not in task.to_json()
    assert store.tasks.requeue_running() == 1
    assert [task.id for task in store.tasks.list(TaskStatus.PENDING)] == ["a", "b", "c"]


def test_cleanup_removes_waiting_and_notified_tasks_after_their_time(
    store: Store, make_task: MakeTask, clock: Any, commits: Callable[..., int]
) -> None:
    for name in ("waiting", "running", "done", "notified", "failed", "dead", "forever"):
        ttl = 0 if name == "forever" else 60
        store.tasks.enqueue(make_task(name, id=name, session_key=name, ttl_secs=ttl))
    store.tasks.set_status("running", TaskStatus.RUNNING)
    for name, status in (("done", "Done"), ("notified", "Done"), ("failed", "Failed"), ("dead", "Dead")):
        store.tasks.set_status(name, TaskStatus(status))
    store.tasks.mark_notified("notified")
    store.tasks.mark_notified("dead")
    clock.advance(60)
    assert commits(store.tasks.cleanup_expired) == 0
    clock.advance(1)
    assert store.tasks.cleanup_expired() == 3
    assert [task.id for task in store.tasks.list()] == ["running", "done", "failed", "forever"]


def test_numbers_at_the_edge_of_64_bits_are_no_problem(store: Store, make_task: MakeTask) -> None:
    for number in (-(2**63), 2**63, 2**64 - 1):
        task = make_task(session_key=str(number), created_at=number, ttl_secs=2**64 - 1, retries=number)
        store.tasks.enqueue(task)
    store.tasks.cleanup_expired()
    assert [task.created_at for task in store.tasks.list()] == [-(2**63), 2**63, 2**64 - 1]
    assert [store.tasks.dequeue() is not None for _ in range(4)] == [True, True, True, False]


def test_what_joins_a_task_that_is_too_old_is_not_deleted_with_it(
    store: Store, make_task: MakeTask, make_message: MakeMessage, clock: Any
) -> None:
    """The gateway was down for longer than the time to live; the user writes again before anything is cleaned up."""
    joins: list[Callable[[str], object]] = [
        lambda key: store.tasks.submit(make_task("again", session_key=key, ttl_secs=100)),
        lambda key: store.tasks.submit(make_task("first", session_key=key, ttl_secs=100)),
        lambda key: store.tasks.merge_into_pending(key, make_message("again")),
    ]
    for number, join in enumerate(joins):
        key = f"s{number}"
        store.tasks.enqueue(make_task("first", session_key=key, ttl_secs=100))
        clock.advance(1000)
        join(key)
        clock.advance(100)
        assert store.tasks.cleanup_expired() == 0
        clock.advance(1)
        assert store.tasks.cleanup_expired() == 1


def test_arrival_numbers_follow_the_largest_in_the_table_whatever_else_the_transaction_does(
    store: Store, make_task: MakeTask, clock: Any
) -> None:
    def arrival(task_id: str) -> int | None:
        task = tx.tasks.get(task_id)
        return None if task is None else task.arrival

    with store.write() as tx:
        for task_id in ("a", "b"):
            tx.tasks.enqueue(make_task(id=task_id, ttl_secs=10 if task_id == "b" else 0))
        with contextlib.suppress(ZeroDivisionError), tx.savepoint():
            tx.tasks.enqueue(make_task(id="undone"))
            raise ZeroDivisionError
        with pytest.raises(ValueError):
            tx.tasks.enqueue(make_task(id="refused", extra={"status": "x"}))
        tx.tasks.enqueue(make_task(id="c"))
        assert [arrival(task_id) for task_id in "abc"] == [1, 2, 3]
        tx.tasks.set_status("c", TaskStatus.DONE)
        tx.tasks.mark_notified("c")
        clock.advance(3601)
        assert tx.tasks.cleanup_expired() == 2
        tx.tasks.enqueue(make_task(id="d"))
        assert arrival("d") == 2
        tasks.write(tx._work, make_task(id="e", arrival=9))
        tx.tasks.enqueue(make_task(id="f"))
        assert (arrival("e"), arrival("f")) == (9, 10)


def test_messages_behind_one_that_cannot_be_decoded_are_still_the_tasks(
    store: Store,
    make_task: MakeTask,
    make_message: MakeMessage,
    overwrite: Callable[[str, Any, bytes], None],
) -> None:
    store.tasks.enqueue(make_task(id="t", messages=[make_message(text) for text in "abcd"]))
    overwrite("task_messages", (1, 1), b"garbage")

    def texts(task: QueuedTask | None) -> list[str]:
        assert task is not None
        return [message.text for message in task.messages]

    assert texts(store.tasks.get("t")) == ["a", "c", "d"], "one that is skipped"
    assert texts(store.tasks.dequeue()) == ["a", "c", "d"], "one that is moved away"
    assert texts(store.tasks.get("t")) == ["a", "c", "d"], "one that is gone"
    overwrite("task_messages", (1, 0), b"garbage")
    store.tasks.requeue_running()
    assert texts(store.tasks.dequeue()) == ["c", "d"]
    assert store.tasks.merge_into_pending("nobody", make_message("e")) is False
