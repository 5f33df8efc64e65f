"""`limpet upgrade`: bring a file to the newest format."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..console import say
from ..file import OSFileSystem
from ..upgrade import UpgradeResult, check_on
from ..upgrade import upgrade as upgrade_file
from .backup import add_lock_timeout
from .terminal import FINE, WARNINGS, Verbs, add_verb, emit, inspected, progress

_TEXT = """\
Rewrites a file of an older format in the newest one, compares the two, and puts the new one in the
place of FILE. The original is kept as FILE.v1.bak; a file of that name is never overwritten. A file
that is up to date is left alone; so is one that is not ours, and the exit code is then 3.

With --check nothing is written: the file is read whole, and the exit code is 0 if it is up to date,
1 if an upgrade is due, 2 if it is damaged.

examples
  limpet upgrade app.limpet
  limpet upgrade app.limpet --check || echo "due, or damaged"
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "upgrade", run, "bring a file of an older format to the newest one", _TEXT)
    parser.add_argument("--check", action="store_true", help="only say what would be done, and whether it can be")
    parser.add_argument("--no-backup", action="store_true", help="do not keep the original")
    add_lock_timeout(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    timeout_s = arguments.lock_timeout
    if arguments.check:
        result = check_on(OSFileSystem(), arguments.file, lock_timeout=timeout_s)
    else:
        with progress("entries") as show:
            result = upgrade_file(arguments.file, backup=not arguments.no_backup, lock_timeout=timeout_s, progress=show)
    if result.to_version is None:
        arguments.page_size = None
        with inspected(arguments) as inspection:  # which says what it is, or that there is no such file
            if inspection.problem is not None:
                raise inspection.problem
    if arguments.json:
        emit("upgrade", asdict(result))
    else:
        say(_told(result, check=arguments.check))
    due = arguments.check and result.from_version != result.to_version
    return WARNINGS if due else FINE


def _told(result: UpgradeResult, *, check: bool) -> str:
    if result.upgraded:
        kept = f"the original is kept as {result.backup}" if result.backup else "the original is not kept"
        return (
            f"{result.path}: format {result.from_version} is now format {result.to_version}, {result.entries:,} "
            f"entries; {kept}"
        )
    if check and result.from_version != result.to_version:
        return f"{result.path}: format {result.from_version}, {result.entries:,} entries can be read; an upgrade is due"
    return f"{result.path}: format {result.to_version} is up to date"
