"""List the scheduled jobs, or show one of them."""

from __future__ import annotations

import argparse
import sys

from .common import FAILED, OK, open_store, print_json, print_rows

HELP = "list the scheduled jobs"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("id", metavar="ID", nargs="?", help="show this one as it is stored")


def run(args: argparse.Namespace) -> int:
    """List ids and texts; the text is whatever the gateway stored."""
    with open_store(args) as store:
        if args.id is None:
            rows = [{"id": name, "text": text} for name, text in store.cron.items()]
            print_rows(args, rows, ("id", "text"), nothing="no scheduled jobs")
            return OK
        text = store.cron.get(args.id)
    if text is None:
        print(f"limpet-store: there is no scheduled job {args.id!r}", file=sys.stderr)
        return FAILED
    print_json({"id": args.id, "text": text}) if args.json else print(text)
    return OK
