"""`limpet backup`: a copy of the newest commit."""

from __future__ import annotations

import argparse

from ..console import say, seconds
from ..database import open as open_database
from ..opening import DEFAULT_LOCK_TIMEOUT_S
from .terminal import FINE, UsageError, Verbs, add_verb, emit, human, progress

_TEXT = """\
Writes the newest commit into a new file, without free space. Every page is verified on the way; the
new file appears when it is whole and synced. A process that has FILE open has to close it first, or
to take the backup itself: Database.backup() works while others write.

example
  limpet backup app.limpet app-monday.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "backup", run, "copy the newest commit into a new file", _TEXT)
    parser.add_argument("target", metavar="TARGET", help="the new file")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    add_lock_timeout(parser)


def add_lock_timeout(parser: argparse.ArgumentParser) -> None:
    """Add --lock-timeout, for verbs that open the database."""
    parser.add_argument(
        "--lock-timeout",
        type=seconds,
        default=DEFAULT_LOCK_TIMEOUT_S,
        metavar="SECONDS",
        help="how long to wait for another process to let go of the file (%(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    with open_database(arguments.file, create=False, read_only=True, lock_timeout=arguments.lock_timeout) as database:
        try:
            with progress("copying entries") as show:
                database.backup(arguments.target, overwrite=arguments.overwrite, progress=show)
        except ValueError as error:  # FILE itself, or no file at all
            raise UsageError(str(error)) from None
        txid = database.stats().txid
    with open_database(arguments.target, create=False, read_only=True) as copy:
        size = copy.stats().file_size
    if arguments.json:
        emit("backup", {"file": arguments.file, "target": arguments.target, "txid": txid, "size": size})
    else:
        say(f"{arguments.target}: commit {txid}, {human(size)}")
    return FINE
