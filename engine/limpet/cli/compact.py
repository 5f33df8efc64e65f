"""`limpet compact`: give free space back."""

from __future__ import annotations

import argparse

from ..console import say
from ..database import open as open_database
from .backup import add_lock_timeout
from .terminal import FINE, Verbs, add_verb, emit, human, progress

_TEXT = """\
Writes the newest commit into a new file without free space, and puts that in the place of FILE. A
crash leaves the old file or the new one. FILE must not be open in another process.

example
  limpet compact app.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    add_lock_timeout(add_verb(verbs, "compact", run, "rewrite the file without free space", _TEXT))


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with open_database(arguments.file, create=False, lock_timeout=arguments.lock_timeout) as database:
        with progress("copying entries") as show:
            saved = database.compact(progress=show)
        size = database.stats().file_size
    if arguments.json:
        emit("compact", {"file": arguments.file, "size": size, "saved": saved})
    else:
        say(f"{arguments.file}: {human(size)}, {human(max(0, saved))} given back")
    return FINE
