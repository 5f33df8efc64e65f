"""Looking into a file without opening the database: for tools, on damaged files, beside a live writer.

Everything is read with `pread`, nothing is locked, mapped or written, no permission to write is
needed. What the file says of itself is decoded as far as it goes, and where it does not go, the
reason is kept instead of raised:

    header destroyed       the page size is guessed from the pages' own numbers. The seed of the
                           checksums, which is lost with the header, is computed from pages that
                           are still whole: a CRC is affine in its seed, so one page gives a
                           candidate, and all others confirm it or not
    both metas destroyed   pages can still be looked at one by one
    a page destroyed       the rest of its tree is read all the same, where the caller wants that

Beside a live writer. The commit that was chosen stays whole in the file for as long as one of the
metas names it. When the writer has gone on for two commits, pages of it may be overwritten while
we read. A bad page is therefore believed only if the metas are still the same; else everything is
tried again on the newest commit, a few times.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import time
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from . import btree
from .check import (
    BAD,
    FREE,
    OLDER,
    REACHED,
    TAIL,
    UNKNOWN,
    Checker,
    Finding,
    Progress,
    RecordedCodecs,
    Report,
    recorded_codecs,
    shown_range,
)
from .checksum import KIND_NAMES, ChecksumFunction, checksum_function
from .codecs import describe
from .errors import BusyError, ClosedError, CorruptError, FormatError, NoSuchTableError
from .file import File, InspectedFile
from .format import (
    BRANCH,
    CATALOGUE_TREE,
    CHECKSUM,
    END_SIZE,
    FIRST_NODE_PGNO,
    FORMAT_VERSION,
    FREE_SPACE,
    HEADER,
    HEADER_FIELDS,
    HEADER_SIZE,
    HOLDER_PGNO,
    KNOWN_READ_ONLY,
    LEAF,
    LEAF_ARRAYS_AT,
    LEAF_OVERFLOW_COUNT,
    LOG,
    LOG_CHANGES_AT,
    LOG_RECORD,
    LOG_RECORD_FIELDS,
    MAGIC,
    META,
    META_FIELDS,
    META_PGNOS,
    META_SIZE,
    MIN_PAGE_SIZE,
    OVERFLOW,
    PAGE_HEADER_SIZE,
    PAGE_KIND_NAMES,
    REF_SIZE,
    CatalogueEntry,
    Header,
    Meta,
    PageHeader,
    Pgno,
    Ref,
    decode_catalogue_entry,
    decode_header,
    decode_page_header,
    page_capacity,
    page_checksum,
    ref_checksum,
    ref_pgno,
    stamp_nonce,
    stamp_txid,
    valid_page_size,
)
from .log import Record, decode_changes, decode_record
from .node import Branch, Overflow, decode_node
from .pager import Pager
from .recovery import Choice, read_metas, recover

_TRIES = 3  # at a file that changes while it is read
_SAMPLE_SIZE = 32 << 20  # bytes at the head of a file in which the page size is looked for
_SAMPLE_PAGES = 64  # pages from which the seed of the checksums is computed
_LONGEST_RUN = 64 << 20  # bytes in which the end of an overflow run is looked for
_CHUNK = 1 << 20  # bytes read at once
_HEAD_KINDS = ("header", "meta", "meta", "holder")


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


# -- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetaInfo:
    """One of the two metas.

    meta     the checkpoint it names, or None
    problem  why it cannot be used
    empty    whether it was never written, as in a new file
    chosen   whether the database would begin with this one
    """

    pgno: int
    meta: Meta | None
    problem: str | None
    empty: bool
    chosen: bool

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        found: dict[str, object] = {
            "pgno": self.pgno,
            "chosen": self.chosen,
            "empty": self.empty,
            "problem": self.problem,
        }
        meta = self.meta
        if meta is not None:
            found |= {
                "txid": meta.txid,
                "nonce": meta.nonce,
                "clean": meta.clean,
                "catalogue_root": ref_pgno(meta.catalogue_root) or None,
                "free_space_root": ref_pgno(meta.free_space_root) or None,
                "high_water": meta.high_water,
                "free_count": meta.free_count,
                "table_count": meta.table_count,
                "next_tree_id": meta.next_tree_id,
                "log_start": meta.log_start or None,
                "log_size": meta.log_size,
                "committed": when(meta.commit_us),
            }
        return found


@dataclass(frozen=True, slots=True)
class Info:
    """A file at a glance. Sizes are in bytes.

    is_ours      whether it is a Limpet file that this code can read, damaged or not
    problem      what is wrong with the header
    commit_problem  why the database cannot be opened, header aside
    notes        what had to be guessed, and from what
    reasons      which commit is chosen, and why
    txid         the newest commit, what the log says included
    record_count  log records on top of the chosen checkpoint; log_used: bytes they take, of log_size
    committed    when the newest commit was made
    closed_cleanly  else it is in use, or its process was killed
    holder       what the process that opened it last for writing wrote about itself; advisory
    live_size    pages in use by the chosen commit, and the head of the file
    free_size    pages of the file that are free
    spare_size   bytes behind the last page that was ever used
    """

    filename: str
    is_ours: bool
    problem: str | None
    commit_problem: str | None
    notes: list[str]
    reasons: list[str]
    file_size: int
    page_size: int | None
    header: Header | None
    metas: list[MetaInfo]
    meta: Meta | None
    txid: int | None
    record_count: int
    log_size: int
    log_used: int
    committed: str | None
    closed_cleanly: bool
    holder: dict[str, Any] | None
    live_size: int
    free_size: int
    spare_size: int

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        header = self.header
        return {
            "filename": self.filename,
            "is_ours": self.is_ours,
            "problem": self.problem,
            "commit_problem": self.commit_problem,
            "notes": self.notes,
            "reasons": self.reasons,
            "file_size": self.file_size,
            "page_size": self.page_size,
            "header": None
            if header is None
            else {
                "format_version": header.format_version,
                "page_size": header.page_size,
                "checksum_kind": KIND_NAMES[header.checksum_kind],
                "features_incompatible": header.features_incompatible,
                "features_read_only": header.features_read_only,
                "file_id": header.file_id.hex(),
                "created": when(header.created_us),
            },
            "metas": [meta.as_dict() for meta in self.metas],
            "txid": self.txid,
            "checkpoint_txid": None if self.meta is None else self.meta.txid,
            "record_count": self.record_count,
            "log_size": self.log_size,
            "log_used": self.log_used,
            "committed": self.committed,
            "high_water": None if self.meta is None else self.meta.high_water,
            "closed_cleanly": self.closed_cleanly,
            "holder": self.holder,
            "live_size": self.live_size,
            "free_size": self.free_size,
            "spare_size": self.spare_size,
        }


@dataclass(frozen=True, slots=True)
class TableSummary:
    """One table. entry_count: with what the log says; problem: why its entries cannot be decoded."""

    name: str
    key: str
    value: str
    entry_count: int
    tree_id: int
    root: int | None
    problem: str | None
    entry: CatalogueEntry = field(repr=False)
    codecs: RecordedCodecs | None = field(repr=False)

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        names = ("name", "key", "value", "entry_count", "tree_id", "root", "problem")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class PageInfo:
    """One page.

    kind     header, meta, holder, leaf, branch, overflow, free-space, log; None where it is none of these
    state    head      pages 0 to 3
             reached   in use by the newest commit
             idle      a place in the log that nothing of the newest commit is in
             free      may be written over
             pending   free, and needed by the commit before
             leaked    neither in use nor free
             damaged   what was read is wrong; `problem` says what
             spare     behind the last page that was ever used
             unknown   nothing to tell by: there is no commit, or what might lead to the page is damaged
    entries  leaf: entries; branch: children; free-space: free pages, or children; log: changes
    fill     share of the page that holds something, 0 to 1
    """

    pgno: int
    kind: str | None
    state: str
    table: str | None = None
    tree_id: int | None = None
    level: int | None = None
    entries: int | None = None
    fill: float | None = None
    txid: int | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        names = ("pgno", "kind", "state", "table", "tree_id", "level", "entries", "fill", "txid", "problem")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class DecodedPage:
    """A page, decoded as far as it goes.

    fields   the fields of its header, by name
    entries  leaf: keys and values; branch: separators and children; free-space: the free ranges, or children;
             log: the changes
    problem  what is wrong with it
    data     its bytes
    """

    pgno: int
    offset: int
    kind: str | None
    table: str | None
    problem: str | None
    fields: dict[str, Any]
    entries: list[dict[str, Any]]
    data: bytes = field(repr=False)

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        names = ("pgno", "offset", "kind", "table", "problem", "fields", "entries")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Step:
    """One page on the way from a meta to an entry.

    kind     meta, branch, leaf, overflow; log: the record with the newest value, or the newest delete
    tree     catalogue, or the table's name in quotes; meta at the first step
    index    of the child or entry that is taken; None if the key is not there
    keys     what belongs below the page
    problem  why the way ends here
    """

    pgno: int
    kind: str
    tree: str
    level: int | None = None
    count: int | None = None
    index: int | None = None
    keys: str | None = None
    txid: int | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        names = ("pgno", "kind", "tree", "level", "count", "index", "keys", "txid", "problem")
        return {name: getattr(self, name) for name in names}


OnDamage = Callable[[CorruptError], None]


# -- the inspection ------------------------------------------------------------------------------


class Inspection:
    """A file that is being looked at. Made by `limpet.inspect`; use it as a context manager.

    It shows the commit that was newest when it was made, or when `refresh` was called last. Methods
    that follow references raise CorruptError where they cannot, and FormatError if the file is none
    of ours; `info`, `pages`, `page` and `check` never do. Threads: one at a time.
    """

    def __init__(self, file: File, *, page_size: int | None = None) -> None:
        """Not for users: `limpet.inspect`. Takes over `file`."""
        self._file = file
        self._asked_page_size = page_size
        self._closed = False
        self._header: Header | None = None
        self._problem: FormatError | None = None
        self._notes: list[str] = []
        self._pager: Pager | None = None
        self._choice: Choice | None = None
        self._changes: dict[int, dict[bytes, tuple[bytes | None, int]]] = {}  # tree -> key -> (value, page of record)
        self._is_ours = True
        self._is_verifiable = True  # whether checksums can be computed
        self._tables: dict[int, TableSummary] | None = None
        self._read_header()
        self.refresh()

    # -- opening ---------------------------------------------------------------------------------

    def _read_header(self) -> None:
        data = self._file.read(0, HEADER_SIZE)
        seed: int | None = None
        header: Header | None = None
        has_magic = data[: len(MAGIC)] == MAGIC
        try:
            self._header = header = decode_header(data, self._file.path)
        except FormatError as error:
            self._problem = error
            if _is_another_version(data):
                self._is_ours = False
                return
        if header is None:
            page_size = self._asked_page_size or _guess_page_size(self._file)
            if page_size is None:
                self._is_ours = has_magic
                self._is_verifiable = False
                return
            how = "as asked for" if self._asked_page_size else "guessed, from where pages are by their own number"
            self._notes.append(f"page size {page_size}: {how}")
            kind, seed, votes = _recover_seed(self._file, page_size)
            if seed is None:
                self._is_ours = has_magic or self._asked_page_size is not None
                self._is_verifiable = False
                if not self._is_ours:
                    self._notes.clear()
                    return
                self._notes.append("checksums cannot be verified: what they are seeded with was in the header")
            else:
                self._notes.append(
                    f"checksums: {KIND_NAMES[kind]}, the seed computed from pages that are whole ({votes} agree)"
                )
            header = Header(page_size, kind, bytes(16), 0)
        elif self._asked_page_size and self._asked_page_size != header.page_size:
            self._notes.append(f"page size {self._asked_page_size}: as asked for; the header says {header.page_size}")
            header = Header(self._asked_page_size, header.checksum_kind, header.file_id, header.created_us)
        self._pager = Pager(self._file, header, 0)
        if seed is not None:
            self._pager.seed = seed

    def refresh(self) -> None:
        """Look at the metas again, and take the newest commit."""
        if self._pager is None or not self._is_verifiable:
            return
        pager = self._pager
        for _ in range(_TRIES):
            self._tables = None
            self._choice = recover(pager)
            if any(isinstance(meta, CorruptError) for meta in self._choice.found):
                self._choice = recover(pager)  # it may have been in the middle of being written
            self._changes = self._logged()
            if self._choice.problem is None or not self._has_moved():
                return

    def _logged(self) -> dict[int, dict[bytes, tuple[bytes | None, int]]]:
        """The newest change in the log of each key; a record that does not decode is left out."""
        changes: dict[int, dict[bytes, tuple[bytes | None, int]]] = {}
        choice = self._choice
        if choice is None or choice.meta is None or choice.log is None:
            return changes
        for record in choice.log.records:
            pgno = choice.meta.log_start + record.at
            try:
                for group in decode_changes(record.changes, pgno):
                    found = changes.setdefault(group.tree_id, {})
                    found.update((key, (value, pgno)) for key, value in group.changes)
            except CorruptError:
                continue
        return changes

    def _has_moved(self, *, older: bool = False) -> bool:
        """Whether the chosen commit, or the older one too, may have been written over since."""
        if self._pager is None or self._choice is None:
            return False
        now = {(meta.txid, meta.nonce) for meta in read_metas(self._pager) if isinstance(meta, Meta)}
        meta = self._choice.meta
        if meta is None:
            return now != {(meta.txid, meta.nonce) for meta in self._choice.found if isinstance(meta, Meta)}
        if older and self._choice.older is not None:
            before = self._choice.older
            if (before.txid, before.nonce) not in now:
                return True
        return (meta.txid, meta.nonce) not in now

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._closed = True
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<limpet.Inspection {self._file.path!r}>"

    # -- at a glance -----------------------------------------------------------------------------

    @property
    def filename(self) -> str:
        """The path of the file, as it was given."""
        return self._file.path

    @property
    def is_ours(self) -> bool:
        """Whether this is a Limpet file that this code can read, damaged or not."""
        return self._is_ours

    @property
    def problem(self) -> FormatError | None:
        """What is wrong with the header; None if it is whole."""
        return self._problem

    @property
    def commit_problem(self) -> CorruptError | None:
        """Why the database cannot be opened, header aside; None if it can."""
        return None if self._choice is None else self._choice.problem

    @property
    def page_size(self) -> int | None:
        """Bytes a page; None if it is not known."""
        return None if self._pager is None else self._pager.page_size

    @property
    def notes(self) -> list[str]:
        """What had to be guessed because the header is damaged, and from what."""
        return list(self._notes)

    @property
    def txid(self) -> int | None:
        """The commit that is shown; None if there is none."""
        choice = self._choice
        if choice is None or choice.meta is None:
            return None
        return choice.meta.txid if choice.log is None else choice.log.last_txid

    @property
    def page_count(self) -> int:
        """Pages in the file, a last one that is cut off included."""
        return 0 if self._pager is None else -(-self._file.size() // self._pager.page_size)

    def info(self) -> Info:
        """Header, metas, which commit is chosen and why, sizes, who had the file open last."""
        choice = self._choice
        meta = None if choice is None else choice.meta
        page_size = self.page_size
        file_size = self._file.size()
        live = free = spare = 0
        if meta is not None and page_size is not None:
            live = (meta.high_water - meta.free_count) * page_size
            free = meta.free_count * page_size
            spare = max(0, file_size - meta.high_water * page_size)
        problem = None if choice is None or choice.problem is None else str(choice.problem)
        records = [] if choice is None or choice.log is None else choice.log.records
        committed = None if meta is None else when(records[-1].commit_us if records else meta.commit_us)
        return Info(
            filename=self.filename,
            is_ours=self._is_ours,
            problem=self._header_problem(),
            commit_problem=problem,
            notes=self.notes,
            reasons=[] if choice is None else choice.reasons,
            file_size=file_size,
            page_size=page_size,
            header=self._header,
            metas=self._meta_infos(),
            meta=meta,
            txid=self.txid,
            record_count=len(records),
            log_size=0 if meta is None else meta.log_size * (page_size or 0),
            log_used=sum(record.pages for record in records) * (page_size or 0),
            committed=committed,
            closed_cleanly=choice is not None and (choice.clean or _is_untouched(choice)),
            holder=self._holder(),
            live_size=live,
            free_size=free,
            spare_size=spare,
        )

    def _header_problem(self) -> str | None:
        """What is wrong with the header, for people."""
        if self._problem is None:
            return None
        text = str(self._problem).removeprefix(f"{self.filename}: ")
        if not self._is_ours or self._pager is None:
            return text
        if self._file.read(0, len(MAGIC)) != MAGIC:
            text = "the header is destroyed"
        return f"{text}. The database cannot be opened, but its pages can be read: `limpet dump` saves them"

    def _meta_infos(self) -> list[MetaInfo]:
        choice = self._choice
        if choice is None or self._pager is None:
            return []
        infos = []
        for slot, pgno in enumerate(META_PGNOS):
            found = choice.found[slot]
            data = self._file.read(pgno * self._pager.page_size, META_SIZE)
            empty = len(data) == META_SIZE and not any(data)
            chosen = choice.slot == slot
            if isinstance(found, Meta):
                infos.append(MetaInfo(pgno, found, None, False, chosen))
            else:
                infos.append(MetaInfo(pgno, None, str(found), empty, chosen))
        return infos

    def _holder(self) -> dict[str, Any] | None:
        if self._pager is None:
            return None
        data = self._file.read(HOLDER_PGNO * self._pager.page_size, MIN_PAGE_SIZE)
        try:
            note = json.loads(data.rstrip(b"\0").decode())
            return {
                "pid": int(note["pid"]),
                "host": str(note["host"]),
                "program": str(note["program"]),
                "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(note["since"])),
            }
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError):
            return None

    # -- everything ------------------------------------------------------------------------------

    def check(self, *, quick: bool = False, progress: Progress | None = None) -> Report:
        """Verify the whole file: header, metas, every page of the newest commit and of the one before it.

        quick     leave out decoding keys and values
        progress  called now and then with (pages looked at, pages in all)
        returns   a report; damage is in it, never raised
        """
        checker, moved = self._walked(progress, quick=quick)
        if checker is None:
            report = Report()
            choice = self._choice
            if choice is not None and choice.problem is not None:
                report.errors.append(Finding("meta", choice.problem.message, pgno=META_PGNOS[0]))
        else:
            report = checker.report
        if moved:
            self._judge_moved(report)
        for note in self._meta_infos():
            choice = self._choice
            found = None if choice is None else choice.found[note.pgno - 1]
            if isinstance(found, CorruptError) and not note.empty and checker is not None:
                report.warnings.append(
                    Finding(
                        "meta",
                        f"{found.message}; a commit that was interrupted leaves that, or damage. "
                        f"Commit {self.txid} is used",
                        pgno=note.pgno,
                        offset=found.offset,
                        expected=found.expected,
                        found=found.found,
                    )
                )
        if self._header is not None and self._header.features_read_only & ~KNOWN_READ_ONLY:
            what = "the file uses features that this code does not have; it can be read, and is not written"
            features = f"{self._header.features_read_only:#x}"
            report.warnings.append(Finding("header", what, pgno=0, offset=0, found=features))
        if self._problem is not None:
            report.errors.insert(0, Finding("header", self._header_problem() or "", pgno=0, offset=0))
        return report

    def _walked(self, progress: Progress | None, *, quick: bool) -> tuple[Checker | None, bool]:
        """A checker that has run; whether the file changed meanwhile, and it shows."""
        choice = self._choice
        if self._pager is None or choice is None or choice.meta is None:
            return None, False
        seen: set[tuple[str, int | None, str | None]] | None = None
        checker = None
        for attempt in range(_TRIES):
            if attempt:
                self.refresh()
                if self._choice is None or self._choice.meta is None:
                    break
                choice = self._choice
            meta, older, log = choice.meta, choice.older, choice.log
            assert meta is not None
            assert log is not None
            if older is not None and older.txid == meta.txid:
                older = None
            checker = Checker(self._pager, meta, older, progress, log=log, quick=quick)
            checker.run()
            report = checker.report
            if (report.ok and not report.warnings) or not self._has_moved(older=True):
                return checker, False
            found = {(finding.kind, finding.pgno, finding.table) for finding in report.errors}
            seen = found if seen is None else seen & found
        if checker is not None and seen is not None:
            errors = [found for found in checker.report.errors if (found.kind, found.pgno, found.table) in seen]
            damaged = {found.table for found in errors if found.pgno is not None}
            checker.report.errors = [found for found in errors if found.kind != "lost" or found.table in damaged]
        return checker, True

    @staticmethod
    def _judge_moved(report: Report) -> None:
        """After several tries at a file that changes, only what was wrong each time counts."""
        report.warnings = [
            Finding(
                "changed",
                "a writer is at work and wrote over pages while they were checked; what was found only once is left "
                "out. For a check that is complete, stop the writer or check a backup",
            )
        ]

    def pages(self, *, progress: Progress | None = None) -> Iterator[PageInfo]:
        """One record a page, in the order of the file.

        progress  called while the trees are walked, before the first record comes
        """
        pager = self._pager
        if pager is None:
            return
        checker, _ = self._walked(progress, quick=True)
        problems: dict[int, str] = {}
        marks = b""
        high_water = 0
        if checker is not None:
            marks = bytes(checker.marks)
            high_water = checker.report.page_count
            for finding in (*checker.report.errors, *checker.report.warnings):
                if finding.pgno is not None and finding.kind != "leak":
                    problems.setdefault(finding.pgno, finding.message)
        names = self._table_names()
        if checker is not None:
            names = {**checker.table_names, **names}
        page_size = pager.page_size
        log, records = self._log_places()
        run: PageInfo | None = None
        for pgno in range(self.page_count):
            page = self._read(pgno, page_size)
            if pgno < FIRST_NODE_PGNO:
                yield self._head_info(pgno)
                continue
            mark = marks[pgno] if pgno < len(marks) else 0
            if pgno in log:
                yield self._log_info(pgno, records, problems.get(pgno))
                continue
            if mark & TAIL and run is not None:
                state = _state(mark, pgno, high_water, is_complete=True)
                problem = problems.get(pgno)
                yield PageInfo(pgno, "overflow", state, run.table, run.tree_id, txid=run.txid, problem=problem)
                continue
            info = self._page_info(pgno, page, mark, high_water, names, problems.get(pgno), checker)
            run = info if info.kind == "overflow" else None
            yield info

    def _log_places(self) -> tuple[range, dict[int, Record]]:
        """The pages of the log, and page -> the record that is there."""
        choice = self._choice
        if choice is None or choice.meta is None or choice.log is None:
            return range(0), {}
        start = choice.meta.log_start
        records = {start + record.at + at: record for record in choice.log.records for at in range(record.pages)}
        return range(start, start + choice.meta.log_size), records

    def _log_info(self, pgno: int, records: dict[int, Record], problem: str | None) -> PageInfo:
        record = records.get(pgno)
        if record is None:
            return PageInfo(pgno, "log", "damaged" if problem else "idle", problem=problem)
        assert self._choice is not None
        assert self._choice.meta is not None
        count = fill = None
        if pgno == self._choice.meta.log_start + record.at:
            try:
                count = sum(len(group.changes) for group in decode_changes(record.changes, pgno))
            except CorruptError as error:
                problem = problem or error.message
            fill = (LOG_CHANGES_AT + len(record.changes)) / (record.pages * self._page_size())
        state = "damaged" if problem else "reached"
        return PageInfo(pgno, "log", state, entries=count, fill=fill, txid=record.txid, problem=problem)

    def _head_info(self, pgno: int) -> PageInfo:
        problem = None
        txid = None
        if pgno == 0:
            problem = self._header_problem()
        elif pgno in META_PGNOS:
            for note in self._meta_infos():
                if note.pgno == pgno:
                    problem = None if note.empty else note.problem
                    txid = None if note.meta is None else note.meta.txid
        return PageInfo(pgno, _HEAD_KINDS[pgno], "damaged" if problem else "head", txid=txid, problem=problem)

    def _page_info(
        self,
        pgno: int,
        page: bytes,
        mark: int,
        high_water: int,
        names: dict[int, str],
        problem: str | None,
        checker: Checker | None,
    ) -> PageInfo:
        pager = self._pager
        assert pager is not None
        state = "unknown" if checker is None else _state(mark, pgno, high_water, is_complete=checker.is_complete)
        if len(page) < PAGE_HEADER_SIZE:
            problem = problem or "the file ends inside or before the page"
            return PageInfo(pgno, None, "damaged" if mark & (REACHED | BAD) else state, problem=problem)
        header = decode_page_header(page)
        if header.kind not in PAGE_KIND_NAMES or header.pgno != pgno:
            if state == "unknown" and any(page) and not mark:
                problem = "not a page, or a later page of an overflow run"
            return PageInfo(pgno, None, state, problem=problem)
        is_whole = header.kind == OVERFLOW or not self._is_verifiable
        is_whole = is_whole or page_checksum(page, pager.checksum, pager.seed) == header.checksum
        if not is_whole and state in ("unknown", "leaked"):
            state, problem = "damaged", "the checksum of the page does not match"
        entries, fill = (None, None)
        if is_whole and state not in ("free", "spare"):
            entries, fill = _content(page)
        return PageInfo(
            pgno,
            PAGE_KIND_NAMES[header.kind],
            state,
            names.get(header.tree_id),
            header.tree_id,
            header.level,
            entries,
            fill,
            header.txid,
            problem,
        )

    def _table_names(self) -> dict[int, str]:
        return {table.tree_id: table.name for table in self._tables_by_id().values()}

    # -- one page --------------------------------------------------------------------------------

    def page(self, pgno: int) -> DecodedPage:
        """A page, decoded as far as it goes.

        raises   ValueError for a number below 0; FormatError if not even the page size is known
        """
        pager = self._pager
        if pgno < 0:
            raise ValueError(f"pages are numbered from 0, not {pgno}")
        if pager is None:
            raise self._no_pages()
        data = self._read(pgno, pager.page_size)
        if pgno == 0:
            return self._decoded_header(data)
        if pgno in META_PGNOS:
            return self._decoded_meta(pgno, data)
        if pgno == HOLDER_PGNO:
            fields = self._holder() or {}
            problem = None if fields or not any(data) else "not a note of who has the file open"
            return DecodedPage(pgno, pgno * pager.page_size, "holder", None, problem, fields, [], data)
        return self._decoded_node(pgno, data)

    def _read(self, pgno: int, size: int) -> bytes:
        """What can be read of a page."""
        assert self._pager is not None
        try:
            return self._file.read(pgno * self._pager.page_size, size)
        except OSError:
            return b""

    def _decoded_header(self, data: bytes) -> DecodedPage:
        fields: dict[str, Any] = {}
        if len(data) >= HEADER_SIZE:
            names = [name for name, _ in HEADER_FIELDS]
            fields = dict(zip(names, map(plain, HEADER.unpack(data[:HEADER_SIZE])), strict=True))
            fields["created"] = when(fields.pop("created_us"))
        problem = self._header_problem()
        return DecodedPage(0, 0, "header", None, problem, fields, [], data)

    def _decoded_meta(self, pgno: int, data: bytes) -> DecodedPage:
        assert self._pager is not None
        fields: dict[str, Any] = {}
        if len(data) >= META_SIZE:
            names = [name for name, _ in META_FIELDS if name != "zero"]
            fields = dict(zip(names, META.unpack(data[:META_SIZE]), strict=True))
            fields["txid"], fields["nonce"] = stamp_txid(fields["stamp"]), stamp_nonce(fields.pop("stamp"))
            fields["committed"] = when(fields.pop("commit_us"))
            for name in ("catalogue_root", "free_space_root"):
                fields[name] = _ref(fields[name])
        problem = next((note.problem for note in self._meta_infos() if note.pgno == pgno), None)
        return DecodedPage(pgno, pgno * self._pager.page_size, "meta", None, problem, fields, [], data)

    def _decoded_node(self, pgno: int, data: bytes) -> DecodedPage:
        pager = self._pager
        assert pager is not None
        offset = pgno * pager.page_size
        if len(data) < pager.page_size:
            where = f"the file has {self._file.size()} bytes, the page would begin at {offset}"
            return DecodedPage(
                pgno, offset, None, None, f"the file ends inside or before the page: {where}", {}, [], data
            )
        header = decode_page_header(data)
        fields: dict[str, Any] = {
            "checksum": header.checksum,
            "kind": header.kind,
            "level": header.level,
            "count": header.count,
            "pgno": int(header.pgno),
            "tree_id": header.tree_id,
            "txid": header.txid,
            "nonce": stamp_nonce(header.stamp),
        }
        kind = PAGE_KIND_NAMES.get(header.kind)
        problem = None
        if not any(data):
            return DecodedPage(pgno, offset, None, None, None, {}, [], data)
        if header.kind == LOG and header.pgno == pgno:
            return self._decoded_record(pgno, header, fields, data)
        if kind is None:
            problem = "not a page; perhaps a later one of an overflow run that is damaged or gone"
        elif header.pgno != pgno:
            problem = f"by its own number this is page {header.pgno}"
        elif self._is_verifiable and header.kind == OVERFLOW:
            run = self._run_length(pgno, data, header.checksum)
            fields["run_pages"] = run
            problem = None if run else "no run of pages from here on has the checksum"
        elif self._is_verifiable and (found := page_checksum(data, pager.checksum, pager.seed)) != header.checksum:
            problem = f"the checksum does not match (expected {header.checksum:#010x}, found {found:#010x})"
        if not self._is_verifiable:
            problem = problem or "the checksum cannot be verified: the header of the file is lost"
        if kind is None or header.pgno != pgno:
            first = self._run_around(pgno)
            if first is not None:
                return DecodedPage(
                    pgno, offset, PAGE_KIND_NAMES[OVERFLOW], first.table, None, {"first_page": first.pgno}, [], data
                )
            table = None
            entries: list[dict[str, Any]] = []
        else:
            table = self._table_names().get(header.tree_id)
            try:
                entries = self._entries(data, header.kind, header.tree_id, pgno)
            except CorruptError as error:
                entries, problem = [], problem or error.message
        return DecodedPage(pgno, offset, kind, table, problem, fields, entries, data)

    def _decoded_record(self, pgno: int, header: PageHeader, fields: dict[str, Any], data: bytes) -> DecodedPage:
        pager = self._pager
        assert pager is not None
        size = pager.page_size
        run = self._read(pgno, max(1, header.count) * size)
        record = decode_record(run, 0, pgno, size, pager.checksum, pager.seed) if self._is_verifiable else None
        names = dict(
            zip((name for name, _ in LOG_RECORD_FIELDS), LOG_RECORD.unpack_from(data, PAGE_HEADER_SIZE), strict=True)
        )
        fields |= {**names, "committed": when(names["commit_us"])}
        fields["epoch"] = stamp_txid(fields.pop("epoch"))
        del fields["commit_us"]
        entries: list[dict[str, Any]] = []
        problem = None if record is not None else "the checksum does not match, or cannot be verified"
        changes = run[LOG_CHANGES_AT : LOG_CHANGES_AT + names["size"]] if record is None else record.changes
        tables = {} if self._choice is None or self._choice.meta is None else self._tables_by_id()
        try:
            for group in decode_changes(changes, pgno):
                table = tables.get(group.tree_id)
                for key, value in group.changes:
                    entry = _decoded_entry(
                        None if table is None else table.codecs, key, b"" if value is None else value
                    )
                    if value is None:
                        entry = {name: shown for name, shown in entry.items() if not name.startswith("value")}
                    entries.append(
                        {
                            "index": len(entries),
                            "table": None if table is None else table.name,
                            "tree_id": group.tree_id,
                            "change": "delete" if value is None else "put",
                            **entry,
                        }
                    )
        except CorruptError as error:
            problem = problem or error.message
        return DecodedPage(pgno, pgno * size, "log", None, problem, fields, entries, data)

    def _tables_by_id(self) -> dict[int, TableSummary]:
        try:
            return {table.tree_id: table for table in self.tables(on_damage=lambda _: None)}
        except (CorruptError, FormatError, BusyError):
            return {}

    def _run_around(self, pgno: int) -> DecodedPage | None:
        """The first page of the overflow run that a page belongs to, if it does."""
        pager = self._pager
        assert pager is not None
        if not self._is_verifiable:
            return None
        for first in range(pgno - 1, max(FIRST_NODE_PGNO, pgno - _LONGEST_RUN // pager.page_size) - 1, -1):
            header = decode_page_header(self._read(first, PAGE_HEADER_SIZE).ljust(PAGE_HEADER_SIZE, b"\0"))
            if header.pgno == first and header.kind in PAGE_KIND_NAMES:
                page = self.page(first)
                return page if (page.fields.get("run_pages") or 0) > pgno - first else None
        return None

    def _run_length(self, pgno: int, data: bytes, expected: int) -> int | None:
        """How many pages an overflow run has: as many as it takes for its checksum to come out."""
        pager = self._pager
        assert pager is not None
        found = page_checksum(data, pager.checksum, pager.seed)
        count = 1
        while found != expected:
            if count * pager.page_size >= _LONGEST_RUN:
                return None
            data = self._read(pgno + count, pager.page_size)
            if len(data) < pager.page_size:
                return None
            found = pager.checksum(data, found)
            count += 1
        return count

    def _entries(self, page: bytes, kind: int, tree_id: int, pgno: int) -> list[dict[str, Any]]:
        if kind == OVERFLOW:
            return []
        if kind == FREE_SPACE:
            return _map_entries(page)
        node = decode_node(page, Pgno(pgno), tree_id)
        table = (self._tables or {}).get(tree_id)
        codecs = None if table is None else table.codecs
        if isinstance(node, Branch):
            entries: list[dict[str, Any]] = []
            for index, child in enumerate(node.children):
                entry: dict[str, Any] = {"index": index, **_ref(child)}
                if index:
                    entry["separator"] = plain(node.keys[index - 1])
                low = node.keys[index - 1] if index else None
                high = node.keys[index] if index < len(node.keys) else None
                what = "tables" if tree_id == CATALOGUE_TREE else "keys"
                entry["keys"] = shown_range(None if codecs is None else codecs.key, low, high, what)
                entries.append(entry)
            return entries
        entries = []
        for index, (key, value) in enumerate(zip(node.keys(), node.values(), strict=True)):
            entry = {"index": index, "key_size": len(key), "value_size": len(value)}
            if tree_id == CATALOGUE_TREE:
                entry |= _catalogue_entry(key, value)
            else:
                entry |= _decoded_entry(codecs, key, value)
            entries.append(entry)
        return entries

    # -- tables ----------------------------------------------------------------------------------

    def tables(self, *, on_damage: OnDamage | None = None) -> list[TableSummary]:
        """The tables, in the order of their names.

        on_damage  called for each page of the catalogue that cannot be read; the rest is listed. None:
                   CorruptError is raised
        """
        for attempt in range(_TRIES):
            try:
                tables = self._read_tables(self._meta(), on_damage)
            except BusyError:
                if attempt == _TRIES - 1:
                    raise
                self.refresh()
            else:
                self._tables = {table.tree_id: table for table in tables}
                return tables
        raise AssertionError("the last try returns or raises")

    def _read_tables(self, meta: Meta, on_damage: OnDamage | None) -> list[TableSummary]:
        tables: list[TableSummary] = []
        if meta.catalogue_root:
            for key, value in self._scan(meta.catalogue_root, CATALOGUE_TREE, on_damage, None):
                name = key.decode(errors="backslashreplace")
                try:
                    entry = decode_catalogue_entry(value, name)
                except CorruptError as error:
                    if on_damage is None:
                        raise
                    on_damage(error)
                    continue
                tables.append(_summary(name, entry, self._added(entry)))
        return tables

    def _added(self, entry: CatalogueEntry) -> int:
        """How many entries the log adds to a table; where its tree cannot be read, a change counts as none."""
        assert self._pager is not None
        added = 0
        for key, (value, _) in self._changes.get(entry.tree_id, {}).items():
            try:
                below = btree.get(self._pager, entry.root, entry.tree_id, key) is not None
            except CorruptError:
                continue
            added += (value is not None) - below
        return added

    def table(self, name: str) -> TableSummary:
        """One table. NoSuchTableError if there is none of that name."""
        damage: list[CorruptError] = []
        for table in self.tables(on_damage=damage.append):
            if table.name == name:
                return table
        if damage:
            raise damage[0]
        raise NoSuchTableError(f"there is no table {name!r} in commit {self.txid}")

    def get(self, table: str, key: Any, default: Any = None) -> Any:
        """The value of a key, decoded by the codecs that the file records; `default` if it is not there.

        raises   NoSuchTableError, CorruptError; TypeError or ValueError for a key of the wrong type
        """
        for _ in range(_TRIES):
            try:
                found = self.table(table)
                codecs = _codecs_of(found)
                stored = self._find(found, codecs.encode_key(key))
                return default if stored is None else codecs.decode_value(stored)
            except CorruptError as error:
                error.table = error.table or table
                if not self._has_moved():
                    raise
                self.refresh()
        raise self._overtaken()

    def items(self, table: str, *, on_damage: OnDamage | None = None) -> Iterator[tuple[Any, Any]]:
        """The entries of a table in key order, decoded by the codecs that the file records.

        on_damage  called for each page, key or value that cannot be read; the rest goes on. None:
                   CorruptError is raised
        raises     NoSuchTableError, CorruptError; BusyError if a writer wrote over the commit meanwhile
        """
        for attempt in range(_TRIES):
            has_begun = False
            try:
                for pair in self._items(self.table(table), on_damage):
                    has_begun = True
                    yield pair
            except BusyError:
                if has_begun or attempt == _TRIES - 1:
                    raise
                self.refresh()
            else:
                return

    def _items(self, table: TableSummary, on_damage: OnDamage | None) -> Iterator[tuple[Any, Any]]:
        codecs = _codecs_of(table)
        below = self._scan(table.entry.root, table.tree_id, on_damage, table.name) if table.entry.root else iter(())
        for key, stored in _merged(below, self._changes.get(table.tree_id, {})):
            try:
                pair = codecs.decode_key(key), codecs.decode_value(stored)
            except CorruptError as error:
                error.table = table.name
                if on_damage is None:
                    raise
                on_damage(error)
                continue
            yield pair

    def path(self, table: str, key: Any) -> list[Step]:
        """The pages on which an entry depends: meta, catalogue, the table's tree from its root, overflow run or log.

        returns  the steps; the last one has a `problem` where the way is cut off, and an `index` of None
                 where the key is not in the table
        """
        meta = self._meta()
        assert self._choice is not None
        assert self._choice.slot is not None
        steps = [Step(META_PGNOS[self._choice.slot], "meta", "meta", txid=meta.txid)]
        stored, cut = self._descend(steps, meta.catalogue_root, CATALOGUE_TREE, "catalogue", table.encode(), None)
        if cut:
            return steps
        if stored is None:
            raise NoSuchTableError(f"there is no table {table!r} in commit {self.txid}")
        summary = _summary(table, decode_catalogue_entry(stored, table))
        codecs = _codecs_of(summary)
        encoded = codecs.encode_key(key)
        tree = repr(table)
        stored, cut = self._descend(steps, summary.entry.root, summary.tree_id, tree, encoded, codecs)
        logged = self._changes.get(summary.tree_id, {}).get(encoded)
        if logged is not None:
            what = "deletes the key" if logged[0] is None else "has the newest value"
            steps.append(Step(logged[1], "log", tree, index=None if logged[0] is None else 0, keys=what))
            return steps
        if not cut and type(stored) is Overflow:
            problem = None
            try:
                self._load(stored, summary.tree_id)
            except CorruptError as error:
                problem = error.message
            pgnos = stored.pgnos(self._page_size())
            steps.append(Step(pgnos[0], "overflow", tree, count=len(pgnos), problem=problem))
        return steps

    # -- trees -----------------------------------------------------------------------------------

    def _no_pages(self) -> FormatError:
        return self._problem or FormatError(f"{self.filename}: there are no pages to look at")

    def _page_size(self) -> int:
        assert self._pager is not None
        return self._pager.page_size

    def _meta(self) -> Meta:
        if self._closed:
            raise ClosedError("the inspection is closed")
        choice = self._choice
        if choice is None:
            raise self._no_pages()
        if choice.meta is None:
            raise choice.problem or CorruptError("no commit can be read")
        return choice.meta

    def _overtaken(self) -> BusyError:
        return BusyError(
            f"{self.filename}: a writer wrote over commit {self.txid} while it was read; try again, stop the writer, "
            "or read a backup"
        )

    def _load(self, stored: bytes, tree_id: int) -> bytes:
        assert self._pager is not None
        return self._pager.overflow_value(stored, tree_id) if type(stored) is Overflow else stored

    def _find(self, table: TableSummary, key: bytes) -> bytes | None:
        logged = self._changes.get(table.tree_id, {}).get(key)
        if logged is not None:
            return logged[0]
        steps: list[Step] = []
        stored, cut = self._descend(steps, table.entry.root, table.tree_id, repr(table.name), key, table.codecs)
        if cut is not None:
            raise cut
        return None if stored is None else self._load(stored, table.tree_id)

    def _descend(
        self, steps: list[Step], ref: int, tree_id: int, tree: str, key: bytes, codecs: RecordedCodecs | None
    ) -> tuple[bytes | None, CorruptError | None]:
        """Go from a root to the leaf of a key, adding the steps; returns (stored value, what cut the way off)."""
        pager = self._pager
        assert pager is not None
        low: bytes | None = None
        high: bytes | None = None
        level: int | None = None
        codec = None if codecs is None else codecs.key
        what = "tables" if tree_id == CATALOGUE_TREE else "keys"
        while ref:
            pgno = ref_pgno(ref)
            keys = shown_range(codec, low, high, what)
            try:
                page = pager.page(ref)
                node = decode_node(page, pgno, tree_id)
                if level not in (None, node.level):
                    raise CorruptError("the wrong level for its place", pgno=pgno, expected=level, found=node.level)
                leaf_keys = [] if isinstance(node, Branch) else node.keys()
            except CorruptError as error:
                steps.append(Step(pgno, "unreadable", tree, level, keys=keys, problem=error.message))
                return None, error
            txid = decode_page_header(page).txid
            if isinstance(node, Branch):
                index = bisect_right(node.keys, key)
                steps.append(Step(pgno, "branch", tree, node.level, len(node.children), index, keys, txid))
                low = node.keys[index - 1] if index else low
                high = node.keys[index] if index < len(node.keys) else high
                ref = node.children[index]
                level = node.level - 1
                continue
            at = leaf_keys.index(key) if key in leaf_keys else None
            steps.append(Step(pgno, "leaf", tree, 0, len(leaf_keys), at, keys, txid))
            return None if at is None else node.value(at), None
        return None, None

    def _scan(
        self, root: int, tree_id: int, on_damage: OnDamage | None, table: str | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a tree in order, values loaded; damage is passed over if the caller wants that."""

        def damaged(error: CorruptError) -> None:
            error.table = error.table or table
            if self._has_moved():
                raise self._overtaken() from None
            if on_damage is None:
                raise error
            on_damage(error)

        branches: set[int] = set()  # a branch that is met again would multiply what is below it

        def walk(ref: int, level: int | None) -> Iterator[tuple[bytes, bytes]]:
            assert self._pager is not None
            try:
                if ref in branches:
                    raise CorruptError("the page is referred to a second time", pgno=ref_pgno(ref))
                node = decode_node(self._pager.page(ref), ref_pgno(ref), tree_id)
                if level not in (None, node.level):
                    raise CorruptError(
                        "the page has the wrong level", pgno=ref_pgno(ref), expected=level, found=node.level
                    )
                pairs = [] if isinstance(node, Branch) else list(zip(node.keys(), node.values(), strict=True))
            except CorruptError as error:
                damaged(error)
                return
            if isinstance(node, Branch):
                branches.add(ref)
                for child in node.children:
                    yield from walk(child, node.level - 1)
            for key, stored in pairs:
                try:
                    value = self._load(stored, tree_id)
                except CorruptError as error:
                    damaged(error)
                    continue
                yield key, value

        return walk(root, None)


