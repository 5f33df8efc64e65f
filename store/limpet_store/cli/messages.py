"""Show the active messages of one conversation, oldest first."""

from __future__ import annotations

import argparse

from ..records import message_text
from .common import OK, at_least_one, open_store, print_json

HELP = "show the active messages of a conversation"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("key", metavar="KEY", help="the session's key, exactly")
    parser.add_argument("--recent", metavar="N", type=at_least_one, help="only the last N")


def run(args: argparse.Namespace) -> int:
    """Print the messages, each under its role."""
    with open_store(args) as store:
        messages = (
            store.messages.load(args.key) if args.recent is None else store.messages.load_recent(args.key, args.recent)
        )
    if args.json:
        print_json(messages)
    elif not messages:
        print("no active messages")
    for message in () if args.json else messages:
        print(f"{message.get('role', '?')}: {message_text(message)}")
    return OK
