"""Everything as JSON lines, and back.

One line is one JSON object: {"table": ..., "key": ..., "row": ...}. Rows appear in the order of this module's list of
tables and in the order of their keys, and there is nothing in the text that depends on when or where it was written:
the same content gives the same bytes. Indexes and counters are not written, since they follow from the rows; what does
not follow is that a generation number was used, which is the table "generations" here.

  store        {"table":"store","key":"schema","row":{"version":1}}        the first line; a newer version is refused
  sessions     row: the record
  archive      key: [session key, generation, seq], row: [stored_at, message]
  messages     key: [session key, seq], row: the message
  generations  key: [session key, generation], row: the next sequence number
  tasks        key: arrival number, row: [attempts, task with its messages]
  jobs         key: id, row: [version, job]
  idempotency  key: the key, row: Unix seconds
  pairing, kv, aliases, permissions, cron, quarantine    key and row as they are stored; opaque text as a JSON string

Importing adds to what is there. A line whose row is there already changes nothing, so that importing twice is importing
once. A line that contradicts what is there (another message under the same number) is an error of that line; a
session's numbers are raised, never lowered; other rows are replaced by the line's. A number outside the range that the
store counts in is an error too, or else there might be none left for what is numbered after it. The numbers of tasks
and of quarantined rows only keep their order: where another row has the number, the line's row gets the next free one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import history, sessions, tasks, wire
from .errors import ConflictError, SchemaError, UndecodableError
from .records import ExternalJob, QueuedTask, SessionMeta
from .schema import (
    ACTIVE,
    ALIASES,
    ARCHIVE,
    COUNTERS,
    CRON,
    IDEMPOTENCY,
    JOBS,
    KV,
    MESSAGES,
    NUMBER_MAX,
    PAIRING,
    PERMISSIONS,
    QUARANTINE,
    SCHEMA_VERSION,
    SESSIONS,
    TASKS,
    Counter,
    Rows,
    envelope,
)
from .work import Work

FROM_0 = range(NUMBER_MAX)  # sequence numbers, attempts
FROM_1 = range(1, NUMBER_MAX)  # generations, arrival numbers, versions, numbers of quarantined rows


@dataclass(slots=True)
class ImportReport:
    """What became of an import.

    lines    lines read, empty ones not counted
    changed  lines that changed something; 0 when everything was there already
    errors   (line number from 1, what was wrong) of the lines that were left out
    """

    lines: int = 0
    changed: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no line was left out."""
        return not self.errors


class _Table(NamedTuple):
    name: str
    dump: Callable[[Work], Iterator[tuple[str, str]]]  # (key, row) as JSON text
    load: Callable[[Work, Any, Any], bool]  # whether it changed something


def export_lines(work: Work) -> Iterator[str]:
    """Every row of a snapshot as a line of JSON, without the line's end."""
    for table in _TABLES:
        for key, row in table.dump(work):
            yield f'{{"table":"{table.name}","key":{key},"row":{row}}}'


def as_json(line: str | bytes, *, first: bool) -> str | bytes:
    """A line without the byte order mark that some programs begin a text with.

    first   it is the first line, in which other encodings than UTF-8 show themselves
    raises  UndecodableError when it is UTF-16 or UTF-32, of which every line would be an error
    """
    if isinstance(line, str):
        return line.removeprefix("\ufeff")
    if first and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]):
        raise UndecodableError(
            "line 1: this is UTF-16 or UTF-32, and an import reads UTF-8; convert it first, for instance with "
            "`iconv -f UTF-16 -t UTF-8`"
        )
    return line.removeprefix(b"\xef\xbb\xbf")


def import_line(work: Work, line: str | bytes) -> bool:
    """Take one line in.

    returns  whether it changed something
    raises   SchemaError when the line says that a newer release wrote it and those after it; ValueError, TypeError or a
             StoreError that says what is wrong with it; use a savepoint
    """
    value = wire.loads_strictly(line)
    if not (isinstance(value, dict) and value.keys() == {"table", "key", "row"}):
        raise UndecodableError('not of the form {"table": ..., "key": ..., "row": ...}')
    table = _BY_NAME.get(value["table"]) if isinstance(value["table"], str) else None
    if table is None:
        raise UndecodableError(f"there is no table {value['table']!r}")
    return table.load(work, value["key"], value["row"])


