"""Limpet's store: the named tables of an AI-agent gateway in one crash-safe file.

    from limpet_store import Store

    with Store.open("data.limpet") as store:
        store.messages.append("agent:main:telegram:direct:u1", {"role": "user", "content": "hello"})
        with store.write() as tx:        # several steps, one commit
            ...
        with store.read() as tx:         # several reads, one snapshot
            ...

`limpet_store.aio.AsyncStore` is the same for asyncio.
"""

from .aio import AsyncStore, AsyncTransaction
from .check import CheckReport
from .errors import (
    ClockError,
    ConflictError,
    ExistsError,
    LoopError,
    NotFoundError,
    PatternError,
    SchemaError,
    SearchLimitError,
    StoreError,
    UndecodableError,
    UnstorableError,
)
from .records import (
    Approved,
    ArchiveRow,
    ArchiveStat,
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    ExternalJobStatus,
    PairingState,
    Pending,
    Priority,
    QueuedFile,
    QueuedMessage,
    QueuedTask,
    SessionMeta,
    Submission,
    TaskStatus,
    TitleSource,
)
from .store import Store
from .tier import MemoryTier
from .transaction import Transaction
from .transfer import ImportReport

__all__ = [
    "Approved",
    "ArchiveRow",
    "ArchiveStat",
    "AsyncStore",
    "AsyncTransaction",
    "CheckReport",
    "ClockError",
    "ConflictError",
    "ExistsError",
    "ExternalJob",
    "ExternalJobDelivery",
    "ExternalJobKind",
    "ExternalJobOrigin",
    "ExternalJobStatus",
    "ImportReport",
    "LoopError",
    "MemoryTier",
    "NotFoundError",
    "PairingState",
    "PatternError",
    "Pending",
    "Priority",
    "QueuedFile",
    "QueuedMessage",
    "QueuedTask",
    "SchemaError",
    "SearchLimitError",
    "SessionMeta",
    "Store",
    "StoreError",
    "Submission",
    "TaskStatus",
    "TitleSource",
    "Transaction",
    "UndecodableError",
    "UnstorableError",
]
