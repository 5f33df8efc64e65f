"""Who says what on the day: dialogues become sessions of a gateway.

A session is one user on one channel. It goes through some pieces of dialogues and starts afresh between them, as
`/new` does in a chat: that begins another generation.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .sources import Dialogue, Turn

CHANNELS = ("telegram", "feishu", "wechat", "web")
PIECE_TURNS = (4, 16)  # turns in a piece; with 1 to 3 pieces a session, an evening's chat
PIECES = (1, 3)


class Step(NamedTuple):
    """What the user does next: say a line, which will be answered; or, without a turn, start afresh."""

    turn: Turn | None
    topic: str


@dataclass(frozen=True, slots=True)
class Session:
    """One user on one channel, and all they are going to say.

    key     the session's key in the store
    origin  the language they speak, or the transcript they come from
    """

    key: str
    channel: str
    peer: str
    origin: str
    steps: tuple[Step, ...]


def from_corpus(dialogues: Iterable[Dialogue], rng: random.Random) -> list[Session]:
    """Sessions in pieces of dialogues, one language after the other, so that a short day hears them all."""
    by_origin: dict[str, list[list[Step]]] = {}
    for dialogue in dialogues:
        turns = iter(dialogue.turns)
        while piece := list(itertools.islice(turns, rng.randint(*PIECE_TURNS))):
            by_origin.setdefault(dialogue.origin, []).append([Step(turn, dialogue.topic) for turn in piece])
    columns: list[list[tuple[str, list[list[Step]]]]] = []
    for origin, pieces in by_origin.items():
        rng.shuffle(pieces)
        rest = iter(pieces)
        sessions = []
        while chosen := list(itertools.islice(rest, rng.randint(*PIECES))):
            sessions.append((origin, chosen))
        columns.append(sessions)
    rng.shuffle(columns)
    rounds = itertools.zip_longest(*columns)
    return _numbered((cell for row in rounds for cell in row if cell is not None), rng)


def from_transcripts(dialogues: Iterable[Dialogue], rng: random.Random) -> list[Session]:
    """One session for each transcript, whole, in an order that depends on the seed only."""
    shuffled = list(dialogues)
    rng.shuffle(shuffled)
    return _numbered(
        ((dialogue.origin, [[Step(turn, dialogue.topic) for turn in dialogue.turns]]) for dialogue in shuffled), rng
    )


def _numbered(plans: Iterable[tuple[str, list[list[Step]]]], rng: random.Random) -> list[Session]:
    sessions = []
    for number, (origin, pieces) in enumerate(plans, 1):
        channel = rng.choice(CHANNELS)
        peer = f"u{number:03}"
        steps = tuple(_joined(pieces))
        sessions.append(Session(f"agent:main:{channel}:direct:{peer}", channel, peer, origin, steps))
    return sessions


def _joined(pieces: list[list[Step]]) -> Iterator[Step]:
    for index, piece in enumerate(pieces):
        if index:
            yield Step(None, piece[0].topic)
        yield from piece
