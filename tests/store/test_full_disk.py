"""A gateway on a full disk: it can forget, tasks change their status, and what was acknowledged stays.

Once nothing worked there after ENOSPC, retention included: every commit was a checkpoint that found no pages.
"""

import asyncio
import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limpet.testing import CannotMountError, small_disk
from limpet.testing.mounts import fill
from limpet_store import AsyncStore, QueuedTask, Store, TaskStatus

from .conftest import Clock

ROOM = 1 << 20
DAY = 86400


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system with 1 MiB left."""
    try:
        with small_disk(request.param) as folder:
            fill(folder, leave=ROOM)
            yield folder
    except CannotMountError as error:
        pytest.skip(f"{request.param}: {error}")


def is_refused(action: Callable[[], object]) -> bool:
    """Whether the disk is full for an action."""
    try:
        action()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


def live_until_full(
    store: Store, clock: Clock, rng: random.Random, make_task: Callable[..., QueuedTask]
) -> tuple[list[str], dict[str, int]]:
    """Conversations and tasks, until nothing more fits; returns the tasks, and the messages of each conversation."""
    tasks: list[str] = []
    messages = dict.fromkeys([f"agent:main:chat:{number}" for number in range(12)], 0)
    while True:
        clock.advance(rng.randrange(1, 2000))
        key = rng.choice(list(messages))
        text = "word " * rng.randrange(1, 300)
        if is_refused(lambda: store.messages.append(key, {"role": "user", "content": text})):  # noqa: B023  # called at once
            return tasks, messages
        messages[key] += 1
        if rng.random() < 0.3:
            task = make_task(f"session {len(tasks)}", text[:200])
            with contextlib.suppress(OSError):
                tasks.append(store.tasks.enqueue(task))
            with contextlib.suppress(OSError):
                store.idempotency.mark_delivered(f"event {rng.random()}")


def check(store: Store, messages: dict[str, int]) -> None:
    assert {key: len(store.messages.load(key)) for key in messages} == messages
    report = store.check()
    assert report.ok, report.errors


def test_a_gateway_on_a_full_disk_goes_on(
    disk: Path, clock: Clock, make_task: Callable[..., QueuedTask], seed: int
) -> None:
    rng = random.Random(seed)
    path = disk / "full.limpet"
    with Store.open(path, durability="os", clock=clock) as store:
        tasks, messages = live_until_full(store, clock, rng, make_task)
        check(store, messages)
        for name in rng.sample(tasks, min(len(tasks), 40)):
            for status in (TaskStatus.RUNNING, TaskStatus.DONE):
                store.tasks.set_status(name, status)
                task = store.tasks.get(name)
                assert task is not None
                assert task.status is status
        check(store, messages)
        is_refused(lambda: store.tasks.finish_turn(tasks[0], 1, "answer " * 40, None, TaskStatus.DONE))
        check(store, messages)
    with Store.open(path, durability="sync", clock=clock) as store:  # the full file, opened again
        check(store, messages)
        removed = store.retention(archive_s=DAY, idempotency_s=0, jobs_s=0)
        assert removed["archive"] > 10
        while any(store.retention(archive_s=DAY, idempotency_s=0, jobs_s=0).values()):
            pass
        check(store, messages)
        store.tasks.finish_turn(tasks[0], 1, "answer " * 40, None, TaskStatus.DONE)
        for _ in range(20):
            key = rng.choice(list(messages))
            store.messages.append(key, {"role": "user", "content": "word " * 100})
            messages[key] += 1
        check(store, messages)


def test_an_async_store_forgets_on_a_full_disk(
    disk: Path, clock: Clock, make_task: Callable[..., QueuedTask], seed: int
) -> None:
    path = disk / "full.limpet"
    with Store.open(path, durability="os", clock=clock) as store:
        live_until_full(store, clock, random.Random(seed), make_task)

    async def forget() -> dict[str, int]:
        async with await AsyncStore.open(path, durability="os", clock=clock) as store:
            return await store.retention(archive_s=DAY, idempotency_s=0, jobs_s=0)

    assert asyncio.run(forget())["archive"] > 10
