"""`limpet path`: the pages on the way to an entry."""

from __future__ import annotations

import argparse

from ..errors import CorruptError
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
root to the leaf, overflow run; and which child or entry is taken in each.

exit codes: 0 found, 1 there is no such table or key, 2 damaged

example
  limpet path app.limpet users ada
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "path", run, "show the pages from the root to an entry", _TEXT)
    parser.add_argument("table", metavar="TABLE", help="the name of the table")
    parser.add_argument("key", metavar="KEY", help="the key; see below")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with inspected(arguments) as inspection:
        table = inspection.table(arguments.table)
        if table.codecs is None:
            raise CorruptError(table.problem or "the codecs are not known", table=table.name)
        key = parse_key(arguments.key, table.codecs.key)
        try:
            steps = inspection.path(table.name, key)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{arguments.key!r} is no key of {table.key}: {error}") from None
        problem = next((step for step in steps if step.problem is not None), None)
        found = steps[-1].kind == "overflow" or (steps[-1].kind == "leaf" and steps[-1].index is not None)
        found = found and steps[-1].tree != "catalogue"
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
        print("the key is not there" if steps[-1].kind == "leaf" else "the table is empty")
    return code
