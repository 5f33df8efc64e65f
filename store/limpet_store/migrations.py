"""The version of the tables, and the steps from one version to the next.

A file remembers in its `store` table which version of schema.py wrote it. `prepare` brings it up to date in one
transaction: every step, every table, the new version, or nothing. A file from a newer release is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from limpet import WriteTransaction

from .errors import SchemaError, UndecodableError
from .schema import SCHEMA_VERSION, STORE, TABLES
from .work import Work, logger

SCHEMA_KEY = "schema"

# version -> the step from it to the next one. Version 1 is the first: the first step will stand under 1.
STEPS: Mapping[int, Callable[[Work], None]] = {}


def stored_version(work: Work) -> int | None:
    """The version of the tables in this file; None when there are none. SchemaError when nobody can tell."""
    raw = work.view(STORE.table).get(SCHEMA_KEY)
    if raw is None:
        return None
    try:
        return int(STORE.decode(SCHEMA_KEY, raw)["version"])
    except (UndecodableError, LookupError, TypeError, ValueError) as error:
        raise SchemaError(
            f"the version of the tables cannot be read: {raw[:100]!r}", found=None, supported=SCHEMA_VERSION
        ) from error


def is_current(work: Work) -> bool:
    """Whether there is nothing for `prepare` to do."""
    return stored_version(work) == SCHEMA_VERSION and not _missing(work)


def _missing(work: Work) -> set[str]:
    return {table.name for table in TABLES} - set(work.engine.tables())


def check_readable(work: Work, path: str) -> None:
    """Raise SchemaError unless the file's tables are those of this release: a reader cannot bring them up to date."""
    found = stored_version(work)
    if found is None:
        raise SchemaError(f"{path}: there is no store in this file", found=None, supported=SCHEMA_VERSION)
    _refuse_newer(found, path)
    if found < SCHEMA_VERSION:
        raise SchemaError(
            f"{path}: the tables have version {found}, this release reads {SCHEMA_VERSION}; open it for writing once, "
            "which brings them up to date",
            found=found,
            supported=SCHEMA_VERSION,
        )


def prepare(
    work: Work, path: str, steps: Mapping[int, Callable[[Work], None]] = STEPS, target: int = SCHEMA_VERSION
) -> None:
    """Create the tables that are missing and run the steps that the file has not seen.

    work    a write transaction; it has changed only if there was something to do
    raises  SchemaError when a newer release wrote the file
    """
    found = stored_version(work)
    if found is not None:
        _refuse_newer(found, path, target)
        for version in range(found, target):
            steps[version](work)
            logger.info("%s: tables brought from version %d to %d", path, version, version + 1)
    assert isinstance(work.engine, WriteTransaction)
    missing = _missing(work)
    for table in TABLES:
        if table.name in missing:
            work.engine.create(table)
    if found != target:
        work.put(STORE, SCHEMA_KEY, {"version": target}, work.get(STORE, SCHEMA_KEY))


def _refuse_newer(found: int, path: str, target: int = SCHEMA_VERSION) -> None:
    if found > target:
        raise SchemaError(
            f"{path}: a newer release wrote the tables (version {found}, this one knows {target})",
            found=found,
            supported=target,
        )
