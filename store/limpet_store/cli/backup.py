"""Copy the store to a new file, whole and consistent."""

from __future__ import annotations

import argparse
import os

from limpet.console import say

from .common import FAILED, OK, UsageError, note, open_store, print_json, size

HELP = "copy the store to a new file"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("target", metavar="TARGET", help="the new file; it must not be there yet")


def run(args: argparse.Namespace) -> int:
    """Copy, and say how large the copy is."""
    if os.path.lexists(args.target):
        note(f"{args.target} is already there; backups overwrite nothing")
        return FAILED
    with open_store(args) as store:
        try:
            store.backup(args.target)
        except ValueError as error:  # the name of no file
            raise UsageError(str(error)) from None
    copied = os.path.getsize(args.target)
    print_json({"target": args.target, "size": copied}) if args.json else say(f"{args.target}: {size(copied)}")
    return OK
