"""List the scheduled jobs, or show one of them."""

from __future__ import annotations

import argparse

from limpet.console import say_exactly, text

from .common import FAILED, OK, note, open_store, print_json, print_rows

HELP = "list the scheduled jobs"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("id", metavar="ID", nargs="?", type=text, help="show this one as it is stored")


def run(args: argparse.Namespace) -> int:
    """List ids and texts; the text is whatever the gateway stored."""
    with open_store(args) as store:
        if args.id is None:
            rows = [{"id": name, "text": stored} for name, stored in store.cron.items()]
            print_rows(args, rows, ("id", "text"), nothing="no scheduled jobs")
            return OK
        stored = store.cron.get(args.id)
    if stored is None:
        note(f"there is no scheduled job {args.id!r}")
        return FAILED
    print_json({"id": args.id, "text": stored}) if args.json else say_exactly(stored)
    return OK
