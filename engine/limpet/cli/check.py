"""`limpet check`: is the file whole?"""

from __future__ import annotations

import argparse
import time

from ..console import not_negative, say
from .terminal import (
    DAMAGED,
    FINE,
    WARNINGS,
    Verbs,
    add_page_size,
    add_verb,
    emit,
    inspected,
    plural,
    print_wrapped,
    progress,
)

_TEXT = """\
Reads every page of the newest checkpoint, and those of the one before that it does not share:
checksums, order, separators, counts, overflow runs, free space, and every key and value; and the
log of what was committed since. Damage of the checkpoint before is a warning: nothing is lost by
it. So is a meta that cannot be read, as long as nothing proves that it named the newest commit: one
that was interrupted leaves that. What else is in the file says what it means.

Of a damaged file the last lines say what can be saved of it, and with which command.

exit codes: 0 clean, 1 warnings, 2 damaged, 3 not a Limpet file or a newer one

With --json: one object a finding, with "kind", "message" and where it is; the last has the counts
and the "advice".

examples
  limpet check app.limpet
  limpet check --quick app.limpet               # checksums and structure only
  limpet check --json app.limpet | jq 'select(.type == "error") | .pgno'
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    parser = add_verb(verbs, "check", run, "verify every page, key and value", _TEXT)
    parser.add_argument("--quick", action="store_true", help="do not decode keys and values")
    parser.add_argument(
        "--max-errors",
        type=not_negative,
        default=100,
        metavar="N",
        help="findings to print of each severity (%(default)s)",
    )
    add_page_size(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    started = time.monotonic()
    with inspected(arguments) as inspection, progress("checking") as show:
        report = inspection.check(quick=arguments.quick, progress=show)
        advice = inspection.advice(report)
    code = FINE if report.ok and not report.warnings else WARNINGS if report.ok else DAMAGED
    for severity, findings in (("error", report.errors), ("warning", report.warnings)):
        for finding in findings[: arguments.max_errors]:
            if arguments.json:
                emit(severity, finding.as_dict())
            else:
                print_wrapped(f"{severity}: {finding}", indent=4)
        if not arguments.json and len(findings) > arguments.max_errors:
            say(f"and {len(findings) - arguments.max_errors} more {severity}s; --max-errors shows them")
    if arguments.json:
        counts = {**report.as_dict(), "errors": len(report.errors), "warnings": len(report.warnings)}
        emit("report", {**counts, "advice": advice, "exit": code})
        return code
    if report.txid is not None:
        lost = (
            f"{report.leaked_count} leaked" if not report.unreached_count else f"{report.unreached_count} not reached"
        )
        say(
            f"commit {report.txid}: {plural(report.reached_count, 'page')} in use, {report.free_count} free, "
            f"{lost}; checked in {time.monotonic() - started:.1f} s"
        )
    for sentence in advice:
        say(sentence)  # not wrapped: a command with a line end in it is none
    if code == FINE:
        say("clean")
    else:
        verdict = "" if report.ok else ": DAMAGED"
        say(f"{plural(len(report.errors), 'error')}, {plural(len(report.warnings), 'warning')}{verdict}")
    return code
