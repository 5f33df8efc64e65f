"""Show the active messages of one conversation, oldest first.

What follows the first line of a message is indented, so that a text cannot pass for another message.
"""

from __future__ import annotations

import argparse

from limpet.console import at_least_one, say, text

from ..records import message_text
from .common import FAILED, OK, note, open_store, print_json

HELP = "show the active messages of a conversation"
INDENT = "    "


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("key", metavar="KEY", type=text, help="the session's key, exactly")
    parser.add_argument("--recent", metavar="N", type=at_least_one, help="only the last N")


def run(args: argparse.Namespace) -> int:
    """Print the messages, each under its role."""
    with open_store(args) as store:
        messages = (
            store.messages.load(args.key) if args.recent is None else store.messages.load_recent(args.key, args.recent)
        )
        is_there = bool(messages) or store.sessions.get(args.key) is not None
    if not is_there:
        note(f"there is no conversation {args.key!r}")
    if args.json:
        print_json(messages)
    elif not messages:
        say("no active messages")
    for message in () if args.json else messages:
        first, *others = message_text(message).split("\n")
        say(f"{message.get('role', '?')}: {first}")
        for line in others:
            say(f"{INDENT}{line}")
    return OK if is_there else FAILED
