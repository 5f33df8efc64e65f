"""What the verbs share: arguments, exit codes, tables that fit a terminal, JSON, progress."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import console
from ..check import Progress
from ..codecs import BOOL, BYTES, DATETIME, FLOAT, INT, STR, Codec, KeyCodec, describe
from ..console import escaped
from ..errors import FormatError
from ..inspection import Inspection, inspect

_NO_BREAK = "\0"  # stands for a space inside of a command; no text that is printed has one
FINE = 0
WARNINGS = 1  # also: what was asked for is not there
DAMAGED = 2
NOT_OURS = 3
REFUSED = 4  # by the system, or by a lock
USAGE = 64

SCHEMA_VERSION = 1  # of the JSON; fields may be added, a change of meaning changes the number
WIDTH = 100  # columns of text
_PROGRESS_AFTER_S = 1.0
_PROGRESS_EVERY_S = 0.1

KEY_HELP = """\
KEY is written the way the table's key codec calls for (`limpet tables` shows it):
  STR       the text itself          INT       42, -7, 0x2a
  BYTES     0x and hex digits        FLOAT     2.5
  BOOL      true, false              UUID      12345678-1234-5678-1234-567812345678
  DATETIME  2026-01-02T03:04:05Z     a tuple   a JSON array: '["ada", 7]'
