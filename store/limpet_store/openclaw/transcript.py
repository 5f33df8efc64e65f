"""A transcript of OpenClaw: which of its lines are messages, and which of them the agent still sees.

The file has one JSON object a line. The first is a header, {"type": "session", "id"}; the others are entries with an
"id" and the "parentId" of the entry that they follow, so that the entries are a tree. What the agent sees is the
*chain*: the last entry, its parent, and so on. Whatever is not on it belongs to branches that were given up. (Files of
the first versions have no ids; there each entry follows the one before.)

A message has "type": "message" and "message": {"role", "content": text or a list of blocks, "model"?, "timestamp"?}.
Its texts and thoughts come over. Tool calls and their results stay behind, both: the gateway keeps only what was said,
and providers refuse a history that has results without their calls, or calls without their results.

What an entry is known by later is its id, and beside it its *mark*, a hash of what it says.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .. import wire
from ..errors import UndecodableError
from ..records import Message
from .account import BROKEN, EMPTY, HEADER, NO_MESSAGE, NO_TEXT, TOOL

SOURCE: Final = "openclaw"  # the field "source" of the messages that come from here
ROLES: Final = frozenset({"user", "assistant", "system"})
CALLS: Final = frozenset({"toolCall", "toolUse", "functionCall", "tool_use", "tool_call", "function_call"})
RESULTS: Final = frozenset({"toolResult", "tool_result", "functionResult", "function_result"})
RESULT_ROLES: Final = frozenset({"toolResult", "tool_result", "tool", "toolUse", "function"})
MARK_BYTES: Final = 8
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Entry:
    """A message of a transcript.

    line      its line, from 0
    id        OpenClaw's id; None in files of the first versions
    mark      a hash of role, text and time
    message   as it comes over
    ordinal   how many messages came before it by the rules of the first importer, which took results too
    on_chain  whether the agent still sees it
    """

    line: int
    id: str | None
    mark: str
    message: Message
    ordinal: int
    on_chain: bool = False


@dataclass(slots=True)
class Transcript:
    """What a transcript says.

    entries  the messages, in the order of the file
    reasons  what became of each line; for a message it is empty, until somebody decides
    errors   (line from 1, what was wrong)
    mended   lines from 1 in which half a character became U+FFFD
    size     bytes of all lines
    """

    entries: list[Entry] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class _Node:
    """An entry of the tree, message or not: the node that it follows, and the message that it is."""

    parent: int | None
    entry: Entry | None


def read(path: Path) -> Transcript:
    """Read a transcript.

    raises  OSError
    cost    one pass; its messages are in memory afterwards
    """
    transcript = Transcript()
    nodes: list[_Node] = []
    by_id: dict[str, int] = {}
    ordinal = 0
    with path.open("rb") as lines:
        for number, raw in enumerate(lines):
            transcript.size += len(raw)
            if not raw.strip():
                transcript.reasons.append(EMPTY)
                continue
            try:
                value, mended = _parse(raw)
                reason, message = _message(value)
                entry = None
                entry_id = _text_or_none(value.get("id"))
                if message is not None:
                    message, halves = _mend(message)
                    mended = mended or halves
                    entry = Entry(number, entry_id, mark_of(message), message, ordinal)
            except (ValueError, RecursionError) as error:  # UndecodableError and UnstorableError among them
                transcript.reasons.append(BROKEN)
                transcript.errors.append((number + 1, str(error)))
                continue
            transcript.reasons.append(reason)
            if entry is not None:
                transcript.entries.append(entry)
                if mended:
                    transcript.mended.append(number + 1)
            ordinal += _was_taken_once(value, mended)
            if reason != HEADER:
                nodes.append(_Node(_parent(value, by_id, len(nodes)), entry))
                if entry_id is not None:
                    by_id[entry_id] = len(nodes) - 1
    _mark_chain(nodes)
    return transcript


def mark_of(message: Message) -> str:
    """The hash of what a message says: role, text and time.

    raises  UnstorableError when the store could not hold the message
    """
    wire.check({name: value for name, value in message.items() if not isinstance(value, str)})
    role, content, time = message.get("role"), message.get("content"), message.get("timestamp")
    said = f"{wire.encode([role, time])}{content if isinstance(content, str) else wire.encode(content)}"
    return hashlib.blake2b(wire.check_text(said).encode(), digest_size=MARK_BYTES).hexdigest()


def _parse(raw: bytes) -> tuple[dict[str, Any], bool]:
    """The object of a line, and whether some of its bytes were no characters."""
    raw = raw.removeprefix(b"\xef\xbb\xbf")  # an editor's mark at the beginning of the file
    text = raw.decode(errors="replace")
    value = wire.loads(text)
    if not isinstance(value, dict):
        raise UndecodableError(f"a JSON object was expected, not {type(value).__name__}")
    return value, text.encode() != raw


def _parent(value: dict[str, Any], by_id: dict[str, int], index: int) -> int | None:
    """The node that this one follows; where the file does not say it, or its line cannot be read, the one before."""
    # An entry "leaf" says where the conversation goes on: it is read as the child of that place.
    named = value.get("targetId" if value.get("type") == "leaf" else "parentId", "")
    if named is None:
        return None
    before = index - 1 if index else None
    return by_id.get(named, before) if isinstance(named, str) else before


def _mark_chain(nodes: list[_Node]) -> None:
    at = len(nodes) - 1 if nodes else None
    while at is not None:  # ends: a parent always stands before its child
        node = nodes[at]
        if node.entry is not None:
            node.entry.on_chain = True
        at = node.parent


def _message(value: dict[str, Any]) -> tuple[str, Message | None]:
    """Why a line is no message for us, or ("", our message)."""
    message = value.get("message")
    if value.get("type") == "session":
        return HEADER, None
    if value.get("type") != "message" or not isinstance(message, dict):
        return NO_MESSAGE, None
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        return (TOOL if isinstance(role, str) and role in RESULT_ROLES else NO_MESSAGE), None
    text = _text(content)
    if not text:
        blocks = content if isinstance(content, list) else []
        kinds = {str(block.get("type")) for block in blocks if isinstance(block, dict)}
        return (TOOL if kinds & (CALLS | RESULTS) else NO_TEXT), None
    return "", {
        "role": role,
        "content": text,
        "model": message.get("model"),
        "timestamp": message.get("timestamp", value.get("timestamp")),
        "source": SOURCE,
    }


def _was_taken_once(value: dict[str, Any], mended: bool) -> bool:
    """Whether the first importer counted this line as a message."""
    message = value.get("message")
    taken = value.get("type") == "message" and isinstance(message, dict) and bool(_text(message.get("content")))
    return taken and not mended


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


def _mend(message: Message) -> tuple[Message, bool]:
    """The message with U+FFFD for each half of a character, and whether there was one."""
    mended = {name: mend(value) for name, value in message.items()}
    return mended, any(value is not message[name] for name, value in mended.items())


def mend(value: Any) -> Any:
    """A text with U+FFFD for each half of a character, which UTF-8 cannot hold; any other value as it is."""
    if not isinstance(value, str) or value.isascii() or wire.is_utf8(value):
        return value
    return _SURROGATE.sub("\ufffd", value)


def _text_or_none(value: Any) -> str | None:
    return mend(value) if isinstance(value, str) and value else None
