"""The store: one file, opened once, and every family on it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Any, Self

import limpet

from . import check, migrations, retention, transfer
from .check import CheckReport
from .errors import SchemaError, StoreError
from .families import Families
from .family import Direct
from .tier import MemoryTier
from .transaction import Transaction
from .transfer import ImportReport
from .work import DAY_S, Context, Work

logger = logging.getLogger("limpet_store")

LINES_PER_COMMIT = 1000  # of an import: large enough to share a sync, small enough not to fill the cache


class Store(Families[Direct]):
    """The named tables of an agent gateway in one file.

    Every method of a family is a transaction of its own when it is called here (`store.messages.append(...)`), and part
    of a larger one when it is called on what `write()` or `read()` gives. Any thread may call any method; writers wait
    for each other, readers wait for nobody. What a method returns belongs to the caller and stays valid.

    sessions, messages, archive, pairing, kv, aliases, tasks, jobs, idempotency, permissions, cron: the families
    """

    def __init__(self, database: limpet.Database, context: Context, tier: MemoryTier) -> None:
        """Use `Store.open`."""
        super().__init__(self)
        self._database = database
        self._context = context
        self.tier = tier
        # Called where a thread may have to wait for another one's transaction; raises where that would be for ever.
        self.before_waiting: Callable[[], None] | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tier: MemoryTier | None = None,
        lock_timeout: float = 10.0,
        durability: str = "sync",
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        import_from: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open a store, and create the file and every table when they are not there.

        The lock comes first: a gateway that is shutting down is waited for, and only then is the format looked at. An
        older file is upgraded (the original is kept beside it), older tables are brought up to date.

        path          the file; ":memory:" for a store without one
        tier          how much memory the cache gets; the machine's own by default
        lock_timeout  seconds to wait while another process holds the file
        durability    of every commit that does not ask for another: "sync", "os" or "none", as in limpet.open
        clock         gives Unix seconds; everything the store does with time asks it
        read_only     nothing is created, upgraded or written
        import_from   the reference gateway's redb file, to take over when `path` does not exist yet: all of it or
                      nothing, once and never again; it stays as it is (redb/importer.py: what becomes of its rows)
        returns       the store; close it, or use it in a `with` statement
        raises        limpet.LockedError, limpet.FormatError, limpet.CorruptError, SchemaError, OSError
        """
        if tier is None:
            tier = MemoryTier.detect()
        if import_from is not None and not read_only:
            from .redb.creation import move_in

            # The import writes once and reads nothing twice: a larger cache would only cost memory.
            first = functools.partial(cls.open, tier=MemoryTier.LOW, durability="os", clock=clock)
            move_in(import_from, path, first, lock_timeout=lock_timeout)
        options: dict[str, Any] = {
            "create": not read_only,
            "read_only": read_only,
            "cache_size": tier.cache_size,
            "durability": durability,
            "lock_timeout": lock_timeout,
        }
        try:
            database = limpet.open(path, **options)
        except limpet.UpgradeRequiredError:
            if read_only:
                raise
            logger.info("%s has an older format; upgrading it", os.fspath(path))
            limpet.upgrade(path, lock_timeout=lock_timeout)
            database = limpet.open(path, **options)
        try:
            store = cls(database, Context(clock), tier)
            store._prepare(os.fspath(path), read_only=read_only)
        except BaseException:
            database.close()
            raise
        logger.info(
            "opened %s: memory tier %s (%d MiB of cache), format %d%s",
            os.fspath(path),
            tier.value,
            tier.cache_size // (1024 * 1024),
            database.format_version,
            ", read-only" if read_only else "",
        )
        return store

    def _prepare(self, path: str, *, read_only: bool) -> None:
        with self.reading() as work:
            current = migrations.is_current(work)
            if not current and read_only:
                migrations.check_readable(work, path)
        if not current and not read_only:
            with self.writing() as work:
                migrations.prepare(work, path)
        with self.reading() as work:
            newest = retention.newest_time(work)
            self._context.newest = work.now() if newest is None else newest

    @property
    def database(self) -> limpet.Database:
        """The engine's database under the store. Writing the store's own tables through it can break their indexes."""
        return self._database

    def close(self) -> None:
        """Close the file and let go of its lock; calling it again does nothing."""
        if self.before_waiting is not None:
            self.before_waiting()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self._database.path!r}, {self.tier.value}>"

    # --- transactions ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self, *, durability: str | None = None, timeout: float | None = None) -> Iterator[Transaction]:
        """One commit for several steps: `with store.write() as tx: tx.messages.append(...)`.

        Committed when the block ends, unless nothing has changed; aborted when it raises.

        durability  of this commit; the store's by default
        timeout     seconds to wait for another writer; None for as long as it takes
        raises      limpet.BusyError after the timeout, limpet.ReadOnlyError, and what the commit raises
        """
        with self.writing(durability=durability, timeout=timeout) as work:
            yield Transaction(work)

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """One snapshot for several reads: `with store.read() as tx: ...`. Methods that write raise ReadOnlyError."""
        with self.reading() as work:
            yield Transaction(work)

    def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Run a family's method in a transaction of its own. For the families; see `family.Scope`."""
        if writes:
            with self.writing() as work:
                return work.write(type(family)(work), body, args, kwargs)
        with self._database.read() as engine:
            return body(type(family)(Work(engine, self._context, writable=False)), *args, **kwargs)

    @contextlib.contextmanager
    def writing(self, *, durability: str | None = None, timeout: float | None = None) -> Iterator[Work]:
        """A write transaction without the families on it; if nothing has changed, there is no commit.

        Even so, what was seen in it is told to nobody before it is durable: the engine waits for what it began on.
        """
        if self.before_waiting is not None:
            self.before_waiting()
        engine = self._database.write(durability=durability, timeout=timeout)
        work = Work(engine, self._context, writable=True)
        try:
            yield work
            engine.commit()
        except BaseException:
            with contextlib.suppress(limpet.ClosedError):  # a commit that failed has ended it already
                engine.abort()
            work.undo()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Work]:
        """A read transaction without the families on it."""
        with self._database.read() as engine:
            yield Work(engine, self._context, writable=False)

    # --- care --------------------------------------------------------------------------------------------------------

    def check(self) -> CheckReport:
        """Verify everything: the file's pages, then every index and counter against the rows.

        returns  a report with `.ok`, `.errors` and `.warnings` (rows in quarantine are a warning); damage is in the
                 report, not raised
        cost     reads and decodes everything, on one snapshot; writers go on meanwhile
        """
        pages = self._database.check()
        errors = [str(error) for error in pages.errors]
        warnings = [str(warning) for warning in pages.warnings]
        try:
            with self.reading() as work:
                tables = check.check_tables(work)
            errors += tables.errors
            warnings += tables.warnings
        except limpet.CorruptError as error:
            if str(error) not in errors:
                errors.append(str(error))
        return CheckReport(errors, warnings)

    def retention(
        self,
        *,
        sessions_s: int | None = None,
        archive_s: int | None = None,
        idempotency_s: int | None = DAY_S,
        jobs_s: int | None = DAY_S,
        limit: int = 1000,
        dry_run: bool = False,
        force: bool = False,
    ) -> dict[str, int]:
        """Delete what is older than so many seconds, a small step at a time; None keeps a family for ever.

        sessions_s     sessions without a message for so long, with their active messages; pinned ones stay, and so does
                       the archive
        archive_s      archived messages that came so long ago
        idempotency_s  keys that were marked so long ago
        jobs_s         jobs that are over and were submitted so long ago
        limit          at most so many rows in this call, 1 or more; a session counts as one, but a step also ends when
                       it has deleted ten times as many messages; on a full disk steps are smaller
        dry_run        count the rows that this call would delete, and write nothing; with a large limit, all of them
        force          believe the clock. Otherwise one that is more than 366 days ahead of every time that the store
                       had recorded when it was opened, and of what the clock has said since, deletes nothing
        returns        how many of each family; call again while they add up to the limit
        raises         ClockError, which says both times; ValueError
        cost           what it deletes, in one commit; nothing at all when nothing is old enough; with `dry_run` one
                       pass over what is old enough, on one snapshot
        """
        while True:
            try:
                with self.reading() if dry_run else self.writing() as work:
                    return retention.apply(
                        work,
                        sessions_s=sessions_s,
                        archive_s=archive_s,
                        idempotency_s=idempotency_s,
                        jobs_s=jobs_s,
                        limit=limit,
                        dry_run=dry_run,
                        force=force,
                    )
            except OSError as error:
                limit = retention.smaller_step(limit, error)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, as it is now, to a new file, while others go on reading and writing; as limpet's backup."""
        self._database.backup(path)

    def export_jsonl(self, stream: IO[str] | IO[bytes]) -> int:
        """Write everything, archive included, as JSON lines; see transfer.py for what a line looks like.

        stream   a text stream, or a binary one, which gets UTF-8
        returns  how many lines; the same content gives the same bytes
        cost     one pass over everything, on one snapshot
        """
        write = _writer(stream)
        count = 0
        with self.reading() as work:
            for line in transfer.export_lines(work):
                write(line + "\n")
                count += 1
        return count

    def import_jsonl(self, stream: Iterable[str] | Iterable[bytes]) -> ImportReport:
        """Add what `export_jsonl` wrote; importing it again changes nothing.

        stream   a stream or any iterable of lines, as text or as UTF-8; a byte order mark is skipped
        returns  a report: lines, changed, and the errors of the lines that were left out, with their numbers
        raises   SchemaError when a newer release wrote the lines and UndecodableError when they are UTF-16 or UTF-32,
                 both at the first line, with nothing imported; TypeError for a path or a text; what a commit raises;
                 what the stream raises, with the lines before that imported. Broken lines are in the report
        cost     one commit for every 1000 lines
        """
        if isinstance(stream, str | bytes | os.PathLike):  # the letters of a path would be taken for lines
            raise TypeError(f"lines are needed, not {type(stream).__name__}: give an open file, or text.splitlines()")
        report = ImportReport()
        numbered = enumerate(stream, 1)
        more = True
        while more:
            batch: list[tuple[int, Any]] = []
            try:
                batch.extend(itertools.islice(numbered, LINES_PER_COMMIT))
                more = len(batch) == LINES_PER_COMMIT
            finally:
                if batch:
                    self._import(batch, report)
        return report

    def _import(self, batch: list[tuple[int, Any]], report: ImportReport) -> None:
        with self.writing() as work, work.setting_aside():
            for number, line in batch:
                line = transfer.as_json(line, first=number == 1)
                if not line.strip():
                    continue
                report.lines += 1
                try:
                    with work.savepoint():
                        report.changed += transfer.import_line(work, line)
                except SchemaError as error:
                    raise SchemaError(f"line {number}: {error}", found=error.found, supported=error.supported) from None
                except (ValueError, TypeError, StoreError) as error:
                    report.errors.append((number, str(error)))


def _writer(stream: Any) -> Callable[[str], object]:
    """How to write text to a stream of either kind: only a text stream accepts an empty text."""
    try:
        stream.write("")
    except TypeError:
        return lambda text: stream.write(text.encode())
    write: Callable[[str], object] = stream.write
    return write
