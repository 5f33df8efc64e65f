"""Move in from the Rust gateway: take over its redb file, all ten tables, archive included.

FILE is the old data.redb. It is only read, and must not be open in a running gateway. STORE is the new file (default:
--store). When it does not exist yet, it appears complete and verified, or not at all. When it does, what it has already
stays: importing twice is importing once.

At the end stands an account: of every table how many rows were read, written, skipped and why. Choices that had to be
made are told as notes. The exit code is 1 when rows were left out or set aside, or the store does not verify.
"""

from __future__ import annotations

import argparse
import functools
import os

from limpet.console import say

from ..redb import RedbFile
from ..redb.account import RedbImport
from ..redb.creation import create
from ..redb.importer import import_redb
from ..store import Store
from ..tier import MemoryTier
from .common import FAILED, OK, print_json, show_bar

HELP = "take over the redb file of the Rust gateway"
TABLE_WIDTH = 26  # of "rows, " and the longest name of a table


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="the old file, data.redb")
    parser.add_argument("target", metavar="STORE", nargs="?", help="the store; default: --store")
    parser.add_argument("--dry-run", action="store_true", help="say what would become of each row, and write nothing")
    add_slot(parser)


def add_slot(parser: argparse.ArgumentParser) -> None:
    """The argument `--slot`."""
    parser.add_argument(
        "--slot",
        type=int,
        choices=(0, 1),
        help="salvage: read this commit slot of a damaged file, whatever the rules say (inspect-redb shows both)",
    )


def run(args: argparse.Namespace) -> int:
    """Import, check, and give the account."""
    target = args.store if args.target is None else args.target
    # The import writes once and reads nothing twice: a larger cache would only cost memory.
    open_store = functools.partial(Store.open, tier=MemoryTier.LOW, lock_timeout=args.wait)
    errors: list[str] = []
    with RedbFile(args.file, slot=args.slot, lock_timeout=args.wait) as source:

        def progress(table: str, done: int, total: int) -> None:
            show_bar(args, done, total, f"rows, {table}", TABLE_WIDTH)

        if not os.path.lexists(target):
            if args.dry_run:
                report = import_redb(source, None, progress=progress)
            else:
                first = functools.partial(open_store, durability="os")
                report = create(source, target, first, lock_timeout=args.wait, progress=progress)
        else:
            with open_store(target, read_only=args.dry_run) as store:
                report = import_redb(source, store, dry_run=args.dry_run, progress=progress)
                if not args.dry_run:
                    errors = store.check().errors
    _tell(args, target, report, errors)
    return OK if report.complete and report.adds_up and not errors else FAILED


def _tell(args: argparse.Namespace, target: str, report: RedbImport, errors: list[str]) -> None:
    if args.json:
        print_json(report.to_dict() | {"store": target, "errors": errors})
        return
    for line in report.lines():
        say(line)
    for error in errors:
        say(f"error      {error}")
    if not args.dry_run:
        say(f"{target}: {f'{len(errors)} errors found' if errors else 'verified, OK'}")
