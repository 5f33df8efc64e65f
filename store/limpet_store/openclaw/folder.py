"""Where OpenClaw keeps what it remembers, and which of its files belong to which session.

One agent's sessions are in agents/NAME/sessions/ (until July 2026; later versions keep these files as their import):

  sessions.json                     {session key: {"sessionId", "sessionFile"?, "updatedAt" ms, "sessionStartedAt"? ms,
                                    "origin"?, "usageFamilySessionIds"?}}
  SESSIONID.jsonl                   the transcript; SESSIONID-topic-T.jsonl for a topic of a group
  SESSIONID.jsonl.reset.TIME        what it was before a fresh start; TIME as in 2026-03-06T05-00-00.000Z
  SESSIONID.jsonl.deleted.TIME, *.bak.TIME, SESSIONID.checkpoint.UUID.jsonl, SESSIONID.trajectory.jsonl, *.lock

A key that does not begin with "agent:" belongs to the agent whose folder it is in. A fresh start gives a session a new
id, as a rule, and the index forgets the old one. So a file belongs to a session when it has the name of its transcript,
when the index names its id among the session's earlier ones, or when an earlier import met it as its transcript.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .. import wire
from ..errors import UndecodableError
from .account import COPY, DELETED, INDEX, NAMELESS, OTHER_FILE
from .transcript import mend

INDEX_NAME: Final = "sessions.json"
FIRST_LINE: Final = 1 << 16  # bytes; a header is shorter
RENAMED_CHANNELS: Final = {"openclaw-weixin": "wechat"}
_TIME = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d{3})?Z"
_ARCHIVE: Final = re.compile(rf"(?P<stem>.+)\.jsonl\.(?P<why>reset|deleted|bak)\.(?P<time>{_TIME})", re.DOTALL)
_COPY: Final = re.compile(
    r".+\.bak([.-].*)?|.+\.checkpoint\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jsonl", re.DOTALL
)
_TRANSCRIPT: Final = re.compile(r"(?P<stem>.+)(?<!\.trajectory)\.jsonl", re.DOTALL)


@dataclass(slots=True)
class Session:
    """One session of the index.

    key         its key here
    agent       whose folder it is in
    entry       what the index says of it
    earlier     the files of its earlier generations, the oldest first
    transcript  its file, or None when there is none
    """

    key: str
    agent: str
    entry: dict[str, Any]
    earlier: list[Path] = field(default_factory=list)
    transcript: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All of its files, the present transcript last."""
        return [*self.earlier, *([] if self.transcript is None else [self.transcript])]

    @property
    def session_id(self) -> str:
        """OpenClaw's id of the present conversation; empty when the index has none."""
        return text_of(self.entry.get("sessionId"))


@dataclass(slots=True)
class Home:
    """What is under a directory.

    sessions  in the order of their keys, each key once
    others    files that belong to no session -> why they stay behind
    """

    sessions: list[Session]
    others: dict[Path, str]


def text_of(value: Any) -> str:
    """A text of the index as the store can hold it; empty when it is none."""
    return str(mend(value)) if isinstance(value, str) else ""


def stem_of(path: Path) -> str:
    """What the names of one transcript have in common: the part before ".jsonl"."""
    return path.name.partition(".jsonl")[0]


def find(directory: str | os.PathLike[str], met: Mapping[str, set[str]]) -> Home:
    """Every session and every file under a directory.

    directory  OpenClaw's home, one agent's directory in it, or a folder with an index
    met        stem of a file -> the sessions whose transcript it was when an earlier import looked
    raises     FileNotFoundError when there is no index, UndecodableError when one cannot be read
    """
    home = Home([], {})
    for agent, folder in _folders(Path(directory)):
        _read(home, agent, folder, met)
    by_key: dict[str, Session] = {}
    for session in sorted(home.sessions, key=lambda one: (one.key, _number(one.entry.get("updatedAt")))):
        # Named twice, as "main" and "agent:main:main" for instance: the one that was active later is the session.
        before = by_key.get(session.key)
        if before is not None:
            older = [*before.earlier, *([before.transcript] if before.transcript is not None else [])]
            session.earlier = [path for path in older if path != session.transcript] + [
                path for path in session.earlier if path not in older
            ]
        by_key[session.key] = session
    home.sessions = list(by_key.values())
    return home


