"""List the small facts that the gateway keeps under names, or show one of them."""

from __future__ import annotations

import argparse

from limpet.console import say_exactly, text

from .common import FAILED, OK, UsageError, note, open_store, print_json, print_rows

HELP = "list names and values"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", type=text, help="show this one as it is stored")
    parser.add_argument("--prefix", metavar="TEXT", type=text, help="only names that begin so")


def run(args: argparse.Namespace) -> int:
    """List names and values, or print one value as it is."""
    if args.name is not None and args.prefix is not None:
        raise UsageError("give NAME or --prefix, not both")
    with open_store(args) as store:
        if args.name is None:
            rows = [{"name": name, "value": value} for name, value in store.kv.items(args.prefix or "")]
            print_rows(args, rows, ("name", "value"), nothing="nothing")
            return OK
        value = store.kv.get(args.name)
    if value is None:
        note(f"there is nothing under {args.name!r}")
        return FAILED
    print_json({"name": args.name, "value": value}) if args.json else say_exactly(value)
    return OK
