"""Verify the whole store: every page of the file, every row, every index and counter against the rows.

Rows that could not be decoded and were set aside are warnings. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse

from limpet.console import say

from .common import FAILED, OK, open_store, print_json

HELP = "verify pages, rows, indexes and counters"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Check, and say what was found."""
    with open_store(args) as store:
        report = store.check()
    if args.json:
        print_json({"ok": report.ok, "errors": report.errors, "warnings": report.warnings})
    else:
        for error in report.errors:
            say(f"error: {error}")
        for warning in report.warnings:
            say(f"warning: {warning}")
        say("OK" if report.ok else f"{len(report.errors)} errors found")
    return OK if report.ok else FAILED
