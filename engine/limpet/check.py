"""Verifying a whole commit: each page is whole, and is exactly one of reached once or free.

The walk goes from the meta down, in key order, and never trusts what it reads:

    the map of free space     gives the pages that are free
    the catalogue             gives the tables
    each table's tree         every page against its own checksum and its parent's reference, the
                              fields of its header, the order of its keys, the separators above it,
                              its overflow runs; every key and value against the codecs
    the log                   whether it breaks off where it should not; its pages; every key and
                              value in it against the codecs
    the commit before         only what the newest does not share; what is wrong there is a warning
    what is left              neither reached nor free: leaked; bytes behind the end: junk

Nothing is raised for damage, and a bad page does not stop the rest: its part of the tree is left
out, and the finding names the keys that are lost with it. A page that is reached and also free, or
reached twice, is damage that has not happened yet: the next commit may write over it.

Memory: one byte a page, the path that is being walked, and at most MAX_FINDINGS findings a list.

Limits. Of the commit before, subtrees that the newest shares are not walked again, so a wrong
separator above such a subtree, or a wrong count of entries, is not seen there. A value larger than
memory has to be BYTES to be verified.

Kinds of findings, for programs:

    errors     size checksum stale truncated io reference misplaced tree level kind txid structure
               order separator entry overflow codec catalogue count lost map free double log
               and from the inspector: header meta
    warnings   leak unreached padding junk meta changed, and those above for the commit before
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .codecs import BYTES, STR, Codec, Decoder, Encoder, KeyCodec, key_codec, key_functions, value_codec
from .errors import CorruptError, LimpetError
from .format import (
    BRANCH,
    CATALOGUE_TREE,
    CHECKSUM,
    END_SIZE,
    FIRST_NODE_PGNO,
    FIRST_TABLE_TREE,
    FREE_SPACE_TREE,
    LEAF,
    LEAF_ARRAYS_AT,
    LEAF_OVERFLOW_COUNT,
    MAX_LEVEL,
    OVERFLOW,
    PAGE_HEADER_SIZE,
    PAGE_KIND_NAMES,
    REF_SIZE,
    CatalogueEntry,
    Meta,
    PageHeader,
    bitmap_bits,
    decode_catalogue_entry,
    decode_page_header,
    map_fanout,
    map_height,
    max_inline_entry,
    max_key_size,
    overflow_page_count,
    page_checksum,
    ref_checksum,
    ref_pgno,
)
from .free_space import check_map_page
from .log import Group, Replay, decode_changes
from .node import Branch, Overflow, decode_node
from .pager import Pager

Progress = Callable[[int, int], None]

MAX_FINDINGS = 1000  # of each severity; a file of ruins would fill the memory with messages

# What is known of a page, one bit each; `Checker.marks` has a byte a page.
REACHED = 1  # from the newest commit
FREE = 2  # in the newest commit's map
OLDER = 4  # reached from the commit before, and not from the newest
OLDER_FREE = 8  # in the map of the commit before
BAD = 16  # what was read is wrong
TAIL = 32  # not the first page of its overflow run
UNKNOWN = 64  # the part of the map that covers the page cannot be read
BAD_BELOW = 128  # something that the page leads to is bad

_PROGRESS_EVERY = 128  # pages between two calls
_CHUNK = 1 << 20  # bytes of an overflow run, or of the end of the file, read at once


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    kind      a word for programs; check.py lists them
    message   what is wrong
    pgno      the page, or None where no single page is to blame
    offset    of the page in the file, in bytes
    table     the table whose tree the page belongs to, where known
    expected  what should be there; found: what is
    path      page numbers from the root of the tree down to the page
    keys      the keys that cannot be read because of it
    """

    kind: str
    message: str
    pgno: int | None = None
    offset: int | None = None
    table: str | None = None
    expected: object = None
    found: object = None
    path: tuple[int, ...] = ()
    keys: str | None = None

    def __str__(self) -> str:
        where = []
        if self.pgno is not None:
            where.append(f"page {self.pgno}")
        if self.table is not None:
            where.append(f"table {self.table!r}")
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        if self.expected is not None or self.found is not None:
            text += f" (expected {_shown(self.expected)}, found {_shown(self.found)})"
        if len(self.path) > 1:
            text += f"; reached by {' -> '.join(map(str, self.path))}"
        if self.keys is not None:
            text += f"; {self.keys} cannot be read"
        return text

    def as_dict(self) -> dict[str, object]:
        """The same for JSON; what is not known is left out."""
        found: dict[str, object] = {"kind": self.kind, "message": self.message}
        for name in ("pgno", "offset", "table", "keys"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        for name in ("expected", "found"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value if isinstance(value, int | str) else repr(value)
        if self.path:
            found["path"] = list(self.path)
        return found


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:#x}" if type(value) is int and value > 0xFFFF else repr(value)


@dataclass(slots=True)
class Report:
    """What a check found.

    errors         damage: something cannot be read, or will be overwritten
    warnings       everything can be read, but something is not as it should be
    txid           the commit that was verified, what the log says included
    checkpoint_txid  the one below the log, as the newest meta names it
    older_txid     the checkpoint before that, None if there is none
    older_ok       whether nothing is wrong with the checkpoint before; None if there is none
    record_count   log records on top of the checkpoint
    page_count     pages of the file that the commit knows; of these,
    reached_count    are in use,
    free_count       are free, pending ones included,
    pending_count    are free and needed by the commit before,
    leaked_count     are neither in use nor free,
    unreached_count  neither, and that may be because what leads to them is damaged
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    txid: int | None = None
    checkpoint_txid: int | None = None
    older_txid: int | None = None
    older_ok: bool | None = None
    record_count: int = 0
    page_count: int = 0
    reached_count: int = 0
    free_count: int = 0
    pending_count: int = 0
    leaked_count: int = 0
    unreached_count: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no errors; there may be warnings."""
        return not self.errors

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        counts = (
            "record_count",
            "page_count",
            "reached_count",
            "free_count",
            "pending_count",
            "leaked_count",
            "unreached_count",
        )
        return {
            "ok": self.ok,
            "errors": [finding.as_dict() for finding in self.errors],
            "warnings": [finding.as_dict() for finding in self.warnings],
            "txid": self.txid,
            "checkpoint_txid": self.checkpoint_txid,
            "older_txid": self.older_txid,
            "older_ok": self.older_ok,
            **{name: getattr(self, name) for name in counts},
        }


def check_commit(
    pager: Pager,
    newest: Meta,
    older: Meta | None,
    progress: Progress | None = None,
    *,
    log: Replay | None = None,
    quick: bool = False,
) -> Report:
    """Verify everything that a commit consists of, and what the commit before it does not share.

    older     the commit of the other meta, where that is valid and another
    log       what the log holds on top of the newest; None: it is not looked at
    progress  called now and then with (pages looked at, pages in all)
    quick     leave out decoding: checksums and structure only
    returns   the report. Damage is in it, never raised; ClosedError passes through
    cost      reads all pages in use once
    """
    checker = Checker(pager, newest, older, progress, log=log, quick=quick)
    checker.run()
    return checker.report


class _Tree:
    """A tree that is being walked."""

    __slots__ = ("above", "codecs", "entry_count", "is_broken", "is_shared", "name", "on_leaf", "table", "tree_id")

    def __init__(
        self,
        name: str,
        table: str | None,
        tree_id: int,
        codecs: RecordedCodecs | None = None,
        on_leaf: Callable[[_Place, list[bytes], list[bytes], int], None] | None = None,
        above: tuple[int, ...] = (),
    ) -> None:
        self.name = name  # for messages
        self.table = table
        self.tree_id = tree_id
        self.codecs = codecs
        self.on_leaf = on_leaf
        self.above = above  # the pages of the catalogue that lead to it
        self.entry_count = 0
        self.is_broken = False  # a part of it cannot be read
        self.is_shared = False  # a part of it belongs to the newest commit, and was not walked again


class RecordedCodecs:
    """How to decode the entries of a table."""

    __slots__ = ("decode_key", "decode_value", "encode_key", "key", "value")

    def __init__(self, key: KeyCodec, value: Codec) -> None:
        self.key = key
        self.value = value
        self.encode_key: Encoder
        self.decode_key: Decoder
        self.encode_key, _, self.decode_key = key_functions(key)
        self.decode_value = value.decode_value


class _Place(NamedTuple):
    """Where in a tree a page is: its path, and the keys that belong below it (low <= key < high)."""

    tree: _Tree
    pgno: int
    path: tuple[int, ...] = ()
    low: bytes | None = None
    high: bytes | None = None

    def child(self, pgno: int, low: bytes | None, high: bytes | None) -> _Place:
        return _Place(self.tree, pgno, (*self.path, pgno), low, high)


class Checker:
    """One check. `run` once; then `report` and `marks` tell what was found."""

    def __init__(
        self,
        pager: Pager,
        newest: Meta,
        older: Meta | None,
        progress: Progress | None = None,
        *,
        log: Replay | None = None,
        quick: bool = False,
    ) -> None:
        self._pager = pager
        self._log = Replay([], newest.txid, newest.txid) if log is None else log
        self._page_size = pager.page_size
        self._newest = newest
        self._older = older
        self._progress = progress
        self._quick = quick
        self._meta = newest  # the commit that is being walked
        self._is_older = False
        self._done = 0
        self._dropped = [0, 0]  # errors and warnings beyond MAX_FINDINGS
        self.is_complete = True  # every tree was walked whole, so what was not reached is leaked
        self._older_lost = False  # the commit before shares a page that is damaged
        self._map_tree = _Tree("map of free space", None, FREE_SPACE_TREE)
        self._log_tree = _Tree("log", None, FREE_SPACE_TREE)
        self._end = max(newest.high_water, older.high_water if older is not None else 0)
        self._total = min(self._end, -(-pager.file.size() // pager.page_size))  # what a meta claims has no bound
        self.marks = bytearray(self._total)
        self.report = Report(
            txid=max(newest.txid, self._log.last_txid),
            checkpoint_txid=newest.txid,
            record_count=len(self._log.records),
            page_count=newest.high_water,
        )
        self.table_names: dict[int, str] = {}  # tree id -> table

    def run(self) -> None:
        """Walk both commits."""
        report = self.report
        self._check_size()
        tables = self._walk(self._newest)
        for entry in tables:
            self.table_names.setdefault(entry[1].tree_id, entry[0])
        self._check_log({entry.tree_id: (name, entry) for name, entry in tables})
        if self._older is not None:
            self._is_older, self._meta = True, self._older
            known = len(report.warnings) + self._dropped[1]
            for name, found in self._walk(self._older):
                self.table_names.setdefault(found.tree_id, name)
            report.older_txid = self._older.txid
            report.older_ok = known == len(report.warnings) + self._dropped[1] and not self._older_lost
            self._is_older, self._meta = False, self._newest
        self._check_leaks()
        self._check_tail()
        marks = self.marks[: self._newest.high_water]
        report.reached_count = marks.translate(_IS_REACHED).count(1)
        report.free_count = marks.translate(_IS_FREE).count(1)
        report.pending_count = marks.translate(_IS_PENDING).count(1)
        for findings, dropped in zip((report.errors, report.warnings), self._dropped, strict=True):
            if dropped:
                findings.append(Finding("more", f"and {dropped} more that are not listed"))
        if self._progress is not None:
            self._progress(self._total, self._total)

    # -- findings --------------------------------------------------------------------------------

    def _add(self, finding: Finding, *, warning: bool = False) -> None:
        warning = warning or self._is_older
        findings = self.report.warnings if warning else self.report.errors
        if len(findings) < MAX_FINDINGS:
            findings.append(finding)
        else:
            self._dropped[warning] += 1

    def _find(
        self,
        place: _Place,
        kind: str,
        message: str,
        expected: object = None,
        found: object = None,
        *,
        lost: bool = False,
        warning: bool = False,
    ) -> None:
        """Report something about a page. lost: what is below it cannot be read."""
        tree = place.tree
        if tree.table is None:
            message = f"{tree.name}: {message}"
        if self._is_older:
            message = f"commit {self._meta.txid}, the one before: {message}"
        if not warning:
            self._mark_bad(place)
        keys = None
        if lost:
            tree.is_broken = True
            if not self._is_older:
                self.is_complete = False
            what = "tables" if tree.tree_id == CATALOGUE_TREE else "keys"
            if tree is not self._map_tree:
                keys = shown_range(tree.codecs.key if tree.codecs else None, place.low, place.high, what)
        self._add(
            Finding(
                kind, message, place.pgno, place.pgno * self._page_size, tree.table, expected, found, place.path, keys
            ),
            warning=warning,
        )

    def _mark_bad(self, place: _Place) -> None:
        if place.pgno < len(self.marks):
            self.marks[place.pgno] |= BAD
        if not self._is_older:
            for pgno in (*place.tree.above, *place.path):
                if pgno < len(self.marks):
                    self.marks[pgno] |= BAD_BELOW

    def _mark(self, pgno: int, bits: int) -> None:
        self.marks[pgno] |= bits
        self._done += 1
        if self._progress is not None and self._done % _PROGRESS_EVERY == 0:
            self._progress(min(self._done, self._total), self._total)

    # -- one commit ------------------------------------------------------------------------------

    def _walk(self, meta: Meta) -> list[tuple[str, CatalogueEntry]]:
        """Verify one commit; returns its tables."""
        self._check_map(meta)
        self._claim_log(meta)
        entries: list[tuple[_Place, bytes, bytes, int]] = []

        def collect(place: _Place, keys: list[bytes], values: list[bytes], txid: int) -> None:
            entries.extend((place, key, value, txid) for key, value in zip(keys, values, strict=True))

        catalogue = _Tree("catalogue", None, CATALOGUE_TREE, None, collect)
        if meta.catalogue_root:
            self._check_node(
                _Place(catalogue, ref_pgno(meta.catalogue_root), (ref_pgno(meta.catalogue_root),)),
                meta.catalogue_root,
                None,
                meta.txid,
            )
        complete = not catalogue.is_broken and not catalogue.is_shared
        if complete and catalogue.entry_count != meta.table_count:
            self._about_commit(
                "count", "the catalogue has another number of tables", meta.table_count, catalogue.entry_count
            )
        tables: list[tuple[str, CatalogueEntry]] = []
        seen: dict[int, str] = {}
        for place, key, value, txid in entries:
            decoded = self._check_catalogue_entry(place, key, value, meta, seen)
            if decoded is not None:
                tables.append(decoded[:2])
                self._check_table(place, *decoded, txid)
        return tables

    def _about_commit(self, kind: str, message: str, expected: object, found: object, table: str | None = None) -> None:
        if self._is_older:
            message = f"commit {self._meta.txid}, the one before: {message}"
        self._add(Finding(kind, message, table=table, expected=expected, found=found))

    def _check_catalogue_entry(
        self, place: _Place, key: bytes, value: bytes, meta: Meta, seen: dict[int, str]
    ) -> tuple[str, CatalogueEntry, RecordedCodecs | None] | None:
        try:
            name = key.decode()
        except UnicodeDecodeError:
            name = key.decode(errors="backslashreplace")
            self._find(place, "catalogue", f"the name of table {name!r} is not UTF-8")
        if not key:
            self._find(place, "catalogue", "a table has an empty name")
        if type(value) is Overflow:
            self._find(place, "catalogue", f"the entry of table {name!r} is an overflow record")
            self.is_complete = False
            return None
        try:
            entry = decode_catalogue_entry(value, name)
        except CorruptError as error:
            self._find(place, "catalogue", f"table {name!r}: {error.message}", error.expected, error.found)
            self.is_complete = False
            return None
        if entry.tree_id in seen:
            self._find(
                place, "catalogue", f"tables {seen[entry.tree_id]!r} and {name!r} have the same tree id {entry.tree_id}"
            )
        seen[entry.tree_id] = name
        if entry.tree_id >= meta.next_tree_id:
            self._find(
                place,
                "catalogue",
                f"table {name!r} has a tree id that was not given out yet",
                f"{FIRST_TABLE_TREE} to {meta.next_tree_id - 1}",
                entry.tree_id,
            )
        try:
            return name, entry, recorded_codecs(entry, name)
        except CorruptError as error:
            self._find(place, "codec", f"table {name!r}: {error.message}", None, error.found)
            return name, entry, None

    def _check_table(
        self, place: _Place, name: str, entry: CatalogueEntry, codecs: RecordedCodecs | None, txid: int
    ) -> None:
        tree = _Tree(f"table {name!r}", name, entry.tree_id, codecs, above=place.path)
        if entry.root:
            self._check_node(_Place(tree, ref_pgno(entry.root), (ref_pgno(entry.root),)), entry.root, None, txid)
        if tree.is_broken:
            missing = entry.entry_count - tree.entry_count
            if not tree.is_shared and missing > 0:
                self._about_commit(
                    "lost",
                    f"{missing} of {entry.entry_count} entries cannot be read",
                    entry.entry_count,
                    tree.entry_count,
                    name,
                )
        elif not tree.is_shared and tree.entry_count != entry.entry_count:
            self._about_commit(
                "count", "the catalogue counts another number of entries", entry.entry_count, tree.entry_count, name
            )

    # -- pages -----------------------------------------------------------------------------------

    def _claim(self, place: _Place, ref: int, count: int = 1) -> bool:
        """Whether `count` pages from `place.pgno` on may be looked at: they exist, and nobody has them yet."""
        pgno = place.pgno
        if pgno < FIRST_NODE_PGNO or pgno + count > self._meta.high_water:
            last = f" to {pgno + count - 1}" if count > 1 else ""
            self._find(
                place,
                "reference",
                f"a reference points at page {pgno}{last}, outside of the pages of the commit",
                f"{FIRST_NODE_PGNO} to {self._meta.high_water - 1}",
                pgno,
                lost=True,
            )
            return False
        marks = self.marks
        if pgno + count > len(marks):
            self._find_cut(place, count * self._page_size, max(0, len(marks) - pgno) * self._page_size)
            return False
        if self._is_older and marks[pgno] & REACHED:
            self._check_shared(place, ref)
            return False
        mine, free = (OLDER, OLDER_FREE) if self._is_older else (REACHED, FREE)
        for own in range(pgno, pgno + count):
            if marks[own] & (REACHED | mine):
                self._find_double(place, own)
                return False
        for own in range(pgno, pgno + count):
            if marks[own] & free:
                self._find(
                    place._replace(pgno=own),
                    "free",
                    "the page is in use, and marked free: it would be overwritten. Take a backup before the next write",
                )
            self._mark(own, mine if own == pgno else mine | TAIL)
        return True

    def _find_double(self, place: _Place, pgno: int) -> None:
        owner = ""
        header = self._header(pgno)
        if header is not None and header.pgno == pgno and header.tree_id != place.tree.tree_id:
            owner = f"; by its own header it belongs to tree {header.tree_id}"
        self._find(
            place._replace(pgno=pgno),
            "double",
            f"the page is referred to a second time, here by the {place.tree.name}{owner}",
            lost=True,
        )

    def _header(self, pgno: int) -> PageHeader | None:
        try:
            data = self._pager.file.read(pgno * self._page_size, PAGE_HEADER_SIZE)
        except OSError:
            return None
        return decode_page_header(data) if len(data) == PAGE_HEADER_SIZE else None

    def _check_shared(self, place: _Place, ref: int) -> None:
        """The older commit refers to a page that the newest uses: it must be the same one."""
        place.tree.is_shared = True
        header = self._header(place.pgno)
        if self.marks[place.pgno] & (BAD | BAD_BELOW):
            self._older_lost = True  # reported already
        elif header is not None and header.checksum != ref_checksum(ref):
            self._find(
                place,
                "stale",
                f"the page was overwritten by commit {header.txid}",
                ref_checksum(ref),
                header.checksum,
                lost=True,
            )

    def _read(self, place: _Place, ref: int) -> bytes | None:
        """The bytes of a page, verified against its reference, or None if they are not those."""
        try:
            page = self._pager.file.read(place.pgno * self._page_size, self._page_size)
        except OSError as error:
            self._find(place, "io", f"the system cannot read the page: {error}", lost=True)
            return None
        if len(page) < self._page_size:
            self._find_cut(place, self._page_size, len(page))
            return None
        found = page_checksum(page, self._pager.checksum, self._pager.seed)
        return page if self._checks_out(place, page, found, ref) else None

    def _find_cut(self, place: _Place, expected: int, found: int) -> None:
        self._find(
            place, "truncated", "the file ends inside or before the page", f"{expected} bytes", f"{found}", lost=True
        )

    def _checks_out(self, place: _Place, page: bytes, found: int, ref: int) -> bool:
        stored: int = CHECKSUM.unpack_from(page)[0]
        expected = ref_checksum(ref)
        if found == expected:
            if stored != found:
                self._find(
                    place,
                    "checksum",
                    "the checksum in the page itself is damaged; by its parent's reference the rest is whole",
                    expected,
                    stored,
                )
            return True
        if stored != found:
            self._find(place, "checksum", "the page is damaged: its checksum does not match", stored, found, lost=True)
            return False
        header = decode_page_header(page)
        if header.pgno != place.pgno:
            what = f"the page is whole but belongs elsewhere: it is page {header.pgno} of commit {header.txid}"
        else:
            what = f"the page is whole but another version than the one referred to: of commit {header.txid}"
        self._find(place, "stale", what, expected, found, lost=True)
        return False

    def _check_header(self, place: _Place, header: PageHeader, kinds: tuple[int, ...], parent_txid: int) -> bool:
        """Whether the page is what its place calls for."""
        wanted = " or ".join(PAGE_KIND_NAMES[kind] for kind in kinds)
        if header.pgno != place.pgno:
            self._find(place, "misplaced", "the page belongs elsewhere", place.pgno, int(header.pgno), lost=True)
            return False
        if header.tree_id != place.tree.tree_id:
            self._find(place, "tree", "the page belongs to another tree", place.tree.tree_id, header.tree_id, lost=True)
            return False
        if header.kind not in kinds:
            name = PAGE_KIND_NAMES.get(header.kind, f"kind {header.kind}")
            self._find(place, "kind", "the page is of the wrong kind", wanted, name, lost=True)
            return False
        if header.txid > parent_txid:
            self._find(
                place,
                "txid",
                "the page is newer than what refers to it",
                f"commit {parent_txid} at most",
                f"commit {header.txid}",
            )
        return True

    # -- trees -----------------------------------------------------------------------------------

    def _check_node(self, place: _Place, ref: int, level: int | None, parent_txid: int) -> None:
        """Verify a node and everything below it. level: None at a root."""
        if not self._claim(place, ref):
            return
        page = self._read(place, ref)
        if page is None:
            return
        header = decode_page_header(page)
        if not self._check_header(place, header, (LEAF, BRANCH), parent_txid):
            return
        wanted: object = level
        if header.kind == LEAF:
            is_right = header.level == 0 and level in (None, 0)
            wanted = 0 if level is None else level
        else:
            is_right = header.level == level if level is not None else 0 < header.level <= MAX_LEVEL
            wanted = f"1 to {MAX_LEVEL}" if level is None else level
        if not is_right:
            kind = PAGE_KIND_NAMES[header.kind]
            self._find(place, "level", f"the {kind} has the wrong level for its place", wanted, header.level, lost=True)
            return
        try:
            node = decode_node(page, header.pgno, header.tree_id)
            if isinstance(node, Branch):
                self._check_branch(place, node, header)
                return
            keys, values = node.keys(), node.values()
        except CorruptError as error:
            kind = "order" if "order" in error.message else "structure"
            self._find(place, kind, error.message, error.expected, error.found, lost=True)
            return
        self._check_leaf(place, page, header, keys, values)

    def _check_branch(self, place: _Place, branch: Branch, header: PageHeader) -> None:
        separators = branch.keys
        low, high = place.low, place.high
        if separators and ((low is not None and separators[0] <= low) or (high is not None and separators[-1] >= high)):
            self._find_outside(place, "separators", separators[0], separators[-1])
        self._check_key_sizes(place, separators)
        used = PAGE_HEADER_SIZE + END_SIZE * len(separators) + REF_SIZE * len(branch.children)
        self._check_padding(place, branch.page, used + sum(map(len, separators)))
        bounds = [low, *separators, high]
        for index, child in enumerate(branch.children):
            pgno = ref_pgno(child)
            self._check_node(place.child(pgno, bounds[index], bounds[index + 1]), child, branch.level - 1, header.txid)

    def _find_outside(self, place: _Place, what: str, first: bytes, last: bytes) -> None:
        key = place.tree.codecs.key if place.tree.codecs else None
        self._find(
            place,
            "separator",
            f"{what} lie outside of what the separators above allow, so a search cannot find them",
            shown_range(key, place.low, place.high, "keys"),
            f"{shown_bound(key, first)} to {shown_bound(key, last)}",
        )

    def _check_key_sizes(self, place: _Place, keys: list[bytes]) -> None:
        longest = max(map(len, keys), default=0)
        limit = max_key_size(self._page_size)
        if longest > limit:
            self._find(place, "entry", "a key is longer than a key may be", f"{limit} bytes at most", longest)

    def _check_padding(self, place: _Place, page: bytes, used: int) -> None:
        if page.count(0, used) != len(page) - used:
            self._find(place, "padding", "the unused bytes at the end of the page are not zero", warning=True)

    def _check_leaf(
        self, place: _Place, page: bytes, header: PageHeader, keys: list[bytes], values: list[bytes]
    ) -> None:
        tree = place.tree
        tree.entry_count += len(keys)
        low, high = place.low, place.high
        start = bisect_left(keys, low) if low is not None else 0
        stop = bisect_left(keys, high) if high is not None else len(keys)
        if start or stop < len(keys):
            outside = keys[:start] + keys[stop:]
            self._find_outside(place, f"{len(outside)} of {len(keys)} keys", outside[0], outside[-1])
        self._check_key_sizes(place, keys)
        limit = max_inline_entry(self._page_size)
        if any(len(key) + len(value) > limit for key, value in zip(keys, values, strict=True)):
            self._find(place, "entry", "an entry is larger than an entry in a leaf may be", f"{limit} bytes at most")
        overflow_count: int = LEAF_OVERFLOW_COUNT.unpack_from(page, PAGE_HEADER_SIZE)[0]
        arrays = LEAF_ARRAYS_AT + 2 * END_SIZE * len(keys)
        listed = page[arrays : arrays + END_SIZE * overflow_count]
        indexes = [int.from_bytes(listed[at : at + END_SIZE], "little") for at in range(0, len(listed), END_SIZE)]
        if indexes != sorted(indexes):
            self._find(place, "structure", "the overflow indexes are not in order", sorted(indexes), indexes)
        self._check_padding(place, page, arrays + len(listed) + sum(map(len, keys)) + sum(map(len, values)))
        if tree.on_leaf is not None:
            tree.on_leaf(place, keys, values, header.txid)
        codecs = None if self._quick else tree.codecs
        stored: list[tuple[bytes, bytes]] = []
        for key, value in zip(keys, values, strict=True):
            if type(value) is not Overflow:
                stored.append((key, value))
            elif (large := self._check_run(place, key, value, header.txid, keep=codecs is not None)) is not None:
                stored.append((key, large))
        if codecs is not None:
            if codecs.key is not BYTES:
                wrong = [(key, reason) for key in keys if (reason := _wrong_key(codecs, key)) is not None]
                self._find_undecodable(place, "keys", len(keys), wrong)
            if codecs.value is not BYTES:
                wrong = [(key, reason) for key, value in stored if (reason := _wrong_value(codecs, value)) is not None]
                self._find_undecodable(place, "values", len(keys), wrong)

    def _find_undecodable(self, place: _Place, what: str, total: int, bad: list[tuple[bytes, str]]) -> None:
        if bad:
            codecs = place.tree.codecs
            assert codecs is not None
            key, wrong = bad[0]
            self._find(
                place,
                "codec",
                f"{len(bad)} of {total} {what} are not what the table's codec writes; "
                f"the first is of key {shown_key(codecs.key, key)}: {wrong}",
            )

    # -- overflow runs ---------------------------------------------------------------------------

    def _check_run(self, leaf: _Place, key: bytes, record: Overflow, leaf_txid: int, *, keep: bool) -> bytes | None:
        """Verify an overflow run; returns the value if it is to be kept for decoding."""
        ref = record.ref
        first = ref_pgno(ref)
        place = leaf.child(first, key, key + b"\0")
        count = overflow_page_count(record.value_size, self._page_size)
        if not self._claim(place, ref, count):
            return None
        codecs = leaf.tree.codecs
        keep = keep and codecs is not None and codecs.value is not BYTES
        pieces: list[bytes] = []
        size = count * self._page_size
        chunk = max(_CHUNK, self._page_size)
        at, checksum, padding = 0, self._pager.seed, 0
        head = b""
        value_end = PAGE_HEADER_SIZE + record.value_size
        while at < size:
            try:
                data = self._pager.file.read(first * self._page_size + at, min(chunk, size - at))
            except OSError as error:
                self._find(place, "io", f"the system cannot read the overflow run: {error}", lost=True)
                return None
            if len(data) < min(chunk, size - at):
                self._find_cut(place, size, at + len(data))
                return None
            head = head or data[:PAGE_HEADER_SIZE]
            checksum = self._pager.checksum(data if at else memoryview(data)[CHECKSUM.size :], checksum)
            behind = max(0, value_end - at)
            padding += len(data[behind:]) - data.count(0, behind)
            if keep:
                pieces.append(data)
            at += len(data)
        if not self._checks_out(place, head, checksum, ref):
            return None
        header = decode_page_header(head)
        if not self._check_header(place, header, (OVERFLOW,), leaf_txid):
            return None
        if header.level or header.count:
            self._find(
                place, "overflow", "level and count of an overflow run have to be 0", 0, header.level or header.count
            )
        if padding:
            self._find(place, "padding", "the unused bytes at the end of the overflow run are not zero", warning=True)
        return b"".join(pieces)[PAGE_HEADER_SIZE:value_end] if keep else None

    # -- the map of free space -------------------------------------------------------------------

    def _check_map(self, meta: Meta) -> None:
        """Verify the map of a commit and mark its free pages."""
        tree = self._map_tree
        tree.is_broken = tree.is_shared = False
        mark = OLDER_FREE if self._is_older else FREE
        bits = bitmap_bits(self._page_size)
        fanout = map_fanout(self._page_size)
        height = map_height(meta.high_water, self._page_size)
        waiting: list[tuple[_Place, int, int, int, int]] = []
        if meta.free_space_root:
            root = ref_pgno(meta.free_space_root)
            waiting.append((_Place(tree, root, (root,)), meta.free_space_root, height, 0, meta.txid))
        free_count = 0
        while waiting:
            place, ref, level, index, txid = waiting.pop()
            span = bits * fanout**level
            start = index * span
            if self._is_older and place.pgno < len(self.marks) and self.marks[place.pgno] & REACHED:
                self._check_shared(place, ref)
                free_count += self._copy_free(start, min(start + span, meta.high_water))
                continue
            page = self._read(place, ref) if self._claim(place, ref) else None
            header = children = None
            if page is not None:
                header = decode_page_header(page)
                try:
                    children = check_map_page(page, header.pgno, level)
                    if header.pgno != place.pgno:
                        self._find(
                            place, "misplaced", "the page belongs elsewhere", place.pgno, int(header.pgno), lost=True
                        )
                        children = None
                except CorruptError as error:
                    self._find(place, "map", error.message, error.expected, error.found, lost=True)
            if page is None or header is None or children is None:
                for pgno in range(start, min(start + span, len(self.marks))):
                    self.marks[pgno] |= 0 if self._is_older else UNKNOWN
                continue
            if header.txid > txid:
                self._find(
                    place,
                    "txid",
                    "the page is newer than what refers to it",
                    f"commit {txid} at most",
                    f"commit {header.txid}",
                )
            if level:
                self._check_padding(place, page, PAGE_HEADER_SIZE + REF_SIZE * len(children))
                for at, child in enumerate(children):
                    own = index * fanout + at
                    if child and own * (span // fanout) >= meta.high_water:
                        self._find(place, "map", "a part of the map is behind the end", meta.high_water, own)
                    elif child:
                        pgno = ref_pgno(child)
                        waiting.append((place.child(pgno, None, None), child, level - 1, own, header.txid))
            else:
                free_count += self._mark_free(place, page[PAGE_HEADER_SIZE:], start, meta.high_water, mark)
        if not tree.is_broken and free_count != meta.free_count:
            self._about_commit(
                "count", "the map of free space has another number of free pages", meta.free_count, free_count
            )

    def _claim_log(self, meta: Meta) -> None:
        """The pages of the log are in use, whatever is in them; both commits have it in the same place, usually."""
        if meta.log_size and not (self._is_older and meta.log_start == self._newest.log_start):
            self._claim(_Place(self._log_tree, meta.log_start, (meta.log_start,)), 0, meta.log_size)

    def _check_log(self, tables: dict[int, tuple[str, CatalogueEntry]]) -> None:
        """Verify what the log says on top of the newest checkpoint."""
        problem = self._log.problem
        if problem is not None:
            self._add(Finding("log", problem.message, problem.pgno, problem.offset))
        limit = max_key_size(self._page_size)
        for record in self._log.records:
            pgno = self._newest.log_start + record.at

            def find(message: str, table: str | None = None, pgno: int = pgno) -> None:
                self._add(Finding("log", message, pgno, pgno * self._page_size, table))
                if pgno < len(self.marks):
                    self.marks[pgno] |= BAD

            try:
                groups = list(decode_changes(record.changes, pgno))
            except CorruptError as error:
                find(error.message)
                continue
            for group in groups:
                if group.tree_id not in tables:
                    if self.is_complete:
                        find(f"the record changes tree {group.tree_id}, which no table has")
                    continue
                name, entry = tables[group.tree_id]
                if any(len(key) > limit for key, _ in group.changes):
                    find("a key in the record is too large", name)
                if not self._quick:
                    self._check_changes(name, entry, group, find)

    @staticmethod
    def _check_changes(name: str, entry: CatalogueEntry, group: Group, find: Callable[[str, str | None], None]) -> None:
        try:
            codecs = recorded_codecs(entry, name)
        except LimpetError:
            return  # told where the catalogue was verified
        for key, value in group.changes:
            wrong = _wrong_key(codecs, key) or (None if value is None else _wrong_value(codecs, value))
            if wrong is not None:
                find(f"an entry in the record cannot be decoded: {wrong}", name)
                return

    def _mark_free(self, place: _Place, bitmap: bytes, start: int, high_water: int, mark: int) -> int:
        """Mark what a bitmap says is free; returns how many pages."""
        count, wrong = 0, []
        for found in re.finditer(rb"[^\0]+", bitmap):
            for at in range(found.start(), found.end()):
                byte = bitmap[at]
                for bit in range(8):
                    if not byte >> bit & 1:
                        continue
                    pgno = start + 8 * at + bit
                    if FIRST_NODE_PGNO <= pgno < high_water:
                        count += 1
                        if pgno < len(self.marks):
                            self.marks[pgno] |= mark
                    else:
                        wrong.append(pgno)
        if wrong:
            self._find(
                place,
                "map",
                f"{len(wrong)} pages are marked free that cannot be, the first is page {wrong[0]}",
                f"{FIRST_NODE_PGNO} to {high_water - 1}",
                wrong[0],
            )
        return count

    def _copy_free(self, start: int, stop: int) -> int:
        """A part of the map that both commits share."""
        count = 0
        for pgno in range(start, min(stop, len(self.marks))):
            if self.marks[pgno] & FREE:
                self.marks[pgno] |= OLDER_FREE
                count += 1
        return count

    # -- the file --------------------------------------------------------------------------------

    def _check_size(self) -> None:
        size = self._pager.file.size()
        needed = self._newest.high_water * self._page_size
        if size < needed:
            self._add(
                Finding(
                    "size",
                    f"the file was cut short: commit {self._newest.txid} needs {needed} bytes",
                    offset=size,
                    expected=f"{needed} bytes",
                    found=f"{size} bytes",
                )
            )

    def _check_leaks(self) -> None:
        marks = self.marks[FIRST_NODE_PGNO : self._newest.high_water]
        runs = [
            (found.start() + FIRST_NODE_PGNO, found.end() - found.start())
            for found in re.finditer(rb"\x01+", marks.translate(_IS_LEAKED))
        ]
        count = sum(count for _, count in runs)
        if self.is_complete:
            self.report.leaked_count = count
        else:
            self.report.unreached_count = count
        if count and not self.is_complete:
            self._add(
                Finding(
                    "unreached",
                    f"{count} pages, the first of them page {runs[0][0]}, are neither reached nor free; they belong to "
                    "what cannot be read, or are leaked",
                ),
                warning=True,
            )
            return
        for first, count in runs:
            pages = "the page is" if count == 1 else f"pages {first} to {first + count - 1} are"
            header = self._header(first)
            origin = ""
            if header is not None and header.pgno == first and header.kind in PAGE_KIND_NAMES:
                table = self.table_names.get(header.tree_id)
                whose = f"table {table!r}" if table is not None else f"tree {header.tree_id}"
                kind = PAGE_KIND_NAMES[header.kind]
                origin = f"; by its own header commit {header.txid} used it last, as {kind} page of {whose}"
            self._add(
                Finding(
                    "leak",
                    f"{pages} neither reached nor free: {count * self._page_size} bytes are lost until the file is "
                    f"compacted{origin}",
                    pgno=first,
                    offset=first * self._page_size,
                ),
                warning=True,
            )

    def _check_tail(self) -> None:
        """Behind the end there may be zeros, and pages of a commit that never was; nothing else."""
        file, page_size = self._pager.file, self._page_size
        start = self._end * page_size
        size = file.size()
        foreign, first, in_run = 0, 0, False
        try:
            for at in range(start, size, _CHUNK):
                data = file.read(at, min(_CHUNK, size - at))
                if data.count(0) == len(data):
                    in_run = False
                    continue
                for offset in range(0, len(data), page_size):
                    page = data[offset : offset + page_size]
                    if page.count(0) == len(page):
                        in_run = False
                        continue
                    if len(page) >= PAGE_HEADER_SIZE:
                        header = decode_page_header(page)
                        if header.pgno == (at + offset) // page_size and header.kind in PAGE_KIND_NAMES:
                            in_run = header.kind == OVERFLOW
                            continue
                    if not in_run:
                        first = first or at + offset
                        foreign += len(page)
        except OSError as error:
            self._add(Finding("io", f"the system cannot read the end of the file: {error}", offset=start), warning=True)
        if foreign:
            self._add(
                Finding(
                    "junk", f"{foreign} bytes behind the end of the commit were not written by Limpet", offset=first
                ),
                warning=True,
            )


def _table(test: Callable[[int], bool]) -> bytes:
    return bytes(test(mark) for mark in range(256))


# mark -> 1 or 0, for bytearray.translate
_IS_REACHED = _table(lambda mark: bool(mark & REACHED))
_IS_FREE = _table(lambda mark: bool(mark & FREE))
_IS_PENDING = _table(lambda mark: bool(mark & FREE and mark & OLDER))
_IS_LEAKED = _table(lambda mark: not mark & (REACHED | FREE | UNKNOWN))


# -- codecs --------------------------------------------------------------------------------------


def recorded_codecs(entry: CatalogueEntry, name: str) -> RecordedCodecs:
    """The codecs of a table. CorruptError if the catalogue names unknown ones."""
    return RecordedCodecs(key_codec(entry.key_shape, entry.key_codecs, name), value_codec(entry.value_codec, name))


def _wrong_key(codecs: RecordedCodecs, key: bytes) -> str | None:
    try:
        if codecs.encode_key(codecs.decode_key(key)) != key:
            return "the bytes are not the ones that the key is encoded as"
    except (LimpetError, ValueError, TypeError) as error:
        return str(error)
    return None


def _wrong_value(codecs: RecordedCodecs, value: bytes) -> str | None:
    try:
        codecs.decode_value(value)
    except CorruptError as error:
        return str(error)
    return None


# -- keys for people -----------------------------------------------------------------------------

_LONGEST_SHOWN = 48  # characters of one key


def shown_key(codec: KeyCodec | None, key: bytes) -> str:
    """A key for a message, shortened; as hex where it cannot be decoded."""
    if codec is not None:
        try:
            return _short(repr(key_functions(codec)[2](key)))
        except (LimpetError, ValueError):
            pass
    return _short(f"0x{key.hex()}")


def shown_bound(codec: KeyCodec | None, bound: bytes) -> str:
    """A separator for a message: the beginning of a key, so elements may be missing or cut off."""
    if codec is None:
        return shown_key(None, bound)
    if isinstance(codec, Codec):
        return _short(_element(codec, bound))
    shown = []
    at = 0
    for element in codec:
        if at >= len(bound):
            break
        if element.size:
            end = at + element.size
            shown.append(_element(element, bound[at:end]))
        else:
            end = bound.find(b"\0", at)
            part = bound[at : end if end >= 0 else len(bound)]
            end = end + 1 if end >= 0 else len(bound)
            shown.append(_element(element, part.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1")))
        at = end
    return _short(f"({', '.join(shown)}{',' if len(shown) < 2 else ''})")


def _element(codec: Codec, data: bytes) -> str:
    """One element; what was cut off sorts like zeros."""
    decode = codec.decode_key
    assert decode is not None
    try:
        if codec.size:
            return _plain(decode(data.ljust(codec.size, b"\0")))
        return repr(data.decode(errors="backslashreplace") if codec is not BYTES else data)
    except (LimpetError, ValueError):
        return f"0x{data.hex()}"


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, str | bytes | int | float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def shown_range(codec: KeyCodec | None, low: bytes | None, high: bytes | None, what: str) -> str:
    """A range of keys for a message. what: "keys" or "tables"."""
    if what == "tables":
        codec = STR
    if low is not None and high == low + b"\0":
        return f"key {shown_key(codec, low)}"
    if low is None and high is None:
        return f"all {what}"
    if low is None:
        assert high is not None
        return f"{what} up to {shown_bound(codec, high)}"
    if high is None:
        return f"{what} from {shown_bound(codec, low)} on"
    return f"{what} from {shown_bound(codec, low)} up to {shown_bound(codec, high)}"
