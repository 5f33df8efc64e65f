"""`limpet upgrade`: bring a file to the newest format."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..upgrade import upgrade as upgrade_file
from .terminal import FINE, Verbs, add_verb, emit, inspected

_TEXT = """\
Rewrites a file of an older format in the newest one, and keeps the original beside it. A file that is
up to date is left alone; so is one that is not ours, and the exit code is then 3.

example
  limpet upgrade app.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    add_verb(verbs, "upgrade", run, "bring a file of an older format to the newest one", _TEXT)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    result = upgrade_file(arguments.file)
    if result.to_version is None:
        arguments.page_size = None
        with inspected(arguments) as inspection:  # which says what it is, or that there is no such file
            if inspection.problem is not None:
                raise inspection.problem
    if arguments.json:
        emit("upgrade", asdict(result))
    elif result.upgraded:
        print(f"{result.path}: format {result.from_version} is now format {result.to_version}; kept {result.backup}")
    else:
        print(f"{result.path}: format {result.to_version} is up to date")
    return FINE