# --- the tables one by one -------------------------------------------------------------------------------------------


def _key_json(key: object) -> str:
    return wire.encode(list(key) if isinstance(key, tuple) else key)


def _on_one_line(text: str) -> str:
    """A row's JSON without line ends; ours have none, but whatever else writes a row may indent it."""
    return wire.encode(wire.loads(text)) if "\n" in text or "\r" in text else text


_Kind = type[str] | range  # what an element of a key is: text, or an integer in a range


def _shaped(key: Any, *kinds: _Kind) -> Any:
    """A key of these kinds, a tuple when there are several; UndecodableError when it is not."""
    parts = key if isinstance(key, list) else [key]
    if isinstance(key, list) != (len(kinds) > 1) or len(parts) != len(kinds) or not all(map(_is_of, parts, kinds)):
        wanted = ", ".join(map(_described, kinds))
        raise UndecodableError(f"the key is {wanted if len(kinds) == 1 else f'[{wanted}]'}, not {key!r}")
    return tuple(parts) if len(kinds) > 1 else key


def _is_of(part: Any, kind: _Kind) -> bool:
    return type(part) is int and part in kind if isinstance(kind, range) else type(part) is kind


def _described(kind: _Kind) -> str:
    return f"int in [{kind.start}, {kind.stop})" if isinstance(kind, range) else kind.__name__


def _dump_stored(rows: Rows[Any, Any], *, text: bool = False) -> Callable[[Work], Iterator[tuple[str, str]]]:
    """How to dump rows as they are stored: as JSON, or as opaque text, which is a JSON string in the line."""

    def dump(work: Work) -> Iterator[tuple[str, str]]:
        for key, raw in work.view(rows.table).items():
            if work.decode(rows, key, raw) is not None:
                yield _key_json(key), wire.encode(raw.decode()) if text else _on_one_line(raw.decode())

    return dump


def _plain(rows: Rows[Any, Any], *kinds: type[str], text: bool = False) -> _Table:
    """A table whose rows are dumped as they are stored, and replaced by the line's.

    kinds  what the key's elements are
    text   the row is opaque text
    """

    def load(work: Work, key: Any, row: Any) -> bool:
        shaped = _shaped(key, *kinds)
        if text and not isinstance(row, str):
            raise UndecodableError(f"the row is text, not {type(row).__name__}")
        record = row if text else rows.decode(shaped, wire.dumps(row).encode())
        return work.put(rows, shaped, record, work.get(rows, shaped))

    return _Table(rows.name, _dump_stored(rows, text=text), load)


def _dump_store(_work: Work) -> Iterator[tuple[str, str]]:
    yield '"schema"', wire.encode({"version": SCHEMA_VERSION})


def _load_store(_work: Work, key: Any, row: Any) -> bool:
    version = row.get("version") if isinstance(row, dict) else None
    if key == "schema":
        if type(version) is not int or version < 1:
            raise UndecodableError(f"the version of the lines is a number from 1, not {version!r}")
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"a newer release wrote these lines (version {version}, this one reads up to {SCHEMA_VERSION}); "
                "upgrade limpet and import them again",
                found=version,
                supported=SCHEMA_VERSION,
            )
    return False


def _dump_sessions(work: Work) -> Iterator[tuple[str, str]]:
    for key, meta in work.scan(SESSIONS):
        yield _key_json(key), meta.to_json()


def _load_session(work: Work, key: Any, row: Any) -> bool:
    return sessions.put(work, _shaped(key, str), SessionMeta.from_dict(row))


def _dump_generations(work: Work) -> Iterator[tuple[str, str]]:
    for key in work.view(COUNTERS.table):
        if key[1] != ACTIVE:
            counter = work.counter(*key)
            yield _key_json(key), str(0 if counter is None else counter.next_seq)


