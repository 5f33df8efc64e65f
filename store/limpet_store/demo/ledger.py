"""What the outside world knows: what it said, and what it was told has been stored.

It lives in the driver's memory, the one place that the killed process cannot touch. One user talks in a session and
waits for each reply, so the lines of a session come in one order only, and at any moment

    acknowledged <= stored <= sent        counted in lines from the session's beginning

The lines in between are those in flight: they may be stored, at most once, and nobody has been told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .script import Session, Step

LINES_PER_TURN = 2


class Line(NamedTuple):
    """One line as it has to be in the store."""

    id: str
    role: str
    content: str
    generation: int


class ProtocolError(Exception):
    """The worker said something that cannot be true."""


@dataclass(slots=True)
class Talk:
    """One session, as far as it has come.

    sent       every line that may be in the store, in order
    acked      how many of them are acknowledged, counted from the beginning
    seqs       index in `sent` -> the sequence number that the worker gave with the acknowledgement
    answered   steps that are over
    in_flight  the message that waits for its answer, as it was sent, or None
    generation the session's, as of the last step that is over
    """

    session: Session
    sent: list[Line] = field(default_factory=list)
    acked: int = 0
    seqs: dict[int, int] = field(default_factory=dict)
    answered: int = 0
    in_flight: dict[str, Any] | None = None
    generation: int = 1

    @property
    def step(self) -> Step:
        """The step that is in flight, or comes next."""
        return self.session.steps[self.answered]

    @property
    def is_over(self) -> bool:
        """Whether everything was said and answered."""
        return self.answered == len(self.session.steps)

    def say(self) -> dict[str, Any]:
        """The next message for the worker."""
        assert self.in_flight is None
        turn, task_id = self.step.turn, f"{self.session.key}#{self.answered}"
        if turn is not None:
            self.sent.append(Line(f"{task_id}:user", "user", turn.user, self.generation))
            self.sent.append(Line(f"{task_id}:assistant", "assistant", turn.reply, self.generation))
        self.in_flight = {
            "id": task_id,
            "session": self.session.key,
            "channel": self.session.channel,
            "peer": self.session.peer,
            "text": "/new" if turn is None else turn.user,
            "answer": None if turn is None else turn.reply,
        }
        return self.in_flight

    def stored(self, seq: int | None) -> None:
        """The user's line in flight is acknowledged."""
        self._acknowledge(len(self.sent) - LINES_PER_TURN, seq)

    def replied(self, seq: int | None, text: str) -> None:
        """The step in flight is over; the reply has reached the user."""
        turn = self.step.turn
        if turn is None:
            self.generation += 1
            expected = f"generation {self.generation}"
        else:
            expected = turn.reply
            self._acknowledge(len(self.sent) - 1, seq)
        if text != expected:
            raise ProtocolError(f"{self.session.key}: the reply is {text!r}, and {expected!r} was expected")
        self.answered += 1
        self.in_flight = None

    def _acknowledge(self, index: int, seq: int | None) -> None:
        if seq is not None and self.seqs.setdefault(index, seq) != seq:
            raise ProtocolError(f"{self.sent[index].id} was stored under {self.seqs[index]} and again under {seq}")
        self.acked = max(self.acked, index + 1)


@dataclass(slots=True)
class Ledger:
    """All sessions that have begun, and the messages known to be in the queue."""

    talks: dict[str, Talk] = field(default_factory=dict)
    queued: set[str] = field(default_factory=set)

    def begin(self, session: Session) -> Talk:
        """A user appears."""
        talk = self.talks[session.key] = Talk(session)
        return talk

    def hear(self, event: dict[str, Any]) -> Talk | None:
        """Note one acknowledgement.

        returns  the session when a step of it is over, else None
        raises   ProtocolError
        """
        kind, task_id = event["event"], event["id"]
        talk = self.talks.get(task_id.rpartition("#")[0])
        if talk is None:
            raise ProtocolError(f"the worker speaks of {task_id!r}, which nobody sent")
        if kind == "queued":
            self.queued.add(task_id)
            return None
        if talk.in_flight is None or talk.in_flight["id"] != task_id:
            return None  # told again, after a crash between telling and recording that it was told
        if kind == "stored":
            talk.stored(event["seq"])
            return None
        talk.replied(event["seq"], event["text"])
        return talk

    @property
    def acked(self) -> int:
        """Lines acknowledged."""
        return sum(talk.acked for talk in self.talks.values())

    @property
    def in_flight(self) -> list[dict[str, Any]]:
        """The messages that wait for their answer."""
        return [talk.in_flight for talk in self.talks.values() if talk.in_flight is not None]