def _merged(
    below: Iterator[tuple[bytes, bytes]], changes: dict[bytes, tuple[bytes | None, int]]
) -> Iterator[tuple[bytes, bytes]]:
    """Entries in key order with changes on top."""
    above = [(key, changes[key][0]) for key in sorted(changes)]
    at = 0
    for key, value in below:
        while at < len(above) and above[at][0] < key:
            changed, new = above[at]
            at += 1
            if new is not None:
                yield changed, new
        if at < len(above) and above[at][0] == key:
            continue  # comes in its turn
        yield key, value
    yield from ((key, new) for key, new in above[at:] if new is not None)


# -- without a header ----------------------------------------------------------------------------


def _is_another_version(data: bytes) -> bool:
    """Whether the header is that of another format, rather than damaged in its version."""
    if data[: len(MAGIC)] != MAGIC or len(data) < HEADER_SIZE:
        return False
    version = data[8:12]
    own = FORMAT_VERSION.to_bytes(4, "little")
    if version == own:
        return False
    try:
        decode_header(data[:8] + own + data[12:], "")
    except FormatError:
        return True
    return False  # with our own version in its place the checksum holds: a flipped bit


def _guess_page_size(file: File) -> int | None:
    """The page size by which most pages are where their own number says."""
    votes: Counter[int] = Counter()
    size = min(file.size(), _SAMPLE_SIZE)
    for start in range(0, size, _CHUNK):
        data = file.read(start, min(_CHUNK, size - start))
        for at in range(0, len(data) - META_SIZE + 1, MIN_PAGE_SIZE):
            offset = start + at
            pgno = int.from_bytes(data[at + 8 : at + 12], "little")
            slot = int.from_bytes(data[at + 72 : at + 76], "little")
            if data[at + 4] in PAGE_KIND_NAMES and pgno >= FIRST_NODE_PGNO and offset % pgno == 0:
                votes[offset // pgno] += 1
            if slot in META_PGNOS and offset % slot == 0 and not any(data[at + 76 : at + META_SIZE]):
                votes[offset // slot] += 1
    for page_size, _ in votes.most_common():
        if valid_page_size(page_size):
            return page_size
    return None


def _recover_seed(file: File, page_size: int) -> tuple[int, int | None, int]:
    """The kind and seed of the checksums, by the pages that are whole.

    returns  (kind, seed, how many pages agree); the seed is None if no two do
    """
    samples: set[bytes] = set()  # the same bytes twice would confirm themselves
    for slot in META_PGNOS:
        data = file.read(slot * page_size, META_SIZE)
        if len(data) == META_SIZE and META.unpack(data)[-1] == slot:
            samples.add(data)
    for pgno in range(FIRST_NODE_PGNO, file.size() // page_size):
        if len(samples) > _SAMPLE_PAGES:
            break
        head = file.read(pgno * page_size, PAGE_HEADER_SIZE)
        if len(head) < PAGE_HEADER_SIZE:
            break
        header = decode_page_header(head)
        if header.pgno == pgno and header.kind in (LEAF, BRANCH, FREE_SPACE):
            samples.add(file.read(pgno * page_size, page_size))
    best: tuple[int, int | None, int] = (min(KIND_NAMES), None, 0)
    for kind in KIND_NAMES:
        checksum = checksum_function(kind)
        votes = Counter(_seed_of(checksum, data[CHECKSUM.size :], CHECKSUM.unpack_from(data)[0]) for data in samples)
        for seed, count in votes.most_common(1):
            if count > max(1, best[2]):
                best = (kind, seed, count)
    return best


def _seed_of(checksum: ChecksumFunction, data: bytes, stored: int) -> int:
    """The seed with which `data` has the checksum `stored`.

    A CRC is affine in its seed: checksum(data, a ^ b) ^ checksum(data, 0) is the XOR of the same for
    a and for b. So the images of the 32 single bits give the seed by elimination over GF(2).
    """
    zero = checksum(data, 0)
    basis: dict[int, tuple[int, int]] = {}  # highest bit -> (image, seed)
    for bit in range(32):
        image, seed = checksum(data, 1 << bit) ^ zero, 1 << bit
        while image:
            top = image.bit_length()
            if top not in basis:
                basis[top] = image, seed
                break
            image ^= basis[top][0]
            seed ^= basis[top][1]
    rest, seed = stored ^ zero, 0
    while rest:
        image, part = basis[rest.bit_length()]
        rest ^= image
        seed ^= part
    return seed


# -- pages ---------------------------------------------------------------------------------------


def _is_untouched(choice: Choice) -> bool:
    """Whether the file is as it was made: one meta, marked clean, and an empty one."""
    return choice.meta is not None and choice.meta.clean and choice.older is None


def _state(mark: int, pgno: int, high_water: int, *, is_complete: bool) -> str:
    if mark & BAD:
        return "damaged"
    if pgno >= high_water:
        return "spare"
    if mark & REACHED:
        return "reached"
    if mark & FREE:
        return "pending" if mark & OLDER else "free"
    return "leaked" if is_complete and not mark & UNKNOWN else "unknown"


def _content(page: bytes) -> tuple[int | None, float | None]:
    """(entries, fill) of a page whose checksum holds."""
    header = decode_page_header(page)
    count = header.count
    if header.kind == FREE_SPACE:
        if header.level:
            return count, None
        return int.from_bytes(page[PAGE_HEADER_SIZE:], "little").bit_count(), None
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


def _map_entries(page: bytes) -> list[dict[str, Any]]:
    header = decode_page_header(page)
    if header.level:
        children = range(min(header.count, (len(page) - PAGE_HEADER_SIZE) // REF_SIZE))
        refs = [
            int.from_bytes(page[PAGE_HEADER_SIZE + REF_SIZE * at : PAGE_HEADER_SIZE + REF_SIZE * (at + 1)], "little")
            for at in children
        ]
        return [{"index": index, **_ref(ref)} for index, ref in enumerate(refs) if ref]
    bits = int.from_bytes(page[PAGE_HEADER_SIZE:], "little")
    entries: list[dict[str, Any]] = []
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        at += zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        entries.append({"first_bit": at, "count": ones})
        bits >>= ones
        at += ones
    return entries


def _ref(ref: int) -> dict[str, Any]:
    return {"page": int(ref_pgno(Ref(ref))) or None, "checksum": f"{ref_checksum(ref):#010x}"}


def _catalogue_entry(key: bytes, value: bytes) -> dict[str, Any]:
    name = key.decode(errors="backslashreplace")
    try:
        return _summary(name, decode_catalogue_entry(value, name)).as_dict()
    except CorruptError as error:
        return {"name": name, "problem": error.message}


def _decoded_entry(codecs: RecordedCodecs | None, key: bytes, value: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    try:
        entry["key"] = plain(key if codecs is None else codecs.decode_key(key))
    except CorruptError as error:
        entry |= {"key": plain(key), "problem": error.message}
    if type(value) is Overflow:
        return entry | {"value_size": value.value_size, "overflow": _ref(value.ref)}
    try:
        entry["value"] = plain(value if codecs is None else codecs.decode_value(value))
    except CorruptError as error:
        entry |= {"value": plain(value), "problem": error.message}
    return entry


# -- values --------------------------------------------------------------------------------------


def _summary(name: str, entry: CatalogueEntry, added: int = 0) -> TableSummary:
    codecs: RecordedCodecs | None = None
    problem = None
    key = value = "?"
    try:
        codecs = recorded_codecs(entry, name)
        key, value = describe(codecs.key), codecs.value.name
    except CorruptError as error:
        problem = str(error)
    root = int(ref_pgno(entry.root)) or None
    return TableSummary(name, key, value, entry.entry_count + added, entry.tree_id, root, problem, entry, codecs)


def _codecs_of(table: TableSummary) -> RecordedCodecs:
    if table.codecs is None:
        raise CorruptError(table.problem or "the codecs are not known", table=table.name)
    return table.codecs


def plain(value: Any) -> Any:
    """A decoded key or value as something that JSON knows: bytes as hex, the rest in its usual notation."""
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    return value


def when(microseconds: int) -> str | None:
    """A time in the file, as text; None if it is none."""
    try:
        moment = datetime.datetime.fromtimestamp(microseconds // 1_000_000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
