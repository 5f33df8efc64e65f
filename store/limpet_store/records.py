"""The rows as Python values: dataclasses with the names, the order and the defaults of the JSON.

The annotation of a field is its specification: from it follow the check on the way out (`to_json`) and on the way in
(`from_json`), and the straight-line code in generated.py for what passes them. Fields that a row knows and we do not
are kept in `extra` and written back after the known ones, so that an older program that updates a row loses nothing of
a newer one.

Two defaults must be told apart. A *constructor* default makes a new record convenient (`status` is Pending). A default
for a *missing* field makes old rows readable (`turns` is 0 in rows from before there were turns); it is an argument of
`record`. A missing optional is None; any other missing field makes the row undecodable.

A new record's times may be left out. It then shows the wall clock's until the store writes it, which puts its own clock
in their place: see `Unstamped`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
import hashlib
import time
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar

from . import wire
from .errors import UndecodableError
from .generated import Generated, generate, is_optional

Message: TypeAlias = dict[str, Any]  # any JSON object; the order of its keys is kept

POLL_DELAY_EARLY_S = 10  # between the first polls of a job
POLL_DELAY_LATE_S = 60  # from then on
EARLY_POLLS = 12  # how many polls count as the first
JOB_TIMEOUT_S = 1800  # a job that takes longer has failed
MAX_DELIVERY_ATTEMPTS = 60  # half an hour at one attempt every 30 s
TASK_TTL_S = 3600
TASK_MAX_RETRIES = 3
_HASH_SIZE = 2047  # bytes; hashlib lets go of the interpreter for more, and an event loop waits 60 us to get it back


class Unstamped(int):
    """A time in Unix seconds that nobody chose: the wall clock's, until the store puts its own in its place.

    It is an `int` like any other to everybody but the store, which may have been given another clock.
    """

    __slots__ = ()


UNSTAMPED = Unstamped(0)  # the default of a time field; replaced by `_now()` as soon as the record exists


def _now() -> Unstamped:
    return Unstamped(time.time())


# --- enums -----------------------------------------------------------------------------------------------------------


class TaskStatus(enum.StrEnum):
    """Where a task is on its way; Done, Failed and Dead are its ends."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"
    DEAD = "Dead"

    @property
    def finished(self) -> bool:
        """Whether nothing will run the task again: Done, Failed or Dead."""
        return self in _FINISHED_TASK  # a tuple: a set would ask for the hash, which enums compute in Python


class Priority(enum.StrEnum):
    """Which task goes first: SYSTEM < CRON < USER, the smallest first."""

    SYSTEM = "System"
    CRON = "Cron"
    USER = "User"

    @property
    def rank(self) -> int:
        """0 for SYSTEM, 1 for CRON, 2 for USER."""
        return _PRIORITY_RANK[self]

    # Without these four, the text would decide and Cron would go before System.
    def __lt__(self, other: str) -> bool:
        return self.rank < other.rank if isinstance(other, Priority) else NotImplemented

    def __le__(self, other: str) -> bool:
        return self.rank <= other.rank if isinstance(other, Priority) else NotImplemented

    def __gt__(self, other: str) -> bool:
        return self.rank > other.rank if isinstance(other, Priority) else NotImplemented

    def __ge__(self, other: str) -> bool:
        return self.rank >= other.rank if isinstance(other, Priority) else NotImplemented


class TitleSource(enum.StrEnum):
    """Who gave a session its title: the program, which may change it again, or the user."""

    AUTO = "auto"
    USER = "user"


class ExternalJobOrigin(enum.StrEnum):
    """Who started an external job."""

    AGENT = "Agent"
    CRON = "Cron"
    USER_DIRECT = "UserDirect"


class ExternalJobKind(enum.StrEnum):
    """What an external job makes."""

    VIDEO_GEN = "VideoGen"
    IMAGE_GEN = "ImageGen"


class ExternalJobStatus(enum.StrEnum):
    """Where an external job is on its way; Done, Failed and TimedOut are its ends."""

    PENDING = "Pending"
    POLLING = "Polling"
    DONE = "Done"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"

    @property
    def finished(self) -> bool:
        """Whether the provider will not be asked again: Done, Failed or TimedOut."""
        return self in _FINISHED_JOB


