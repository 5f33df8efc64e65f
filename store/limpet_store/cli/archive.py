"""Show the archive of one conversation: what it holds, or some of its messages in chronological order."""

from __future__ import annotations

import argparse
import dataclasses

from limpet.console import at_least_one, say, seconds, text

from ..records import ArchiveRow, ArchiveStat, message_text
from ..regex import TIMEOUT_S
from ..store import Store
from .common import FAILED, OK, UsageError, note, open_store, print_json, print_rows

HELP = "show the archived messages of a conversation"
COLUMNS = ("generation", "seq", "role", "text")
GREP_LIMIT = 50  # matches, when nobody says how many
NUMBER_DIGITS = 18  # of a sequence number; int() refuses long texts, and the store counts in 64 bits


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("key", metavar="KEY", type=text, help="the session's key, exactly")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--head", metavar="N", type=at_least_one, help="the first N messages")
    what.add_argument("--tail", metavar="N", type=at_least_one, help="the last N messages")
    what.add_argument(
        "--grep", metavar="TEXT", type=text, help="the messages that have this text in them, whatever the case"
    )
    what.add_argument("--slice", metavar="FIRST-LAST", help="the messages with these sequence numbers, such as 10-20")
    what.add_argument("--all", action="store_true", help="every message")
    parser.add_argument("--generation", metavar="N", type=at_least_one, help="with --slice or --all: this one only")
    parser.add_argument("--regex", action="store_true", help="with --grep: TEXT is a regular expression (Python's)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=TIMEOUT_S,
        help=f"with --regex: end the search after so long; default {TIMEOUT_S:g}",
    )
    parser.add_argument("--limit", metavar="N", type=at_least_one, help="at most N; default 50 with --grep, else all")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; without an option, what there is."""
    if args.generation is not None and args.slice is None and not args.all:
        raise UsageError("--generation goes with --slice or --all")
    with open_store(args) as store:
        stat = store.archive.stat(args.key)
        rows = _rows(args, store)
    if not stat.total_messages:
        note(f"there are no archived messages of {args.key!r}")
    elif args.generation is not None and args.generation not in stat.generations:
        note(f"there is no generation {args.generation} of {args.key!r}; there are {_listed(stat)}")
    if rows is None:
        if args.json:
            print_json(dataclasses.asdict(stat))
        elif stat.total_messages:
            say(f"{stat.total_messages:,} messages, numbers {stat.oldest_seq} to {stat.newest_seq}")
            say(f"generations: {_listed(stat)}")
        else:
            say("no archived messages")
        return OK if stat.total_messages else FAILED
    shown = (
        {
            "generation": row.generation,
            "seq": row.seq,
            "role": row.message.get("role"),
            "text": message_text(row.message),
            "message": row.message,
        }
        for row in rows
    )
    print_rows(args, shown, COLUMNS, nothing="no such messages")
    return OK if rows else FAILED


def _rows(args: argparse.Namespace, store: Store) -> list[ArchiveRow] | None:
    """The rows that were asked for; None when only their number was."""
    if args.regex and args.grep is None:
        raise UsageError("--regex goes with --grep")
    if args.head is not None:
        rows = store.archive.head(args.key, args.head)
    elif args.tail is not None:
        rows = store.archive.tail(args.key, args.tail)
    elif args.grep is not None:
        try:
            limit = GREP_LIMIT if args.limit is None else args.limit
            rows = store.archive.grep(args.key, args.grep, limit=limit, regex=args.regex, timeout=args.timeout)
        except ValueError as error:
            raise UsageError(str(error)) from error
    elif args.slice is not None:
        first, last = _slice(args.slice)
        rows = store.archive.slice(args.key, first, last, generation=args.generation)
    elif args.all:
        rows = store.archive.load(args.key, generation=args.generation)
    else:
        return None
    return rows[: args.limit]


def _listed(stat: ArchiveStat) -> str:
    return ", ".join(map(str, stat.generations))


def _slice(argument: str) -> tuple[int, int]:
    """The first and the last number from "10-20"."""
    first, dash, last = argument.partition("-")
    if not (first.isdecimal() and dash and last.isdecimal() and max(len(first), len(last)) <= NUMBER_DIGITS):
        raise UsageError(f"--slice takes two numbers with a dash between them, not {argument!r}")
    if int(first) > int(last):
        raise UsageError(f"--slice {argument!r} begins behind its end")
    return int(first), int(last)
