"""Limpet keeps a program's state in one file and does not let go.

    import limpet

    USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)

    with limpet.open("app.limpet") as db:
        with db.write() as txn:
            txn[USERS]["ada"] = {"age": 36}
        with db.read() as txn:
            print(txn[USERS]["ada"])

A single-file, copy-on-write B+tree with named, typed tables, ACID transactions, snapshot readers
and checksums that are verified on every read from disk. Pure Python; nothing else needs to be
installed. The names below are all there is to use; everything else may change.
"""

from .check import Finding, Report
from .codecs import BOOL, BYTES, DATETIME, FLOAT, INT, JSON, STR, UUID, Codec
from .database import Database, Stats, open
from .errors import (
    BusyError,
    ClosedError,
    CorruptError,
    FormatError,
    LimitError,
    LimpetError,
    LockedError,
    NoSuchCommitError,
    NoSuchTableError,
    PoisonedError,
    ReadOnlyError,
    TableTypeError,
    UpgradeRequiredError,
)
from .inspection import Inspection, inspect
from .reader import ReadTransaction
from .table import Table, TableView
from .transaction import Savepoint, WriteTransaction
from .upgrade import UpgradeResult, upgrade

__all__ = [
    "BOOL",
    "BYTES",
    "BusyError",
    "ClosedError",
    "Codec",
    "CorruptError",
    "DATETIME",
    "Database",
    "FLOAT",
    "Finding",
    "FormatError",
    "INT",
    "Inspection",
    "JSON",
    "LimitError",
    "LimpetError",
    "LockedError",
    "NoSuchCommitError",
    "NoSuchTableError",
    "PoisonedError",
    "ReadOnlyError",
    "ReadTransaction",
    "Report",
    "STR",
    "Savepoint",
    "Stats",
    "Table",
    "TableTypeError",
    "TableView",
    "UUID",
    "UpgradeRequiredError",
    "UpgradeResult",
    "WriteTransaction",
    "inspect",
    "open",
    "upgrade",
]