_PRIORITY_RANK = {priority: rank for rank, priority in enumerate(Priority)}
_FINISHED_TASK = (TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.DEAD)
_FINISHED_JOB = (ExternalJobStatus.DONE, ExternalJobStatus.FAILED, ExternalJobStatus.TIMED_OUT)


# --- the machinery: annotation -> check out, check in ----------------------------------------------------------------


class _Kind(NamedTuple):
    """How one field's value is checked and turned into JSON (`out`), and read back (`into`)."""

    out: Callable[[Any], Any]
    into: Callable[[Any], Any]


class _Field(NamedTuple):
    name: str
    kind: _Kind
    missing: Callable[[], Any] | None  # makes the value of a field that the row does not have; None: it must be there


_REQUIRED = object()
R = TypeVar("R", bound="Record")


@dataclass(slots=True)
class Record:
    """What every record can do. Records are plain mutable values: changing one changes nothing in the store."""

    _fields: ClassVar[tuple[_Field, ...]] = ()
    _known: ClassVar[frozenset[str]] = frozenset()
    _generated: ClassVar[Generated]

    def to_json(self, *, leave_out: str | None = None) -> str:
        """The row's text: compact, fields in their order, `extra` after them.

        leave_out  a field that is not to be in the text
        raises     TypeError when a field has a value of the wrong type, ValueError when JSON cannot hold it
        """
        make = self._generated.texts.get(leave_out)
        text = None if make is None else make(self)
        if text is None or not (text.isascii() or wire.is_utf8(text)):
            text = wire.encode(self.to_dict(leave_out=leave_out))
        return text

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a row's text.

        text    JSON text or its UTF-8 bytes
        raises  UndecodableError (a ValueError) when it is not this record
        """
        return cls.from_dict(wire.loads(text))

    def to_dict(self, *, leave_out: str | None = None) -> dict[str, Any]:
        """The row as JSON values in the order of its fields; parameters and errors are those of `to_json`."""
        out: dict[str, Any] = {}
        name = ""
        try:
            for name, kind, _ in self._fields:
                if name != leave_out:
                    out[name] = kind.out(getattr(self, name))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}.{name}: {error}") from error
        extra = getattr(self, "extra", None)
        if extra:
            if not self._known.isdisjoint(extra):
                raise ValueError(f"{type(self).__name__}.extra has a known field: {sorted(self._known & set(extra))}")
            wire.check(extra)
            out.update(extra)
        return out

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """Make the record from decoded JSON; UndecodableError when it does not fit."""
        if not isinstance(value, dict):
            raise UndecodableError(f"{cls.__name__}: a JSON object is needed, not {type(value).__name__}")
        read: Self | None = cls._generated.read(value, cls)
        return cls._checked(value) if read is None else read

    @classmethod
    def _checked(cls, value: dict[str, Any]) -> Self:
        """Make the record field by field."""
        arguments: dict[str, Any] = {}
        found_count = 0
        name = ""
        try:
            for name, kind, missing in cls._fields:
                found = value.get(name, _REQUIRED)
                if found is not _REQUIRED:
                    found_count += 1
                    arguments[name] = kind.into(found)
                elif missing is not None:
                    arguments[name] = missing()
                else:
                    raise UndecodableError("the field is missing")
        except (TypeError, ValueError) as error:
            raise UndecodableError(f"{cls.__name__}.{name}: {error}") from error
        if found_count < len(value):
            arguments["extra"] = {name: found for name, found in value.items() if name not in cls._known}
        return cls(**arguments)


def record(**missing: Any) -> Callable[[type[R]], type[R]]:
    """Read a dataclass's annotations into its `_fields`.

    missing  field name -> value in rows that do not have the field (rows from before it existed)
    """

    def decorate(cls: type[R]) -> type[R]:
        hints = typing.get_type_hints(cls)
        fields = []
        for entry in dataclasses.fields(cls):
            if entry.name == "extra" or entry.metadata.get("beside"):
                continue
            hint = hints[entry.name]
            if entry.name in missing:
                default: Callable[[], Any] | None = functools.partial(_same, missing[entry.name])
            else:
                default = functools.partial(_same, None) if is_optional(hint) else None
            fields.append(_Field(entry.name, _kind(hint), default))
        cls._fields = tuple(fields)
        cls._known = frozenset(entry.name for entry in fields)
        cls._generated = generate(cls, {entry.name: hints[entry.name] for entry in fields}, (int, Unstamped))
        return cls

    return decorate


def changed(record: R, **changes: Any) -> R:
    """What `dataclasses.replace` gives, in a third of the time (0.6 us instead of 2.1 for a task)."""
    copy: R = record._generated.copy(record, changes)
    return copy


def _same(value: Any) -> Any:
    return value


def _kind(hint: Any) -> _Kind:
    """The checks for one annotation; the annotations in this module are all there are."""
    if hint is str:
        return _Kind(_text, _text)
    if hint is int:
        return _Kind(_integer, _integer)
    if hint is bool:
        return _Kind(_boolean, _boolean)
    if is_optional(hint):
        (inner,) = (arg for arg in hint.__args__ if arg is not type(None))
        kind = _kind(inner)
        return _Kind(functools.partial(_optional, kind.out), functools.partial(_optional, kind.into))
    if typing.get_origin(hint) is list:
        kind = _kind(typing.get_args(hint)[0])
        return _Kind(functools.partial(_list, kind.out), functools.partial(_list, kind.into))
    if issubclass(hint, enum.StrEnum):
        return _Kind(functools.partial(_enum_out, hint), functools.partial(_enum_into, hint))
    assert issubclass(hint, Record), hint
    return _Kind(functools.partial(_record_out, hint), hint.from_dict)


def _text(value: Any) -> str:
    if type(value) is str:
        return value if value.isascii() else wire.check_text(value)
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return wire.check_text(str(value))
    raise TypeError(f"text is needed, not {type(value).__name__}")


def _integer(value: Any) -> int:
    if type(value) is int or isinstance(value, Unstamped):
        return value if -wire.SAFE_INT < value < wire.SAFE_INT else wire.check_int(value)
    raise TypeError(f"an integer is needed, not {type(value).__name__}")


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise TypeError(f"true or false is needed, not {type(value).__name__}")


def _optional(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def _list(kind: Callable[[Any], Any], value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"a list is needed, not {type(value).__name__}")
    return [kind(item) for item in value]


def _enum_out(kind: type[enum.StrEnum], value: Any) -> str:
    text: str = (value if type(value) is kind else kind(value)).value  # a status set as plain text is checked here
    return text


def _enum_into(kind: type[enum.StrEnum], value: Any) -> enum.StrEnum:
    if type(value) is not str:
        raise TypeError(f"text is needed, not {type(value).__name__}")
    return kind(value)


def _record_out(kind: type[Record], value: Any) -> dict[str, Any]:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is needed, not {type(value).__name__}")
    return value.to_dict()


# --- sessions --------------------------------------------------------------------------------------------------------


@record(generation=1, pinned=False, archived=False)
@dataclass(slots=True, kw_only=True)
class SessionMeta(Record):
    """What is known of one conversation beside its messages.

    session_key    the conversation; the caller's text
    message_count  the sequence number that the next message of this generation gets
    last_active    Unix seconds of the last message or new generation
    created_at     Unix seconds
    generation     counts up when the conversation starts anew; 1 or more, never used twice for a key
    title          what to show, or None
    title_source   who chose the title, or None
    pinned         retention leaves a pinned session alone
    archived       out of the user's sight; the store does nothing about it
    peer_name      the display name of the other side, or None
    extra          fields of a newer program, kept as they are
    """

    session_key: str
    message_count: int = 0
    last_active: int = UNSTAMPED
    created_at: int = UNSTAMPED
    generation: int = 1
    title: str | None = None
    title_source: TitleSource | None = None
    pinned: bool = False
    archived: bool = False
    peer_name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.created_at is UNSTAMPED:
            self.created_at = _now()
        if self.last_active is UNSTAMPED:
            self.last_active = self.created_at
        if self.title_source is not None:
            self.title_source = TitleSource(self.title_source)

    def stamped(self, now: int) -> SessionMeta:
        """A copy with the store's time where nobody chose one."""
        return changed(self, created_at=_stamp(self.created_at, now), last_active=_stamp(self.last_active, now))


