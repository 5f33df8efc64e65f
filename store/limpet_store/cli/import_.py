"""Add the JSON lines that `export` wrote to a store, which is created when it is not there.

What is there already is left alone, so that importing twice is importing once. A line that cannot be read, or that
contradicts what is there, is reported with its number and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib

from limpet import console
from limpet.console import say

from .common import FAILED, OK, open_store, print_json

HELP = "add the JSON lines of an export"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default, or -: standard input")


def run(args: argparse.Namespace) -> int:
    """Import, and report line by line what was left out."""
    with contextlib.ExitStack() as stack:
        # Binary: a line that is no UTF-8 is one broken line and not the end of the import.
        stream = console.binary_input() if args.file == "-" else stack.enter_context(open(args.file, "rb"))
        report = stack.enter_context(open_store(args, write=True, create=True)).import_jsonl(stream)
    for number, error in report.errors:
        console.note(f"{args.file}:{number}: {error}")
    if args.json:
        errors = [{"line": number, "error": error} for number, error in report.errors]
        print_json({"lines": report.lines, "changed": report.changed, "errors": errors})
    else:
        say(f"{report.lines:,} lines read, {report.changed:,} changed something, {len(report.errors):,} left out")
    return OK if report.ok else FAILED
