"""Bring the conversations of an OpenClaw home over: sessions.json and its JSONL transcripts, and names that changed.

DIR is ~/.openclaw, one agent's directory in it (agents/NAME), or a directory with a sessions.json. Of each transcript
come the messages' texts and thoughts; tool calls and results, and messages without text, stay behind. Each session
remembers how much of its transcript it has, so that a second run brings over only what is new. A line that cannot be
read is reported with its file and number, and the rest is imported; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os

from limpet import console
from limpet.console import say

from ..openclaw import Found, find, read
from ..store import Store
from .common import FAILED, OK, open_store, print_json, show_bar

HELP = "bring OpenClaw conversations over"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dir", metavar="DIR", help="such as ~/.openclaw")
    parser.add_argument("--dry-run", action="store_true", help="say what would come over, and write nothing")


def run(args: argparse.Namespace) -> int:
    """Import session by session, with a bar on a terminal."""
    found = find(args.dir)
    if args.dry_run and not os.path.exists(args.store):
        return _run(args, found, None)
    with open_store(args, write=not args.dry_run, create=not args.dry_run) as store:
        return _run(args, found, store)


def _run(args: argparse.Namespace, found: list[Found], store: Store | None) -> int:
    totals = {"sessions": 0, "messages": 0, "aliases": 0, "lines left out": 0, "sessions without a transcript": 0}
    errors = []
    for number, session in enumerate(found, 1):
        show_bar(args, number, len(found), "sessions")
        if session.transcript is None:
            totals["sessions without a transcript"] += 1
            continue
        transcript = read(session.transcript)
        errors += transcript.errors
        added = session.add_to(store, transcript, dry_run=args.dry_run)
        totals["sessions"] += added.messages > 0
        totals["messages"] += added.messages
        totals["aliases"] += added.aliases
    totals["lines left out"] = len(errors)
    if not args.json:
        for error in errors:
            console.note(error)
        verb = "would be brought over" if args.dry_run else "brought over"
        say(f"{verb}: " + ", ".join(f"{count:,} {name}" for name, count in totals.items()))
    else:
        print_json({name.replace(" ", "_"): count for name, count in totals.items()} | {"errors": errors})
    return FAILED if errors else OK