# --- pairing ---------------------------------------------------------------------------------------------------------


class PairingState(abc.ABC):
    """Whether a peer may talk to the agent: `Approved()`, or `Pending(code, expires_at)` until somebody approves it."""

    __slots__ = ()

    @abc.abstractmethod
    def to_json(self) -> str:
        """The row's text; raises as `Record.to_json` does."""

    @staticmethod
    def from_json(text: str | bytes) -> Approved | Pending:
        """Read a row's text; UndecodableError when it is neither state."""
        value = wire.loads(text)
        if value == "Approved":
            return Approved()
        if isinstance(value, dict) and list(value) == ["Pending"]:
            return Pending.from_dict(value["Pending"])
        raise UndecodableError('PairingState: neither "Approved" nor {"Pending": ...}')


@dataclass(frozen=True, slots=True)
class Approved(PairingState):
    """The peer may talk to the agent."""

    def to_json(self) -> str:
        """The row's text: the name of the state."""
        return wire.encode("Approved")


@record()
@dataclass(slots=True)
class Pending(Record, PairingState):
    """The peer has been given a code and waits for approval.

    code        what the peer shows to be approved, such as "ABCD-2345"
    expires_at  Unix seconds
    extra       fields of a newer program, kept as they are
    """

    code: str
    expires_at: int
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self, *, leave_out: str | None = None) -> str:
        """The row's text: the fields under the name of the state; parameters and errors as in Record."""
        return wire.encode({"Pending": self.to_dict(leave_out=leave_out)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a row's text; UndecodableError when it is not this state."""
        value = wire.loads(text)
        if isinstance(value, dict) and list(value) == ["Pending"]:
            return cls.from_dict(value["Pending"])
        raise UndecodableError('Pending: not {"Pending": ...}')


# --- tasks -----------------------------------------------------------------------------------------------------------


@record()
@dataclass(slots=True, kw_only=True)
class QueuedFile(Record):
    """A file that came with a message and waits on disk.

    filename   as the sender called it
    path       where it is
    mime_type  such as "application/pdf"
    extra      fields of a newer program, kept as they are
    """

    filename: str
    path: str
    mime_type: str
    extra: dict[str, Any] = field(default_factory=dict)


@record()
@dataclass(slots=True, kw_only=True)
class QueuedMessage(Record):
    """One inbound message that waits in a task.

    text       what was said
    sender     who said it
    channel    through which channel, such as "telegram"
    account    which of the channel's accounts, or None
    chat_id    where the answer goes
    is_group   whether that is a group
    reply_to   the message it answers, or None
    timestamp  Unix seconds
    images     data URIs or paths; may be megabytes
    files      files that came with it
    extra      fields of a newer program, kept as they are
    """

    text: str
    sender: str
    channel: str
    account: str | None = None
    chat_id: str
    is_group: bool = False
    reply_to: str | None = None
    timestamp: int = UNSTAMPED
    images: list[str] = field(default_factory=list)
    files: list[QueuedFile] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timestamp is UNSTAMPED:
            self.timestamp = _now()

    def stamped(self, now: int) -> QueuedMessage:
        """The message with the store's time where nobody chose one; itself when somebody did."""
        return changed(self, timestamp=now) if isinstance(self.timestamp, Unstamped) else self


@record(turns=0, max_turns=0, notified=False)
@dataclass(slots=True, kw_only=True)
class QueuedTask(Record):
    """One unit of work for an agent: the messages of one session that wait to be answered.

    id            a UUID by default; any text
    session_key   whose conversation
    messages      at least one; later ones were merged in while the task was waiting
    priority      SYSTEM goes before CRON before USER
    status        see TaskStatus
    retries       how often it failed; max_retries is how often it may, by the task's own account
    turns         turns done; max_turns is how many it may take, 0 for no limit
    created_at    Unix seconds; with updated_at
    ttl_secs      seconds after created_at when it expires, 0 for never
    content_hash  MD5 of the first message's text, to recognise the same message sent twice
    error         why it failed, or None
    notified      whether the user has been given the reply
    last_reply    the last answer, or None
    extra         fields of a newer program, kept as they are
    attempts      beside the row: how often it was running when the process died
    arrival       beside the row: a number that grows from task to task; None before the task is stored
    """

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    session_key: str
    messages: list[QueuedMessage]
    priority: Priority = Priority.USER
    status: TaskStatus = TaskStatus.PENDING
    retries: int = 0
    max_retries: int = TASK_MAX_RETRIES
    turns: int = 0
    max_turns: int = 0
    created_at: int = UNSTAMPED
    updated_at: int = UNSTAMPED
    ttl_secs: int = TASK_TTL_S
    content_hash: str = ""
    error: str | None = None
    notified: bool = False
    last_reply: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    attempts: int = field(default=0, compare=False, metadata={"beside": True})
    arrival: int | None = field(default=None, compare=False, metadata={"beside": True})

    def __post_init__(self) -> None:
        if type(self.priority) is not Priority:
            self.priority = Priority(self.priority)
        if type(self.status) is not TaskStatus:
            self.status = TaskStatus(self.status)
        if self.created_at is UNSTAMPED:
            self.created_at = _now()
        if self.updated_at is UNSTAMPED:
            self.updated_at = self.created_at
        if not self.content_hash and self.messages:
            self.content_hash = content_hash(self.messages[0].text)

    def is_expired(self, now: float | None = None) -> bool:
        """Whether its time to live is over; says nothing about whether it may be removed.

        now  Unix seconds; the wall clock when left out
        """
        return self.ttl_secs != 0 and (time.time() if now is None else now) - self.created_at > self.ttl_secs

    def stamped(self, now: int) -> QueuedTask:
        """A copy with the store's time where nobody chose one."""
        return changed(
            self,
            messages=[message.stamped(now) for message in self.messages],
            created_at=_stamp(self.created_at, now),
            updated_at=_stamp(self.updated_at, now),
        )


def content_hash(text: str) -> str:
    """Lower-case hex MD5 of the text's UTF-8: how the reference recognises a message that was sent twice."""
    raw = wire.check_text(text).encode()
    digest = hashlib.md5(raw[:_HASH_SIZE], usedforsecurity=False)
    for start in range(_HASH_SIZE, len(raw), _HASH_SIZE):
        digest.update(raw[start : start + _HASH_SIZE])
    return digest.hexdigest()


class Submission(NamedTuple):
    """What became of a submitted task.

    kind     "new", "merged" into a task that was waiting, or "duplicate" of one
    task_id  the id of the task that will answer
    """

    kind: str
    task_id: str


# --- external jobs ---------------------------------------------------------------------------------------------------


@record()
@dataclass(slots=True, kw_only=True)
class ExternalJobDelivery(Record):
    """Where the result of a job goes.

    channel    through which channel
    target_id  to which chat
    is_group   whether that is a group
    reply_to   the message it answers, or None
    account    which of the channel's accounts, or None
    extra      fields of a newer program, kept as they are
    """

    channel: str
    target_id: str
    is_group: bool = False
    reply_to: str | None = None
    account: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@record(delivery_attempts=0)
@dataclass(slots=True, kw_only=True)
class ExternalJob(Record):
    """Work that a provider does for us and that has to be polled, such as making a video.

    id                 a UUID by default; any text
    session_key        whose conversation
    delivery           where the result goes
    origin             who started it
    provider           who does it; external_task_id is its name there
    kind               what it makes; prompt is from what
    submitted_at       Unix seconds
    next_poll_at       Unix seconds: when to look again; 10 s after the submission by default
    poll_count         polls done
    timeout_at         Unix seconds; 1800 s after the submission by default
    status             see ExternalJobStatus
    error              why it failed, or None
    result_url         where the provider has the result, or None; result_path is where we have it
    delivered_at       Unix seconds, or None until the result has been delivered
    delivery_attempts  deliveries tried; after 60 nobody tries any more
    extra              fields of a newer program, kept as they are
    version            beside the row: counts its updates; an update from an older version is refused
    """

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    session_key: str
    delivery: ExternalJobDelivery
    origin: ExternalJobOrigin
    provider: str
    external_task_id: str
    kind: ExternalJobKind
    prompt: str
    submitted_at: int = UNSTAMPED
    next_poll_at: int = UNSTAMPED
    poll_count: int = 0
    timeout_at: int = UNSTAMPED
    status: ExternalJobStatus = ExternalJobStatus.PENDING
    error: str | None = None
    result_url: str | None = None
    result_path: str | None = None
    delivered_at: int | None = None
    delivery_attempts: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    version: int = field(default=1, compare=False, metadata={"beside": True})

    def __post_init__(self) -> None:
        if type(self.origin) is not ExternalJobOrigin:
            self.origin = ExternalJobOrigin(self.origin)
        if type(self.kind) is not ExternalJobKind:
            self.kind = ExternalJobKind(self.kind)
        if type(self.status) is not ExternalJobStatus:
            self.status = ExternalJobStatus(self.status)
        if self.submitted_at is UNSTAMPED:
            self.submitted_at = _now()
        if self.next_poll_at is UNSTAMPED:
            self.next_poll_at = _after(self.submitted_at, POLL_DELAY_EARLY_S)
        if self.timeout_at is UNSTAMPED:
            self.timeout_at = _after(self.submitted_at, JOB_TIMEOUT_S)

    def needs_delivery(self) -> bool:
        """Whether it has ended and nobody has been told."""
        return self.status.finished and self.delivered_at is None

    def next_poll_delay(self) -> int:
        """Seconds until the next poll: 10 for the first 12 polls, then 60."""
        return POLL_DELAY_EARLY_S if self.poll_count < EARLY_POLLS else POLL_DELAY_LATE_S

    def is_timed_out(self, now: float | None = None) -> bool:
        """Whether it has taken longer than it may.

        now  Unix seconds; the wall clock when left out
        """
        return (time.time() if now is None else now) > self.timeout_at

    def stamped(self, now: int) -> ExternalJob:
        """A copy with the store's time where nobody chose one."""
        shift = now - self.submitted_at if isinstance(self.submitted_at, Unstamped) else 0
        return changed(
            self,
            submitted_at=int(self.submitted_at) + shift,
            next_poll_at=_stamp(self.next_poll_at, self.next_poll_at + shift),
            timeout_at=_stamp(self.timeout_at, self.timeout_at + shift),
        )


def _stamp(value: int, now: int) -> int:
    return now if isinstance(value, Unstamped) else value


def _after(start: int, delay_s: int) -> int:
    """A time counted from another: as unchosen as that one."""
    return Unstamped(start + delay_s) if isinstance(start, Unstamped) else start + delay_s


# --- what the archive tells ------------------------------------------------------------------------------------------


class ArchiveRow(NamedTuple):
    """One message as it was when it came.

    seq         its sequence number in its generation
    generation  1 or more
    message     the message
    """

    seq: int
    generation: int
    message: Message


@dataclass(frozen=True, slots=True)
class ArchiveStat:
    """What a session's archive holds, told without reading it.

    total_messages  rows in all generations
    oldest_seq      the smallest sequence number in any generation, or None when there is no row
    newest_seq      the largest
    generations     the generations that have rows, ascending
    """

    total_messages: int
    oldest_seq: int | None
    newest_seq: int | None
    generations: list[int]


def message_text(message: Message) -> str:
    """What a message says: its content, or the texts in its content's parts, or else all of it as JSON."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text", part.get("content")) for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        if texts:
            return "\n".join(texts)
    return wire.dumps(message)


def check_message(message: object) -> Mapping[str, Any]:
    """Return the message unless it is no dict: then TypeError."""
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    return message
