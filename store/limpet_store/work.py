"""One open transaction as the families see it: rows in and out, and their indexes.

Rules kept here and nowhere else:

  - A row and the index entries that follow from it change together (`put`, `remove`).
  - Writing what is already there writes nothing; the engine commits no transaction that changed nothing.
  - A row that cannot be decoded stops nobody. A read skips it, logs it once and remembers it; the next write to its
    family moves it, text and all, to the quarantine table. A write that meets one moves it at once.
  - A method that raises leaves no trace, even when the caller goes on and commits (`run`).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from limpet import ReadOnlyError, ReadTransaction, Table, TableView, WriteTransaction

from .errors import ClockError, UndecodableError
from .schema import ACTIVE, ARCHIVE, COUNTERS, MESSAGES, QUARANTINE, TASK_MESSAGES, TASKS, Counter, Rows

logger = logging.getLogger("limpet_store")

DAY_S = 86400
CLOCK_JUMP_S = 366 * DAY_S  # a store may rest for a year; a clock that is further ahead of it is rather wrong

K = TypeVar("K")
R = TypeVar("R")


@dataclass(slots=True)
class Context:
    """What all transactions of one open store share.

    clock     gives Unix seconds
    suspects  family -> undecodable rows that reads have met: (table name, key) -> its Rows
    logged    undecodable rows that the log already knows
    newest    the newest time that the store has recorded or seen since, in Unix seconds; a time that is far ahead of it
              is not believed and leaves it as it is (`Work.check_clock`); None: not known yet
    """

    clock: Callable[[], float]
    suspects: dict[str, dict[tuple[str, Any], Rows[Any, Any]]] = field(default_factory=dict)
    logged: set[tuple[str, Any]] = field(default_factory=set)
    newest: int | None = None


class _Savepoint(AbstractContextManager[None]):
    """The context manager behind `Work.savepoint`; a class, because a generator takes 0.7 us more in every step."""

    __slots__ = ("_engine", "_undo_count", "_work")

    def __init__(self, work: Work) -> None:
        self._work = work

    def __enter__(self) -> None:
        work = self._work
        self._undo_count = len(work._undo)
        self._engine = work.engine.savepoint()
        self._engine.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._engine.__exit__(kind, error, trace)
        except BaseException:
            self._take_back()
            raise
        if kind is not None:
            self._take_back()

    def _take_back(self) -> None:
        self._work._largest.clear()
        self._work.undo(self._undo_count)


class Work:
    """One engine transaction with the store's rules. Belongs to one thread at a time; ends with its transaction."""

    __slots__ = ("engine", "context", "writable", "_views", "_undo", "_largest", "_setting_aside", "_unclaimed")

    def __init__(self, engine: ReadTransaction | WriteTransaction, context: Context, *, writable: bool) -> None:
        self.engine = engine
        self.context = context
        self.writable = writable
        self._views: dict[str, TableView] = {}
        self._undo: list[Callable[[], None]] = []
        self._largest: dict[str, int] = {}  # table -> its largest key, where that was asked for and nothing was removed
        self._setting_aside = False
        self._unclaimed: list[Callable[[Work], None]] = []

    # --- running ---------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """The store's time in Unix seconds."""
        now, context = int(self.context.clock()), self.context
        if context.newest is not None and context.newest < now <= context.newest + CLOCK_JUMP_S:
            context.newest = now
        return now

    def check_clock(self, *, force: bool) -> int:
        """The time by which something may be deleted for its age.

        A clock that jumps (2099, since a battery is empty) would make everything old at once. So a time that lies more
        than CLOCK_JUMP_S after all that the store has recorded is believed only when somebody says so.

        force    believe it
        raises   ClockError
        """
        now, newest = self.now(), self.context.newest
        if newest is not None and now > newest + CLOCK_JUMP_S:
            if not force:
                raise ClockError(
                    f"the clock says {_date(now)}, {(now - newest) // DAY_S:,} days after the newest time that this "
                    f"store has recorded, {_date(newest)}; by such a clock nothing is deleted for its age. If the "
                    "clock is right, call again with force=True",
                    now=now,
                    recorded=newest,
                )
            self.context.newest = now
        return now

    def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Run a family's method in this transaction; see `family.Scope`."""
        if not writes:
            return body(family, *args, **kwargs)
        with self.savepoint():
            return self.write(family, body, args, kwargs)

    def write(self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a writing method that needs no savepoint, since the transaction ends with it."""
        if not self.writable:
            raise ReadOnlyError(f"{family.name}: a write in a read transaction")
        if self.context.suspects.get(family.name):
            self._quarantine_suspects(family.name)
        before, self._setting_aside = self._setting_aside, True
        try:  # as setting_aside(), whose generator takes 0.8 us
            return body(family, *args, **kwargs)
        finally:
            self._setting_aside = before

    @contextlib.contextmanager
    def setting_aside(self, *families: str) -> Iterator[None]:
        """Move rows that cannot be decoded to quarantine: what reads of these families have met, what turns up inside.

        Whatever writes has to do this, or else a row that cannot be decoded would be taken for one that is not there.
        """
        for family in families:
            if self.context.suspects.get(family):
                self._quarantine_suspects(family)
        before, self._setting_aside = self._setting_aside, True
        try:
            yield
        finally:
            self._setting_aside = before

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what happens inside when it raises, records that were given back included."""
        return _Savepoint(self)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Have something done when the change that was just made does not come to pass."""
        self._undo.append(action)

    def undo(self, keep: int = 0) -> None:
        """Do what was asked for with `on_undo`, the latest first, except for the first `keep` of them."""
        while len(self._undo) > keep:
            self._undo.pop()()

    def on_unclaimed(self, action: Callable[[Work], None]) -> None:
        """Have something done, in a later transaction, when the caller never gets the result of what runs now.

        Only a caller who can be cancelled may not get it: AsyncStore's.
        """
        self._unclaimed.append(action)

    def take_unclaimed(self) -> Sequence[Callable[[Work], None]]:
        """What was asked for with `on_unclaimed` since the last call."""
        if not self._unclaimed:
            return ()
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed

    # --- rows ------------------------------------------------------------------------------------------------------

    def view(self, table: Table) -> TableView:
        """The engine's view of a table, opened once for each transaction."""
        found = self._views.get(table.name)
        if found is None:
            found = self._views[table.name] = self.engine[table]
        return found

    def get(self, rows: Rows[K, R], key: K) -> R | None:
        """A row's record; None when there is none, or none that can be decoded."""
        raw = self.view(rows.table).get(key)
        return None if raw is None else self.decode(rows, key, raw)

    def decode(self, rows: Rows[K, R], key: K, raw: bytes) -> R | None:
        """A row's record; None when it cannot be decoded, which has then been seen to."""
        try:
            return rows.decode(key, raw)
        except UndecodableError as error:
            if self._setting_aside:
                self.set_aside(rows, key, raw, error)
            else:
                self._suspect(rows, key, error)
            return None

    def scan(
        self, rows: Rows[K, R], start: object = None, stop: object = None, *, reverse: bool = False
    ) -> Iterator[tuple[K, R]]:
        """The rows with start <= key < stop that can be decoded, in the order of their keys."""
        for key, raw in self.view(rows.table).range(start, stop, reverse=reverse):
            decoded = self.decode(rows, key, raw)
            if decoded is not None:
                yield key, decoded

    def put(self, rows: Rows[K, R], key: K, record: R, old: R | None) -> bool:
        """Write a row and its index entries.

        old      the record that is stored now, None when there is none
        returns  False when exactly this is stored already, and then nothing is written
        raises   TypeError or ValueError when the record cannot be stored, and then nothing is written
        """
        raw = rows.encode(record).encode()
        view = self.view(rows.table)
        if old is None:
            if rows.name in self._largest:
                self._largest[rows.name] = max(self._largest[rows.name], key)  # type: ignore[call-overload]  # K is int
        # Records that differ differ as text, which saves the look-up; equal ones need not be the same text (1 and 1.0).
        elif record == old and view.get(key) == raw:
            return False
        view[key] = raw
        for index in rows.indexes:
            after = index.entry(key, record)
            before = None if old is None else index.entry(key, old)
            if before != after:
                entries = self.view(index.table)
                if before is not None and (after is None or before[0] != after[0]):
                    _discard(entries, before[0])
                if after is not None:
                    entries[after[0]] = after[1]
        return True

    def remove(self, rows: Rows[K, R], key: K, old: R) -> None:
        """Delete a row and its index entries; `old` is the record that is stored now."""
        self._largest.clear()
        _discard(self.view(rows.table), key)
        for index in rows.indexes:
            entry = index.entry(key, old)
            if entry is not None:
                _discard(self.view(index.table), entry[0])

    def next_number(self, rows: Rows[int, Any]) -> int:
        """One more than the largest key of a table with numbers for keys; 1 when it is empty.

        cost  a look at the end of the table, 14 us, and that only once as long as rows are only added
        """
        found = self._largest.get(rows.name)
        if found is None:
            last = self.view(rows.table).last()
            found = self._largest[rows.name] = 0 if last is None else last[0]
        return found + 1

    def remove_range(self, rows: Rows[K, R], start: object, stop: object) -> int:
        """Delete the rows with start <= key < stop of a table without indexes; returns how many."""
        assert not rows.indexes
        count: int = self.view(rows.table).delete_range(start, stop)
        return count

    # --- rows that cannot be decoded ---------------------------------------------------------------------------------

    def _suspect(self, rows: Rows[K, R], key: K, error: UndecodableError) -> None:
        name = (rows.name, key)
        if name not in self.context.logged:
            self.context.logged.add(name)
            logger.warning("skipped a row of table %s that cannot be decoded, key %r: %s", rows.name, key, error)
        self.context.suspects.setdefault(rows.family, {})[name] = rows

    def _quarantine_suspects(self, family: str) -> None:
        """Move what reads have met; a suspect is forgotten once it is seen to be gone or mended."""
        suspects = self.context.suspects[family]
        for (name, key), rows in list(suspects.items()):
            raw = self.view(rows.table).get(key)
            try:
                if raw is not None:
                    rows.decode(key, raw)
                suspects.pop((name, key), None)
            except UndecodableError as error:
                self.set_aside(rows, key, raw, error)

    def set_aside(self, rows: Rows[K, R], key: K, raw: bytes, error: UndecodableError) -> None:
        """Move a row that cannot be decoded to the quarantine table.

        cost  its index entries cannot be derived, so each index of the table is searched for them: O(rows), once in
              the life of a damaged row
        """
        entry: dict[str, Any] = {
            "table": rows.name,
            "key": list(key) if isinstance(key, tuple) else [key],
            "at": self.now(),
            "reason": str(error),
        }
        try:
            entry["text"] = raw.decode()
        except UnicodeDecodeError:
            entry["base64"] = base64.b64encode(raw).decode()
        self.put(QUARANTINE, self.next_number(QUARANTINE), entry, None)
        self._largest.clear()
        _discard(self.view(rows.table), key)
        for index in rows.indexes:
            entries = self.view(index.table)
            for found in [item for item, value in entries.items() if index.owner(item, value) == key]:
                _discard(entries, found)
        known = (rows.name, key) in self.context.logged
        level = logging.INFO if known else logging.WARNING  # one warning for each row is enough
        logger.log(level, "moved a row of table %s to quarantine, key %r: %s", rows.name, key, error)
        if rows.counter is not None:
            self._recount(rows.counter(key))
        if rows is TASKS:  # a task's messages mean nothing without it
            self._set_aside_task_messages(key)

    def _set_aside_task_messages(self, arrival: Any) -> None:
        error = UndecodableError("its task is in quarantine")
        for key, raw in list(self.view(TASK_MESSAGES.table).prefix((arrival,))):
            self.set_aside(TASK_MESSAGES, key, raw, error)

    # --- counters --------------------------------------------------------------------------------------------------

    def counter(self, session_key: str, generation: int) -> Counter | None:
        """The counter of a session's generation, or of its active rows (generation ACTIVE); None when it has none.

        A counter that cannot be decoded says nothing that the rows do not: they are counted instead.
        """
        raw = self.view(COUNTERS.table).get((session_key, generation))
        if raw is None:
            return None
        try:
            return COUNTERS.decode((session_key, generation), raw)
        except UndecodableError:
            return self.count(session_key, generation)

    def count(self, session_key: str, generation: int) -> Counter:
        """Count the rows of a session's generation, or its active rows: O(rows), and only damage asks for it."""
        if generation == ACTIVE:
            return count_rows(MESSAGES, self.view(MESSAGES.table).prefix((session_key,)))
        return count_rows(ARCHIVE, self.view(ARCHIVE.table).prefix((session_key, generation)))

    def _recount(self, key: tuple[str, int]) -> None:
        old = self.counter(*key)
        counter = self.count(*key)
        if old is not None and old.next_seq > counter.next_seq:
            counter = counter._replace(next_seq=old.next_seq)
        if not counter.row_count:
            counter = counter._replace(first_seq=counter.next_seq)
        self.put(COUNTERS, key, counter, old)


def _date(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s after 1970"


def _discard(view: TableView, key: Any) -> None:
    """Delete an entry if it is there; `pop` would look it up first, for 1.5 us."""
    try:
        del view[key]
    except KeyError:
        pass


def count_rows(rows: Rows[Any, Any], found: Iterable[tuple[Any, bytes]]) -> Counter:
    """The counter of these rows of MESSAGES or ARCHIVE, all of one session and generation, in order."""
    count = size = first_seq = next_seq = 0
    oldest_at = 0 if rows is MESSAGES else None
    for key, raw in found:
        seq = key[-1]
        if not count:
            first_seq = seq
        if oldest_at is None:
            with contextlib.suppress(UndecodableError):
                oldest_at = rows.decode(key, raw).stored_at
        count, size, next_seq = count + 1, size + len(raw), seq + 1
    return Counter(count, size, first_seq, next_seq, oldest_at or 0)
