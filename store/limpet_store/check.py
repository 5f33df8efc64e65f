"""Whether the tables agree with each other: every index with its rows, every counter with what it counts.

It reads everything, and decodes everything, on one snapshot. Damage is in the report, not raised.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import migrations
from .errors import SchemaError, UndecodableError
from .schema import (
    ACTIVE,
    ARCHIVE,
    COUNTERS,
    MESSAGES,
    QUARANTINE,
    ROWS,
    SCHEMA_VERSION,
    SESSIONS,
    TABLES,
    TASK_MESSAGES,
    TASKS,
    Counter,
    Index,
    Rows,
)
from .work import Work, count_rows

SHOWN = 20  # quarantined rows that the report names one by one


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    errors    what is wrong: data is damaged or contradicts itself
    warnings  what somebody should know, such as rows in quarantine
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; there may be warnings."""
        return not self.errors


def check_tables(work: Work) -> CheckReport:
    """Verify the store's tables in a snapshot; costs one pass over everything."""
    errors = [*_check_schema(work)]
    for rows in ROWS:
        errors += _check_rows(work, rows)
    errors += _check_counters(work, MESSAGES)
    errors += _check_counters(work, ARCHIVE)
    errors += _check_numbers(work)
    errors += _check_task_messages(work)
    return CheckReport(errors, list(_quarantine(work)))


def _check_schema(work: Work) -> Iterator[str]:
    try:
        version = migrations.stored_version(work)
        if version != SCHEMA_VERSION:
            yield f"the tables have version {version}, this release knows {SCHEMA_VERSION}"
    except SchemaError as error:
        yield str(error)
    missing = sorted({table.name for table in TABLES} - set(work.engine.tables()))
    if missing:
        yield f"tables are missing: {', '.join(missing)}"


def _check_rows(work: Work, rows: Rows[Any, Any]) -> Iterator[str]:
    """Every row decodes, and its index entries are there; there are no others."""
    expected: dict[Index[Any, Any], int] = dict.fromkeys(rows.indexes, 0)
    for key, raw in work.view(rows.table).items():
        try:
            record = rows.decode(key, raw)
        except UndecodableError as error:
            yield f"{rows.name}[{key!r}] cannot be decoded: {error}"
            continue
        for index in rows.indexes:
            entry = index.entry(key, record)
            if entry is not None:
                expected[index] += 1
                if work.view(index.table).get(entry[0]) != entry[1]:
                    yield f"{rows.name}[{key!r}]: its entry {entry[0]!r} in {index.table.name} is missing or wrong"
    for index, count in expected.items():
        surplus = len(work.view(index.table)) - count
        if surplus > 0:
            yield f"{index.table.name} has {surplus} entries that no row of {rows.name} accounts for"


def _check_counters(work: Work, rows: Rows[Any, Any]) -> Iterator[str]:
    """Every run of rows is counted right, and no counter counts rows that are not there."""
    assert rows.counter is not None
    key_of = rows.counter
    counted = set()
    for key, run in itertools.groupby(work.view(rows.table).items(), key=lambda item: key_of(item[0])):
        counted.add(key)
        actual, stored = count_rows(rows, run), _decoded(work, key)
        # Numbers are never used again, so that the next one may be far beyond the last row.
        if stored is None or actual != stored._replace(next_seq=actual.next_seq) or stored.next_seq < actual.next_seq:
            yield f"counters[{key!r}] is {stored}, the rows of {rows.name} say {actual}"
    for key in work.view(COUNTERS.table):
        if (key[1] == ACTIVE) == (rows is MESSAGES) and key not in counted:
            stored = _decoded(work, key)
            if stored is not None and (stored.row_count or stored.value_size):
                yield f"counters[{key!r}] is {stored}, but {rows.name} has no such rows"


def _decoded(work: Work, key: tuple[str, int]) -> Counter | None:
    raw = work.view(COUNTERS.table).get(key)
    try:
        return None if raw is None else COUNTERS.decode(key, raw)
    except UndecodableError:
        return None  # reported with the other rows


def _check_numbers(work: Work) -> Iterator[str]:
    """A session's row is under its own key, and its generation is marked as used."""
    for key, meta in work.scan(SESSIONS):
        if meta.session_key != key:
            yield f"sessions[{key!r}] is the row of session {meta.session_key!r}"
        last = next((gen for (_, gen), _ in work.view(COUNTERS.table).prefix((key,), reverse=True)), ACTIVE)
        if last < meta.generation:
            yield f"sessions[{key!r}] is in generation {meta.generation}, but counters know of {last} only"


def _check_task_messages(work: Work) -> Iterator[str]:
    tasks = work.view(TASKS.table)
    for arrival, run in itertools.groupby(work.view(TASK_MESSAGES.table), key=lambda key: key[0]):
        if arrival not in tasks:
            yield f"task_messages has {len(list(run))} rows of a task {arrival} that does not exist"


def _quarantine(work: Work) -> Iterator[str]:
    count = len(work.view(QUARANTINE.table))
    if count:
        yield f"{count} rows are in quarantine, because they could not be decoded"
    for number, entry in itertools.islice(work.scan(QUARANTINE), SHOWN):
        yield f"quarantine[{number}]: {entry['table']}{entry['key']!r}: {entry['reason']}"
