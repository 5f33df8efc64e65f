"""`limpet tables`: what tables there are."""

from __future__ import annotations

import argparse

from ..errors import CorruptError
from .terminal import DAMAGED, FINE, Verbs, add_page_size, add_verb, code_of, emit, inspected, note, print_table

_TEXT = """\
One line a table, with the codecs of its keys and values. What the catalogue still tells of a damaged
file is listed, and the exit code is 2.

example
  limpet tables app.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    add_page_size(add_verb(verbs, "tables", run, "list the tables, their codecs and sizes", _TEXT))


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    damage: list[CorruptError] = []
    with inspected(arguments) as inspection:
        tables = inspection.tables(on_damage=damage.append)
        code = code_of(inspection, DAMAGED if damage else FINE)
    for error in damage:
        note(str(error))
    if arguments.json:
        for table in tables:
            emit("table", table.as_dict())
        return code
    print_table(
        ("TABLE", "KEY", "VALUE", " ENTRIES", " TREE", " ROOT"),
        [(table.name, table.key, table.value, table.entry_count, table.tree_id, table.root) for table in tables],
    )
    return code
