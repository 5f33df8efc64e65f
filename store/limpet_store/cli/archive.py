"""Show the archive of one conversation: what it holds, or some of its messages in chronological order."""

from __future__ import annotations

import argparse
import dataclasses

from ..records import ArchiveRow, message_text
from ..regex import TIMEOUT_S
from ..store import Store
from .common import OK, UsageError, add_limit, at_least_one, open_store, print_json, print_rows

HELP = "show the archived messages of a conversation"
COLUMNS = ("generation", "seq", "role", "text")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("key", metavar="KEY", help="the session's key, exactly")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--head", metavar="N", type=at_least_one, help="the first N messages")
    what.add_argument("--tail", metavar="N", type=at_least_one, help="the last N messages")
    what.add_argument("--grep", metavar="TEXT", help="the messages that have this text in them, whatever the case")
    what.add_argument("--slice", metavar="FIRST-LAST", help="the messages with these sequence numbers, such as 10-20")
    what.add_argument("--all", action="store_true", help="every message")
    parser.add_argument("--generation", metavar="N", type=at_least_one, help="with --slice or --all: this one only")
    parser.add_argument("--regex", action="store_true", help="with --grep: TEXT is a regular expression (Python's)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_S,
        help=f"with --regex: end the search after so long; default {TIMEOUT_S:g}",
    )
    add_limit(parser, 50)


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; without an option, what there is."""
    with open_store(args) as store:
        rows = _rows(args, store)
        if rows is None:
            stat = store.archive.stat(args.key)
            if args.json:
                print_json(dataclasses.asdict(stat))
            elif not stat.total_messages:
                print("no archived messages")
            else:
                generations = ", ".join(map(str, stat.generations))
                print(f"{stat.total_messages:,} messages, numbers {stat.oldest_seq} to {stat.newest_seq}")
                print(f"generations: {generations}")
            return OK
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
    return OK


def _rows(args: argparse.Namespace, store: Store) -> list[ArchiveRow] | None:
    """The rows that were asked for; None when only their number was."""
    if args.regex and args.grep is None:
        raise UsageError("--regex goes with --grep")
    if args.head is not None:
        return store.archive.head(args.key, args.head)
    if args.tail is not None:
        return store.archive.tail(args.key, args.tail)
    if args.grep is not None:
        try:
            return store.archive.grep(args.key, args.grep, limit=args.limit, regex=args.regex, timeout=args.timeout)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if args.slice is not None:
        first, dash, last = args.slice.partition("-")
        if not (first.isdecimal() and dash and last.isdecimal()):
            raise UsageError(f"--slice takes two numbers with a dash between them, not {args.slice!r}")
        return store.archive.slice(args.key, int(first), int(last), generation=args.generation)
    return store.archive.load(args.key, generation=args.generation) if args.all else None