def _folders(directory: Path) -> Iterator[tuple[str, Path]]:
    """(agent, its folder) for each agent under a directory. One without an index counts when others have one."""
    candidates = [
        *((agent.name, agent / "sessions") for agent in sorted((directory / "agents").glob("*"))),
        (directory.name, directory / "sessions"),
        (directory.parent.name if directory.name == "sessions" else "main", directory),
    ]
    indexed = [(agent, folder) for agent, folder in candidates if (folder / INDEX_NAME).is_file()]
    if not indexed:
        raise FileNotFoundError(f"{directory}: there is no {INDEX_NAME} here, in sessions/, or in agents/*/sessions/")
    folders = [(agent, folder) for agent, folder in candidates[:-1] if folder.is_dir()]
    if candidates[-1] in indexed:
        folders.append(candidates[-1])
    seen: set[Path] = set()
    for agent, folder in folders:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield agent, folder


def _read(home: Home, agent: str, folder: Path, met: Mapping[str, set[str]]) -> None:
    """Add what is in one agent's folder."""
    sessions = [
        Session(key, agent, entry, transcript=_transcript(folder, key, entry)) for key, entry in _index(agent, folder)
    ]
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in sorted(names)]
    by_stem: dict[
        str, list[tuple[str, Path]]
    ] = {}  # stem -> (when it ended or began, a file that may be an earlier one)
    for path in files:
        if path.parent == folder and _kind(path) == NAMELESS:
            archive = _ARCHIVE.fullmatch(path.name)
            time = _began(path) if archive is None else archive["time"]
            by_stem.setdefault(stem_of(path), []).append((time, path))
    transcripts = {session.transcript for session in sessions}
    for session in sessions:
        found = [item for stem in _stems(session, met) for item in by_stem.get(stem, ())]
        session.earlier = [path for _, path in sorted(found) if path not in transcripts]
    used = transcripts.union(*(session.earlier for session in sessions))
    home.sessions += sessions
    home.others |= {path: INDEX if path == folder / INDEX_NAME else _kind(path) for path in files if path not in used}


def _began(path: Path) -> str:
    """When a transcript began, spelled as in the names of archives; empty when it does not say so."""
    with path.open("rb") as lines:
        try:
            header = wire.loads(lines.readline(FIRST_LINE))
        except UndecodableError:
            return ""
    return text_of(header.get("timestamp")).replace(":", "-") if isinstance(header, dict) else ""


def _index(agent: str, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(session key, what the index says of it)."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return []
    try:
        index = wire.loads(path.read_bytes())
    except UndecodableError as error:
        raise UndecodableError(f"{path}: {error}") from error
    if not isinstance(index, dict):
        raise UndecodableError(f"{path}: an object of sessions was expected, not {type(index).__name__}")
    named = [(text_of(name), entry) for name, entry in index.items() if isinstance(entry, dict)]
    return [(name if name.startswith("agent:") else f"agent:{agent}:{name}", entry) for name, entry in named]


def _transcript(folder: Path, key: str, entry: dict[str, Any]) -> Path | None:
    named, session_id = text_of(entry.get("sessionFile")), text_of(entry.get("sessionId"))
    names = [re.split(r"[\\/]", named)[-1]] if named else []
    if session_id:
        topic = key.rpartition(":topic:")[2] if ":topic:" in key else ""
        names += [f"{session_id}-topic-{topic}.jsonl"] if topic else []
        names.append(f"{session_id}.jsonl")
    # Beside the index first: a copied home must not lead back to the original.
    candidates = [folder / name for name in names if name and "/" not in name and "\0" not in name]
    if named and "\0" not in named:
        candidates.insert(1, Path(named))
    return next((path for path in candidates if path.is_file()), None)


def _stems(session: Session, met: Mapping[str, set[str]]) -> list[str]:
    """The stems of the files that may hold the session's earlier generations."""
    stems = [] if session.transcript is None else [stem_of(session.transcript)]
    stems.append(session.session_id)
    for name in ("usageFamilySessionIds", "previousSessionId"):
        value = session.entry.get(name)
        stems += [text_of(one) for one in (value if isinstance(value, list) else [value])]
    stems += [stem for stem, keys in met.items() if session.key in keys]
    return [stem for stem in dict.fromkeys(stems) if stem]


def _kind(path: Path) -> str:
    """Why a file that belongs to no session stays behind."""
    archive = _ARCHIVE.fullmatch(path.name)
    if archive is not None:
        return {"reset": NAMELESS, "deleted": DELETED, "bak": COPY}[archive["why"]]
    if _COPY.fullmatch(path.name):
        return COPY
    return NAMELESS if _TRANSCRIPT.fullmatch(path.name) else OTHER_FILE


def _number(value: Any) -> int:
    return value if type(value) is int else 0


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
