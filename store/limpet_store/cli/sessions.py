"""List the conversations: generation, active and archived messages, last activity, title."""

from __future__ import annotations

import argparse
import itertools

from limpet.console import text

from ..schema import ACTIVE
from .common import OK, add_limit, open_store, print_rows, when

HELP = "list the conversations"
COLUMNS = ("session", "generation", "active", "archived", "last active", "title", "pinned")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--prefix", default="", metavar="TEXT", type=text, help="only sessions whose key begins so")
    add_limit(parser)


def run(args: argparse.Namespace) -> int:
    """List sessions from their rows and counters; no message is read."""
    with open_store(args) as store, store.reading() as work, store.read() as tx:
        rows = []
        for key, meta in itertools.islice(tx.sessions.items(args.prefix), args.limit):
            active = work.counter(key, ACTIVE)
            rows.append(
                {
                    "session": key,
                    "generation": meta.generation,
                    "active": active.row_count if active else 0,
                    "archived": tx.archive.stat(key).total_messages,
                    "last active": when(meta.last_active),
                    "title": meta.title,
                    "pinned": meta.pinned,
                    "row": meta.to_dict(),
                }
            )
        print_rows(args, rows, COLUMNS, nothing="no sessions")
    return OK
