"""`limpet dump`: all entries, as lines of JSON."""

from __future__ import annotations

import argparse

from ..console import not_negative, text
from ..errors import CorruptError
from ..inspection import plain
from .terminal import DAMAGED, Verbs, add_page_size, add_verb, code_of, emit_row, inspected, note

_TEXT = """\
One line of JSON an entry, in key order: {"table": ..., "key": ..., "value": ...}. Bytes are "0x" and
hex digits, tuple keys are arrays, UUIDs and times are text, infinities and NaN the texts "inf",
"-inf" and "nan".

What cannot be read is left out and named on stderr, the rest is written, and the exit code is 2: this
is also the way to save what is left of a damaged file.

examples
  limpet dump app.limpet > everything.jsonl
  limpet dump app.limpet users --limit 10
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "dump", run, "write all entries as lines of JSON", _TEXT)
    parser.add_argument("table", metavar="TABLE", nargs="?", type=text, help="only this table")
    parser.add_argument("--limit", type=not_negative, metavar="N", help="at most so many entries of each table")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    damage: list[CorruptError] = []

    def on_damage(error: CorruptError) -> None:
        damage.append(error)
        note(f"left out: {error}")

    with inspected(arguments) as inspection:
        if arguments.table is None:
            names = [table.name for table in inspection.tables(on_damage=on_damage)]
        else:
            names = [inspection.table(arguments.table).name]
        for name in names:
            try:
                for count, (key, value) in enumerate(inspection.items(name, on_damage=on_damage)):
                    if count == arguments.limit:
                        break
                    emit_row({"table": name, "key": plain(key), "value": plain(value)})
            except CorruptError as error:  # its codecs are not known
                on_damage(error)
        return DAMAGED if damage else code_of(inspection)
