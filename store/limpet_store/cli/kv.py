"""List the small facts that the gateway keeps under names, or show one of them."""

from __future__ import annotations

import argparse
import sys

from .common import FAILED, OK, open_store, print_json, print_rows

HELP = "list names and values"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this one as it is stored")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="only names that begin so")


def run(args: argparse.Namespace) -> int:
    """List names and values, or print one value as it is."""
    with open_store(args) as store:
        if args.name is None:
            rows = [{"name": name, "value": value} for name, value in store.kv.items(args.prefix)]
            print_rows(args, rows, ("name", "value"), nothing="nothing")
            return OK
        value = store.kv.get(args.name)
    if value is None:
        print(f"limpet-store: there is nothing under {args.name!r}", file=sys.stderr)
        return FAILED
    print_json({"name": args.name, "value": value}) if args.json else print(value)
    return OK
