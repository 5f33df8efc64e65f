"""What can be asked of a file that is only looked at: `inspect`, and the Inspection that it returns.

Everything is answered by another module of this package; here is the contract of each question.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from ..check import Progress, Report
from ..errors import CorruptError, FormatError
from ..file import File, InspectedFile
from ..format import valid_page_size
from .advice import older_with_rows, what_can_be_saved
from .census import Census
from .commit import NEWEST, OLDER, ShownCommit
from .page import PageDecoder
from .raw import RawFile
from .results import DecodedPage, Info, PageInfo, Step, TableSummary, when
from .tables import OnDamage, TableReader


def inspect(path: str | os.PathLike[str], *, page_size: int | None = None) -> Inspection:
    """Look into a file, damaged or not, without opening the database.

    path       the file; another process, or this one, may have it open
    page_size  bytes, where the header is known to be wrong; None: from the header, or guessed
    returns    an Inspection; use it as a context manager
    raises     OSError if the system cannot read the file; never for what is in it
    """
    if page_size is not None and not valid_page_size(page_size):
        raise ValueError(f"page_size has to be a power of two from 512 to 65536, not {page_size}")
    file = InspectedFile.open(os.fspath(path))
    try:
        return Inspection(file, page_size=page_size)
    except BaseException:
        file.close()
        raise


class Inspection:
    """A file that is being looked at. Made by `limpet.inspect`; use it as a context manager.

    It shows the commit that was newest when it was made, or when `refresh` was called last, or what
    `show` has asked for. Methods
    that follow references raise CorruptError where they cannot, and FormatError if the file is none
    of ours; `info`, `pages`, `page` and `check` never do. Threads: one at a time.
    """

    def __init__(self, file: File, *, page_size: int | None = None) -> None:
        """Not for users: `limpet.inspect`. Takes over `file`."""
        self._raw = RawFile(file, page_size)
        self._commit = ShownCommit(self._raw)
        self._tables = TableReader(self._raw, self._commit)
        self._decoder = PageDecoder(self._raw, self._commit, self._tables)
        self._census = Census(self._raw, self._commit, self._tables)

    def refresh(self) -> None:
        """Look at the metas again, and take the newest commit, or the one that `show` has asked for."""
        self._commit.refresh()

    def show(self, commit: str | int = NEWEST) -> None:
        """Show another commit that the file still has, with all rows that are left of it. `check` and `pages` want the
        newest.

        commit   "newest"; "older": the checkpoint before, which the other meta names, with what its log still says; or
                 the txid of a checkpoint or a log record
        raises   NoSuchCommitError if it is not there, and what is shown stays as it is; ValueError for another word
        """
        if commit not in (NEWEST, OLDER) and (isinstance(commit, bool) or not isinstance(commit, int)):
            raise ValueError(f"commit has to be 'newest', 'older' or a txid, not {commit!r}")
        self._commit.show(commit)

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<limpet.Inspection {self.filename!r}>"

    # -- at a glance -----------------------------------------------------------------------------

    @property
    def filename(self) -> str:
        """The path of the file, as it was given."""
        return self._raw.path

    @property
    def is_ours(self) -> bool:
        """Whether this is a Limpet file that this code can read, damaged or not."""
        return self._raw.is_ours

    @property
    def problem(self) -> FormatError | None:
        """What is wrong with the header; None if it is whole."""
        return self._raw.problem

    @property
    def commit_problem(self) -> CorruptError | None:
        """Why the database cannot be opened, header aside; None if it can."""
        return self._commit.problem

    @property
    def page_size(self) -> int | None:
        """Bytes a page; None if it is not known."""
        return self._raw.page_size

    @property
    def notes(self) -> list[str]:
        """What had to be guessed because the header is damaged, and from what."""
        return list(self._raw.notes)

    @property
    def txid(self) -> int | None:
        """The commit that is shown; None if there is none."""
        return self._commit.txid

    @property
    def page_count(self) -> int:
        """Pages in the file, a last one that is cut off included."""
        return self._raw.page_count

    def info(self) -> Info:
        """Header, metas, which commit is chosen and why, sizes, who had the file open last."""
        raw, commit = self._raw, self._commit
        choice = commit.choice
        meta = None if choice is None else choice.meta
        records = commit.records
        page_size = raw.page_size or 0
        file_size = raw.file.size()
        return Info(
            filename=raw.path,
            is_ours=raw.is_ours,
            problem=raw.header_problem(),
            commit_problem=None if commit.problem is None else str(commit.problem),
            notes=self.notes,
            reasons=[] if choice is None else choice.reasons,
            file_size=file_size,
            page_size=raw.page_size,
            header=raw.header,
            metas=[info for info, _ in commit.metas()],
            meta=meta,
            txid=commit.txid,
            record_count=len(records),
            log_size=0 if meta is None else meta.log_size * page_size,
            log_used=sum(record.pages for record in records) * page_size,
            committed=None if meta is None else when(records[-1].commit_us if records else meta.commit_us),
            closed_cleanly=commit.closed_cleanly,
            holder=raw.holder(),
            live_size=0 if meta is None else (meta.high_water - meta.free_count) * page_size,
            free_size=0 if meta is None else meta.free_count * page_size,
            spare_size=0 if meta is None else max(0, file_size - meta.high_water * page_size),
        )

    # -- pages -----------------------------------------------------------------------------------

    def check(self, *, quick: bool = False, progress: Progress | None = None) -> Report:
        """Verify the whole file: header, metas, every page of the newest commit and of the one before it.

        quick     leave out decoding keys and values
        progress  called now and then with (pages looked at, pages in all)
        returns   a report; damage is in it, never raised
        """
        return self._census.check(progress, quick=quick)

    def pages(self, *, progress: Progress | None = None) -> Iterator[PageInfo]:
        """One record a page, in the order of the file.

        progress  called while the trees are walked, before the first record comes
        """
        return self._census.pages(progress)

    def page(self, pgno: int) -> DecodedPage:
        """A page, decoded as far as it goes.

        raises   ValueError for a number below 0; FormatError if not even the page size is known
        """
        return self._decoder.decode(pgno)

    def advice(self, report: Report) -> list[str]:
        """What can be saved of a damaged file, and with which command: a sentence each, best first.

        report   what `check` has returned
        returns  nothing if there are no errors
        """
        return what_can_be_saved(self._raw, report)

    def older_with_rows(self) -> int | None:
        """The commit that `show("older")` would show; None if there is none, or no row of it can be read."""
        return older_with_rows(self._raw)

    # -- tables ----------------------------------------------------------------------------------

    def tables(self, *, on_damage: OnDamage | None = None) -> list[TableSummary]:
        """The tables, in the order of their names.

        on_damage  called for each page of the catalogue that cannot be read; the rest is listed. None:
                   CorruptError is raised
        raises     CorruptError; BusyError if a writer wrote over the commit again and again
        """
        return self._tables.tables(on_damage)

    def table(self, name: str) -> TableSummary:
        """One table. NoSuchTableError if there is none of that name."""
        return self._tables.table(name)

    def get(self, table: str, key: Any, default: Any = None) -> Any:
        """The value of a key, decoded by the codecs that the file records; `default` if it is not there.

        raises   NoSuchTableError, CorruptError; TypeError or ValueError for a key of the wrong type; BusyError as
                 for `tables`
        """
        return self._tables.get(table, key, default)

    def items(self, table: str, *, on_damage: OnDamage | None = None) -> Iterator[tuple[Any, Any]]:
        """The entries of a table in key order, decoded by the codecs that the file records.

        on_damage  called for each page, key or value that cannot be read; the rest goes on. None:
                   CorruptError is raised
        raises     NoSuchTableError, CorruptError; BusyError if a writer wrote over the commit meanwhile
        """
        return self._tables.items(table, on_damage)

    def path(self, table: str, key: Any) -> list[Step]:
        """The pages on which an entry depends: meta, catalogue, the table's tree from its root, overflow run or log.

        returns  the steps; the last one has a `problem` where the way is cut off, and an `index` of None
                 where the key is not in the table
        raises   as `get`
        """
        return self._tables.path(table, key)
