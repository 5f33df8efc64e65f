"""Moves what the reference gateway kept in its redb file into a store: all ten tables, every row accounted for.

Rules:

  - The old file is only read. Of a row that the store has already, the store's stays: importing twice is importing
    once.
  - Every row of the file ends as exactly one of: written, skipped for a stated reason, set aside in quarantine (text
    and all). Per table these add up to the rows read.
  - What can be read in two ways is in the notes, with the choice made.
  - No generation number and no sequence number of the old file is ever given out again.
  - What the old store would have archived when it was next read is archived here (backfill.py).
  - One transaction for each family. (A new file that appears complete or not at all: creation.py.)

The two key dialects (dialect.py) can meet in one archive: generation 2 of a session with rows of both. Where their
numbers do not collide, or collide in equal rows, it is one conversation that outlived an update of the program. Where
they collide in different rows, a session was deleted and its numbers were used again: two conversations. Then the
newer dialect keeps the number and the older one's generation moves to a fresh number. For the same reason a session
whose row says an older generation than its archive has gets the next fresh one.

What the old file does not know is when an archived message came. The session's last activity stands in for it, since
the message came no later.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from limpet import FormatError

from .. import history, sessions, tasks, wire
from ..errors import UndecodableError
from ..records import ExternalJob, Message, PairingState, QueuedTask, SessionMeta
from ..schema import (
    ALIASES,
    ARCHIVE,
    CRON,
    IDEMPOTENCY,
    JOBS,
    KV,
    MESSAGES,
    PAIRING,
    PERMISSIONS,
    QUARANTINE,
    SESSIONS,
    TASK_IDS,
    TASKS,
    Archived,
    Rows,
)
from ..work import Work
from .account import (
    BACKFILLED,
    GONE_ON,
    OTHER,
    OTHER_MESSAGE,
    QUARANTINED,
    THERE,
    TWICE,
    UNKNOWN_TABLE,
    RedbImport,
    TableAccount,
)
from .backfill import FIRST_GENERATION, Backfill
from .dialect import MessageKey, agent_of, channel_of, message_key, pair_key
from .reader import RedbFile, RedbTable

K = TypeVar("K")
R = TypeVar("R")

TABLES: Final[dict[str, str]] = {  # in the order of the import: what tells other keys apart comes first
    "session_meta": "&str",
    "messages": "&str",
    "pairing": "&str",
    "kv": "&str",
    "session_aliases": "&str",
    "task_queue": "&str",
    "external_jobs": "&str",
    "idem_keys": "i64",
    "computer_permissions": "&str",
    "cron_jobs": "&str",
}
MAX_NOTES: Final = 200  # of each kind; the rest is counted
PROGRESS_ROWS: Final = 500  # rows between two calls of `progress`
LONG_KEY: Final = 300  # bytes; from here on a key may be too long for a table or an index of the store

Progress = Callable[[str, int, int], None]


class Target(Protocol):
    """A store, as far as an import needs it."""

    def writing(self) -> AbstractContextManager[Work]:
        """A write transaction, committed when the block ends without an exception."""

    def reading(self) -> AbstractContextManager[Work]:
        """A snapshot."""


def import_redb(
    source: RedbFile, target: Target | None, *, dry_run: bool = False, progress: Progress | None = None
) -> RedbImport:
    """Add the content of an old file to a store.

    source    the old file
    target    the store; None for a dry run against an empty one
    dry_run   write nothing and say what would become of each row
    progress  called now and then with (table, rows done, rows in all)
    returns   the account
    raises    FormatError: not the gateway's tables; CorruptError: damaged; nothing has been written then. And what a
              commit raises
    cost      two passes over the file, and one more over the messages each where the dialects collide and where a part
              of a session is not archived; one commit for each family
    """
    return _Import(source, target, dry_run or target is None, progress).run()


# --- what the file holds, before anything is written -------------------------------------------------------------


@dataclass(slots=True)
class _Session:
    generation: int
    last_active: int


@dataclass(slots=True)
class _Run:
    """Rows of one kind of key under one number of a session: what their sequence numbers span."""

    first: int
    last: int


# Of two rows under one number, the newer dialect's comes first; numbers that are not padded were filled in later.
_Kind = tuple[bool, bool]  # (colon, not padded): in the order of their rank
_Runs = dict[tuple[str, int | None], dict[_Kind, _Run]]  # (session, generation or None for active rows) -> its runs


def _kind(key: MessageKey) -> _Kind:
    return key.glue == ":", not key.padded


@dataclass(slots=True)
class _Survey:
    """What has to be known before the first message is written.

    sessions     those of session_meta that decode
    last         session -> the largest generation number in its archive, moved ones included
    moved        (session, generation, kind) -> the fresh number for these rows
    doubles      (session, generation, seq, kind) -> whether the row equals the one that stays under the number
    arrivals     task id -> its place in the order of creation
    backfill     which active rows have to be archived as well
    """

    sessions: dict[str, _Session] = field(default_factory=dict)
    channels: set[str] = field(default_factory=set)
    agents: set[str] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)
    moved: dict[tuple[str, int, _Kind], int] = field(default_factory=dict)
    doubles: dict[tuple[str, int | None, int, _Kind], bool] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)
    backfill: Backfill = field(default_factory=Backfill)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _keys(table: RedbTable | None, known: dict[str, _Session]) -> Iterator[tuple[MessageKey, bytes]]:
    if table is not None:
        for raw_key, value in table.items():
            try:
                key = message_key(raw_key.decode(), known.keys())
            except UnicodeDecodeError:
                continue  # the import itself will meet it again and set it aside
            if key is not None:
                yield key, value


def _survey_messages(table: RedbTable | None, survey: _Survey) -> None:
    """Find the generations used, where the dialects collide, and what the archive lacks."""
    runs: _Runs = {}
    for key, _ in _keys(table, survey.sessions):
        run = runs.setdefault((key.session, key.generation), {}).setdefault(_kind(key), _Run(key.seq, key.seq))
        run.first, run.last = min(run.first, key.seq), max(run.last, key.seq)
        if key.generation is not None:
            survey.last[key.session] = max(survey.last.get(key.session, 0), key.generation)
    _survey_collisions(table, survey, runs)
    survey.backfill = Backfill(
        last=survey.last,
        first={
            (session, generation): min(stays)
            for (session, generation), kinds in runs.items()
            if generation is not None
            and (stays := [run.first for kind, run in kinds.items() if (session, generation, kind) not in survey.moved])
        },
        current={key: session.generation for key, session in survey.sessions.items()},
    )
    survey.backfill.done = _archived_first(table, survey, runs)


def _archived_first(table: RedbTable | None, survey: _Survey, runs: _Runs) -> set[tuple[str, int]]:
    """The active rows that would be archived now, and are in generation 1 word for word: (session, number)."""
    sessions = {
        session
        for (session, generation), kinds in runs.items()
        if generation is None
        and (session, FIRST_GENERATION) in runs
        and survey.backfill.generation(session, min(run.first for run in kinds.values())) is not None
    }
    texts: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    archived: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for key, value in _keys(table, survey.sessions) if sessions else ():
        if key.session in sessions and key.generation in (None, FIRST_GENERATION):
            (texts if key.generation is None else archived)[key.session, key.seq].add(_digest(value))
    return {at for at, found in texts.items() if found & archived.get(at, set())}


def _survey_collisions(table: RedbTable | None, survey: _Survey, runs: _Runs) -> None:
    """Find the rows of the two dialects that have one number, and decide which of them keep it."""
    contested = {
        number
        for number, kinds in runs.items()
        if any(a is not b and a.first <= b.last and b.first <= a.last for a in kinds.values() for b in kinds.values())
    }
    if not contested:
        return
    found: dict[tuple[str, int | None], dict[_Kind, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
    for key, value in _keys(table, survey.sessions):
        if (key.session, key.generation) in contested:
            found[key.session, key.generation][_kind(key)][key.seq] = _digest(value)
    for (session, generation), kinds in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        stays: dict[int, bytes] = {}
        for kind in sorted(kinds):
            rows = kinds[kind]
            both = rows.keys() & stays.keys()
            if generation is not None and any(rows[seq] != stays[seq] for seq in both):
                survey.last[session] = survey.moved[session, generation, kind] = survey.last[session] + 1
                continue
            for seq in both:
                survey.doubles[session, generation, seq, kind] = rows[seq] == stays[seq]
            stays = rows | stays


# --- the import --------------------------------------------------------------------------------------------------


class _Import:
    def __init__(self, source: RedbFile, target: Target | None, dry_run: bool, progress: Progress | None) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._report = RedbImport(source.path, source.commit, dry_run)
        self._tables = {table.name: table for table in source.tables()}
        self._total = sum(table.entry_count for name, table in self._tables.items() if name in TABLES)
        self._done = 0
        self._survey = _Survey()
        self._gone_on: set[str] = set()
        self._note_counts: dict[str, int] = defaultdict(int)
        self._quarantine: set[bytes] | None = None
        self._work: Work | None = None  # of the family that is being written
        self._last_arrival = 0  # of the store's tasks before the import
        self._account = TableAccount("")

    def run(self) -> RedbImport:
        for name, value_type in TABLES.items():
            table = self._tables.get(name)
            if table is None:
                continue
            if (table.kind, table.key_type, table.value_type) != ("table", "&str", value_type):
                raise FormatError(
                    f"{self._source.path}: table {name!r} is a {table.kind} of {table.key_type} -> {table.value_type}, "
                    f"in the gateway's file it is a table of &str -> {value_type}"
                )
        self._look_ahead()
        steps: dict[str, Callable[[str, bytes], None]] = {
            "session_meta": self._session,
            "messages": self._message,
            "pairing": self._pairing,
            "kv": self._text(KV),
            "session_aliases": self._text(ALIASES),
            "task_queue": self._task,
            "external_jobs": self._job,
            "idem_keys": self._idempotency,
            "computer_permissions": self._permission,
            "cron_jobs": self._text(CRON),
        }
        for name in TABLES:
            if name in self._tables:
                self._family(self._tables[name], steps[name])
            else:
                self._note("table", f"the file has no table {name!r}")
        for name, table in self._tables.items():
            if name not in TABLES:
                account = TableAccount(name, read=table.entry_count)
                account.skipped[UNKNOWN_TABLE] = table.entry_count
                self._report.tables.append(account)
        return self._report

    def _look_ahead(self) -> None:
        """Read everything once: what the import has to know, and whether all of it can be read at all."""
        survey = self._survey
        for name in TABLES:
            if name not in self._tables or name == "messages":
                continue
            if name not in ("session_meta", "task_queue"):
                for _ in self._tables[name].items():
                    pass
                continue
            created: list[tuple[int, str]] = []
            for raw_key, value in self._tables[name].items():
                try:
                    key = raw_key.decode()
                    if name == "session_meta":
                        meta = SessionMeta.from_json(value)
                        survey.sessions[key] = _Session(meta.generation, meta.last_active)
                        survey.channels.update(filter(None, (channel_of(key),)))
                        survey.agents.update(filter(None, (agent_of(key),)))
                    else:
                        created.append((QueuedTask.from_json(value).created_at, key))
                except (ValueError, RecursionError):
                    continue  # the import itself will meet it again and set it aside
            survey.arrivals |= {key: at for at, (_, key) in enumerate(sorted(created), 1)}
        _survey_messages(self._tables.get("messages"), survey)
        for (session, generation, _), fresh in survey.moved.items():
            self._note(
                "moved",
                f"session {session!r}: generation {generation} was used twice, for different messages; the older ones "
                f"are now generation {fresh}",
            )

    def _family(self, table: RedbTable, step: Callable[[str, bytes], None]) -> None:
        account = self._account = TableAccount(table.name)
        with self._transaction() as self._work:
            self._quarantine = None
            last_task = None if self._work is None else self._work.view(TASKS.table).last()
            self._last_arrival = 0 if last_task is None else last_task[0]
            for raw_key, value in table.items():
                account.read += 1
                self._done += 1
                if self._progress is not None and self._done % PROGRESS_ROWS == 0:
                    self._progress(table.name, self._done, self._total)
                try:
                    key = raw_key.decode()
                except UnicodeDecodeError as error:
                    self._set_aside(table.name, [raw_key.decode(errors="backslashreplace")], value, error)
                    continue
                try:
                    if len(raw_key) < LONG_KEY or self._work is None or self._report.dry_run:
                        step(key, value)
                    else:  # a key that fits the table may be too long for an index: both or neither
                        with self._work.savepoint():
                            step(key, value)
                except (ValueError, TypeError, RecursionError) as error:  # UndecodableError and LimitError among them
                    self._set_aside(table.name, [key], value, error)
        self._report.tables.append(account)
        if self._progress is not None:
            self._progress(table.name, self._done, self._total)

    def _transaction(self) -> AbstractContextManager[Work | None]:
        if self._target is None:
            return contextlib.nullcontext()
        return self._target.reading() if self._report.dry_run else self._target.writing()

    def _note(self, kind: str, text: str) -> None:
        self._note_counts[kind] += 1
        if self._note_counts[kind] <= MAX_NOTES:
            self._report.notes.append(text)
        else:
            self._report.more_notes += 1

    # --- rows into the store ---------------------------------------------------------------------------------------

    def _raw(self, rows: Rows[K, R], key: K) -> bytes | None:
        raw: bytes | None = None if self._work is None else self._work.view(rows.table).get(key)
        return raw

    def _add(self, rows: Rows[K, R], key: K, record: R) -> None:
        """Put a row where there is none."""
        text = rows.encode(record)  # a dry run has to see what could not be stored
        raw = self._raw(rows, key)
        if raw is not None:
            self._account.skipped[THERE if raw == text.encode() else OTHER] += 1
            return
        if self._work is not None and not self._report.dry_run:
            self._work.put(rows, key, record, None)
        self._account.written[rows.name] += 1

    def _set_aside(self, table: str, key: list[str], raw: bytes, error: Exception) -> None:
        """Keep a row that the store cannot hold as what it should be, text and all, unless it is kept already."""
        entry: dict[str, Any] = {"table": f"redb:{table}", "key": key}
        try:
            entry["text"] = raw.decode()
        except UnicodeDecodeError:
            entry["base64"] = base64.b64encode(raw).decode()
        if self._quarantine is None:
            self._quarantine = set()
            if self._work is not None:
                for _, old in self._work.scan(QUARANTINE):
                    self._quarantine.add(_same_entry(old))
        if _same_entry(entry) in self._quarantine:
            self._account.skipped[QUARANTINED] += 1
            return
        self._quarantine.add(_same_entry(entry))
        self._account.quarantined += 1
        self._note("quarantine", f"{table}[{key[0]!r}] set aside: {error}")
        if self._work is not None and not self._report.dry_run:
            entry |= {"at": self._work.now(), "reason": str(error)}
            self._work.put(QUARANTINE, self._work.next_number(QUARANTINE), entry, None)

    # --- the tables one by one -------------------------------------------------------------------------------------

    def _session(self, key: str, value: bytes) -> None:
        meta = SessionMeta.from_json(value)
        last = self._survey.last.get(key, 0)
        if last > meta.generation:
            self._note(
                "generation",
                f"session {key!r} goes on in generation {last + 1}: its row says {meta.generation}, but its archive "
                f"has generations up to {last}",
            )
            meta = dataclasses.replace(meta, generation=last + 1)
        sessions.check(key, meta)
        SESSIONS.encode(meta)
        work = self._work
        stored = None if work is None else work.get(SESSIONS, key)
        if stored is None:
            if work is not None and not self._report.dry_run:
                sessions.put(work, key, meta)
            self._account.written[SESSIONS.name] += 1
        elif stored == dataclasses.replace(meta, generation=max(meta.generation, stored.generation)):
            self._account.skipped[THERE] += 1
        else:
            self._account.skipped[GONE_ON] += 1
            self._gone_on.add(key)

    def _message(self, text: str, value: bytes) -> None:
        survey = self._survey
        key = message_key(text, survey.sessions.keys())
        if key is None:
            raise UndecodableError("the key is none of a message")
        if key.doubt is not None:
            reading = "active" if key.generation is None else f"archived in generation {key.generation}"
            self._note(
                "doubt", f"messages[{text!r}] taken as message {key.seq} of {key.session!r}, {reading}; {key.doubt}"
            )
        message = MESSAGES.decode((key.session, key.seq), value)
        double = survey.doubles.get((key.session, key.generation, key.seq, _kind(key)))
        if double is not None:
            if not double:
                raise UndecodableError(f"two active messages of {key.session!r} have the number {key.seq}")
            self._account.skipped[TWICE] += 1
        elif key.generation is None:
            # Archived first: its key is longer and its text deeper, so that it fails where either of the two does.
            self._backfill(key, message)
            self._active(key, message)
        else:
            generation = survey.moved.get((key.session, key.generation, _kind(key)), key.generation)
            self._archived((key.session, generation, key.seq), message)

    def _active(self, key: MessageKey, message: Message) -> None:
        at = key.session, key.seq
        raw = self._raw(MESSAGES, at)
        if raw is not None:
            same = MESSAGES.decode(at, raw) == message
            self._account.skipped[THERE if same else OTHER_MESSAGE] += 1
        elif key.session in self._gone_on:
            self._account.skipped[GONE_ON] += 1
        else:
            self._restore(MESSAGES, at, message)
            self._account.written[MESSAGES.name] += 1

    def _backfill(self, key: MessageKey, message: Message) -> None:
        """Archive an active message that the old store never did (backfill.py)."""
        generation = self._survey.backfill.generation(key.session, key.seq)
        if generation is not None:
            self._account.backfill[self._archive((key.session, generation, key.seq), message) or BACKFILLED] += 1

    def _archived(self, at: tuple[str, int, int], message: Message) -> None:
        skipped = self._archive(at, message)
        if skipped is None:
            self._account.written[ARCHIVE.name] += 1
        else:
            self._account.skipped[skipped] += 1

    def _archive(self, at: tuple[str, int, int], message: Message) -> str | None:
        """Write an archive row; returns why it was skipped, or None when it was not."""
        raw = self._raw(ARCHIVE, at)
        if raw is not None:
            return THERE if ARCHIVE.decode(at, raw).message == message else OTHER_MESSAGE
        session = self._survey.sessions.get(at[0])
        now = 0 if self._work is None else self._work.now()
        self._restore(ARCHIVE, at, Archived(now if session is None else session.last_active, message))
        return None

    def _restore(self, rows: Rows[K, R], key: K, record: R) -> None:
        if self._work is None or self._report.dry_run:
            rows.encode(record)
        else:
            history.restore(self._work, rows, key, record)

    def _pairing(self, key: str, value: bytes) -> None:
        pair = pair_key(key, ":", self._survey.channels)
        if pair is None:
            raise UndecodableError("the key is not channel:peer")
        if pair.doubt is not None:
            self._note("doubt", f"pairing[{key!r}] taken as peer {pair.second!r} of {pair.first!r}; {pair.doubt}")
        self._add(PAIRING, (pair.first, pair.second), PairingState.from_json(value))

    def _text(self, rows: Rows[str, str]) -> Callable[[str, bytes], None]:
        def add(key: str, value: bytes) -> None:
            self._add(rows, key, wire.decode_text(value))

        return add

    def _task(self, key: str, value: bytes) -> None:
        task = QueuedTask.from_json(value)
        if task.id != key:
            raise UndecodableError(f"the task's id is {task.id!r}")
        work = self._work
        arrival = None if work is None else work.view(TASK_IDS.table).get(key)
        if work is not None and arrival is not None:
            self._account.skipped[THERE if tasks.load(work, arrival) == task else OTHER] += 1
            return
        if work is None or self._report.dry_run:
            task.to_json()
        else:
            task.arrival = self._last_arrival + self._survey.arrivals[key]
            tasks.write(work, task)
        self._account.written[TASKS.name] += 1

    def _job(self, key: str, value: bytes) -> None:
        job = ExternalJob.from_json(value)
        if job.id != key:
            raise UndecodableError(f"the job's id is {job.id!r}")
        raw = self._raw(JOBS, key)
        if raw is not None:
            self._account.skipped[THERE if JOBS.decode(key, raw) == job else OTHER] += 1
            return
        job.version = 1
        self._add(JOBS, key, job)

    def _idempotency(self, key: str, value: bytes) -> None:
        self._add(IDEMPOTENCY, key, int.from_bytes(value, "little", signed=True))

    def _permission(self, key: str, value: bytes) -> None:
        pair = pair_key(key, "\0", self._survey.agents)
        if pair is None:
            raise UndecodableError("the key is not agent, NUL, app")
        if pair.doubt is not None:
            self._note(
                "doubt",
                f"computer_permissions[{key!r}] taken as app {pair.second!r} of {pair.first!r}; {pair.doubt}",
            )
        self._add(PERMISSIONS, (pair.first, pair.second), wire.decode_text(value))


def _same_entry(entry: Any) -> bytes:
    """What makes two quarantined rows the same one, whenever and why they were set aside."""
    wanted = (entry.get("table"), entry.get("key"), entry.get("text"), entry.get("base64"))
    return _digest(wire.encode(wanted).encode())
