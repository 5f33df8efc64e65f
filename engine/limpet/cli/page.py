"""`limpet page`: one page, decoded."""

from __future__ import annotations

import argparse
from typing import Any

from ..console import say
from .terminal import (
    DAMAGED,
    FINE,
    UsageError,
    Verbs,
    add_page_size,
    add_verb,
    code_of,
    emit,
    fit,
    inspected,
    print_fields,
    print_table,
    to_json,
)

_TEXT = """\
Shows the header of page N and what is on it: keys and values of a leaf, separators and children of a
branch, ranges of free pages. Damaged pages are decoded as far as they go.

exit codes: 0 whole, 2 damaged, 3 not a Limpet file or a newer one

examples
  limpet page app.limpet 0
  limpet page app.limpet 1207 --hex
"""

_NAMES = {"first_bit": "first bit", "key_size": "key size", "value_size": "value size", "entry_count": "entries"}
_HIDDEN = {"problem", "checksum", "separator"}  # the keys say it better; JSON has all


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "page", run, "decode one page", _TEXT)
    parser.add_argument("pgno", metavar="N", type=int, help="the number of the page, from 0")
    parser.add_argument("--hex", action="store_true", help="print its bytes too")
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with inspected(arguments) as inspection:
        if not 0 <= arguments.pgno < max(1, inspection.page_count):
            raise UsageError(f"{arguments.file} has pages 0 to {inspection.page_count - 1}, not {arguments.pgno}")
        page = inspection.page(arguments.pgno)
        code = code_of(inspection, FINE if page.problem is None else DAMAGED)
    if arguments.json:
        more = {"hex": page.data.hex()} if arguments.hex else {}
        emit("page", {**page.as_dict(), **more})
        return code
    kind = page.kind or ("nothing but zeros" if not any(page.data) else "not a page")
    fields: list[tuple[str, object]] = [("page", f"{page.pgno}, at byte {page.offset}: {kind}")]
    if page.table is not None:
        fields.append(("table", page.table))
    if page.problem is not None:
        fields.append(("problem", page.problem))
    print_fields(fields + [(name, _shown(name, value)) for name, value in page.fields.items()])
    if page.entries:
        say()
        _print_entries(page.entries)
    if arguments.hex:
        say()
        _print_hex(page.data, page.offset)
    return code


def _shown(name: str, value: Any) -> object:
    if name == "checksum" or (name == "stamp" and isinstance(value, int)):
        return f"{value:#010x}"
    if isinstance(value, dict):
        return "none" if value["page"] is None else f"page {value['page']}, checksum {value['checksum']}"
    return value


def _print_entries(entries: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for entry in entries for name in entry if name not in _HIDDEN))
    rows = [[_entry_cell(entry.get(name, "")) for name in names] for entry in entries]
    numbers = [name for name in names if all(isinstance(entry.get(name, 0), int) for entry in entries)]
    print_table([f"{' ' if name in numbers else ''}{_NAMES.get(name, name).upper()}" for name in names], rows)


def _entry_cell(value: Any) -> object:
    if isinstance(value, dict) and set(value) == {"page", "checksum"}:
        return f"page {value['page']}"
    if isinstance(value, dict | list | float | bool):
        return fit(to_json(value), 200)
    return value if value is None or isinstance(value, int) else fit(str(value), 200)


def _print_hex(data: bytes, offset: int) -> None:
    """Sixteen bytes a line; lines that repeat are left out, as hexdump does."""
    before = b""
    is_repeating = False
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        if line == before and at + 16 < len(data):
            if not is_repeating:
                say("*")
            is_repeating = True
            continue
        before, is_repeating = line, False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        say(f"{offset + at:08x}  {at:5}  {line[:8].hex(' '):23}  {line[8:].hex(' '):23}  {text}")
