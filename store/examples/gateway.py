"""A minimal gateway on asyncio: a queue worker, a cron tick, a poller of external jobs, and all it must remember.

    python store/examples/gateway.py --store /tmp/demo.limpet --seconds 5

Run it again on the same store, or kill it while it runs: it goes on where it was. What a real gateway adds is the
channels and the agents; here users talk at random, the agent shouts back, and a provider makes videos in no time.
What to look at is the order of steps, since it decides what a crash can do:

  inbound    submit, then acknowledge          what was acknowledged is in the queue
  worker     user's line, reply, finish_turn   one commit; a crash before it repeats the turn, one after it does not
  poller     claim, work, update               nobody else works on a claimed job; after a crash its lease runs out
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import random
import time

from limpet_store import (
    AsyncStore,
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    ExternalJobStatus,
    NotFoundError,
    Priority,
    QueuedMessage,
    QueuedTask,
    TaskStatus,
)

log = logging.getLogger("gateway")

WORKERS = 4
TICK_S = 0.2  # a real gateway looks every few seconds
POLL_S = 1  # seconds until the provider is asked again
USERS = ("ada", "grace", "edsger")
SAYINGS = ("hello", "how are you?", "make a video of a crab", "what is the time?", "thank you")


class Gateway:
    """The loops of a gateway on one store. `work` counts what was submitted, so that nobody polls an empty queue."""

    def __init__(self, store: AsyncStore) -> None:
        self.store = store
        self.work = asyncio.Semaphore(0)

    async def run(self, seconds: float) -> None:
        """Start every loop, and stop them all after a while."""
        revived = await self.store.tasks.requeue_running()
        if revived:
            log.info("%d tasks were running when the last process ended; they run again", revived)
        await self.store.cron.put("tea", json.dumps({"every_s": 1, "next_at": 0, "text": "is it time for tea?"}))
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as loops:
                for user in USERS:
                    loops.create_task(self.user(user))
                for _ in range(WORKERS):
                    loops.create_task(self.worker())
                loops.create_task(self.cron())
                loops.create_task(self.poller())
                loops.create_task(self.janitor())
        except TimeoutError:
            pass  # the end that was asked for; a step that was under way is whole or did not happen

    async def submit(self, session_key: str, text: str, priority: Priority = Priority.USER) -> None:
        """Put a message into the queue; when this returns, it will be answered."""
        message = QueuedMessage(text=text, sender="user", channel="demo", chat_id=session_key)
        outcome = await self.store.tasks.submit(
            QueuedTask(session_key=session_key, messages=[message], priority=priority)
        )
        log.info("%s says %r: %s", session_key, text, outcome.kind)
        self.work.release()

    async def user(self, name: str) -> None:
        """Somebody who says something now and then."""
        while True:
            await asyncio.sleep(random.uniform(0.05, 0.5))
            await self.submit(f"agent:main:demo:direct:{name}", random.choice(SAYINGS))

    async def worker(self) -> None:
        """Take a task, let the agent answer, record everything in one commit."""
        while True:
            task = await self.store.tasks.dequeue()
            if task is None:
                await self.work.acquire()
                continue
            text = "\n".join(message.text for message in task.messages)
            reply = await self.agent(task.session_key, text)
            async with self.store.write() as tx:
                await tx.messages.append(task.session_key, {"role": "user", "content": text})
                await tx.messages.append(task.session_key, {"role": "assistant", "content": reply})
                await tx.tasks.finish_turn(task.id, task.turns + 1, reply, None, TaskStatus.DONE)
            log.info("%s hears %r", task.session_key, reply)  # a channel would send it here
            await self.store.tasks.mark_notified(task.id)

    async def agent(self, session_key: str, text: str) -> str:
        """Where a model would be asked; it sees the last messages. A video takes a provider, and time."""
        seen = await self.store.messages.load_recent(session_key, 10)
        await asyncio.sleep(0.02)
        if "video" in text:
            job = ExternalJob(
                session_key=session_key,
                delivery=ExternalJobDelivery(channel="demo", target_id=session_key),
                origin=ExternalJobOrigin.AGENT,
                provider="nobody",
                external_task_id="1",
                kind=ExternalJobKind.VIDEO_GEN,
                prompt=text,
                next_poll_at=int(time.time()) + POLL_S,
            )
            await self.store.jobs.enqueue(job)
            return "I am making your video."
        return f"{text.upper()} (I remember {len(seen)} messages)"

    async def cron(self) -> None:
        """Every tick: submit what is due, and write down when it is due again, if the job still exists."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.time()
            for name, text in await self.store.cron.items():
                job = json.loads(text)
                if job["next_at"] > now:
                    continue
                try:
                    await self.store.cron.update(name, functools.partial(again_after, now))
                except NotFoundError:
                    continue  # somebody deleted it a moment ago, and it stays deleted
                await self.submit("agent:main:cron:tea", job["text"], Priority.CRON)

    async def poller(self) -> None:
        """Every tick: claim the jobs that are due, ask the provider, deliver what is ready."""
        while True:
            await asyncio.sleep(TICK_S)
            for job in await self.store.jobs.claim_due(int(time.time()), limit=8, lease=60):
                job.poll_count += 1
                if job.poll_count < 2:  # the provider is not ready
                    job.status = ExternalJobStatus.POLLING
                    job.next_poll_at = int(time.time()) + POLL_S
                    await self.store.jobs.update(job)
                    continue
                job.status = ExternalJobStatus.DONE
                job.result_url = "https://example.com/video.mp4"
                job.delivery_attempts += 1
                job.delivered_at = int(time.time())
                async with self.store.write() as tx:
                    await tx.jobs.update(job)
                    await tx.messages.append(job.session_key, {"role": "assistant", "content": job.result_url})
                log.info("%s gets %s", job.session_key, job.result_url)

    async def janitor(self) -> None:
        """Every tick: forget what is old. When nothing is, this commits nothing."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.store.tasks.cleanup_expired()
            await self.store.retention(sessions_s=30 * 86400, archive_s=365 * 86400)


def again_after(now: float, text: str) -> str:
    """A scheduled job's text with the time when it is due next."""
    job = json.loads(text)
    job["next_at"] = now + job["every_s"]
    return json.dumps(job)


async def main() -> None:
    """Open the store, run for a while, say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="gateway.limpet", metavar="PATH")
    parser.add_argument("--seconds", default=10.0, type=float, metavar="N")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    async with AsyncStore.open(args.store) as store:
        await Gateway(store).run(args.seconds)
        for key, meta in await store.sessions.items():
            stat = await store.archive.stat(key)
            log.info("%s: %d messages in generation %d", key, stat.total_messages, meta.generation)


if __name__ == "__main__":
    asyncio.run(main())
