"""Random operations on every family, against a model made of plain dicts and lists.

The store is reopened, checked and carried through an export now and then; single operations and groups take turns, and
some groups are abandoned. A failure prints the seed.
"""

import contextlib
import copy
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from limpet_store import (
    Approved,
    ConflictError,
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    MemoryTier,
    NotFoundError,
    Pending,
    Priority,
    QueuedMessage,
    QueuedTask,
    Store,
    TaskStatus,
)

STEPS = 700
KEYS = ["a", "a:b", "a:b:topic:c", "archive", "\0", "\u00e9"]
IDS = [f"id{n}" for n in range(12)]


@dataclass
class Session:
    """What the model knows of one session key, deleted or not."""

    exists: bool = False
    generation: int = 0
    next_seq: int = 0
    active: list[tuple[int, int]] = field(default_factory=list)  # (seq, n)
    archive: list[tuple[int, int, int]] = field(default_factory=list)  # (generation, seq, n)
    title: str | None = None

    def begin(self) -> None:
        if not self.exists:
            self.exists, self.generation, self.next_seq, self.title = True, self.generation + 1, 0, None

    def append(self, n: int) -> int:
        self.begin()
        seq = self.next_seq
        self.active.append((seq, n))
        self.archive.append((self.generation, seq, n))
        self.next_seq += 1
        return seq


@dataclass
class Task:
    """What the model knows of one task."""

    task: QueuedTask
    order: int


@dataclass
class Model:
    """The expected content of the store."""

    sessions: dict[str, Session] = field(default_factory=lambda: {key: Session() for key in KEYS})
    texts: dict[str, dict[Any, str]] = field(
        default_factory=lambda: {"kv": {}, "aliases": {}, "cron": {}, "permissions": {}}
    )
    pairing: dict[tuple[str, str], Any] = field(default_factory=dict)
    idempotency: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    jobs: dict[str, ExternalJob] = field(default_factory=dict)
    arrivals: int = 0


