"""Write everything, archive included, as JSON lines; `import` reads them.

The same content gives the same bytes, so that two exports can be compared.
"""

from __future__ import annotations

import argparse
import sys

from .common import OK, open_store, print_json

HELP = "write everything as JSON lines"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="default, or -: standard output")


def run(args: argparse.Namespace) -> int:
    """Export to a new file, or to standard output; what is counted goes to standard error."""
    with open_store(args) as store:
        if args.file == "-":
            count = store.export_jsonl(sys.stdout)
        else:
            with open(args.file, "x", encoding="utf-8", newline="\n") as stream:
                count = store.export_jsonl(stream)
    if args.file != "-":
        print_json({"file": args.file, "lines": count}) if args.json else print(f"{args.file}: {count:,} lines")
    return OK
