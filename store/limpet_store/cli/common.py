"""What the verbs share: the common arguments, opening a store, tables for people and JSON for programs."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limpet import console
from limpet.console import at_least_one, escaped, say, seconds

from ..store import Store
from ..tier import MemoryTier

OK, FAILED, WRONG_USAGE, CANNOT_OPEN = 0, 1, 2, 3

ENVIRONMENT = "LIMPET_STORE"
DEFAULT_PATH = "data.limpet"
CELL_WIDTH = 60  # characters of a table's cell; what is longer ends in "..."
BAR_WIDTH = 30
_LINE_ENDS = str.maketrans("\n\r\t", "   ")


class UsageError(Exception):
    """The arguments do not fit together, in a way that argparse cannot see."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments that every verb has."""
    group = parser.add_argument_group("common arguments")
    group.add_argument(
        "-s",
        "--store",
        metavar="PATH",
        default=os.environ.get(ENVIRONMENT, DEFAULT_PATH),
        help=f"the store's file; default ${ENVIRONMENT}, else {DEFAULT_PATH}",
    )
    group.add_argument(
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=0.0,
        help="how long to wait for a gateway that holds the store; default 0",
    )
    group.add_argument("--json", action="store_true", help="JSON instead of tables")


def open_store(args: argparse.Namespace, *, write: bool = False, create: bool = False) -> Store:
    """Open the store that the arguments name, read-only unless the verb writes."""
    if not create and not os.path.exists(args.store):
        raise FileNotFoundError(f"{args.store}: there is no such file (--store names another one)")
    try:
        tier = MemoryTier.detect()
    except ValueError as error:  # the environment names none
        raise UsageError(str(error)) from None
    return Store.open(args.store, tier=tier, lock_timeout=args.wait, read_only=not write)


def print_json(value: object) -> None:
    """One JSON document, readable and with the characters as they are."""
    console.say_json(value, indent=2)


def note(text: str) -> None:
    """A line on standard error."""
    console.note(f"limpet-store: {text}")


def show_bar(args: argparse.Namespace, done: int, total: int, what: str, width: int = 0) -> None:
    """A bar on standard error, if that is a terminal.

    what   is counted
    width  of `what`, when it may become shorter
    """
    if args.json or not console.shows_progress():
        return
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    console.progress(f"[{bar}] {done:,} of {total:,} {what:<{width}}", end="\n" if done == total else "")


def print_rows(
    args: argparse.Namespace, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, nothing: str
) -> None:
    """Rows as a table of these columns, or all of their fields as JSON.

    nothing  what to say to people when there is no row
    """
    if args.json:
        print_json([dict(row) for row in rows])
        return
    lines = [[cell(row[column]) for column in columns] for row in rows]
    if lines:
        print_table(columns, lines)
    else:
        say(nothing)


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table with a ruler; columns of numbers are on the right.

    lines  texts as `cell` gives them
    """
    widths = [max(len(column), *(len(line[index]) for line in lines)) for index, column in enumerate(columns)]
    right = [all(line[index].replace(",", "").isdigit() for line in lines) for index in range(len(columns))]
    for line in (columns, ["-" * width for width in widths], *lines):
        cells = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        )
        say("  ".join(cells).rstrip())


def cell(value: object) -> str:
    """A value as one short line that cannot steer a terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = escaped(str(value)[: CELL_WIDTH + 1].translate(_LINE_ENDS)).strip()
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 3] + "..."


def when(seconds: int | None) -> str | None:
    """Unix seconds as people read them, in UTC."""
    if seconds is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def add_limit(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """The argument `--limit`."""
    shown = "all" if default is None else str(default)
    parser.add_argument("--limit", metavar="N", type=at_least_one, default=default, help=f"at most N; default {shown}")
