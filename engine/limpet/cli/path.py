"""`limpet path`: the pages on the way to an entry."""

from __future__ import annotations

import argparse

from ..console import say, text
from .terminal import (
    DAMAGED,
    FINE,
    KEY_HELP,
    WARNINGS,
    UsageError,
    Verbs,
    add_page_size,
    add_verb,
    code_of,
    emit,
    inspected,
    parse_key,
    print_table,
    print_wrapped,
)

_TEXT = f"""\
{KEY_HELP}
Shows every page that has to be read to get at an entry: meta, catalogue, the table's tree from the
root to the leaf, overflow run; and which child or entry is taken in each. What the log says of the
key comes last, and counts.

exit codes: 0 found, 1 there is no such table or key, 2 damaged

example
  limpet path app.limpet users ada
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "path", run, "show the pages from the root to an entry", _TEXT)
    parser.add_argument("table", metavar="TABLE", type=text, help="the name of the table")
    parser.add_argument("key", metavar="KEY", type=text, help="the key; see below")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with inspected(arguments) as inspection:
        table = inspection.table(arguments.table)
        key = parse_key(arguments.key, table.known_codecs().key)
        try:
            steps = inspection.path(table.name, key)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{arguments.key!r} is no key of {table.key}: {error}") from None
        problem = next((step for step in steps if step.problem is not None), None)
        last = steps[-1]
        is_empty = last.tree == "catalogue"  # the way ends where the table's tree should begin
        found = not is_empty and (last.kind == "overflow" or last.index is not None)
        code = code_of(inspection, DAMAGED if problem is not None else FINE if found else WARNINGS)
    if arguments.json:
        for step in steps:
            emit("step", step.as_dict())
        return code
    print_table(
        (" PAGE", "KIND", "TREE", " LEVEL", " ENTRIES", " TAKEN", " COMMIT", "BELOW IT"),
        [(s.pgno, s.kind, s.tree, s.level, s.count, s.index, s.txid, s.keys or "") for s in steps],
    )
    if problem is not None:
        print_wrapped(f"page {problem.pgno}: {problem.problem}", indent=4)
    elif not found:
        say("the table is empty" if is_empty else "the key is not there")
    return code
