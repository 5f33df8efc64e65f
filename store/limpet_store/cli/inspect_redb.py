"""Look inside a redb file: its tables, rows and sizes, which commit is read and why, and whether all of it verifies.

FILE is any file of redb 2, 3 or 4 (file formats 2 and 3), not only a gateway's. It is only read. Every page in use is
read and compared with its checksum; the exit code is 1 when something is damaged.
"""

from __future__ import annotations

import argparse
import dataclasses

from limpet.console import say

from ..redb import RedbFile
from .common import FAILED, OK, print_json
from .import_redb import add_slot

HELP = "look inside a redb file"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="such as data.redb")
    add_slot(parser)


def run(args: argparse.Namespace) -> int:
    """Read everything once, and say what is there."""
    with RedbFile(args.file, slot=args.slot, lock_timeout=args.wait) as file:
        report = file.report()
    if args.json:
        print_json(dataclasses.asdict(report) | {"ok": report.ok})
    else:
        for line in report.lines():
            say(line)
    return OK if report.ok else FAILED
