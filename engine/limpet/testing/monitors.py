"""The rules of writing, watched call by call: one assertion in place of 2^n power cuts.

    M1  no write touches a byte that a valid checkpoint or a live snapshot needs, nor the header
    M2  a meta goes only to the slot that does not hold the newest one, in one write inside one
        sector, and only when all it needs is durable
    M3  the file has the size that a commit needs, durably, before the commit is recorded
    M4  the file is never cut below what its commits need
    M5  after a failed sync, or a failed write to a commit record, the handle writes no more
    M6  no write touches a page of a commit whose record may still be on the disk, although a newer
        record was written over it and not synced
    M7  opening a file writes nothing but its advisory note, and that only after the metas were
        read; no meta is written anew with an old txid, but for a copy of the newest, which is durable
    M8  a file opened for reading is not written
    M9  a file gets its name only when all of it is durable
    M10 a log record is written whole, directly behind the last one that recovery would accept, inside
        the log, and only when the meta of its epoch is durable; nothing else is written into the log

A violation is raised in the call and kept in `violations`, since an engine might swallow it.
Source: the survey behind DESIGN.md, and SQLite's pager-invariants.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..errors import CorruptError
from .disk import SECTOR, Call, Inode, SimDisk, SimFile, Write
from .layout import CommitRecord, Layout, layout_of

_WRITES = frozenset({"write", "grow", "truncate"})
_SYNCS = frozenset({"sync", "sync_all", "sync_range"})


class Violation(AssertionError):
    """A rule of writing was broken; the message begins with its number."""


class Monitor:
    """Watches a simulated disk from now on."""

    def __init__(self, disk: SimDisk) -> None:
        """Attach to `disk`."""
        self.disk = disk
        self.violations: list[str] = []
        self.commits_seen = 0
        self._pins: list[int] = []
        self._needs: dict[tuple[int, int], set[int]] = {}  # (inode, meta) -> pages
        self._by_txid: dict[tuple[int, int], set[int]] = {}  # (inode, txid) -> pages
        self._layouts: dict[int, Layout] = {}
        self._failed: set[int] = set()  # handles after a failed sync
        self._watched: dict[int, SimFile] = {}
        self._guarded: dict[int, tuple[int, set[int]]] = {}
        self._opening = 0
        self._records_read: set[int] = set()
        self._in_flight: Call | None = None
        disk.before.append(self._before)
        disk.after.append(self._after)

    def detach(self) -> None:
        """Stop watching."""
        self.disk.before.remove(self._before)
        self.disk.after.remove(self._after)

    def pin(self, txid: int) -> None:
        """A reader has a snapshot open that stands on this checkpoint."""
        self._pins.append(txid)

    def unpin(self, txid: int) -> None:
        """A reader has let go of it."""
        self._pins.remove(txid)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Around the opening of a database: recovery may not write (M7)."""
        self._opening += 1
        self._records_read = set()
        try:
            yield
        finally:
            self._opening -= 1

    # -- the calls -------------------------------------------------------------------------------

    def _before(self, call: Call) -> None:
        self._note_failure()
        kind, file = call.kind, call.file
        if kind in ("link", "replace"):
            self._check_naming(call)
            return
        if file is None:
            return
        self._in_flight = call
        if kind == "read":
            layout = self._layout(file.inode)
            slot = None if layout is None else layout.slot_of(call.offset, call.size)
            if slot is not None:
                self._records_read.add(slot)
            return
        if kind in _WRITES or (kind in _SYNCS and id(file) in self._failed):
            if id(file) in self._failed and id(file) in self._watched:
                self._broken("M5", call, "after a failure of a sync or of a commit record")
            if not file.writable:
                self._broken("M8", call, "on a file opened for reading")
        if kind == "write":
            self._check_write(call, file)
        elif kind == "truncate":
            self._check_truncate(call, file)
        elif kind == "grow" and self._opening and self._is_named(file):
            self._broken("M7", call, "while the file is being opened")

    def _after(self, call: Call) -> None:
        self._in_flight = None
        if call.kind == "write" and call.file is not None:
            layout = self._layout(call.file.inode)
            if layout is not None and layout.slot_of(call.offset, call.size) is not None:
                self._remember(call.file.inode, layout)

    def _note_failure(self) -> None:
        """A call that never got to `_after` has failed."""
        call, self._in_flight = self._in_flight, None
        if call is None or call.file is None:
            return
        layout = self._layout(call.file.inode)
        record = call.kind == "write" and layout is not None and layout.slot_of(call.offset, call.size) is not None
        if (record and self._is_named(call.file)) or call.kind in _SYNCS or call.kind == "drop_cache":
            self._failed.add(id(call.file))
            self._watched[id(call.file)] = call.file  # held, so that the id stays its own

    # -- the rules -------------------------------------------------------------------------------

    def _check_write(self, call: Call, file: SimFile) -> None:
        inode = file.inode
        layout = self._layout(inode)
        if layout is None or not self._is_named(file) or layout.is_advisory(call.offset, call.size):
            if self._opening and layout is not None and self._is_named(file) and len(self._records_read) < 2:
                self._broken("M7", call, "before the commit records were read")
            return
        if self._opening:
            self._broken("M7", call, "while the file is being opened")
        page_size = layout.page_size
        if call.offset < page_size:
            self._broken("M1", call, "into the header, which is written once")
        slot = layout.slot_of(call.offset, call.size)
        if slot is not None:
            self._check_record(call, inode, layout, slot)
            return
        pages = range(call.offset // page_size, -(-(call.offset + call.size) // page_size))
        if self._check_log(call, inode, layout, pages):
            return
        for rule, commit_pages, what in self._guards(inode, layout):
            hit = commit_pages.intersection(pages)
            if hit:
                self._broken(rule, call, f"over pages {sorted(hit)}, which {what} needs")

    def _guards(self, inode: Inode, layout: Layout) -> Iterator[tuple[str, set[int], str]]:
        for commit in layout.commits(inode.cache):
            yield "M1", self._needed(inode, layout, commit), f"commit {commit.txid}"
        for txid in self._pins:
            pages = self._by_txid.get((inode.number, txid))
            if pages:
                yield "M1", pages, f"the reader of commit {txid}"
        # What a power cut might leave in a slot: the durable record, and each one written since.
        for commit in layout.commits(inode.on_disk()):
            yield "M6", self._needed(inode, layout, commit), f"commit {commit.txid}, on the disk until the next sync,"
        for change in inode.pending:
            if type(change) is Write and layout.slot_of(change.offset, len(change.data)) is not None:
                image = bytearray(layout.page_size * 4)
                image[change.offset : change.offset + len(change.data)] = change.data
                for commit in layout.commits(image):
                    pages = self._needs.get((inode.number, _identity(commit)), set())
                    yield "M6", pages, f"commit {commit.txid}, which may be on the disk,"

    def _check_record(self, call: Call, inode: Inode, layout: Layout, slot: int) -> None:
        first, last = call.offset // SECTOR, (call.offset + call.size - 1) // SECTOR
        if first != last:
            self._broken("M2", call, "a commit record across sectors")
        before = layout.commits(inode.cache)
        newest_durable = max(before, key=_age, default=None)
        twins = {other.slot for other in before if newest_durable is not None and other.txid == newest_durable.txid}
        if newest_durable is not None and newest_durable.slot == slot and len(twins) == 1:
            self._broken("M2", call, f"over the record of commit {newest_durable.txid}, the newest durable one")
        image = bytearray(inode.cache)
        image[call.offset : call.offset + call.size] = call.data
        written = [commit for commit in layout.commits(image) if commit.slot == slot]
        if not written:
            self._broken("M2", call, "a commit record that is not valid")
        commit = written[0]
        newest = max((other.txid for other in before), default=0)
        again = [other for other in layout.commits(inode.on_disk()) if other.txid == commit.txid]
        if commit.txid < newest or (commit.txid == newest and not any(_twins(other, commit) for other in again)):
            self._broken("M7", call, f"checkpoint {commit.txid} is recorded again, and {newest} was seen before")
        self.commits_seen += 1
        if inode.durable_size < commit.needed:
            self._broken("M3", call, f"{commit.needed} bytes are needed, {inode.durable_size} durable")
        try:
            layout.pages(inode.on_disk(), commit)
        except CorruptError as error:
            self._broken("M2", call, f"commit {commit.txid} is recorded before all of it is durable: {error}")

    def _check_log(self, call: Call, inode: Inode, layout: Layout, pages: range) -> bool:
        """Whether the write is one into the log, and if so, whether it may be."""
        commits = layout.commits(inode.cache)
        if not commits:
            return False
        newest = commits[-1]
        region, records = layout.log(inode.cache, newest)
        end = records[-1].stop if records else region.start
        for older in (*commits, *layout.commits(inode.on_disk())):
            other, _ = layout.log(inode.cache, older)
            if other != region and set(other) & set(pages):
                self._broken("M1", call, f"into the log of checkpoint {older.txid}")
        if not set(region) & set(pages):
            return False
        if pages.start != end or pages.stop > region.stop:
            self._broken("M10", call, f"pages {list(pages)}, and the log {region} goes on at page {end}")
        image = bytearray(inode.cache)
        image[call.offset : call.offset + call.size] = call.data
        after = layout.log(image, newest)[1]
        if not after or after[-1] != pages:
            self._broken("M10", call, "not a record that continues the log")
        if not any(_twins(newest, other) for other in layout.commits(inode.on_disk())):
            self._broken("M10", call, f"the meta of checkpoint {newest.txid} is not durable")
        self.commits_seen += 1
        return True

    def _check_truncate(self, call: Call, file: SimFile) -> None:
        layout = self._layout(file.inode)
        if layout is None or not self._is_named(file):
            return
        for image in (file.inode.cache, file.inode.on_disk()):
            for commit in layout.commits(image):
                if call.size < commit.needed:
                    self._broken("M4", call, f"to {call.size}, and commit {commit.txid} needs {commit.needed}")

    def _check_naming(self, call: Call) -> None:
        inode = self.disk.names.get(call.source)
        if inode is not None and inode.pending:
            self._broken("M9", call, f"{len(inode.pending)} changes of it are not synced")

    # -- what is known ---------------------------------------------------------------------------

    def _is_named(self, file: SimFile) -> bool:
        """Whether the file is in place, and not still being built."""
        return not file.path.endswith(".new")

    def _layout(self, inode: Inode) -> Layout | None:
        known = self._layouts.get(inode.number)
        if known is None:
            known = layout_of(inode.cache)
            if known is not None:
                self._layouts[inode.number] = known
        return known

    def _needed(self, inode: Inode, layout: Layout, commit: CommitRecord) -> set[int]:
        key = (inode.number, _identity(commit))
        pages = self._needs.get(key)
        if pages is None:
            try:
                pages = layout.pages(inode.cache, commit)
            except CorruptError:
                pages = set()  # damaged on purpose, or never whole: there is nothing to protect
            self._needs[key] = pages
            self._by_txid[inode.number, commit.txid] = pages
        return pages

    def _remember(self, inode: Inode, layout: Layout) -> None:
        for commit in layout.commits(inode.cache):
            self._needed(inode, layout, commit)

    def _broken(self, rule: str, call: Call, what: str) -> None:
        text = f"{rule}: {call.kind} of {call.path} at {call.offset} (+{call.size}): {what}"
        self.violations.append(text)
        raise Violation(text)


def _age(commit: CommitRecord) -> tuple[int, bool]:
    return commit.txid, commit.clean


def _twins(one: CommitRecord, other: CommitRecord) -> bool:
    """Whether two metas are the same but for the mark of a clean close."""
    return replace(one.raw, clean=False, commit_us=0) == replace(other.raw, clean=False, commit_us=0)


def _identity(commit: CommitRecord) -> int:
    return hash(commit.raw)
