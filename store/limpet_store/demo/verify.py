"""Comparing the store with the ledger: everything acknowledged is there, in order, once; nothing else is there.

Lines are compared one by one with what was sent: id, role, text, generation, and the sequence number that came with the
acknowledgement. That the stored lines are the first so many of those sent is the whole proof: a line that is missing,
doubled, out of order or changed breaks it, and so does one that nobody sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .. import Store, TaskStatus, Transaction
from .ledger import Ledger, Talk

SHOWN = 60  # characters of a line in a complaint
MAX_COMPLAINTS = 3  # for each session; one lost line moves all that follow


@dataclass(slots=True)
class Findings:
    """What a comparison found.

    lines     acknowledged lines that are where they belong
    sessions  sessions looked at
    unacked   lines that are stored, but whose acknowledgement died with the process; allowed, once
    errors    what is wrong, for people
    """

    lines: int = 0
    sessions: int = 0
    unacked: int = 0
    errors: list[str] = field(default_factory=list)


def verify_sessions(store: Store, ledger: Ledger) -> Findings:
    """Compare sessions and archive with the ledger, on one snapshot."""
    findings = Findings()
    with store.read() as tx:
        for key in tx.sessions.list():
            if key not in ledger.talks:
                findings.errors.append(f"{key}: a session that nobody began")
        for talk in ledger.talks.values():
            _verify_talk(tx, talk, findings)
    return findings


def verify_tasks(store: Store, ledger: Ledger, *, finished: bool) -> list[str]:
    """Compare the queue with the ledger: every message is one task, and every answered one is done.

    finished  nothing is in flight any more, so every task has to be done
    returns   what is wrong
    """
    errors = []
    in_flight = {message["id"] for message in ledger.in_flight}
    answered = {f"{key}#{n}" for key, talk in ledger.talks.items() for n in range(talk.answered)}
    tasks = store.tasks.list()
    times = Counter(task.id for task in tasks)
    errors += [f"task {task_id} is in the store {count} times" for task_id, count in times.items() if count > 1]
    errors += [f"task {task_id} was acknowledged and is missing" for task_id in sorted(ledger.queued - times.keys())]
    errors += [f"task {task_id} is one that nobody sent" for task_id in sorted(times.keys() - answered - in_flight)]
    errors += [
        f"task {task.id} was answered, and its status is {task.status}"
        for task in tasks
        if task.status is not TaskStatus.DONE and (finished or task.id in answered)
    ]
    return errors


def _verify_talk(tx: Transaction, talk: Talk, findings: Findings) -> None:
    key = talk.session.key
    findings.sessions += 1
    rows = tx.archive.load(key)
    errors = []
    if len(rows) < talk.acked:
        errors.append(f"{key}: {talk.acked} lines were acknowledged, and {len(rows)} are in the archive")
    if len(rows) > len(talk.sent):
        errors.append(f"{key}: {len(talk.sent)} lines were sent, and {len(rows)} are in the archive")
    for index, (row, line) in enumerate(zip(rows, talk.sent, strict=False)):
        stored = (row.message.get("id"), row.message.get("role"), row.message.get("content"), row.generation)
        seq = talk.seqs.get(index, row.seq)
        if stored != tuple(line) or row.seq != seq:
            errors.append(
                f"{key}: line {index} of the archive should be {_shown(line)} with number {seq},"
                f" and is {_shown(stored)} with number {row.seq}"
            )

    meta = tx.sessions.get(key)
    generation = talk.generation if meta is None else meta.generation
    began_afresh = talk.in_flight is not None and talk.in_flight["answer"] is None
    if generation not in {talk.generation, talk.generation + began_afresh}:
        errors.append(f"{key}: the session is in generation {generation}, and should be in {talk.generation}")
    active = tx.messages.load(key)
    if active != [row.message for row in rows if row.generation == generation]:
        errors.append(f"{key}: {len(active)} active messages, which are not those of generation {generation}")

    if errors:
        findings.errors += errors[:MAX_COMPLAINTS]
    else:
        findings.lines += talk.acked
        findings.unacked += len(rows) - talk.acked


def _shown(stored: object) -> str:
    text = repr(stored)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