def _load_generation(work: Work, key: Any, row: Any) -> bool:
    session_key, generation = _shaped(key, str, FROM_1)
    if type(row) is not int or not 0 <= row <= NUMBER_MAX:
        raise UndecodableError(f"the row is the next sequence number, int in [0, {NUMBER_MAX}], not {row!r}")
    counter = work.counter(session_key, generation)
    if counter is not None and counter.next_seq >= row:
        return False
    raised = (counter or Counter(first_seq=row))._replace(next_seq=row)
    return work.put(COUNTERS, (session_key, generation), raised, counter)


def _load_message(work: Work, key: Any, row: Any) -> bool:
    shaped = _shaped(key, str, FROM_0)
    return history.restore(work, MESSAGES, shaped, row)


def _load_archived(work: Work, key: Any, row: Any) -> bool:
    shaped = _shaped(key, str, FROM_1, FROM_0)
    return history.restore(work, ARCHIVE, shaped, ARCHIVE.decode(shaped, wire.dumps(row).encode()))


def _dump_tasks(work: Work) -> Iterator[tuple[str, str]]:
    for arrival in work.view(TASKS.table):
        task = tasks.load(work, arrival)
        if task is not None:
            yield str(arrival), envelope(task.attempts, task.to_json())


def _load_task(work: Work, key: Any, row: Any) -> bool:
    attempts, value = _pair(row, FROM_0)
    task = QueuedTask.from_dict(value)
    task.attempts, task.arrival = attempts, _shaped(key, FROM_1)
    return tasks.write(work, task)


def _load_job(work: Work, key: Any, row: Any) -> bool:
    version, value = _pair(row, FROM_1)
    job = ExternalJob.from_dict(value)
    job.version = version
    if job.id != key:
        raise UndecodableError(f"the key is {key!r}, the job's id {job.id!r}")
    old = work.get(JOBS, key)
    if old is not None and old.version > version:
        raise ConflictError("jobs", job.id, expected=version, found=old.version)
    return work.put(JOBS, key, job, old)


def _pair(row: Any, numbers: range) -> tuple[int, Any]:
    if not (isinstance(row, list) and len(row) == 2):
        raise UndecodableError("the row is [number, record]")
    if not _is_of(row[0], numbers):
        raise UndecodableError(f"the row's number is {_described(numbers)}, not {row[0]!r}")
    return row[0], row[1]


def _load_quarantined(work: Work, key: Any, row: Any) -> bool:
    if not (isinstance(row, dict) and {"table", "key", "reason"} <= row.keys()):
        raise UndecodableError("a quarantined row says its table, its key and the reason")
    number = _shaped(key, FROM_1)
    old = work.get(QUARANTINE, number)
    if old is not None and old != row:
        # The number only says how many were set aside before, in that store: it makes no two rows the same.
        if any(other == row for _, other in work.scan(QUARANTINE)):
            return False
        number, old = work.next_number(QUARANTINE), None
    return work.put(QUARANTINE, number, row, old)


_TABLES: tuple[_Table, ...] = (
    _Table("store", _dump_store, _load_store),
    _Table("sessions", _dump_sessions, _load_session),
    _Table(ARCHIVE.name, _dump_stored(ARCHIVE), _load_archived),
    _Table(MESSAGES.name, _dump_stored(MESSAGES), _load_message),
    _Table("generations", _dump_generations, _load_generation),
    _plain(PAIRING, str, str),
    _plain(KV, str, text=True),
    _plain(ALIASES, str, text=True),
    _Table("tasks", _dump_tasks, _load_task),
    _Table(JOBS.name, _dump_stored(JOBS), _load_job),
    _plain(IDEMPOTENCY, str),
    _plain(PERMISSIONS, str, str, text=True),
    _plain(CRON, str, text=True),
    _Table(QUARANTINE.name, _dump_stored(QUARANTINE), _load_quarantined),
)
_BY_NAME = {table.name: table for table in _TABLES}
