"""OpenClaw's conversations as they lie on disk, and how they become ours.

One agent's sessions are in agents/NAME/sessions/ (until July 2026; later versions keep these files as their import):

  sessions.json       {session key: {"sessionId", "sessionFile"?, "updatedAt" ms, "sessionStartedAt"? ms, "origin"?}}
  SESSIONID.jsonl     one entry a line; the first has "type": "session", messages have "type": "message" and
                      "message": {"role", "content": text or a list of blocks, "model"?, "timestamp"?}

A key that does not begin with "agent:" belongs to the agent whose directory it is in. Keys are kept as they are; how
the gateway spells them now becomes an alias: without the account, and with the channel's present name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import wire
from .errors import UndecodableError, UnstorableError
from .records import Message
from .store import Store
from .transaction import Transaction

MESSAGES_PER_COMMIT = 500
MARK = "import-openclaw:"  # kv name of how many messages of a transcript have come over: MARK + agent/session id
RENAMED_CHANNELS = {"openclaw-weixin": "wechat"}


@dataclass(slots=True)
class Transcript:
    """What a transcript says.

    messages  the messages that come over, in order
    errors    "file:line: what was wrong" of the lines that cannot be read
    """

    messages: list[Message] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Added(NamedTuple):
    """What an import added, or would add."""

    messages: int
    aliases: int


@dataclass(frozen=True, slots=True)
class Found:
    """One session of sessions.json.

    key         its key here
    mark        under which kv name its progress is remembered
    transcript  its file, or None when there is none
    entry       what sessions.json says of it
    """

    key: str
    mark: str
    transcript: Path | None
    entry: dict[str, Any]

    def add_to(self, store: Store | None, transcript: Transcript, *, dry_run: bool) -> Added:
        """Add what the store does not have yet; in a dry run only count it. A store that is None is an empty one."""
        have = int(store.kv.get(self.mark) or 0) if store is not None else 0
        known = store.aliases.all() if store is not None else {}
        aliases = {alias: self.key for alias in spellings(self.key) if alias not in known}
        new = transcript.messages[have:]
        if store is None or dry_run:
            return Added(len(new), len(aliases))
        while batch := transcript.messages[have : have + MESSAGES_PER_COMMIT]:
            have += len(batch)
            with store.write() as tx:
                tx.messages.append_many(self.key, batch)
                tx.kv.set(self.mark, str(have))
                self._date(tx)
        if aliases:
            store.aliases.put_many(aliases)
        return Added(len(new), len(aliases))

    def _date(self, tx: Transaction) -> None:
        """Give the session the times and the name that it had."""
        meta = tx.sessions.get(self.key)
        if meta is None:
            return
        origin = self.entry.get("origin")
        label = origin.get("label") if isinstance(origin, dict) else None
        updated = _seconds(self.entry.get("updatedAt"), meta.last_active)
        tx.sessions.put(
            self.key,
            replace(
                meta,
                last_active=updated,
                created_at=min(_seconds(self.entry.get("sessionStartedAt"), meta.created_at), updated),
                peer_name=label if isinstance(label, str) and meta.peer_name is None else meta.peer_name,
            ),
        )


def find(directory: str | os.PathLike[str]) -> list[Found]:
    """Every session under a directory, in the order of agents and keys.

    raises  FileNotFoundError when there is no sessions.json, UndecodableError when one cannot be read
    """
    found = []
    for agent, folder in _folders(Path(directory)):
        path = folder / "sessions.json"
        try:
            sessions = wire.loads(path.read_bytes())
        except UndecodableError as error:
            raise UndecodableError(f"{path}: {error}") from error
        if not isinstance(sessions, dict):
            raise UndecodableError(f"{path}: not an object of sessions")
        for name, entry in sorted(sessions.items()):
            if isinstance(entry, dict):
                key = name if name.startswith("agent:") else f"agent:{agent}:{name}"
                session_id = str(entry.get("sessionId", ""))
                found.append(Found(key, f"{MARK}{agent}/{session_id}", _transcript(folder, session_id, entry), entry))
    return found


def _folders(directory: Path) -> Iterator[tuple[str, Path]]:
    """(agent, its directory of sessions) for each agent under a directory."""
    candidates = [
        *((agent.name, agent / "sessions") for agent in sorted((directory / "agents").glob("*"))),
        (directory.name, directory / "sessions"),
        (directory.parent.name if directory.name == "sessions" else "main", directory),
    ]
    folders = [(agent, folder) for agent, folder in candidates if (folder / "sessions.json").is_file()]
    if not folders:
        raise FileNotFoundError(f"{directory}: there is no sessions.json here, in sessions/, or in agents/*/sessions/")
    yield from folders


def _transcript(folder: Path, session_id: str, entry: dict[str, Any]) -> Path | None:
    named = entry.get("sessionFile")
    candidates = [Path(named), folder / Path(named).name] if isinstance(named, str) and named else []
    candidates += [folder / f"{session_id}.jsonl"] if session_id else []
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path) -> Transcript:
    """Read a transcript; what cannot be read is in its errors."""
    transcript = Transcript()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                message = _message(wire.loads(line))
            except (UndecodableError, UnstorableError) as error:
                transcript.errors.append(f"{path}:{number}: {error}")
                continue
            if message is not None:
                transcript.messages.append(message)
    return transcript


def _message(entry: Any) -> Message | None:
    """Our message from a transcript's entry, or None when it says nothing."""
    if not isinstance(entry, dict):
        raise UndecodableError("not a JSON object")
    message = entry.get("message")
    if entry.get("type") != "message" or not isinstance(message, dict):
        return None
    text = _text(message.get("content"))
    if not text:
        return None
    ours = {
        "role": message.get("role"),
        "content": text,
        "model": message.get("model"),
        "timestamp": message.get("timestamp", entry.get("timestamp")),
        "source": "openclaw",
    }
    wire.check(ours)
    return ours


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    texts = []
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif block.get("type") == "thinking" and isinstance(block.get("thinking"), str):
            texts.append(f"[thinking] {block['thinking']}")
    return "\n".join(text for text in texts if text.strip()).strip()


def spellings(key: str) -> list[str]:
    """How the gateway spells a session's key now, where that differs from how OpenClaw did.

    agent:A:CHANNEL:ACCOUNT:direct:PEER is agent:A:CHANNEL:direct:PEER now, and some channels have other names.
    """
    parts = key.split(":")
    if len(parts) < 5 or parts[0] != "agent":
        return []
    channel = RENAMED_CHANNELS.get(parts[2], parts[2])
    found = [[*parts[:2], channel, *parts[3:]]]
    if len(parts) == 6 and parts[4] == "direct":
        found.append([*parts[:2], channel, *parts[4:]])
        found.append([*parts[:3], *parts[4:]])
    spelled = [":".join(one) for one in found]
    return [one for one in dict.fromkeys(spelled) if one != key]


def _seconds(milliseconds: Any, default: int) -> int:
    known = type(milliseconds) is int and 0 < milliseconds <= wire.INT_MAX
    return milliseconds // 1000 if known else default
