"""Delete what is older than you say, in small steps. Without a new limit nothing but the usual is deleted: idempotency
keys and finished jobs after a day.

AGE is a number with s, m, h, d or w (seconds, minutes, hours, days, weeks), or "never".
"""

from __future__ import annotations

import argparse
from collections import Counter

from ..work import DAY_S
from .common import OK, at_least_one, open_store, print_json

HELP = "delete what is old"
AGE_DIGITS = 12  # 30,000 years in seconds; no more, because int() refuses long texts, and times have 64 bits
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


def run(args: argparse.Namespace) -> int:
    """Take steps until there is nothing left to delete."""
    removed: Counter[str] = Counter()
    with open_store(args, write=True) as store:
        while True:
            step = store.retention(
                sessions_s=args.sessions,
                archive_s=args.archive,
                idempotency_s=args.idempotency,
                jobs_s=args.jobs,
                limit=args.step,
                force=args.force,
            )
            removed.update(step)
            if not any(step.values()):
                break
    if args.json:
        print_json(dict(removed))
    else:
        print("deleted: " + ", ".join(f"{count:,} {family}" for family, count in removed.items()))
    return OK


def _age(text: str) -> int | None:
    """Seconds from "90", "15m", "30d" ...; None from "never"."""
    if text == "never":
        return None
    number, unit = (text, "s") if text[-1:].isdecimal() else (text[:-1], text[-1:])
    if not number.isdecimal() or len(number) > AGE_DIGITS or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90s, 15m, 12h, 30d, 2w or never")
    return int(number) * UNITS[unit]
