"""`limpet get`: one value."""

from __future__ import annotations

import argparse
from typing import Any

from ..console import is_terminal, say_exactly, text, write
from ..inspection import plain
from .terminal import (
    KEY_HELP,
    WARNINGS,
    UsageError,
    Verbs,
    add_page_size,
    add_verb,
    code_of,
    emit,
    inspected,
    note,
    parse_key,
    to_json,
)

_TEXT = f"""\
{KEY_HELP}
Prints text as it is, in UTF-8, JSON as JSON, bytes as 0x and hex digits; --raw gives bytes and text
as they are stored, without a line end. On a terminal, control characters are shown as escapes.

exit codes: 0 found, 1 there is no such table or key, 2 damaged

examples
  limpet get app.limpet users ada
  limpet get app.limpet events '["ada", 7]'
  limpet get app.limpet -- temperatures -3
"""

_MISSING = object()


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "get", run, "print one value", _TEXT)
    parser.add_argument("table", metavar="TABLE", type=text, help="the name of the table")
    parser.add_argument("key", metavar="KEY", type=text, help="the key; see below")
    parser.add_argument("--raw", action="store_true", help="print the stored bytes")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    if arguments.raw and not arguments.json and is_terminal():
        raise UsageError("--raw writes bytes, which could steer the terminal; redirect them into a file or a pipe")
    with inspected(arguments) as inspection:
        table = inspection.table(arguments.table)
        codecs = table.known_codecs()
        key = parse_key(arguments.key, codecs.key)
        try:
            value: Any = inspection.get(table.name, key, _MISSING)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{arguments.key!r} is no key of {table.key}: {error}") from None
        code = code_of(inspection)
        found = value is not _MISSING
        if arguments.json:
            shown = plain(value) if found else None
            emit("entry", {"table": table.name, "key": plain(key), "found": found, "value": shown})
        elif not found:
            note(f"table {table.name!r} of commit {inspection.txid} has no key {plain(key)!r}")
        elif arguments.raw:
            write(codecs.value.encode_value(value))
        else:
            shown = plain(value)
            say_exactly(shown if isinstance(shown, str) and table.value != "JSON" else to_json(shown))
    return code if found else code or WARNINGS
