"""The queue of work for the agents.

A task is one row without its messages, which have rows of their own: a status update neither reads nor writes them, and
they may be megabytes of images. Rows are numbered in the order of their arrival, so that first in, first out also holds
within a second. Everything the gateway asks is answered from an index.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from . import idempotency, wire
from .errors import ExistsError, NotFoundError
from .family import AnyFace, Family, reads, writes
from .records import QueuedMessage, QueuedTask, Submission, TaskStatus, changed
from .schema import (
    QUARANTINE,
    TASK_EXPIRY,
    TASK_IDS,
    TASK_MESSAGES,
    TASK_QUEUE,
    TASK_SESSIONS,
    TASKS,
    check_key,
    key_int,
)
from .work import Work

MAX_ATTEMPTS = 5  # how often a task may be running when the process dies before it is thought to be the cause


class Tasks(Family[AnyFace]):
    """The task queue: Pending -> Running -> Done, Failed or Dead."""

    __slots__ = ()
    name = "tasks"

    @writes
    def submit(self, task: QueuedTask) -> Submission:
        """Add a task, or its messages to one that is waiting, in one step.

        A waiting task of the same session whose first message is the same makes this one a "duplicate", and nothing is
        written. Otherwise the messages are "merged" into the waiting task of the same session and priority, the oldest,
        which keeps its place, gets the larger budget of turns, and lives as long as either would have. Otherwise the
        task is "new". A waiting task that should have expired by now is given the new one's time: what was submitted
        is never deleted with a task that was old before it came.

        returns  Submission(kind, task_id) with the id of the task that will answer
        raises   TypeError, ValueError, LimitError or ExistsError before anything changes
        cost     O(tasks of this session that are waiting), one as a rule
        """
        work = self._work
        task = _checked(work, task)
        waiting = builtins.list(_waiting(work, task.session_key))
        for arrival, _, content_hash in waiting:
            if content_hash == task.content_hash:
                found = work.get(TASKS, arrival)
                if found is not None:
                    if found.is_expired(work.now()):
                        lives = _life(found, task.created_at, task.ttl_secs)
                        work.put(TASKS, arrival, changed(found, ttl_secs=lives), found)
                    return Submission("duplicate", found.id)
        for arrival, rank, _ in waiting:
            if rank == task.priority.rank:
                found = work.get(TASKS, arrival)
                if found is not None:
                    turns = max(found.max_turns, task.max_turns)
                    lives = _life(found, task.created_at, task.ttl_secs)
                    _merge(work, found, task.messages, max_turns=turns, ttl_secs=lives)
                    return Submission("merged", found.id)
        return Submission("new", _insert(work, task))

    @writes
    def enqueue(self, task: QueuedTask) -> str:
        """Add a task as it is, whatever is waiting.

        task     its id must be new; times that were left out are the store's
        returns  its id
        raises   ExistsError, TypeError, ValueError, LimitError; nothing has changed then
        """
        return _insert(self._work, _checked(self._work, task))

    @writes
    def dequeue(self) -> QueuedTask | None:
        """Take the task that goes first, Pending -> Running in one step.

        SYSTEM goes before CRON before USER, then the oldest, then the one that arrived first.

        returns  the task with its messages, or None when nothing is waiting. With AsyncStore, a task whose caller was
                 cancelled before it got it is put back where it was
        cost     the same whether 10 or 10,000 tasks are waiting
        """
        work = self._work
        for arrival in _queued(work, TaskStatus.PENDING):
            task = work.get(TASKS, arrival)
            if task is not None:
                now = work.now()
                running = changed(task, status=TaskStatus.RUNNING, updated_at=now)
                work.put(TASKS, arrival, running, task)
                work.on_unclaimed(functools.partial(_give_back, task, now))
                return _with_messages(work, running)
        return None

    @writes
    def finish_turn(
        self,
        id: str,  # noqa: A002  # the contract names the parameter `id`
        turn: int,
        reply: str | None,
        idempotency_key: str | None,
        status: TaskStatus,
        *,
        notified: bool | None = None,
    ) -> None:
        """Record a turn in one step: its number, its reply, that the reply is delivered, and the task's new status.

        turn             turns done
        reply            the answer, or None
        idempotency_key  marked as delivered; None for "task:{id}:turn:{turn}"
        status           such as DONE, or RUNNING when more turns follow
        notified         whether the user has seen the reply; None leaves it as it is
        raises           NotFoundError, TypeError, ValueError; nothing has changed then
        """
        changes: dict[str, Any] = {"turns": turn, "last_reply": reply, "status": TaskStatus(status)}
        if notified is not None:
            changes["notified"] = notified
        _update(self._work, id, **changes)
        if idempotency_key is None:
            idempotency_key = idempotency.turn_key(id, turn)
        else:
            check_key(idempotency_key)
        idempotency.mark(self._work, idempotency_key)

    @writes
    def requeue_running(self, max_attempts: int = MAX_ATTEMPTS) -> int:
        """After a crash: put the tasks that were running back into the queue.

        Each gets one attempt more, not a retry. One that has been put back more than `max_attempts` times is taken for
        the cause of the crashes and is Dead, with an error that says so.

        returns  how many are waiting again
        """
        work = self._work
        count = 0
        for arrival in builtins.list(_queued(work, TaskStatus.RUNNING)):
            task = work.get(TASKS, arrival)
            if task is None:
                continue
            changes: dict[str, Any] = {"attempts": task.attempts + 1, "updated_at": work.now()}
            if task.attempts >= max_attempts:
                changes["status"] = TaskStatus.DEAD
                changes["error"] = f"was running when the process died, {task.attempts + 1} times"
            else:
                changes["status"] = TaskStatus.PENDING
                count += 1
            work.put(TASKS, arrival, changed(task, **changes), task)
        return count

    @writes
    def set_turn(self, id: str, turn: int) -> None:  # noqa: A002  # as above
        """Record how many turns are done; NotFoundError when there is no such task."""
        _update(self._work, id, turns=turn)

    @writes
    def set_last_reply(self, id: str, text: str | None) -> None:  # noqa: A002  # as above
        """Record the last answer; NotFoundError when there is no such task."""
        _update(self._work, id, last_reply=text)

    @writes
    def mark_notified(self, id: str) -> None:  # noqa: A002  # as above
        """Record that the user has seen the reply; NotFoundError when there is no such task."""
        _update(self._work, id, notified=True)

    @writes
    def set_status(self, id: str, status: TaskStatus) -> None:  # noqa: A002  # as above
        """Change the status; NotFoundError when there is no such task, ValueError when there is no such status."""
        _update(self._work, id, status=TaskStatus(status))

    @writes
    def fail(self, id: str, max_retries: int, error: str | None = None) -> TaskStatus:  # noqa: A002  # as above
        """Count a failure.

        max_retries  at so many retries the task is Dead; 0 for at once
        error        why it failed; None keeps what is recorded
        returns      DEAD at the limit, else FAILED
        raises       NotFoundError when there is no such task
        """
        _, task = _find(self._work, id)
        retries = task.retries + 1
        status = TaskStatus.DEAD if retries >= max_retries else TaskStatus.FAILED
        _update(self._work, id, retries=retries, status=status, error=task.error if error is None else error)
        return status

    @reads
    def get(self, id: str) -> QueuedTask | None:  # noqa: A002  # as above
        """A task with its messages, or None."""
        arrival = self._work.view(TASK_IDS.table).get(id)
        return None if arrival is None else load(self._work, arrival)

    @reads
    def list(self, status: TaskStatus | None = None) -> builtins.list[QueuedTask]:
        """The tasks with their messages: all as they arrived, or those with a status in the order of the queue."""
        work = self._work
        if status is None:
            return [_with_messages(work, task) for _, task in work.scan(TASKS)]
        found = (work.get(TASKS, arrival) for arrival in _queued(work, TaskStatus(status)))
        return [_with_messages(work, task) for task in found if task is not None]

    @writes
    def cleanup_expired(self, *, force: bool = False) -> int:
        """Delete the tasks whose time to live is over: waiting ones, and finished ones whose user was notified.

        A task that is running, or whose reply nobody has seen, does not expire.

        force    believe the clock, however far it is ahead; see `Store.retention`
        returns  how many
        raises   ClockError
        cost     O(tasks deleted)
        """
        work = self._work
        count = 0
        now = work.check_clock(force=force)
        for (_, arrival), _ in work.view(TASK_EXPIRY.table).range(None, (key_int(now),)):
            task = work.get(TASKS, arrival)
            if task is not None:
                work.remove(TASKS, arrival, task)
                work.remove_range(TASK_MESSAGES, (arrival,), (arrival + 1,))
                count += 1
        return count

    @reads
    def has_duplicate(self, session_key: str, content_hash: str) -> bool:
        """Whether a waiting task of the session has this content hash; costs O(the session's waiting tasks)."""
        return any(found == content_hash for _, _, found in _waiting(self._work, session_key))

    @writes
    def merge_into_pending(self, session_key: str, message: QueuedMessage) -> bool:
        """Add a message to the session's waiting task that goes first; False when none is waiting.

        A task that should have expired by now gets its time to live once more, so that the message is not lost with it.
        """
        _check_message(message)
        work = self._work
        for arrival, _, _ in builtins.list(_waiting(work, session_key)):
            task = work.get(TASKS, arrival)
            if task is not None:
                now = work.now()
                lives = _life(task, now, task.ttl_secs) if task.is_expired(now) else task.ttl_secs
                _merge(work, task, [message.stamped(now)], ttl_secs=lives)
                return True
        return False


def _give_back(waiting: QueuedTask, now: int, work: Work) -> None:
    """Undo a dequeue whose task nobody got, unless somebody has changed the task since."""
    assert waiting.arrival is not None
    running = changed(waiting, status=TaskStatus.RUNNING, updated_at=now)
    stored = work.get(TASKS, waiting.arrival)
    if stored == running and stored.attempts == running.attempts:  # attempts are not compared
        work.put(TASKS, waiting.arrival, waiting, stored)


def load(work: Work, arrival: int) -> QueuedTask | None:
    """A task with its messages by its arrival number."""
    task = work.get(TASKS, arrival)
    return None if task is None else _with_messages(work, task)


def write(work: Work, task: QueuedTask) -> bool:
    """Write a task as a whole, over the one with the same id when there is one; False when it is there already.

    The task's own arrival number is used when it has one that is free.
    """
    arrival = work.view(TASK_IDS.table).get(task.id)
    stored = None if arrival is None else load(work, arrival)
    if arrival is None or stored is None:
        _insert(work, task, arrival=task.arrival)
        return True
    written = work.put(TASKS, arrival, task, stored)
    if stored.messages != task.messages:
        work.remove_range(TASK_MESSAGES, (arrival,), (arrival + 1,))
        _put_messages(work, arrival, 0, task.messages)
        written = True
    return written


def _checked(work: Work, task: QueuedTask) -> QueuedTask:
    if not isinstance(task, QueuedTask):
        raise TypeError(f"a QueuedTask is needed, not {type(task).__name__}")
    if not task.messages:
        raise ValueError("a task has at least one message")
    for message in task.messages:
        _check_message(message)
    check_key(task.session_key)
    check_key(task.id)
    if task.ttl_secs < 0:
        raise ValueError(f"ttl_secs is 0 (never) or more, not {task.ttl_secs}")
    return task.stamped(work.now())


def _check_message(message: object) -> None:
    if not isinstance(message, QueuedMessage):
        raise TypeError(f"a QueuedMessage is needed, not {type(message).__name__}")


def _insert(work: Work, task: QueuedTask, arrival: int | None = None) -> str:
    if task.id in work.view(TASK_IDS.table):
        raise ExistsError(Tasks.name, task.id)
    if arrival is None or arrival in work.view(TASKS.table):
        arrival = work.next_number(TASKS)
    work.put(TASKS, arrival, task, None)
    _put_messages(work, arrival, 0, task.messages)
    return task.id


def _put_messages(work: Work, arrival: int, first: int, messages: Iterable[QueuedMessage]) -> None:
    for index, message in enumerate(messages, first):
        work.put(TASK_MESSAGES, (arrival, index), message, None)


def _merge(work: Work, task: QueuedTask, messages: Iterable[QueuedMessage], **budget: Any) -> None:
    """Add messages to a waiting task; `budget` are fields of its row that change with them."""
    arrival = task.arrival
    assert arrival is not None
    last = next(iter(work.view(TASK_MESSAGES.table).prefix((arrival,), reverse=True)), None)
    _put_messages(work, arrival, 0 if last is None else last[0][1] + 1, messages)
    work.put(TASKS, arrival, changed(task, updated_at=work.now(), **budget), task)


def _life(task: QueuedTask, created_at: int, ttl_secs: int) -> int:
    """The time to live of a task that another one joins, which came at another time: in seconds, 0 for ever."""
    if 0 in (task.ttl_secs, ttl_secs):
        return 0
    return min(max(task.ttl_secs, created_at + ttl_secs - task.created_at), wire.INT_MAX)


def _with_messages(work: Work, task: QueuedTask) -> QueuedTask:
    """Fill in the messages; the record is fresh from the store, so nobody else holds it."""
    assert task.arrival is not None
    arrival = task.arrival
    if len(work.view(QUARANTINE.table)):  # then numbers may be missing
        task.messages = [message for _, message in work.scan(TASK_MESSAGES, (arrival,), (arrival + 1,))]
        return task
    # There are one or two, as a rule: looking for them takes 1 us each, a scan takes 7.
    stored = work.view(TASK_MESSAGES.table)
    messages: builtins.list[QueuedMessage | None] = []
    while (raw := stored.get((arrival, len(messages)))) is not None:
        messages.append(work.decode(TASK_MESSAGES, (arrival, len(messages)), raw))
    task.messages = [message for message in messages if message is not None]
    return task


def _find(work: Work, id: str) -> tuple[int, QueuedTask]:  # noqa: A002  # as above
    arrival = work.view(TASK_IDS.table).get(id)
    task = None if arrival is None else work.get(TASKS, arrival)
    if arrival is None or task is None:
        raise NotFoundError(Tasks.name, id)
    return arrival, task


def _update(work: Work, id: str, **changes: Any) -> None:  # noqa: A002  # as above
    """Change fields of a task's row; a row that has these values already is left alone, its time included."""
    arrival, task = _find(work, id)
    if any(getattr(task, name) != value for name, value in changes.items()):
        work.put(TASKS, arrival, changed(task, updated_at=work.now(), **changes), task)


def _queued(work: Work, status: TaskStatus) -> Iterator[int]:
    """The arrival numbers of the tasks with a status, the first to go first."""
    for key, _ in work.view(TASK_QUEUE.table).prefix((status.value,)):
        yield key[3]


def _waiting(work: Work, session_key: str) -> Iterator[tuple[int, int, str]]:
    """(arrival, priority rank, content hash) of a session's waiting tasks, the first to go first."""
    found = work.view(TASK_SESSIONS.table).prefix((session_key, TaskStatus.PENDING.value))
    for (_, _, rank, arrival), content_hash in found:
        yield arrival, rank, content_hash