class Player:
    """Does the same to a store, or a transaction of it, and to the model."""

    def __init__(self, rng: random.Random, clock: Any) -> None:
        self.rng = rng
        self.clock = clock
        self.model = Model()
        self.numbers = iter(range(10**9))
        self.steps: list[Callable[[Any], None]] = [
            *[self.append] * 4,
            self.replace,
            self.new_generation,
            self.delete_session,
            self.purge,
            self.patch,
            *[self.text] * 2,
            self.pair,
            self.mark,
            *[self.submit] * 3,
            *[self.dequeue] * 3,
            *[self.finish] * 2,
            self.requeue,
            self.expire,
            *[self.job] * 2,
            self.poll,
            self.clean_jobs,
        ]

    def play(self, tx: Any) -> None:
        self.rng.choice(self.steps)(tx)

    # sessions, messages, archive

    def session(self) -> tuple[str, Session]:
        key = self.rng.choice(KEYS)
        return key, self.model.sessions[key]

    def append(self, tx: Any) -> None:
        key, session = self.session()
        batch = [next(self.numbers) for _ in range(self.rng.randrange(1, 4))]
        if len(batch) == 1:
            assert tx.messages.append(key, {"n": batch[0]}) == session.append(batch[0])
        else:
            assert tx.messages.append_many(key, [{"n": n} for n in batch]) == [session.append(n) for n in batch]

    def replace(self, tx: Any) -> None:
        key, session = self.session()
        batch = [next(self.numbers) for _ in range(self.rng.randrange(3))]
        tx.messages.replace(key, [{"n": n} for n in batch])
        if batch:
            session.begin()
        session.active = [(session.next_seq + index, n) for index, n in enumerate(batch)]
        session.next_seq += len(batch)

    def new_generation(self, tx: Any) -> None:
        key, session = self.session()
        session.generation = max(session.generation, 1) + 1
        session.exists, session.next_seq, session.active = True, 0, []
        if not session.archive and tx.sessions.get(key) is None:
            session.title = None
        assert tx.sessions.new_generation(key) == session.generation

    def delete_session(self, tx: Any) -> None:
        key, session = self.session()
        assert tx.sessions.delete(key) is session.exists
        session.exists, session.active, session.title = False, [], None

    def purge(self, tx: Any) -> None:
        key, session = self.session()
        before = self.rng.choice([None, session.generation])
        kept = [row for row in session.archive if before is not None and row[0] >= before]
        assert tx.archive.purge(key, before) == len(session.archive) - len(kept)
        session.archive = kept

    def patch(self, tx: Any) -> None:
        key, session = self.session()
        title = self.rng.choice([None, "x", "y"])
        if session.exists:
            tx.sessions.patch(key, title=title)
            session.title = title
        else:
            with pytest.raises(NotFoundError):
                tx.sessions.patch(key, title=title)

    # texts

    def text(self, tx: Any) -> None:
        family = self.rng.choice(list(self.model.texts))
        expected = self.model.texts[family]
        key: Any = self.rng.choice(IDS)
        value = str(self.rng.randrange(5))
        if family == "permissions":
            key = (self.rng.choice("ab"), self.rng.choice(["", "b", "a\0b"]))
            arguments = key
        else:
            arguments = (key,)
        action = self.rng.choice(["put", "put", "delete", "update"])
        if action == "put" or (action == "update" and family != "cron") or (action == "delete" and family == "aliases"):
            (tx.kv.set if family == "kv" else getattr(tx, family).put)(*arguments, value)
            expected[key] = value
        elif action == "delete":
            assert getattr(tx, family).delete(*arguments) is (expected.pop(key, None) is not None)
        elif key in expected:
            expected[key] += "!"
            assert tx.cron.update(key, lambda text: text + "!") == expected[key]
        else:
            with pytest.raises(NotFoundError):
                tx.cron.update(key, lambda text: text)

    def pair(self, tx: Any) -> None:
        key = (self.rng.choice(["c", "c:d"]), self.rng.choice(IDS))
        if self.rng.random() < 0.3:
            assert tx.pairing.delete(*key) is (self.model.pairing.pop(key, None) is not None)
        else:
            state = self.rng.choice([Approved(), Pending("CODE", 5)])
            tx.pairing.put(*key, state)
            self.model.pairing[key] = state

    def mark(self, tx: Any) -> None:
        if self.rng.random() < 0.2:
            old = [key for key, at in self.model.idempotency.items() if at < self.clock.now - 500]
            assert tx.idempotency.cleanup(500) == len(old)
            for key in old:
                del self.model.idempotency[key]
        else:
            key = self.rng.choice(IDS)
            tx.idempotency.mark_delivered(key)
            self.model.idempotency[key] = self.clock.now

    # tasks

    def waiting(self, **wanted: Any) -> list[Task]:
        found = [
            entry
            for entry in self.model.tasks.values()
            if entry.task.status is TaskStatus.PENDING
            and all(getattr(entry.task, name) == value for name, value in wanted.items())
        ]
        return sorted(found, key=lambda entry: (entry.task.priority.rank, entry.task.created_at, entry.order))

    def submit(self, tx: Any) -> None:
        text, key = f"text {self.rng.randrange(6)}", self.rng.choice(KEYS)
        message = QueuedMessage(text=text, sender="s", channel="c", chat_id="i", timestamp=1)
        task = QueuedTask(
            id=f"task {next(self.numbers)}",
            session_key=key,
            messages=[message],
            priority=self.rng.choice(list(Priority)),
            ttl_secs=self.rng.choice([0, 300, 3600]),
            created_at=self.clock.now,
        )
        result = tx.tasks.submit(task)
        if self.waiting(session_key=key, content_hash=task.content_hash):
            assert result.kind == "duplicate"
            assert tx.tasks.has_duplicate(key, task.content_hash)
            first = self.model.tasks[result.task_id].task
            if first.is_expired(self.clock.now):
                first.ttl_secs = self.life(first, task)
        elif found := self.waiting(session_key=key, priority=task.priority):
            assert result == ("merged", found[0].task.id)
            merged = found[0].task
            merged.messages.append(message)
            merged.ttl_secs = self.life(merged, task)
            merged.updated_at = self.clock.now
        else:
            assert result == ("new", task.id)
            self.model.arrivals += 1
            self.model.tasks[task.id] = Task(copy.deepcopy(task), self.model.arrivals)

    def life(self, task: QueuedTask, joined: QueuedTask) -> int:
        ends = [one.created_at + one.ttl_secs for one in (task, joined)]
        return 0 if 0 in (task.ttl_secs, joined.ttl_secs) else max(ends) - task.created_at

    def dequeue(self, tx: Any) -> None:
        expected = self.waiting()
        task = tx.tasks.dequeue()
        if not expected:
            assert task is None
        else:
            expected[0].task.status = TaskStatus.RUNNING
            expected[0].task.updated_at = self.clock.now
            assert task == expected[0].task

    def finish(self, tx: Any) -> None:
        if not self.model.tasks:
            with pytest.raises(NotFoundError):
                tx.tasks.finish_turn("nobody", 1, None, None, TaskStatus.DONE)
            return
        task = self.rng.choice(list(self.model.tasks.values())).task
        key = self.rng.choice(IDS)
        changes = {"turns": task.turns + 1, "last_reply": "r", "status": self.rng.choice(list(TaskStatus))}
        tx.tasks.finish_turn(task.id, changes["turns"], "r", key, changes["status"])
        self.model.idempotency[key] = self.clock.now
        if self.rng.random() < 0.5:
            tx.tasks.mark_notified(task.id)
            changes["notified"] = True
        for name, value in changes.items():
            setattr(task, name, value)
        task.updated_at = self.clock.now

    def requeue(self, tx: Any) -> None:
        count = 0
        for entry in self.model.tasks.values():
            if entry.task.status is TaskStatus.RUNNING:
                entry.task.attempts += 1
                entry.task.updated_at = self.clock.now
                dead = entry.task.attempts > 2
                entry.task.status = TaskStatus.DEAD if dead else TaskStatus.PENDING
                if dead:
                    entry.task.error = f"was running when the process died, {entry.task.attempts} times"
                count += not dead
        assert tx.tasks.requeue_running(max_attempts=2) == count

    def expire(self, tx: Any) -> None:
        gone = [
            id_
            for id_, entry in self.model.tasks.items()
            if entry.task.is_expired(self.clock.now)
            and (entry.task.status is TaskStatus.PENDING or (entry.task.status.finished and entry.task.notified))
        ]
        assert tx.tasks.cleanup_expired() == len(gone)
        for id_ in gone:
            del self.model.tasks[id_]

    # jobs

    def job(self, tx: Any) -> None:
        id_ = self.rng.choice(IDS)
        stored = self.model.jobs.get(id_)
        if stored is None:
            job = ExternalJob(
                id=id_,
                session_key="s",
                delivery=ExternalJobDelivery(channel="c", target_id="t"),
                origin=ExternalJobOrigin.AGENT,
                provider="p",
                external_task_id="e",
                kind=ExternalJobKind.IMAGE_GEN,
                prompt="x",
                submitted_at=self.clock.now,
            )
            tx.jobs.enqueue(job)
            self.model.jobs[id_] = copy.deepcopy(job)
            return
        job = tx.jobs.get(id_)
        assert job == stored
        assert job.version == stored.version
        job.status = self.rng.choice(["Pending", "Polling", "Done", "Failed"])
        job.delivered_at = self.rng.choice([None, None, 7])
        job.delivery_attempts = self.rng.choice([0, 59, 60])
        job.poll_count += 1
        tx.jobs.update(job)
        assert job.version == stored.version + 1
        self.model.jobs[id_] = copy.deepcopy(tx.jobs.get(id_))
        job.version = 0
        with pytest.raises(ConflictError):
            tx.jobs.update(job)

    def due(self) -> list[ExternalJob]:
        found = [
            job
            for job in self.model.jobs.values()
            if (not job.status.finished or job.needs_delivery())
            and job.next_poll_at <= self.clock.now
            and job.delivery_attempts < 60
        ]
        return sorted(found, key=lambda job: (job.next_poll_at, job.id))

    def poll(self, tx: Any) -> None:
        due = self.due()
        assert tx.jobs.due(self.clock.now) == due
        claimed = tx.jobs.claim_due(self.clock.now, limit=2, lease=100)
        for job in due[:2]:
            job.next_poll_at = self.clock.now + 100
            job.version += 1
        assert claimed == due[:2]
        assert [job.version for job in claimed] == [job.version for job in due[:2]]

    def clean_jobs(self, tx: Any) -> None:
        gone = [
            job.id
            for job in self.model.jobs.values()
            if job.status.finished
            and (not job.needs_delivery() or job.delivery_attempts >= 60)
            and job.submitted_at < self.clock.now - 200
        ]
        assert tx.jobs.cleanup_finished(200) == len(gone)
        for id_ in gone:
            del self.model.jobs[id_]

    # everything

    def compare(self, tx: Any) -> None:
        model = self.model
        assert tx.sessions.list() == sorted(key for key, session in model.sessions.items() if session.exists)
        for key, session in model.sessions.items():
            assert tx.messages.load(key) == [{"n": n} for _, n in session.active]
            assert tx.messages.count(key) == len(session.active)
            assert [tuple(row) for row in tx.archive.load(key)] == [
                (seq, generation, {"n": n}) for generation, seq, n in session.archive
            ]
            stat = tx.archive.stat(key)
            seqs = [seq for _, seq, _ in session.archive]
            assert stat.total_messages == len(seqs)
            assert (stat.oldest_seq, stat.newest_seq) == (min(seqs, default=None), max(seqs, default=None))
            assert stat.generations == sorted({generation for generation, _, _ in session.archive})
            meta = tx.sessions.get(key)
            if meta is not None:
                assert (meta.generation, meta.message_count, meta.title) == (
                    session.generation,
                    session.next_seq,
                    session.title,
                )
        assert dict(tx.kv.items()) == model.texts["kv"]
        assert tx.aliases.all() == model.texts["aliases"]
        assert dict(tx.cron.items()) == model.texts["cron"]
        assert dict(tx.permissions.items()) == model.texts["permissions"]
        for channel in ("c", "c:d"):
            approved = sorted(
                key[1] for key, state in model.pairing.items() if key[0] == channel and state == Approved()
            )
            assert tx.pairing.approved(channel) == approved
        assert [key for key in IDS if tx.idempotency.is_delivered(key)] == [
            key for key in IDS if key in model.idempotency
        ]
        assert {task.id: task for task in tx.tasks.list()} == {id_: entry.task for id_, entry in model.tasks.items()}
        for id_ in IDS:
            assert tx.jobs.get(id_) == model.jobs.get(id_)


