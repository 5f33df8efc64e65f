"""One limit for everything that a caller names, and clocks that jump.

`messages.append` took session keys of 1,007 bytes and `tasks.submit` 999; a task whose id had 1,000 bytes was accepted,
and its first turn could not be recorded.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from limpet import LimitError
from limpet_store import Approved, ClockError, QueuedTask, SessionMeta, Store, TaskStatus
from limpet_store.schema import KEY_SIZE_MAX
from limpet_store.work import CLOCK_JUMP_S, DAY_S

KEYS = {  # a character -> its bytes in a key
    "ascii": ("k", 1),
    "two bytes": ("\u00e9", 2),
    "four bytes": ("\U0001f980", 4),
    "escaped": ("\0", 2),
    "escaped, too": ("\1", 2),
}
Make = Callable[..., Any]


def everything(store: Store, key: str, make_task: Make, make_job: Make) -> list[Callable[[], object]]:
    """Every call that makes a row under a key."""
    half = len(key) // 2
    pair = key[:half], key[half:]
    return [
        lambda: store.messages.append(key, {"n": 0}),
        lambda: store.messages.append_many(key, [{"n": 0}]),
        lambda: store.messages.replace(key, [{"n": 0}]),
        lambda: store.sessions.new_generation(key),
        lambda: store.sessions.put(key, SessionMeta(session_key=key)),
        lambda: store.tasks.submit(make_task(session_key=key)),
        lambda: store.tasks.enqueue(make_task(session_key=key)),
        lambda: store.tasks.enqueue(make_task(id=key)),
        lambda: store.jobs.enqueue(make_job(id=key)),
        lambda: store.pairing.put(*pair, Approved()),
        lambda: store.kv.set(key, "x"),
        lambda: store.aliases.put(key, "x"),
        lambda: store.aliases.put_many({key: "x"}),
        lambda: store.idempotency.mark_delivered(key),
        lambda: store.permissions.put(*pair, "x"),
        lambda: store.cron.put(key, "x"),
        lambda: store.cron.replace_all({key: "x"}),
    ]


@pytest.mark.parametrize(("character", "size"), KEYS.values(), ids=KEYS)
def test_one_limit_holds_for_all_keys(
    store: Store, make_task: Make, make_job: Make, commits: Any, character: str, size: int
) -> None:
    largest = character * (KEY_SIZE_MAX // size)
    too_large = largest + "k"
    calls = everything(store, too_large, make_task, make_job)

    def all_refused() -> None:
        for call in calls:
            with pytest.raises(LimitError, match=f"{KEY_SIZE_MAX + 1} bytes, at most {KEY_SIZE_MAX}") as caught:
                call()
            assert (caught.value.size, caught.value.limit) == (KEY_SIZE_MAX + 1, KEY_SIZE_MAX)

    assert commits(all_refused) == 0
    for call in everything(store, largest, make_task, make_job):
        call()
    store.messages.append(largest, {"n": 1})
    assert store.messages.load(largest)[-1] == {"n": 1}
    store.tasks.finish_turn(largest, 2**64 - 1, "reply", None, TaskStatus.DONE)
    assert store.idempotency.is_delivered(f"task:{largest}:turn:{2**64 - 1}")
    task = store.tasks.dequeue()
    assert task is not None
    assert task.session_key == largest
    with pytest.raises(LimitError):
        store.tasks.finish_turn(largest, 1, None, too_large, TaskStatus.DONE)
    assert store.check().errors == []


def test_rows_that_are_there_under_longer_keys_can_be_used_further(store: Store) -> None:
    key = "k" * 1007
    row = SessionMeta(session_key=key).to_json()
    lines = [
        f'{{"table":"sessions","key":"{key}","row":{row}}}',
        f'{{"table":"kv","key":"{key}","row":"a"}}',
        f'{{"table":"cron","key":"{key}","row":"a"}}',
    ]
    assert store.import_jsonl(lines).errors == []
    assert store.messages.append(key, {"n": 0}) == 0
    assert store.sessions.new_generation(key) == 2
    store.kv.set(key, "b")
    store.cron.replace_all({key: "b"})
    assert (store.kv.get(key), store.cron.items()) == ("b", [(key, "b")])
    assert store.sessions.delete(key)


# --- the clock -------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(db_path: Any, clock: Any, make_task: Callable[..., QueuedTask], make_job: Make) -> Iterator[Store]:
    """A store with something to delete in every family."""
    store = Store.open(db_path, clock=clock, durability="os")
    store.messages.append("s", {"n": 0})
    store.idempotency.mark_delivered("k")
    store.jobs.enqueue(make_job(id="j", status="Done", delivered_at=1))
    store.tasks.enqueue(make_task(id="t"))
    yield store
    store.close()


def deletions(store: Store, *, force: bool = False) -> dict[str, Callable[[], int]]:
    """Every call that deletes by age."""
    return {
        "retention": lambda: sum(store.retention(sessions_s=1, archive_s=1, force=force).values()),
        "tasks": lambda: store.tasks.cleanup_expired(force=force),
        "jobs": lambda: store.jobs.cleanup_finished(1, force=force),
        "idempotency": lambda: store.idempotency.cleanup(1, force=force),
    }


@pytest.mark.parametrize("name", ["retention", "tasks", "jobs", "idempotency"])
@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("active", [False, True])
def test_a_clock_that_jumps_deletes_nothing_until_it_is_said_to_be_right(
    old: Store, clock: Any, name: str, reopened: bool, active: bool
) -> None:
    """One retention by a clock in 2099 deleted the archive. A message that comes by such a clock makes it no better."""
    before = clock.now
    clock.advance(CLOCK_JUMP_S + 7200)
    store = old
    if reopened:
        old.close()
        store = Store.open(old.database.path, clock=clock, durability="os")
    if active:
        store.messages.append("other", {"n": 0})
    for _ in range(2):
        with pytest.raises(ClockError, match="force=True") as caught:
            deletions(store)[name]()
        assert caught.value.now == clock.now
        assert before - 3600 <= caught.value.recorded <= before
    assert store.archive.stat("s").total_messages == 1
    assert store.idempotency.is_delivered("k")
    assert store.jobs.get("j") is not None
    assert store.tasks.get("t") is not None
    clock.now = before + 5
    assert deletions(store)["tasks"]() == 0, "the clock is right again"
    clock.now = before + CLOCK_JUMP_S + 7200
    assert deletions(store, force=True)[name]() >= 1
    deletions(store)["retention"]()
    assert store.archive.stat("s").total_messages == 0, "it has been said to be right"
    assert store.check().errors == []
    store.close()


def test_a_rest_of_a_year_and_a_clock_that_goes_on_need_no_word(old: Store, clock: Any) -> None:
    clock.advance(CLOCK_JUMP_S)
    assert sum(old.retention(sessions_s=1, archive_s=1).values()) == 4
    for _ in range(3):
        clock.advance(CLOCK_JUMP_S)
        old.retention()
    clock.advance(-10 * CLOCK_JUMP_S)
    old.retention()


def test_a_new_store_believes_its_first_clock(db_path: Any) -> None:
    with Store.open(db_path, clock=lambda: 5_000_000_000) as store:
        assert sum(store.retention().values()) == 0
    with Store.open(":memory:", clock=lambda: 10**15) as store:
        assert sum(store.retention(archive_s=DAY_S).values()) == 0
