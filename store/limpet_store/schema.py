"""Every table of the store: its key, its value, its indexes. The one place where they are defined.

Three sorts of tables:

  rows      what callers gave us. The value is UTF-8 text, as a rule the record's JSON. Where the store has to remember
            something beside the record, the text is a JSON array with the record as its last element:
            archive [stored_at, message], tasks [attempts, task], jobs [version, job]
  indexes   entries that follow from a row by a function in this module, and from nothing else; `Index.entry` is that
            function. Whoever writes a row writes its entries in the same transaction (`Work.put`), and `check` compares
  counters  numbers per session and generation that save counting; verified by `check` as well

Keys are tuples of typed elements, so that no text inside a key can be mistaken for a separator.

Indexes by hour (`session_hours`, `archive_hours`) are coarse on purpose: an exact index by last activity would be
rewritten by every message, an hourly one by the first message of an hour. Retention looks into the row for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from limpet import BYTES, INT, STR, LimitError, Table

from . import wire
from .errors import UndecodableError
from .records import (
    MAX_DELIVERY_ATTEMPTS,
    ExternalJob,
    Message,
    PairingState,
    QueuedMessage,
    QueuedTask,
    SessionMeta,
    TaskStatus,
    check_message,
)

SCHEMA_VERSION = 1  # see migrations.py for what older ones were
HOUR_S = 3600
KEY_INT_MAX = 2**63 - 1  # the largest integer in a key; rows may hold integers up to 2^64 - 1
KEY_SIZE_MAX = 984  # bytes of the caller's text in a key; the engine takes 1024 with all that stands beside it
_PLAIN_LENGTH = KEY_SIZE_MAX // 4  # characters; no text of so few is larger than KEY_SIZE_MAX
NUMBER_MAX = 2**62  # numbers that come from elsewhere stay below: as many again are left for those that follow them
ACTIVE = 0  # in a counter's key: the active rows of the session; archived generations count from 1

K = TypeVar("K")
R = TypeVar("R")


class Archived(NamedTuple):
    """An archived message with the time it came, Unix seconds."""

    stored_at: int
    message: Message


class Counter(NamedTuple):
    """What is known of a run of rows without reading them.

    row_count   rows
    value_size  bytes of their values
    first_seq   the smallest sequence number; equal to next_seq when there is no row
    next_seq    one more than the largest sequence number ever used
    oldest_at   Unix seconds when the first row came; 0 when there is no row, and for active rows
    """

    row_count: int = 0
    value_size: int = 0
    first_seq: int = 0
    next_seq: int = 0
    oldest_at: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Index(Generic[K, R]):
    """A table whose entries follow from the rows of another.

    table  where the entries are
    entry  (key, record) -> the (key, value) that this row has in the index, or None
    owner  (entry key, entry value) -> the key of the row
    """

    table: Table
    entry: Callable[[K, R], tuple[Any, Any] | None]
    owner: Callable[[Any, Any], K]


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Generic[K, R]):
    """A table of rows.

    family   whose it is: the name of the attribute of the store
    table    where the rows are
    encode   record -> text; raises TypeError or ValueError for what cannot be stored
    decode   (key, bytes) -> record; raises UndecodableError
    indexes  what follows from each row
    counter  key of a row -> key of the counter that counts it, or None
    """

    family: str
    table: Table
    encode: Callable[[R], str]
    decode: Callable[[K, bytes], R]
    indexes: tuple[Index[K, R], ...] = ()
    counter: Callable[[K], tuple[str, int]] | None = field(default=None)

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.table.name


def after_text(text: str) -> str:
    """The first text after this one: (after_text(key),) ends the range of the tuples that begin with key."""
    return text + "\0"


def check_key(*texts: str) -> None:
    """Raise LimitError when a new row under this key could be written here, but not be served everywhere.

    What a caller names is part of several keys, some with numbers and other text beside it. The longest is that of a
    turn's mark in the index by time: "task:", the task's id, ":turn:", 20 digits, and 9 bytes more. So one limit holds
    for session keys, ids, names, and for both texts of a key together that has two. Rows that are there already under
    longer keys can be used further.

    raises  LimitError; TypeError when one of them is no text; UnstorableError when UTF-8 cannot hold it
    """
    length = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a key is text, not {type(text).__name__}")
        length += len(text)
    if length <= _PLAIN_LENGTH:
        return
    size = 0
    for text in texts:
        raw = wire.check_text(text).encode()
        size += len(raw) + raw.count(b"\0") + raw.count(b"\1")  # these two are escaped
    if size > KEY_SIZE_MAX:
        raise LimitError(
            f"the key {texts[0][:40]!r}... takes {size} bytes, at most {KEY_SIZE_MAX} can be kept (of UTF-8; the bytes "
            "00 and 01 count twice)",
            size=size,
            limit=KEY_SIZE_MAX,
        )


def key_int(value: int) -> int:
    """An integer of a row as an element of a key: beyond 63 bits the order no longer matters."""
    return min(value, KEY_INT_MAX)


def hour(seconds: int) -> int:
    """The hour since 1970 that a time falls into."""
    return key_int(seconds) // HOUR_S


# --- encoding and decoding -------------------------------------------------------------------------------------------


def encode_text(text: str) -> str:
    """Opaque text: stored as it is. TypeError when it is no text, UnstorableError when UTF-8 cannot hold it."""
    if not isinstance(text, str):
        raise TypeError(f"text is needed, not {type(text).__name__}")
    return wire.check_text(text)


def _decode_text(_key: object, raw: bytes) -> str:
    return wire.decode_text(raw)


def _encode_message(message: Message) -> str:
    return wire.dumps(check_message(message))


def _decode_message(_key: object, raw: bytes) -> Message:
    return _object(wire.loads(raw))


def _object(value: object) -> Message:
    if not isinstance(value, dict):
        raise UndecodableError(f"a message is a JSON object, not {type(value).__name__}")
    return value


def envelope(beside: int, text: str) -> str:
    """The text of a row with a number beside it."""
    return f"[{beside},{text}]"


def _open_envelope(raw: bytes) -> tuple[int, Any]:
    value = wire.loads(raw)
    if not (isinstance(value, list) and len(value) == 2 and type(value[0]) is int):
        raise UndecodableError("not of the form [number, row]")
    return value[0], value[1]


def _encode_archived(row: Archived) -> str:
    return envelope(row.stored_at, _encode_message(row.message))


def _decode_archived(_key: object, raw: bytes) -> Archived:
    stored_at, message = _open_envelope(raw)
    return Archived(stored_at, _object(message))


def _encode_counter(counter: Counter) -> str:
    if max(counter) < wire.SAFE_INT and min(counter) > -wire.SAFE_INT:
        rows, size, first, following, oldest = counter
        return f"[{rows},{size},{first},{following},{oldest}]"  # 0.6 us instead of 1.5, twice a message
    return wire.dumps(list(counter))


def _decode_counter(_key: object, raw: bytes) -> Counter:
    value = wire.loads(raw)
    if not (isinstance(value, list) and len(value) == len(Counter._fields) and set(map(type, value)) == {int}):
        raise UndecodableError(f"a counter is a list of {len(Counter._fields)} integers")
    return Counter(*value)


def _encode_session(meta: SessionMeta) -> str:
    return meta.to_json()


def _decode_session(_key: str, raw: bytes) -> SessionMeta:
    return SessionMeta.from_json(raw)


def _encode_pairing(state: PairingState) -> str:
    return state.to_json()


def _decode_pairing(_key: object, raw: bytes) -> PairingState:
    return PairingState.from_json(raw)


def _encode_task(task: QueuedTask) -> str:
    """The task without its messages, which have rows of their own."""
    return envelope(task.attempts, task.to_json(leave_out="messages"))


def _decode_task(arrival: int, raw: bytes) -> QueuedTask:
    attempts, value = _open_envelope(raw)
    if isinstance(value, dict):
        value["messages"] = []
    task = QueuedTask.from_dict(value)
    task.attempts = attempts
    task.arrival = arrival
    return task


def _encode_queued_message(message: QueuedMessage) -> str:
    return message.to_json()


def _decode_queued_message(_key: object, raw: bytes) -> QueuedMessage:
    return QueuedMessage.from_json(raw)


def _encode_job(job: ExternalJob) -> str:
    return envelope(job.version, job.to_json())


def _decode_job(_key: str, raw: bytes) -> ExternalJob:
    version, value = _open_envelope(raw)
    job = ExternalJob.from_dict(value)
    job.version = version
    return job


def _encode_time(seconds: int) -> str:
    return str(wire.check_int(seconds))


def _decode_time(_key: str, raw: bytes) -> int:
    value = wire.loads(raw)
    if type(value) is not int:
        raise UndecodableError("Unix seconds are an integer")
    return value


def _encode_json(value: object) -> str:
    return wire.dumps(value)


def _decode_json(_key: object, raw: bytes) -> Any:
    return wire.loads(raw)


# --- what follows from a row -----------------------------------------------------------------------------------------


def _session_hours(key: str, meta: SessionMeta) -> tuple[tuple[int, str], bytes]:
    return (hour(meta.last_active), key), b""


def _archive_hours(key: tuple[str, int], counter: Counter) -> tuple[tuple[int, str, int], bytes] | None:
    session_key, generation = key
    if generation != ACTIVE and counter.row_count:
        return (hour(counter.oldest_at), session_key, generation), b""
    return None


def _task_ids(arrival: int, task: QueuedTask) -> tuple[str, int]:
    return task.id, arrival


def _task_queue(arrival: int, task: QueuedTask) -> tuple[tuple[str, int, int, int], bytes]:
    return (task.status.value, task.priority.rank, key_int(task.created_at), arrival), b""


def _task_sessions(arrival: int, task: QueuedTask) -> tuple[tuple[str, str, int, int], str]:
    return (task.session_key, task.status.value, task.priority.rank, arrival), task.content_hash


def _task_expiry(arrival: int, task: QueuedTask) -> tuple[tuple[int, int], bytes] | None:
    """A task that runs, or whose reply nobody has seen, does not expire."""
    may_expire = task.status is TaskStatus.PENDING or (task.notified and task.status.finished)
    if may_expire and task.ttl_secs:
        return (key_int(task.created_at + task.ttl_secs), arrival), b""
    return None


def _job_polls(key: str, job: ExternalJob) -> tuple[tuple[int, str], bytes] | None:
    if job.delivery_attempts < MAX_DELIVERY_ATTEMPTS and (not job.status.finished or job.needs_delivery()):
        return (key_int(job.next_poll_at), key), b""
    return None


def _job_ends(key: str, job: ExternalJob) -> tuple[tuple[int, str], bytes] | None:
    if job.status.finished and (not job.needs_delivery() or job.delivery_attempts >= MAX_DELIVERY_ATTEMPTS):
        return (key_int(job.submitted_at), key), b""
    return None


def _idempotency_times(key: str, seconds: int) -> tuple[tuple[int, str], bytes]:
    return (key_int(seconds), key), b""


# --- the tables ------------------------------------------------------------------------------------------------------

SESSION_HOURS = Index(
    Table("session_hours", key=(INT, STR), value=BYTES), _session_hours, owner=lambda key, _value: key[1]
)
SESSIONS: Rows[str, SessionMeta] = Rows(
    "sessions", Table("sessions", key=STR, value=BYTES), _encode_session, _decode_session, (SESSION_HOURS,)
)
ARCHIVE_HOURS = Index(
    Table("archive_hours", key=(INT, STR, INT), value=BYTES), _archive_hours, owner=lambda key, _value: (key[1], key[2])
)
COUNTERS: Rows[tuple[str, int], Counter] = Rows(
    "archive", Table("counters", key=(STR, INT), value=BYTES), _encode_counter, _decode_counter, (ARCHIVE_HOURS,)
)
MESSAGES: Rows[tuple[str, int], Message] = Rows(
    "messages",
    Table("messages", key=(STR, INT), value=BYTES),
    _encode_message,
    _decode_message,
    counter=lambda key: (key[0], ACTIVE),
)
ARCHIVE: Rows[tuple[str, int, int], Archived] = Rows(
    "archive",
    Table("archive", key=(STR, INT, INT), value=BYTES),
    _encode_archived,
    _decode_archived,
    counter=lambda key: (key[0], key[1]),
)
PAIRING: Rows[tuple[str, str], PairingState] = Rows(
    "pairing", Table("pairing", key=(STR, STR), value=BYTES), _encode_pairing, _decode_pairing
)
KV: Rows[str, str] = Rows("kv", Table("kv", key=STR, value=BYTES), encode_text, _decode_text)
ALIASES: Rows[str, str] = Rows("aliases", Table("aliases", key=STR, value=BYTES), encode_text, _decode_text)

TASK_IDS = Index(Table("task_ids", key=STR, value=INT), _task_ids, owner=lambda _key, value: value)
TASK_QUEUE = Index(
    Table("task_queue", key=(STR, INT, INT, INT), value=BYTES), _task_queue, owner=lambda key, _value: key[3]
)
TASK_SESSIONS = Index(
    Table("task_sessions", key=(STR, STR, INT, INT), value=STR), _task_sessions, owner=lambda key, _value: key[3]
)
TASK_EXPIRY = Index(Table("task_expiry", key=(INT, INT), value=BYTES), _task_expiry, owner=lambda key, _value: key[1])
TASKS: Rows[int, QueuedTask] = Rows(
    "tasks",
    Table("tasks", key=INT, value=BYTES),
    _encode_task,
    _decode_task,
    (TASK_IDS, TASK_QUEUE, TASK_SESSIONS, TASK_EXPIRY),
)
TASK_MESSAGES: Rows[tuple[int, int], QueuedMessage] = Rows(
    "tasks", Table("task_messages", key=(INT, INT), value=BYTES), _encode_queued_message, _decode_queued_message
)
JOB_POLLS = Index(Table("job_polls", key=(INT, STR), value=BYTES), _job_polls, owner=lambda key, _value: key[1])
JOB_ENDS = Index(Table("job_ends", key=(INT, STR), value=BYTES), _job_ends, owner=lambda key, _value: key[1])
JOBS: Rows[str, ExternalJob] = Rows(
    "jobs", Table("jobs", key=STR, value=BYTES), _encode_job, _decode_job, (JOB_POLLS, JOB_ENDS)
)
IDEMPOTENCY_TIMES = Index(
    Table("idempotency_times", key=(INT, STR), value=BYTES), _idempotency_times, owner=lambda key, _value: key[1]
)
IDEMPOTENCY: Rows[str, int] = Rows(
    "idempotency", Table("idempotency", key=STR, value=BYTES), _encode_time, _decode_time, (IDEMPOTENCY_TIMES,)
)
PERMISSIONS: Rows[tuple[str, str], str] = Rows(
    "permissions", Table("permissions", key=(STR, STR), value=BYTES), encode_text, _decode_text
)
CRON: Rows[str, str] = Rows("cron", Table("cron", key=STR, value=BYTES), encode_text, _decode_text)

# Rows that could not be decoded: {"table", "key", "at", "reason", and "text" or "base64"}; and the store's own facts.
QUARANTINE: Rows[int, Any] = Rows("quarantine", Table("quarantine", key=INT, value=BYTES), _encode_json, _decode_json)
STORE: Rows[str, Any] = Rows("store", Table("store", key=STR, value=BYTES), _encode_json, _decode_json)

ROWS: tuple[Rows[Any, Any], ...] = (
    STORE,
    SESSIONS,
    MESSAGES,
    ARCHIVE,
    COUNTERS,
    PAIRING,
    KV,
    ALIASES,
    TASKS,
    TASK_MESSAGES,
    JOBS,
    IDEMPOTENCY,
    PERMISSIONS,
    CRON,
    QUARANTINE,
)
TABLES: tuple[Table, ...] = tuple(
    table for rows in ROWS for table in (rows.table, *(index.table for index in rows.indexes))
)
