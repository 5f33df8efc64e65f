"""All pages of a file at once: the check, and a record of each page.

Both begin with the same walk of the trees (check.py), which tells for every page whether the commit
reaches it, and what is wrong with it. What the walk finds beside a writer may be gone the next
moment; so it is repeated, and only what was wrong each time counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..check import BAD, FREE, OLDER, REACHED, TAIL, UNKNOWN, Checker, Finding, Progress, Report
from ..errors import CorruptError
from ..format import (
    BRANCH,
    END_SIZE,
    FIRST_NODE_PGNO,
    FREE_SPACE,
    KNOWN_READ_ONLY,
    LEAF,
    LEAF_ARRAYS_AT,
    LEAF_OVERFLOW_COUNT,
    LOG,
    LOG_CHANGES_AT,
    META_PGNOS,
    OVERFLOW,
    PAGE_HEADER_SIZE,
    PAGE_KIND_NAMES,
    REF_SIZE,
    PageHeader,
    decode_page_header,
    page_capacity,
)
from ..head import judge_metas
from ..log import decode_changes
from .commit import TRIES, ShownCommit
from .raw import RawFile
from .results import PageInfo
from .tables import TableReader

_HEAD_KINDS = ("header", "meta", "meta", "holder")


class Census:
    """Verifies and lists all pages. `check` and `pages` raise nothing for what is in the file."""

    def __init__(self, raw: RawFile, commit: ShownCommit, tables: TableReader) -> None:
        self._raw = raw
        self._commit = commit
        self._tables = tables

    # -- the check -------------------------------------------------------------------------------

    def check(self, progress: Progress | None, *, quick: bool) -> Report:
        """Verify the whole file; `Inspection.check` says more."""
        checker, has_moved = self._walk(progress, quick=quick)
        report = Report() if checker is None else checker.report
        problem = self._commit.problem
        if checker is None and problem is not None:
            report.errors.append(Finding("meta", problem.message, pgno=META_PGNOS[0]))
        if has_moved:
            report.warnings = [
                Finding(
                    "changed",
                    "a writer is at work and wrote over pages while they were checked; what was found only once is "
                    "left out. For a check that is complete, stop the writer or check a backup",
                )
            ]
        choice = self._commit.choice
        if choice is not None:
            judge_metas(self._raw.pager, choice).add_to(report)
        header = self._raw.header
        if header is not None and header.features_read_only & ~KNOWN_READ_ONLY:
            what = "the file uses features that this code does not have; it can be read, and is not written"
            features = f"{header.features_read_only:#x}"
            report.warnings.append(Finding("header", what, pgno=0, offset=0, found=features))
        header_problem = self._raw.header_problem()
        if header_problem is not None:
            report.errors.insert(0, Finding("header", header_problem, pgno=0, offset=0))
        return report

    def _walk(self, progress: Progress | None, *, quick: bool) -> tuple[Checker | None, bool]:
        """A checker that has run, None if there is no commit; whether the file changed meanwhile, and it shows."""
        checker: Checker | None = None
        seen: set[tuple[str, int | None, str | None]] | None = None  # errors of every try so far
        for attempt in range(TRIES):
            if attempt:
                self._commit.refresh()
            choice = self._commit.choice
            if choice is None or choice.meta is None:
                break
            older = choice.older
            if older is not None and older.txid == choice.meta.txid:
                older = None  # the second copy of the same
            checker = Checker(self._raw.pager, choice.meta, older, progress, log=choice.log, quick=quick)
            checker.run()
            report = checker.report
            if (report.ok and not report.warnings) or not self._commit.has_moved(older=True):
                return checker, False
            found = {(error.kind, error.pgno, error.table) for error in report.errors}
            seen = found if seen is None else seen & found
        if checker is None or seen is None:
            return None, False
        errors = [error for error in checker.report.errors if (error.kind, error.pgno, error.table) in seen]
        damaged = {error.table for error in errors if error.pgno is not None}
        checker.report.errors = [error for error in errors if error.kind != "lost" or error.table in damaged]
        return checker, True

    # -- the pages -------------------------------------------------------------------------------

    def pages(self, progress: Progress | None) -> Iterator[PageInfo]:
        """One record a page; `Inspection.pages` says more."""
        if self._raw.page_size is None:
            return
        checker, _ = self._walk(progress, quick=True)
        log = _LogPages(self._raw, self._commit)  # before a look at the tables, which may refresh
        names = {} if checker is None else dict(checker.table_names)
        names |= {tree_id: table.name for tree_id, table in self._tables.by_id().items()}
        nodes = _NodePages(self._raw, checker, names)
        for pgno in range(self._raw.page_count):
            if pgno < FIRST_NODE_PGNO:
                yield self._head(pgno)
            elif pgno in log.pgnos:
                yield log.info(pgno, nodes.problems.get(pgno))
            else:
                yield nodes.info(pgno)

    def _head(self, pgno: int) -> PageInfo:
        problem = txid = None
        if pgno == 0:
            problem = self._raw.header_problem()
        for info, _ in self._commit.metas():
            if info.pgno == pgno:
                problem = info.problem
                txid = None if info.meta is None else info.meta.txid
        return PageInfo(pgno, _HEAD_KINDS[pgno], "damaged" if problem else "head", txid=txid, problem=problem)


class _LogPages:
    """The pages of the log: what is in them belongs to no tree, and what is not in a record counts for nothing."""

    def __init__(self, raw: RawFile, commit: ShownCommit) -> None:
        self.pgnos, self._records = commit.log_pages()
        self._raw = raw

    def info(self, pgno: int, problem: str | None) -> PageInfo:
        """One page. problem: what the walk found."""
        record = self._records.get(pgno)
        if record is None:
            return PageInfo(pgno, "log", "damaged" if problem else "idle", problem=problem)
        count = fill = None
        if pgno == self.pgnos.start + record.at:
            try:
                count = sum(len(group.changes) for group in decode_changes(record.changes, pgno))
            except CorruptError as error:
                problem = problem or error.message
            fill = round((LOG_CHANGES_AT + len(record.changes)) / (record.pages * self._raw.pager.page_size), 3)
        state = "damaged" if problem else "reached"
        return PageInfo(pgno, "log", state, entries=count, fill=fill, txid=record.txid, problem=problem)


class _NodePages:
    """The pages that are neither of the head nor of the log. `info` has to be called in their order.

    problems  page -> what the walk found
    """

    def __init__(self, raw: RawFile, checker: Checker | None, names: dict[int, str]) -> None:
        self._raw = raw
        self._checker = checker
        self._names = names  # tree id -> table
        self._run: PageInfo | None = None  # the overflow run that the page before belongs to
        self.problems: dict[int, str] = {}
        if checker is not None:
            for finding in (*checker.report.errors, *checker.report.warnings):
                if finding.pgno is not None and finding.kind != "leak":
                    self.problems.setdefault(finding.pgno, finding.message)

    def info(self, pgno: int) -> PageInfo:
        """One page."""
        checker = self._checker
        mark = checker.marks[pgno] if checker is not None and pgno < len(checker.marks) else 0
        state = "unknown" if checker is None else _state(checker, pgno, mark)
        problem = self.problems.get(pgno)
        run = self._run
        if run is not None and mark & TAIL:
            return PageInfo(pgno, "overflow", state, run.table, run.tree_id, txid=run.txid, problem=problem)
        info = self._page(pgno, state, problem, mark)
        self._run = info if info.kind == "overflow" else None
        return info

    def _page(self, pgno: int, state: str, problem: str | None, mark: int) -> PageInfo:
        """A page that has a header of its own, if it has one."""
        page = self._raw.read(pgno)
        if len(page) < PAGE_HEADER_SIZE:
            problem = problem or "the file ends inside or before the page"
            return PageInfo(pgno, None, "damaged" if mark & (REACHED | BAD) else state, problem=problem)
        header = decode_page_header(page)
        if header.kind not in PAGE_KIND_NAMES or header.pgno != pgno:
            if state == "unknown" and any(page) and not mark:
                problem = "not a page, or a later page of an overflow run"
            return PageInfo(pgno, None, state, problem=problem)
        entries = fill = None
        if state not in ("free", "spare"):
            if self._is_whole(pgno, header, page):
                entries, fill = _content(page, header)
            elif state in ("unknown", "leaked"):
                state, problem = "damaged", "the checksum of the page does not match"
        kind = PAGE_KIND_NAMES[header.kind]
        if header.kind == LOG:  # left over from an earlier log
            return PageInfo(pgno, kind, state, txid=header.txid, problem=problem)
        table = self._names.get(header.tree_id)
        return PageInfo(pgno, kind, state, table, header.tree_id, header.level, entries, fill, header.txid, problem)

    def _is_whole(self, pgno: int, header: PageHeader, page: bytes) -> bool:
        """Whether a page can be believed. Of an overflow run the walk has told; its end is not looked for here."""
        if header.kind == OVERFLOW:
            return True
        if not self._raw.is_verifiable:
            return len(page) == self._raw.page_size
        return self._raw.run_length(pgno, header, page) is not None


def _state(checker: Checker, pgno: int, mark: int) -> str:
    if mark & BAD:
        return "damaged"
    if pgno >= checker.report.page_count:
        return "spare"
    if mark & REACHED:
        return "reached"
    if mark & FREE:
        return "pending" if mark & OLDER else "free"
    return "leaked" if checker.is_complete and not mark & UNKNOWN else "unknown"


def _content(page: bytes, header: PageHeader) -> tuple[int | None, float | None]:
    """(entries, fill) of a page that is whole, as far as can be told."""
    count = header.count
    if header.kind == FREE_SPACE:
        free_count = int.from_bytes(page[PAGE_HEADER_SIZE:], "little").bit_count()
        return (count if header.level else free_count), None
    if header.kind == LEAF:
        overflow_count: int = LEAF_OVERFLOW_COUNT.unpack_from(page, PAGE_HEADER_SIZE)[0]
        last = LEAF_ARRAYS_AT + END_SIZE * (2 * count - 1)
        used = LEAF_ARRAYS_AT + END_SIZE * (2 * count + overflow_count)
    elif header.kind == BRANCH:
        last = PAGE_HEADER_SIZE + END_SIZE * (count - 2)
        used = PAGE_HEADER_SIZE + END_SIZE * (count - 1) + REF_SIZE * count
    else:
        return None, None
    if count > (1 if header.kind == BRANCH else 0):
        used = max(used, int.from_bytes(page[last : last + END_SIZE], "little"))
    return count, round(min(1.0, used / page_capacity(len(page))), 3)
