"""`limpet trim`: give free space back without rewriting the file."""

from __future__ import annotations

import argparse

from ..database import open as open_database
from .backup import add_lock_timeout
from .terminal import FINE, Verbs, add_verb, emit, human, print_wrapped

_TEXT = """\
Cuts FILE behind the last page that was ever used, and turns long stretches of free pages into holes,
where the system can do that. Takes an instant; `compact` gives more back, and rewrites the file. FILE
must not be open in another process.

example
  limpet trim app.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    add_lock_timeout(add_verb(verbs, "trim", run, "give free space back to the disk, in place", _TEXT))


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with open_database(arguments.file, create=False, lock_timeout=arguments.lock_timeout) as database:
        saved = database.trim()
        size = database.stats().file_size
    if arguments.json:
        emit("trim", {"file": arguments.file, "size": size, "saved": saved})
    else:
        print_wrapped(f"{arguments.file}: {human(saved)} given back, {human(size)} long", indent=4)
    return FINE
