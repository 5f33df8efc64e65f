"""List the external jobs by id: their status, when they are looked at next, and whether they were delivered."""

from __future__ import annotations

import argparse
import itertools

from ..records import ExternalJobStatus
from ..schema import JOBS
from .common import OK, add_limit, open_store, print_rows, when

HELP = "list the external jobs"
COLUMNS = ("id", "status", "kind", "provider", "session", "next poll", "polls", "delivered", "attempts", "prompt")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--status",
        choices=[status.value for status in ExternalJobStatus],
        help="only these",
    )
    add_limit(parser)


def run(args: argparse.Namespace) -> int:
    """List jobs; with --json, whole records."""
    with open_store(args) as store, store.reading() as work:
        wanted = (job for _, job in work.scan(JOBS) if args.status in (None, job.status.value))
        rows = [
            {
                "id": job.id,
                "status": job.status.value,
                "kind": job.kind.value,
                "provider": job.provider,
                "session": job.session_key,
                "next poll": when(job.next_poll_at),
                "polls": job.poll_count,
                "delivered": when(job.delivered_at),
                "attempts": job.delivery_attempts,
                "prompt": job.prompt,
                "version": job.version,
                "row": job.to_dict(),
            }
            for job in itertools.islice(wanted, args.limit)
        ]
    print_rows(args, rows, COLUMNS, nothing="no jobs")
    return OK
