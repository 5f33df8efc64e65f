"""List the tasks in the order of their arrival, or those with one status in the order of the queue."""

from __future__ import annotations

import argparse
import itertools

from ..records import TaskStatus
from .common import OK, add_limit, open_store, print_rows, when

HELP = "list the queue of tasks"
STATUSES = ", ".join(status.value.lower() for status in TaskStatus)
COLUMNS = ("id", "status", "priority", "session", "created", "turns", "retries", "attempts", "notified", "text")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--status",
        type=_status,
        metavar="STATUS",
        help=f"only these: {STATUSES}",
    )
    add_limit(parser)


def run(args: argparse.Namespace) -> int:
    """List tasks; with --json, whole records."""
    with open_store(args) as store:
        rows = [
            {
                "id": task.id,
                "status": task.status.value,
                "priority": task.priority.value,
                "session": task.session_key,
                "created": when(task.created_at),
                "turns": task.turns,
                "retries": task.retries,
                "attempts": task.attempts,
                "notified": task.notified,
                "text": " | ".join(message.text for message in task.messages),
                "row": task.to_dict(),
            }
            for task in itertools.islice(store.tasks.list(args.status), args.limit)
        ]
    print_rows(args, rows, COLUMNS, nothing="no tasks")
    return OK


def _status(text: str) -> TaskStatus:
    try:
        return TaskStatus(text.capitalize())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {STATUSES}") from None
