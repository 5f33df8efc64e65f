"""Bring the conversations of an OpenClaw home over: sessions.json and its JSONL transcripts, and names that changed.

DIR is ~/.openclaw, one agent's directory in it (agents/NAME), or a directory with a sessions.json. It is only read. Of
each transcript come the messages' texts and thoughts; tool calls and their results stay behind, both, since providers
refuse one without the other. What the agent sees is active; branches that were given up, and what a session was before
a fresh start (.jsonl.reset.TIME), are in the archive, each start in a generation of its own.

Messages are known by their ids, so that a second run brings exactly what is new, also after an interruption, and after
OpenClaw has rewritten its files. What a session has said in the store itself is never touched.

At the end stands an account: every line of every file under DIR is counted once, with what became of it. A line that
cannot be read is reported with its file and number, and the rest is imported. Transcripts that no session names any
more are counted, not imported. The exit code is 1 when a line or a session was left out for a fault.
"""

from __future__ import annotations

import argparse
import os

from limpet import console
from limpet.console import say

from ..openclaw import Account, import_openclaw
from .common import FAILED, OK, open_store, print_json, show_bar

HELP = "bring OpenClaw conversations over"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dir", metavar="DIR", help="such as ~/.openclaw")
    parser.add_argument("--dry-run", action="store_true", help="say what would come over, and write nothing")


def run(args: argparse.Namespace) -> int:
    """Import session by session, with a bar on a terminal."""

    def progress(done: int, total: int) -> None:
        show_bar(args, done, total, "sessions")

    if args.dry_run and not os.path.exists(args.store):
        account = import_openclaw(args.dir, None, progress=progress)
    else:
        with open_store(args, write=not args.dry_run, create=not args.dry_run) as store:
            account = import_openclaw(args.dir, store, dry_run=args.dry_run, progress=progress)
    _tell(args, account)
    return OK if account.adds_up and not account.errors else FAILED


def _tell(args: argparse.Namespace, account: Account) -> None:
    if args.json:
        print_json(account.to_dict())
        return
    for error in account.errors:
        console.note(error)
    for line in account.to_lines():
        say(line)
