"""What is seen while it runs: lines that stay, and below them one that is rewritten.

The rewritten line needs nothing of the terminal but a carriage return. Where the output is no terminal, there are lines
that stay only, one every few seconds. Characters that the output cannot show become question marks, and what could
steer the terminal is shown as an escape.
"""

from __future__ import annotations

import io
import shutil
import textwrap
import time
import unicodedata
from typing import TextIO

from limpet.console import escaped

REWRITE_S = 0.1
PLAIN_S = 3.0
INDENT = 11  # where text begins behind the time
MIN_WIDTH = INDENT + 8  # narrower than this, the time is cut off too
MAX_WIDTH = 100  # longer lines are hard to read


class Screen:
    """Progress on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._begin = time.monotonic()
        self._shown_at = self._begin
        self._shown_width = 0
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    @property
    def width(self) -> int:
        """Columns to write into; the last one stays free, because some terminals go on to the next line there."""
        return max(MIN_WIDTH, min(shutil.get_terminal_size().columns - 1, MAX_WIDTH))

    def say(self, text: str = "") -> None:
        """A line that stays, broken where it is too long; the lines in `text` stay lines."""
        self._clear()
        for line in text.split("\n"):
            self._print(textwrap.fill(escaped(line), self.width, break_on_hyphens=False, break_long_words=False))

    def verbatim(self, text: str) -> None:
        """Lines that stay as they are: somebody else's output."""
        self._clear()
        self._print(text)

    def note(self, text: str) -> None:
        """A line that stays, with the time in front."""
        self._clear()
        lead = f"{time.monotonic() - self._begin:7.1f} s  "
        self._print(
            textwrap.fill(
                escaped(text), self.width, initial_indent=lead, subsequent_indent=" " * INDENT, break_on_hyphens=False
            )
        )
        self._shown_at = time.monotonic()

    def item(self, label: str, text: str) -> None:
        """A line that stays, with a label in front."""
        self._clear()
        self._print(
            textwrap.fill(
                escaped(text),
                self.width,
                initial_indent=label,
                subsequent_indent=" " * len(label),
                break_on_hyphens=False,
            )
        )

    def wants_status(self) -> bool:
        """Whether it is time for `status`: saves the caller making up a line that is not shown."""
        return time.monotonic() - self._shown_at >= (REWRITE_S if self._is_terminal else PLAIN_S)

    def status(self, text: str) -> None:
        """The line that is rewritten."""
        line = _cut(escaped(f"{time.monotonic() - self._begin:7.1f} s  {text}"), self.width)
        self._shown_at = time.monotonic()
        if not self._is_terminal:
            self._print(line)
            return
        width = _columns(line)
        self._stream.write("\r" + line + " " * (self._shown_width - width))
        self._stream.flush()
        self._shown_width = width

    def _clear(self) -> None:
        if self._shown_width:
            self._stream.write("\r" + " " * self._shown_width + "\r")
            self._shown_width = 0

    def _print(self, text: str) -> None:
        self._stream.write("\n".join(map(escaped, text.rstrip().split("\n"))) + "\n")
        self._stream.flush()


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """`1 task`, `2 tasks`; `nouns` for a plural that is not made with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {nouns or noun + 's'}"


def _columns(text: str) -> int:
    """How many columns the text takes: two for each wide character, none for a combining one."""
    return sum(_column_count(character) for character in text)


def _column_count(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf", "Cc"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _cut(text: str, width: int) -> str:
    """As much of the text as fits; on one line."""
    taken, columns = [], 0
    for character in text:
        columns += _column_count(character)
        if columns > width:
            break
        taken.append(character)
    return "".join(taken)
