"""Delete what is older than you say, in small steps. Without a new limit nothing but the usual is deleted: idempotency
keys and finished jobs after a day.

Where that is more than a tenth of all sessions, or of all archived messages, it deletes nothing without --yes, and the
exit code is 1. --dry-run says how many it would be.

AGE is a number with s, m, h, d or w (seconds, minutes, hours, days, weeks), or "never".
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from limpet.console import at_least_one, say

from ..schema import ARCHIVE, SESSIONS
from ..store import Store
from ..work import DAY_S
from .common import FAILED, OK, note, open_store, print_json

HELP = "delete what is old"
AGE_DIGITS = 12  # 30,000 years in seconds; no more, because int() refuses long texts, and times have 64 bits
ASK_ABOVE = 10  # one in so many of the sessions or of the archived messages
FAMILIES = ("sessions", "archive", "idempotency", "jobs")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S}


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    for name, default, what in (
        ("sessions", None, "conversations without a message for so long; pinned ones stay"),
        ("archive", None, "archived messages"),
        ("idempotency", DAY_S, "marks of what was delivered"),
        ("jobs", DAY_S, "external jobs that are over"),
    ):
        shown = "never" if default is None else "1d"
        parser.add_argument(f"--{name}", metavar="AGE", type=_age, default=default, help=f"{what}; default {shown}")
    parser.add_argument(
        "--force", action="store_true", help="believe the clock, also when it is far ahead of the store"
    )
    parser.add_argument("--step", metavar="N", type=at_least_one, default=1000, help="rows in one commit; default 1000")
    parser.add_argument("--dry-run", action="store_true", help="say how many would be deleted, and delete nothing")
    parser.add_argument("--yes", action="store_true", help="delete them also when they are more than a tenth")


def run(args: argparse.Namespace) -> int:
    """Count, and unless that is all that is wanted or it is too much, take steps until there is nothing left."""
    ages = {
        "sessions_s": args.sessions,
        "archive_s": args.archive,
        "idempotency_s": args.idempotency,
        "jobs_s": args.jobs,
    }
    removed: Counter[str] = Counter()
    objection = ""
    with open_store(args, write=not args.dry_run) as store:
        if args.dry_run:
            removed.update(store.retention(**ages, limit=sys.maxsize, dry_run=True, force=args.force))
        elif args.yes or not (objection := _objection(store, ages, force=args.force)):
            while any((step := store.retention(**ages, limit=args.step, force=args.force)).values()):
                removed.update(step)
    if objection:
        note(objection)
    if args.json:
        print_json({family: removed[family] for family in FAMILIES})
    elif not objection:
        counts = ", ".join(f"{removed[family]:,} {family}" for family in FAMILIES)
        say(f"{'would be deleted' if args.dry_run else 'deleted'}: {counts}")
    return FAILED if objection else OK


def _objection(store: Store, ages: dict[str, int | None], *, force: bool) -> str:
    """What to say before conversations are deleted that may have been meant to stay; nothing when it is few of them."""
    if ages["sessions_s"] is None and ages["archive_s"] is None:
        return ""
    counts = store.retention(**ages, limit=sys.maxsize, dry_run=True, force=force)
    with store.reading() as work:
        parts = [
            f"{counts[family]:,} of {total:,} {what}"
            for family, rows, what in (("sessions", SESSIONS, "sessions"), ("archive", ARCHIVE, "archived messages"))
            if counts[family] * ASK_ABOVE > (total := len(work.view(rows.table)))
        ]
    if not parts:
        return ""
    return (
        f"this would delete {' and '.join(parts)}, more than a tenth; nothing was deleted. --dry-run counts, --yes "
        "deletes them"
    )


def _age(text: str) -> int | None:
    """Seconds from "90", "15m", "30d" ...; None from "never"."""
    if text == "never":
        return None
    number, unit = (text, "s") if text[-1:].isdecimal() else (text[:-1], text[-1:])
    if not number.isdecimal() or len(number) > AGE_DIGITS or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90s, 15m, 12h, 30d, 2w or never")
    return int(number) * UNITS[unit]
