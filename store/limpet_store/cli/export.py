"""Write everything, archive included, as JSON lines; `import` reads them.

The same content gives the same bytes, so that two exports can be compared. A file appears when it is whole, replaces
nothing, and can be read by those who can read the store. The lines are UTF-8, whatever the terminal is; on a terminal
itself, control characters are shown as escapes, which `import` reads too.
"""

from __future__ import annotations

import argparse

from limpet import console
from limpet.console import say

from ..new_file import new_file
from .common import OK, open_store, print_json

HELP = "write everything as JSON lines"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default, or -: standard output")


def run(args: argparse.Namespace) -> int:
    """Export to a new file, or to standard output."""
    with open_store(args) as store:
        if args.file == "-":
            store.export_jsonl(console.json_output())
            return OK
        with new_file(args.file, like=args.store) as stream:
            count = store.export_jsonl(stream)
    print_json({"file": args.file, "lines": count}) if args.json else say(f"{args.file}: {count:,} lines")
    return OK