@pytest.mark.parametrize("round_", range(3))
def test_every_family_does_what_the_model_does(db_path: Path, clock: Any, seed: int, round_: int) -> None:
    rng = random.Random(seed + round_)
    player = Player(rng, clock)

    def open_store() -> Store:
        return Store.open(db_path, tier=MemoryTier.LOW, durability="os", clock=clock)

    store = open_store()
    for _ in range(STEPS):
        clock.advance(rng.choice([0, 0, 1, 50]))
        chance = rng.random()
        if chance < 0.85:
            player.play(store)
        elif chance < 0.9:
            with store.write() as tx:
                for _ in range(rng.randrange(6)):
                    player.play(tx)
        elif chance < 0.95:
            before = copy.deepcopy(player.model)
            with contextlib.suppress(ZeroDivisionError), store.write() as tx:
                for _ in range(rng.randrange(6)):
                    player.play(tx)
                raise ZeroDivisionError
            player.model = before
        elif chance < 0.98:
            with store.read() as tx:
                player.compare(tx)
        else:
            report = store.check()
            assert (report.errors, report.warnings) == ([], [])
            store.close()
            store = open_store()
    player.compare(store)
    stream = io.StringIO()
    store.export_jsonl(stream)
    with Store.open(":memory:", clock=clock) as copied:
        assert copied.import_jsonl(stream.getvalue().splitlines()).ok
        player.compare(copied)
        assert copied.check().errors == []
    assert store.check().ok
    store.close()