"""

Verbs = Any  # argparse names the type of what add_subparsers() gives only in private


class UsageError(Exception):
    """The arguments make no sense for this file."""


# -- arguments -----------------------------------------------------------------------------------


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str
) -> argparse.ArgumentParser:
    """A parser for one verb, with FILE and --json.

    summary  one line for `limpet --help`
    text     what `limpet VERB --help` says below it: details and examples
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=textwrap.dedent(text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the database file")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.set_defaults(run=run)
    return parser


def add_page_size(parser: argparse.ArgumentParser) -> None:
    """Add --page-size, for files whose header is wrong."""
    parser.add_argument(
        "--page-size", type=int, metavar="BYTES", help="where the header of the file is wrong; else it is not needed"
    )


@contextmanager
def inspected(arguments: argparse.Namespace) -> Iterator[Inspection]:
    """The file that the arguments name; FormatError if it is not ours."""
    try:
        inspection = inspect(arguments.file, page_size=arguments.page_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with inspection:
        if not inspection.is_ours:
            raise inspection.problem or FormatError(f"{arguments.file}: not a Limpet file")
        if not arguments.json:
            for text in inspection.notes:
                note(text)
        yield inspection


def code_of(inspection: Inspection, code: int = FINE) -> int:
    """The exit code of a verb that read what it wanted: a file that cannot be opened still is damaged."""
    return code if inspection.problem is None and inspection.commit_problem is None else DAMAGED


def parse_key(text: str, codec: KeyCodec) -> Any:
    """A key as it is written in an argument. UsageError if the codec cannot have it."""
    try:
        if isinstance(codec, Codec):
            return _parse_element(text, codec)
        try:
            elements = json.loads(text)
        except (ValueError, RecursionError):
            elements = None
        if not isinstance(elements, list) or len(elements) != len(codec):
            raise ValueError(f"the keys are tuples of {len(codec)}; write a JSON array")
        return tuple(_parse_json(element, part) for element, part in zip(elements, codec, strict=True))
    except ValueError as error:
        raise UsageError(f"{text!r} is no key of {describe(codec)}: {error}") from None


def _parse_json(element: Any, codec: Codec) -> Any:
    if codec is INT and isinstance(element, int) and not isinstance(element, bool):
        return element
    if codec is FLOAT and isinstance(element, int | float) and not isinstance(element, bool):
        return float(element)
    if codec is BOOL and isinstance(element, bool):
        return element
    if isinstance(element, str) and codec not in (INT, FLOAT, BOOL):
        return _parse_element(element, codec)
    raise ValueError(f"{json.dumps(element)} is no {codec.name}")


def _parse_element(text: str, codec: Codec) -> Any:
    if codec is STR:
        return text
    if codec is BYTES:
        if not text.startswith("0x"):
            raise ValueError("write bytes as 0x and hex digits")
        return bytes.fromhex(text[2:])
    if codec is INT:
        return int(text, 0)
    if codec is FLOAT:
        return float(text)
    if codec is BOOL:
        if text not in ("true", "false"):
            raise ValueError("write true or false")
        return text == "true"
    if codec is DATETIME:
        moment = datetime.datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return uuid.UUID(text)


# -- output --------------------------------------------------------------------------------------


def note(text: str) -> None:
    """A line on stderr."""
    console.note(f"limpet: {text}")


def emit(kind: str, content: dict[str, Any]) -> None:
    """One JSON object, on one line."""
    emit_row({"v": SCHEMA_VERSION, "type": kind, **content})


def emit_row(content: dict[str, Any]) -> None:
    """One JSON object without the form's version: for rows of data."""
    console.say_json_text(to_json(content))


def to_json(value: Any) -> str:
    """JSON that is ASCII, so that any terminal and any reader takes it."""
    return json.dumps(value, separators=(",", ":"))


def fit(text: str, width: int) -> str:
    """Text in at most `width` columns."""
    text = escaped(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def human(size: int) -> str:
    """A size for people."""
    if size < 10_000:
        return f"{size} B"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(count: int, noun: str) -> str:
    """1 page, 2 pages."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], widths: Sequence[int] | None = None) -> None:
    """Print rows under headings, numbers to the right, in WIDTH columns.

    widths   of the columns, for rows that come one at a time; None: as wide as the content
    """
    if widths is None:
        rows = [[_cell(cell) for cell in row] for row in rows]
        columns = zip([heading.strip() for heading in headings], *rows, strict=True)
        widths = [max(len(str(cell)) for cell in column) for column in columns]
        excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if excess > 0:
            widest = max(range(len(widths)), key=widths.__getitem__)
            widths[widest] = max(12, widths[widest] - excess)
    print_headings(headings, widths)
    for row in rows:
        print_row(row, widths, headings)


def print_headings(headings: Sequence[str], widths: Sequence[int]) -> None:
    """The first row of a table."""
    print_row([heading.strip() for heading in headings], widths, headings)


def print_row(row: Sequence[object], widths: Sequence[int], headings: Sequence[str]) -> None:
    """One row of a table. A heading that begins with a blank is that of a column of numbers."""
    cells = []
    for cell, width, heading in zip(row, widths, headings, strict=True):
        text = fit(_cell(cell), width)
        cells.append(text.rjust(width) if heading.startswith(" ") else text.ljust(width))
    console.say("  ".join(cells).rstrip())


def _cell(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.0%}" if isinstance(cell, float) else escaped(str(cell))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, aligned, long values wrapped."""
    pairs = [(name, _cell(value)) for name, value in fields]
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        lines = _wrapped(value, WIDTH - width) or [""]
        console.say(f"{name:{width}}{lines[0]}".rstrip())
        for line in lines[1:]:
            console.say(" " * width + line)


def print_wrapped(text: str, indent: int = 0) -> None:
    """Print text in WIDTH columns, lines after the first moved to the right."""
    for line in _wrapped(escaped(text), WIDTH, " " * indent):
        console.say(line)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of a width, but for what is never divided: a word, and a command in backquotes, which somebody may copy."""
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(
        whole, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False, drop_whitespace=True
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


@contextmanager
def progress(label: str) -> Iterator[Progress | None]:
    """A progress line on stderr, if that is a terminal and it takes more than a second."""
    if not console.shows_progress():
        yield None
        return
    started = shown = time.monotonic()
    length = 0

    def show(done: int, total: int) -> None:
        nonlocal shown, length
        now = time.monotonic()
        if now - started < _PROGRESS_AFTER_S or now - shown < _PROGRESS_EVERY_S:
            return
        shown = now
        line = f"{label}: {done / max(1, total):4.0%} of {total}"
        console.progress(f"{line:<{length}}")
        length = len(line)

    try:
        yield show
    finally:
        if length:
            console.progress(" " * length, end="\r")
