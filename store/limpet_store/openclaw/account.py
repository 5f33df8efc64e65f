"""What an import from OpenClaw says of the files that it met: every line of every file is counted once.

A line of a transcript that is imported counts as what became of its message; all the others count as the reason why
they stay behind. A file that is not imported at all counts with all of its lines under one reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# What became of a message, the best first: a line that two sessions share counts once, as the better of the two.
IMPORTED: Final = "imported"
ARCHIVED: Final = "imported, to the archive only"
THERE: Final = "there already"
CHANGED: Final = "there already, in other words"
TWICE: Final = "the same entry twice in the file"
LEFT_OUT: Final = "of a session that was left out for an error"
MESSAGES: Final = (IMPORTED, ARCHIVED, THERE, CHANGED, TWICE, LEFT_OUT)

# Why a line of a transcript is no message for us.
HEADER: Final = "the transcript's header"
NO_MESSAGE: Final = "not a message"
TOOL: Final = "tool call or result"
NO_TEXT: Final = "a message without text"
EMPTY: Final = "empty"
BROKEN: Final = "cannot be read"

# Why a file is no transcript for us.
INDEX: Final = "the index"
NAMELESS: Final = "of a transcript that no session names"
DELETED: Final = "of a session that was deleted"
COPY: Final = "of a backup or a checkpoint"
OTHER_FILE: Final = "of a file that is no transcript"

LINE_BLOCK: Final = 1 << 20  # bytes read at once to count lines


@dataclass(slots=True)
class Account:
    """The account of an import.

    dry_run      nothing was written; the numbers are what would have been
    sessions     that got messages
    messages     rows that were added; a transcript that two sessions share is added to each
    aliases      that were added
    without      sessions of the index that have no transcript
    activated    sessions in which other messages of those that came over are active than before
    lines        reason -> lines
    line_count   lines in all files, counted for themselves
    errors       "file:line: what was wrong" of the lines that stay behind, and of sessions that the store cannot hold
    mended       "file:line" of the messages in which half a character became U+FFFD
    """

    dry_run: bool
    sessions: int = 0
    messages: int = 0
    aliases: int = 0
    without: int = 0
    activated: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    line_count: int = 0
    errors: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether every line of every file is accounted for once."""
        return self.lines.total() == self.line_count

    @property
    def complete(self) -> bool:
        """Whether everything that can be a message came over."""
        return self.adds_up and not self.errors and not self.lines.keys() & {BROKEN, LEFT_OUT, NAMELESS}

    def to_dict(self) -> dict[str, Any]:
        """The account as JSON values, for a program."""
        return {
            "sessions": self.sessions,
            "messages": self.messages,
            "aliases": self.aliases,
            "sessions_without_a_transcript": self.without,
            "sessions_with_other_active_messages": self.activated,
            "line_count": self.line_count,
            "lines": dict(self.lines),
            "lines_left_out": self.lines[BROKEN],
            "adds_up": self.adds_up,
            "complete": self.complete,
            "errors": self.errors,
            "mended": self.mended,
        }

    def to_lines(self) -> list[str]:
        """The account as text, for a person."""
        verb = "would be brought over" if self.dry_run else "brought over"
        told = [f"{verb}: {self.messages:,} messages of {self.sessions:,} sessions, {self.aliases:,} aliases"]
        if self.without:
            told.append(f"sessions without a transcript: {self.without:,}")
        if self.activated:
            told.append(f"sessions whose active messages changed: {self.activated:,}")
        told += [f"{count:>11,} lines {reason}" for reason, count in self.lines.most_common()]
        told += [f"half a character became U+FFFD: {where}" for where in self.mended]
        verdict = "the account adds up" if self.adds_up else "THE ACCOUNT DOES NOT ADD UP"
        return [*told, f"{self.line_count:>11,} lines in all; {verdict}"]


class Lines:
    """What became of each line of the files that are imported, one file after the other or for two sessions at once."""

    def __init__(self) -> None:
        self._reasons: dict[Path, list[str]] = {}
        self._sizes: dict[Path, int] = {}

    def add(self, path: Path, reasons: list[str], size: int) -> None:
        """Note what became of the lines of a file; where another session was told something better, that stays.

        size  the bytes of these lines: OpenClaw may be running, and the file longer by now
        """
        path = path.resolve()
        known = self._reasons.get(path, [])
        both = [_better(one, other) for one, other in zip(known, reasons, strict=False)]
        self._reasons[path] = both + reasons[len(both) :] + known[len(both) :]
        self._sizes[path] = max(size, self._sizes.get(path, 0))

    def __contains__(self, path: Path) -> bool:
        return path.resolve() in self._reasons

    def count(self) -> int:
        """How many lines the files have, counted by their ends and not by their reasons."""
        return sum(count_lines(path, size) for path, size in self._sizes.items())

    def total(self) -> Counter[str]:
        """Reason -> lines."""
        return Counter(reason for reasons in self._reasons.values() for reason in reasons)


def _better(one: str, other: str) -> str:
    if one in MESSAGES and other in MESSAGES:
        return min(one, other, key=MESSAGES.index)
    return one


def count_lines(path: Path, size: int | None = None) -> int:
    """How many lines a file has; one without an end counts.

    size  look at so many bytes from the beginning; None: at all
    cost  one pass, and no more memory for a long line
    """
    count, last = 0, b"\n"
    left = LINE_BLOCK if size is None else size
    with path.open("rb") as file:
        while block := file.read(min(LINE_BLOCK, left)):
            count += block.count(b"\n")
            last = block[-1:]
            left -= 0 if size is None else len(block)
    return count + (last != b"\n")
