"""`limpet pages`: one line a page."""

from __future__ import annotations

import argparse
from collections import Counter

from ..console import say, text
from ..format import CATALOGUE_TREE, FREE_SPACE_TREE
from ..inspection import PageInfo
from .terminal import (
    DAMAGED,
    FINE,
    WARNINGS,
    Verbs,
    add_page_size,
    add_verb,
    code_of,
    emit,
    inspected,
    print_headings,
    print_row,
    progress,
)

_STATES = ("head", "reached", "free", "pending", "leaked", "damaged", "idle", "spare", "unknown")
_TEXT = """\
states
  head      pages 0 to 3              leaked    neither in use nor free
  reached   in use                    damaged   what was read is wrong
  free      may be written over       spare     behind the last page that was ever used
  pending   free, but the commit      unknown   nothing left to tell by
            before needs it         idle      in the log, and nothing of the newest
                                                commit is in it
What a free page holds is left over from earlier.

exit codes: 0 fine, 1 leaked pages, 2 damaged pages, 3 not a Limpet file or a newer one

examples
  limpet pages app.limpet
  limpet pages app.limpet --state damaged,leaked
  limpet pages app.limpet --table users
"""

_HEADINGS = (" PAGE", "KIND", "STATE", "TABLE", " LEVEL", " ENTRIES", " FILL", " COMMIT", "PROBLEM")


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "pages", run, "list all pages: kind, state, table, level, entries, fill", _TEXT)
    parser.add_argument("--state", type=_states, metavar="STATE", help="only pages in this state (or: a,b)")
    parser.add_argument("--table", type=text, metavar="TABLE", help="only pages of this table")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    counts: Counter[str] = Counter()
    with inspected(arguments) as inspection:
        if arguments.table is not None:
            inspection.table(arguments.table)
        widths = [max(4, len(str(inspection.page_count))), 10, 7, 18, 5, 7, 4, 7, 0]
        widths[-1] = 100 - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if not arguments.json:
            print_headings(_HEADINGS, widths)
        with progress("walking the trees") as show:
            for page in inspection.pages(progress=show):
                counts[page.state] += 1
                if arguments.state is not None and page.state not in arguments.state:
                    continue
                if arguments.table is not None and page.table != arguments.table:
                    continue
                if arguments.json:
                    emit("page", page.as_dict())
                else:
                    print_row(_row(page), widths, _HEADINGS)
        if not arguments.json:
            say(", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]))
        code = DAMAGED if counts["damaged"] else WARNINGS if counts["leaked"] else FINE
        return code_of(inspection, code)


def _row(page: PageInfo) -> tuple[object, ...]:
    table = page.table
    if table is None and page.tree_id is not None:
        table = {CATALOGUE_TREE: "(catalogue)", FREE_SPACE_TREE: "(free space)"}.get(
            page.tree_id, f"(tree {page.tree_id})"
        )
    return (
        page.pgno,
        page.kind,
        page.state,
        table,
        page.level,
        page.entries,
        page.fill,
        page.txid,
        page.problem or "",
    )


def _states(text: str) -> set[str]:
    states = set(text.split(","))
    if not states <= set(_STATES):
        raise argparse.ArgumentTypeError(f"the states are {', '.join(_STATES)}")
    return states
