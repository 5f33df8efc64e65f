"""Real dialogues to play: the package chatterbot-corpus, or a folder of transcripts in JSON lines.

chatterbot-corpus is about 1 MB of question and answer in some thirty languages. It is data only, so it is found without
being imported, and PyYAML reads it:

    <language>/<topic>.yml    conversations: a list of lists of lines; first line, answer, next line, answer ...

A transcript is a file *.jsonl. A line of it is one message, {"role": "user" | "assistant", "content": ...}, or a whole
conversation, {"messages": [message, ...]}. Content is text, or a list of parts of which those with "text" count. Other
roles are left out.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

MISSING = (
    "The dialogues come from the packages chatterbot-corpus and PyYAML, and {name} is not installed. "
    "Install the extra `demo` (pip install 'limpet[demo]'), or play transcripts of your own "
    "(limpet-store demo --from FOLDER)"
)


class SourceError(Exception):
    """There is nothing to play; the message says why and what to do."""


class Turn(NamedTuple):
    """One line of the user and the reply to it."""

    user: str
    reply: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns that follow each other.

    origin  what it has in common with others: its language, or the transcript's name
    topic   what it is about
    """

    origin: str
    topic: str
    turns: tuple[Turn, ...]


def corpus() -> list[Dialogue]:
    """The dialogues of chatterbot-corpus, one for each of its files, in the order of their names.

    raises  SourceError when the extra `demo` is not installed
    cost    0.3 s with libyaml, 10 s without
    """
    try:
        import yaml
    except ImportError:
        raise SourceError(MISSING.format(name="PyYAML")) from None
    spec = importlib.util.find_spec("chatterbot_corpus")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise SourceError(MISSING.format(name="chatterbot-corpus"))
    data = Path(next(iter(places)), "data")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    dialogues = []
    for path in sorted(data.glob("*/*.yml")):
        content = yaml.load(path.read_text("utf-8"), Loader=loader)
        turns: list[Turn] = []
        for lines in content.get("conversations") or []:
            if isinstance(lines, list):
                turns += _in_turns([str(line) for line in lines])
        if turns:
            dialogues.append(Dialogue(path.parent.name, path.stem, tuple(turns)))
    if not dialogues:
        raise SourceError(f"There are no dialogues in {data}. Install the extra again:  pip install 'limpet[demo]'")
    return dialogues


def transcripts(folder: Path) -> list[Dialogue]:
    """The transcripts in a folder and the folders in it, one dialogue for each file, in the order of their names.

    raises  SourceError when there is no turn to play, with the first line that could not be read
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; --from takes one with transcripts in JSON lines (*.jsonl)")
    dialogues = []
    complaint = ""
    for path in sorted(folder.rglob("*.jsonl")):
        turns: list[Turn] = []
        speech: list[tuple[str, str]] = []
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    found = list(_messages(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    complaint = complaint or f"{path}, line {number}: {error}"
                    continue
                speech += found
        turns += _paired(speech)
        if turns:
            dialogues.append(Dialogue(path.stem, path.stem, tuple(turns)))
    if not dialogues:
        raise SourceError(
            f"There is no turn to play in {folder}. It takes files *.jsonl with lines such as "
            '{"role": "user", "content": "hello"}' + (f"\n{complaint}" if complaint else "")
        )
    return dialogues


def _in_turns(lines: list[str]) -> Iterator[Turn]:
    """Line, answer, line, answer ...; a last line that nobody answers is left out."""
    for user, reply in zip(lines[::2], lines[1::2], strict=False):
        if user.strip() and reply.strip():
            yield Turn(_storable(user), _storable(reply))


def _messages(value: object) -> Iterator[tuple[str, str]]:
    """(role, text) of the messages in one line of a transcript."""
    if not isinstance(value, dict):
        raise ValueError("a JSON object is needed")
    if isinstance(value.get("messages"), list):
        for message in value["messages"]:
            yield from _messages(message)
        return
    if "role" not in value or "content" not in value:
        raise ValueError('a message has "role" and "content"')
    text = _text(value["content"]).strip()
    if value["role"] in {"user", "assistant"} and text:
        yield value["role"], _storable(text)


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _paired(speech: Iterable[tuple[str, str]]) -> Iterator[Turn]:
    """What the user said until the assistant spoke, and what it said until the user spoke again."""
    asked: list[str] = []
    for role, group in itertools.groupby(speech, key=lambda message: message[0]):
        texts = [text for _, text in group]
        if role == "user":
            asked = texts
        elif asked:
            yield Turn("\n".join(asked), "\n".join(texts))
            asked = []


def _storable(text: str) -> str:
    """JSON may hold half of a surrogate pair, which is no text; the store refuses it."""
    return text.encode("utf-8", "replace").decode("utf-8")
