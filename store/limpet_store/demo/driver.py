"""The day itself: users talk, the worker is killed, comes back, and is held to what it said.

The driver is the outside world. It gives each user's next line to the worker when the reply to the last one has come,
keeps the ledger, and at random moments kills the worker with SIGKILL. After each kill it opens the store read-only and
compares it with the ledger, then starts the worker again and delivers once more what was never answered, as chat
channels do. A kill may also hit a worker that is just coming back.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import limpet

from .. import Store
from .ledger import Ledger, ProtocolError, Talk
from .process import WorkerProcess
from .screen import Screen, counted
from .script import Session
from .verify import Findings, verify_sessions

TALKING = 12  # users who talk at the same time
KILL_WITHIN_S = 0.05  # a kill comes so long after its moment in the script; some tens of commits
EARLY_KILL_SHARE = 0.2  # of the kills, those that hit a worker which is just coming back
EARLY_KILL_WITHIN_S = 0.3  # starting Python takes most of it, recovery a few milliseconds
SILENCE_S = 60.0  # a worker that says nothing for so long hangs
SAMPLE_S = 1.5  # how long one exchange stays in the status line


@dataclass(slots=True)
class Day:
    """What happened; `errors` is empty on a good day.

    sessions, turns, lines   that were begun, and answered and acknowledged
    restarts                 fresh starts of a conversation
    kills, recoveries        of the worker
    requeued                 tasks that were running when the worker died, and were put back
    redelivered              messages that were delivered again after a kill
    unacked                  lines that were stored when the worker died before it could say so
    verified                 comparisons of the whole store with the ledger, after each kill
    open_s                   seconds the recoveries took, from opening to serving
    alive_s                  seconds in which a worker was serving
    interrupted              by Ctrl-C
    """

    sessions: int = 0
    turns: int = 0
    lines: int = 0
    restarts: int = 0
    origins: int = 0
    channels: int = 0
    kills: int = 0
    recoveries: int = 0
    requeued: int = 0
    redelivered: int = 0
    unacked: int = 0
    verified: int = 0
    open_s: list[float] = field(default_factory=list)
    alive_s: float = 0.0
    interrupted: bool = False
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Driver:
    """Plays sessions against a worker on one store."""

    def __init__(
        self,
        path: str,
        sessions: Sequence[Session],
        *,
        kills: int,
        day_s: float | None,
        rng: random.Random,
        screen: Screen,
    ) -> None:
        """Prepare a day; nothing happens yet.

        path      where the store will be; there is nothing yet
        sessions  all of them are played when day_s is None, else as many as that day is long
        kills     how often to kill
        day_s     seconds after which nobody says anything new, or None
        """
        self.day = Day()
        self.ledger = Ledger()
        self._path = path
        self._waiting = iter(sessions)
        self._step_count = sum(len(session.steps) for session in sessions)
        self._day_s = day_s
        self._rng = rng
        self._screen = screen
        self._kill_count = kills
        self._moments = sorted(rng.uniform(0.03, 0.97) for _ in range(kills))  # in shares of the day
        self._early_kills = {n for n in range(1, kills) if rng.random() < EARLY_KILL_SHARE}
        self._kill_at: float | None = None
        self._begin = time.monotonic()
        self._steps_done = 0
        self._ready_at: float | None = None
        self._sample = (0.0, "")
        self._worker: WorkerProcess | None = None

    # --- the day -----------------------------------------------------------------------------------------------------

    def play(self) -> Day:
        """Play until everything is said and every kill is done, or until Ctrl-C; then end the worker in peace."""
        try:
            try:
                self._start()
                self._play()
            except KeyboardInterrupt:
                self.day.interrupted = True
                self._screen.note("Ctrl-C: the worker finishes what it is at")
            self._finish()
        except ProtocolError as error:
            self.day.errors.append(str(error))
        except queue.Empty:
            self.day.errors.append(f"the worker has said nothing for {SILENCE_S:.0f} s")
        finally:
            if self._worker is not None:
                self._worker.close()
        self._count()
        return self.day

    def _play(self) -> None:
        for _ in range(TALKING):
            self._begin_session()
        heard_at = time.monotonic()
        while not self.day.errors and (self._moments or self._kill_at is not None or self.ledger.in_flight):
            now = time.monotonic()
            self._plan_kill(now)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill()
                heard_at = time.monotonic()
                continue
            if now - heard_at > SILENCE_S:
                raise queue.Empty
            if self._screen.wants_status():
                self._screen.status(self._status(now))
            try:
                event = self._alive.hear(0.02 if self._kill_at is None else min(0.02, self._kill_at - now))
            except queue.Empty:
                continue
            heard_at = time.monotonic()
            if event is None:
                self._died()
                return
            self._hear(event)

    @property
    def _alive(self) -> WorkerProcess:
        assert self._worker is not None
        return self._worker

    def _progress(self, now: float) -> float:
        """How much of the day is over, 0 to 1: of what is to be said, or of the time, whichever is further."""
        said = self._steps_done / max(1, self._step_count)
        return min(1.0, said if self._day_s is None else max(said, (now - self._begin) / self._day_s))

    def _is_evening(self) -> bool:
        return self._day_s is not None and time.monotonic() - self._begin > self._day_s

    def _begin_session(self) -> None:
        if self._is_evening():
            return
        for session in self._waiting:
            self._say(self.ledger.begin(session))
            return

    def _say(self, talk: Talk) -> None:
        self._alive.send(talk.say())

    def _hear(self, event: dict[str, Any]) -> None:
        """Take note of one thing the worker says, and let the user go on whom it answers."""
        kind = event["event"]
        if kind == "ready":
            self._ready(event)
            return
        if kind == "closed":
            return
        talk = self.ledger.hear(event)
        if talk is None:
            return
        self._steps_done += 1
        self._remember(talk)
        self._go_on(talk)

    def _go_on(self, talk: Talk) -> None:
        """A step is over: the user says what comes next, or leaves and another one comes."""
        if talk.is_over:
            self._begin_session()
        elif not self._is_evening():
            self._say(talk)

    # --- a life of the worker ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._ready_at = None
        self._worker = WorkerProcess(self._path)
        if self.day.kills in self._early_kills and self._moments:
            self._moments.pop(0)
            self._kill_at = time.monotonic() + self._rng.uniform(0.0, EARLY_KILL_WITHIN_S)

    def _ready(self, event: dict[str, Any]) -> None:
        self._ready_at = time.monotonic()
        if not self.day.kills:
            return
        self.day.recoveries += 1
        self.day.requeued += event["requeued"]
        self.day.open_s.append(event["open_s"])
        self._screen.note(
            f"back after {self._ready_at - self._alive.started:.2f} s, of which {event['open_s'] * 1000:.0f} ms to open"
            f" the store; {counted(event['requeued'], 'interrupted task')} put back into the queue"
        )

    def _plan_kill(self, now: float) -> None:
        """Fix the time of the next kill, once its moment in the day has come and the worker is at work."""
        if self._kill_at is None and self._moments and self._ready_at is not None:
            nothing_more = not self.ledger.in_flight
            if self._progress(now) >= self._moments[0] or nothing_more:
                self._moments.pop(0)
                self._kill_at = now + self._rng.uniform(0.0, KILL_WITHIN_S)

    def _kill(self) -> None:
        """Kill, listen to the last words, compare, start again."""
        worker, self._kill_at = self._alive, None
        worker.kill()
        self.day.kills += 1
        was_ready = self._ready_at is not None
        answered = self._rest_of_life()
        worker.close()
        self._worker = None
        where = f"with {counted(len(self.ledger.in_flight), 'message')} in flight" if was_ready else "coming back"
        try:
            with Store.open(self._path, read_only=True) as store:
                findings = verify_sessions(store, self.ledger)
        except limpet.LimpetError as error:
            findings = Findings(errors=[f"{type(error).__name__}: {error}"])
        self.day.verified += 1
        self.day.unacked += findings.unacked
        self.day.errors += findings.errors
        result = (
            f"{findings.lines:,} acknowledged lines, all there"
            + (f", and {findings.unacked} not yet acknowledged" if findings.unacked else "")
            if not findings.errors
            else f"{counted(len(findings.errors), 'error')}, such as {findings.errors[0]}"
        )
        self._screen.note(
            f"SIGKILL {self.day.kills} of {self._kill_count}: worker {worker.pid}, {where}. In the file: {result}"
        )
        if self.day.errors:
            return
        self._start()
        again = self.ledger.in_flight
        self.day.redelivered += len(again)
        for message in again:
            self._alive.send(message)
        for talk in answered:
            self._go_on(talk)

    def _finish(self) -> None:
        """Let the worker close the store; what it was at is finished or stays in the queue."""
        worker = self._worker
        if worker is None or self.day.errors:
            return
        self._screen.status("the worker closes the store")
        worker.finish()
        self._rest_of_life()
        if worker.returncode != 0 and not worker.was_killed:
            self._died()

    def _rest_of_life(self) -> list[Talk]:
        """Hear the worker out. What it acknowledges counts.

        returns  the sessions that it has answered, and that nobody has gone on with
        """
        answered = []
        for event in self._alive.rest():
            if event["event"] in {"queued", "stored", "answered"}:
                talk = self.ledger.hear(event)
                if talk is not None:
                    self._steps_done += 1
                    answered.append(talk)
        if self._ready_at is not None:
            self.day.alive_s += (self._alive.ended or time.monotonic()) - self._ready_at
            self._ready_at = None
        return answered

    def _died(self) -> None:
        worker = self._alive
        self.day.errors.append(
            f"worker {worker.pid} ended by itself with exit code {worker.returncode}:\n{worker.complaint()}"
        )

    # --- what is told ------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        talks = self.ledger.talks.values()
        done = [step for talk in talks for step in talk.session.steps[: talk.answered]]
        self.day.sessions = len(talks)
        self.day.turns = sum(step.turn is not None for step in done)
        self.day.restarts = len(done) - self.day.turns
        self.day.lines = self.ledger.acked
        self.day.origins = len({talk.session.origin for talk in talks})
        self.day.channels = len({talk.session.channel for talk in talks})

    def _remember(self, talk: Talk) -> None:
        """Keep an exchange for the status line, for long enough to read it."""
        now = time.monotonic()
        step = talk.session.steps[talk.answered - 1]
        if step.turn is not None and now - self._sample[0] > SAMPLE_S:
            user, reply = (" ".join(text.split()) for text in step.turn)
            session = talk.session
            self._sample = (now, f"{session.channel} {session.peer}, {session.origin}: {user} - {reply}")

    def _status(self, now: float) -> str:
        return f"{self._progress(now):4.0%}  {self._steps_done:,} answered  {self._sample[1]}"
