"""The gateway that is going to be killed: a process with the store open, an inbox and some agents.

    python -m limpet_store.demo.worker STORE

It reads inbound messages from standard input and acknowledges on standard output, one JSON object a line. An
acknowledgement is written after the commit that it speaks of is durable, never before:

    in    {"id", "session", "channel", "peer", "text", "answer"}    a message; answer null: the user starts afresh
    out   {"event": "ready", "pid", "open_s", "requeued"}           the store is open
          {"event": "queued", "id"}                                 the message is in the queue and will not be lost
          {"event": "stored", "id", "seq"}                          the user's line is in session and archive
          {"event": "answered", "id", "seq", "text"}                so is the reply, and the task is done
          {"event": "closed", "commits", "syncs"}                   end of input: everything is written, the file closed

The agent is a stand-in: the answer comes with the message, because this is about what is remembered and not about what
is said. `seq` is null when the line was stored in an earlier life, and so is told again.

A message takes four durable commits, each of which leaves a state from which the rest can be done again:

    1  submit      the message's id is recorded beside its task: delivered twice, it is one task
    2  dequeue     Pending -> Running; after a crash it is put back
    3  user line   recorded under an idempotency key, so that doing it again appends nothing
    4  reply, task done, turn's idempotency key: one commit, so no reply is ever given twice

That the user was told is a fifth commit, which need not survive a power cut: the worst is telling again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from typing import Any

from .. import QueuedMessage, QueuedTask, Store, TaskStatus

AGENTS = 2  # tasks that are worked on at the same time
MAX_ATTEMPTS = 1_000_000  # here the process dies through no fault of the task, so none is given up


class Worker:
    """An inbox and its agents on one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.waiting = threading.Semaphore(0)  # one for each task that may be in the queue
        self.stopping = False
        self.output = threading.Lock()

    def tell(self, event: str, **fields: Any) -> None:
        """Write one acknowledgement, whole."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        with self.output:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()

    def accept(self, inbound: dict[str, Any]) -> None:
        """Put a message into the queue, unless it is there or answered already."""
        message = QueuedMessage(
            text=inbound["text"],
            sender=inbound["peer"],
            channel=inbound["channel"],
            chat_id=inbound["peer"],
            extra={"answer": inbound["answer"]},
        )
        task = QueuedTask(id=inbound["id"], session_key=inbound["session"], messages=[message])
        key = f"inbound:{task.id}"
        with self.store.write() as tx:
            known = tx.idempotency.is_delivered(key)
            if not known:
                tx.tasks.submit(task)
                tx.idempotency.mark_delivered(key)
        self.tell("queued", id=task.id)
        if not known:
            self.waiting.release()
            return
        earlier = self.store.tasks.get(task.id)
        if earlier is not None and earlier.status is TaskStatus.DONE:
            self.notify(task.id, None, earlier.last_reply)

    def work(self) -> None:
        """Answer one task after the other, until there is nothing to wait for."""
        while True:
            self.waiting.acquire()
            if self.stopping:
                return
            task = self.store.tasks.dequeue()
            if task is not None:
                self.answer(task)

    def answer(self, task: QueuedTask) -> None:
        """Do a task, or do the rest of it."""
        [message] = task.messages
        answer: str | None = message.extra["answer"]
        seq: int | None = None
        if answer is None:
            with self.store.write() as tx:
                text = f"generation {tx.sessions.new_generation(task.session_key)}"
                tx.tasks.finish_turn(task.id, 1, text, None, TaskStatus.DONE)
        else:
            text, key = answer, f"task:{task.id}:user"
            with self.store.write() as tx:
                if not tx.idempotency.is_delivered(key):
                    seq = tx.messages.append(task.session_key, _line(task, "user", message.text))
                    tx.idempotency.mark_delivered(key)
            self.tell("stored", id=task.id, seq=seq)
            with self.store.write() as tx:
                seq = tx.messages.append(task.session_key, _line(task, "assistant", text))
                tx.tasks.finish_turn(task.id, 1, text, None, TaskStatus.DONE)
        self.notify(task.id, seq, text)

    def notify(self, task_id: str, seq: int | None, text: str | None) -> None:
        """Tell the user, and record that they were told."""
        self.tell("answered", id=task_id, seq=seq, text=text)
        with self.store.write(durability="os") as tx:
            tx.tasks.mark_notified(task_id)

    def notify_again(self) -> None:
        """Tell what may not have been told before the last life ended."""
        for task in self.store.tasks.list(TaskStatus.DONE):
            if not task.notified:
                self.notify(task.id, None, task.last_reply)


def _line(task: QueuedTask, role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content, "id": f"{task.id}:{role}"}


def serve(path: str) -> None:
    """Open the store, put back what was running, and go on until the input ends."""
    begin = time.perf_counter()
    with Store.open(path) as store:
        worker = Worker(store)
        requeued = store.tasks.requeue_running(max_attempts=MAX_ATTEMPTS)
        for _ in store.tasks.list(TaskStatus.PENDING):
            worker.waiting.release()
        worker.tell("ready", pid=os.getpid(), open_s=time.perf_counter() - begin, requeued=requeued)
        worker.notify_again()
        agents = [threading.Thread(target=_or_die, args=(worker.work,), name=f"agent {n}") for n in range(AGENTS)]
        for agent in agents:
            agent.start()
        for line in sys.stdin.buffer:
            worker.accept(json.loads(line))
        worker.stopping = True
        worker.waiting.release(len(agents))
        for agent in agents:
            agent.join()
        stats = store.database.stats()
    worker.tell("closed", commits=stats.commits, syncs=stats.syncs)


def _or_die(body: Any) -> None:
    """A thread that fails takes the process with it: half a gateway would only look alive."""
    try:
        body()
    except BaseException:  # noqa: BLE001  # whatever it is, it ends the process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    _or_die(lambda: serve(sys.argv[1]))
