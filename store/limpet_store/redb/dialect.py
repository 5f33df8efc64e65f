"""The keys of the reference gateway, taken apart. Text in, values out; nothing here reads a file.

The reference glues its keys together from texts that may contain the glue. Two dialects exist, and a file that was
written by an older and then by a newer release has both:

  table                 colon                              NUL
  messages, active      {session}:{seq:016}                {session}\\0{seq:016}
  messages, archive     archive:{session}:gen{G}:{seq:016} archive\\0{session}\\0gen{G}\\0{seq:016}
  pairing               {channel}:{peer_id}
  computer_permissions                                     {agent_id}\\0{app}

(The newer release once filled archives in with numbers that are not padded.) A sequence number is always the last part
and always digits, so `...:group:G:topic:5:0000000000000003` can only be message 3 of `...:group:G:topic:5`, whatever
else is in the file. Two things cannot be told from the key alone:

  - `archive:X:gen1:0000000000000003` is archived message 3 of X, or message 3 of a session called `archive:X:gen1`;
  - a peer or a channel, an agent or an app, with the separator in its name.

The sessions (channels, agents) that are known otherwise decide; where they do not, the first reading is chosen and the
doubt is in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from ..schema import NUMBER_MAX

SEQ_MAX: Final = NUMBER_MAX - 1
GENERATION_MAX: Final = 2**32 - 1  # u32 in the reference
SEQ_DIGITS: Final = 16  # what it pads to

_ACTIVE: Final = re.compile(r"(?P<session>.+)(?P<glue>[:\0])(?P<seq>[0-9]+)", re.DOTALL)
_ARCHIVE: Final = re.compile(
    r"archive(?P<glue>[:\0])(?P<session>.+)(?P=glue)gen(?P<generation>[0-9]+)(?P=glue)(?P<seq>[0-9]+)", re.DOTALL
)


class MessageKey(NamedTuple):
    """A key of the table messages.

    session      the conversation
    generation   of an archived row; None for an active one
    seq          sequence number
    glue         ":" or NUL: the dialect
    padded       the sequence number has the usual 16 digits
    doubt        what else the key could mean, None where nothing
    """

    session: str
    generation: int | None
    seq: int
    glue: str
    padded: bool
    doubt: str | None = None


class Pair(NamedTuple):
    """A key of two parts, and what else it could mean."""

    first: str
    second: str
    doubt: str | None = None


def message_key(key: str, known_sessions: AbstractSet[str]) -> MessageKey | None:
    """Take apart a key of the table messages.

    known_sessions   the keys of session_meta
    returns          None where the key is none of the four forms, or a number is out of range
    """
    active = _ACTIVE.fullmatch(key)
    if active is None:
        return None
    digits = active["seq"]
    seq = _number(digits, SEQ_MAX)
    # Only as the reference writes it: then no two keys of one kind mean the same message.
    if seq is None or digits not in (f"{seq:0{SEQ_DIGITS}}", str(seq)):
        return None
    padded = len(digits) >= SEQ_DIGITS
    archive = _ARCHIVE.fullmatch(key)
    generation = None if archive is None else _number(archive["generation"], GENERATION_MAX)
    if archive is None or not generation or archive["generation"] != str(generation):
        doubt = None
        if active["session"] not in known_sessions:
            if archive is not None:
                doubt = f"it looks archived, but there is no generation {archive['generation'][:20]}"
            elif not padded:
                doubt = f"the number has {len(digits)} digits instead of {SEQ_DIGITS}, and there is no such session"
        return MessageKey(active["session"], None, seq, active["glue"], padded, doubt)
    if active["session"] not in known_sessions:
        return MessageKey(archive["session"], generation, seq, archive["glue"], padded)
    if archive["session"] not in known_sessions:
        return MessageKey(
            active["session"],
            None,
            seq,
            active["glue"],
            padded,
            f"or archived by session {archive['session']!r}, which is not known",
        )
    return MessageKey(
        archive["session"],
        generation,
        seq,
        archive["glue"],
        padded,
        f"or an active message of session {active['session']!r}, which is known as well",
    )


def pair_key(key: str, glue: str, known_firsts: AbstractSet[str]) -> Pair | None:
    """Take apart a key of pairing (":") or computer_permissions (NUL).

    known_firsts   channels, or agents, known from elsewhere
    returns        None where the separator is missing
    """
    parts = key.split(glue)
    if len(parts) == 1:
        return None
    readings = [Pair(glue.join(parts[:at]), glue.join(parts[at:])) for at in range(1, len(parts))]
    known = [pair for pair in readings if pair.first in known_firsts]
    if len(readings) == 1 or len(known) == 1:
        return (known or readings)[0]
    chosen = (known or readings)[0]
    others = ", ".join(repr(pair.first) for pair in (known or readings) if pair is not chosen)
    return chosen._replace(doubt=f"the first part could also be {others}")


def channel_of(session: str) -> str | None:
    """The channel in a session key of the usual form, `agent:ID:CHANNEL:...`."""
    parts = session.split(":")
    return parts[2] if len(parts) >= 4 and parts[0] == "agent" else None


def agent_of(session: str) -> str | None:
    """The agent in a session key of the usual form, `agent:ID:...`."""
    parts = session.split(":")
    return parts[1] if len(parts) >= 3 and parts[0] == "agent" else None


def _number(digits: str, limit: int) -> int | None:
    # int() of a very long text is slow, and refused above 4,300 digits.
    if len(digits) > 40:
        return None
    value = int(digits)
    return value if value <= limit else None
