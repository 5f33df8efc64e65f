"""Show how much there is: rows and bytes of each table, tasks by status, and the largest conversations."""

from __future__ import annotations

import argparse
import os
from typing import Any

from limpet.console import say

from ..records import TaskStatus
from ..schema import ACTIVE, ARCHIVE, COUNTERS, MESSAGES, QUARANTINE, ROWS, TASK_QUEUE
from ..work import Work
from .common import OK, add_limit, cell, open_store, print_json, print_table, size

HELP = "show counts, sizes and the largest conversations"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_limit(parser, 10)


def run(args: argparse.Namespace) -> int:
    """Count; messages are not read, since their counters know."""
    with open_store(args) as store, store.reading() as work:
        sessions = _sessions(work)
        tables = [{"family": rows.family, "table": rows.name, "rows": len(work.view(rows.table))} for rows in ROWS]
        for entry, rows in zip(tables, ROWS, strict=True):
            if rows is MESSAGES or rows is ARCHIVE:
                entry["bytes"] = sum(session[str(entry["table"])]["bytes"] for session in sessions.values())
            else:
                entry["bytes"] = sum(map(len, work.view(rows.table).values()))
        statuses = {
            status.value: sum(1 for _ in work.view(TASK_QUEUE.table).key_range((status.value,), (status.value + "\0",)))
            for status in TaskStatus
        }
        quarantined = len(work.view(QUARANTINE.table))
    largest = sorted(sessions.items(), key=lambda item: (-_bytes(item[1]), item[0]))[: args.limit]
    file_size = os.path.getsize(args.store)
    if args.json:
        print_json(
            {
                "path": args.store,
                "file_size": file_size,
                "tables": tables,
                "tasks": statuses,
                "quarantined": quarantined,
                "largest_sessions": [{"session": key, **session} for key, session in largest],
            }
        )
        return OK
    say(f"{args.store}: {size(file_size)}")
    say()
    print_table(
        ("family", "table", "rows", "bytes"),
        [(str(entry["family"]), str(entry["table"]), f"{entry['rows']:,}", f"{entry['bytes']:,}") for entry in tables],
    )
    say()
    say("tasks: " + ", ".join(f"{count:,} {status}" for status, count in statuses.items()))
    if quarantined:
        say(f"{quarantined:,} rows in quarantine; `limpet-store check` names them")
    if largest:
        say()
        say("largest conversations")
        print_table(
            ("session", "active", "archived", "bytes"),
            [
                (
                    cell(key),
                    f"{session['messages']['rows']:,}",
                    f"{session['archive']['rows']:,}",
                    f"{_bytes(session):,}",
                )
                for key, session in largest
            ],
        )
    return OK


def _sessions(work: Work) -> dict[str, dict[str, Any]]:
    """Rows and bytes of each session's active and archived messages, from the counters."""
    found: dict[str, dict[str, Any]] = {}
    for key, generation in work.view(COUNTERS.table):
        counter = work.counter(key, generation)
        if counter is not None:
            session = found.setdefault(key, {name: {"rows": 0, "bytes": 0} for name in ("messages", "archive")})
            part = session["messages" if generation == ACTIVE else "archive"]
            part["rows"] += counter.row_count
            part["bytes"] += counter.value_size
    return found


def _bytes(session: dict[str, Any]) -> int:
    return int(session["messages"]["bytes"] + session["archive"]["bytes"])
