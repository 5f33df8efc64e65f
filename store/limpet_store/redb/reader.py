"""Reads the tables of a redb file, formats 2 and 3: lazily, verifying every page, and never writing.

    with RedbFile("data.redb") as file:
        print(file.commit.why)
        for table in file.tables():
            print(table.name, table.key_type, table.value_type, table.entry_count)
        for key, value in file.table("messages").items(): ...

The rules it keeps: no page number, count, offset, order or depth from the file is followed unchecked, and no row is
handed out before the page it stands in has matched the checksum that its parent holds. So any bytes opened as a redb
file either give rows or raise `FormatError` or `CorruptError` (`LimitError` for a row above `max_page_size`), in time
and memory bounded by the size of the file. A walk holds one leaf and the child lists of the branches above it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from limpet import ClosedError, CorruptError, FormatError, LimitError, NoSuchTableError

from .commit import Plan, plan
from .format import (
    BRANCH,
    CATALOGUE,
    CODECS,
    FREED,
    HEADER_SIZE,
    MAX_DEPTH,
    MULTIMAP,
    Geometry,
    Header,
    PageSet,
    Place,
    Record,
    Root,
    Shape,
    Slot,
    Type,
    check_order,
    check_separators,
    children,
    decode_collection,
    decode_header,
    decode_leaf,
    decode_record,
    measured_by,
    used_length,
)
from .report import Commit, Report, SlotReport, TableReport
from .source import FileSource, Source
from .xxh3 import checksum, engine

MAX_PAGE_SIZE: Final = 256 << 20  # bytes; far above any row of a gateway, and a leaf has to fit in memory to give a row
_HEAD_SIZE: Final = 64 << 10  # first read of a large page; covers the offsets of all but absurd ones
_NAME_TYPE: Final = Type(1, "&str")


class _PageError(CorruptError):
    """A page that cannot be had or does not match its checksum, as opposed to good pages that make no sense.

    After a crash the first is what a torn commit looks like, and the older one is the right one. The second is not.
    """


@dataclass(slots=True)
class _Tally:
    """What a walk has met."""

    pages: int = 0
    page_bytes: int = 0
    used_bytes: int = 0
    depth: int = 0


class RedbTable:
    """One table of the commit that is read. Valid as long as its file is open; any thread may use it.

    name             as redb has it
    kind             "table" or "multimap"
    key_type         redb's name of the type, "&str" for instance
    value_type       the same for values (of a multimap: for the single members)
    key_width        bytes of every key, None where they vary
    value_width      the same for values
    entry_count      pairs, as the file says; a walk to the end checks it
    """

    __slots__ = (
        "_file",
        "_record",
        "entry_count",
        "key_type",
        "key_width",
        "kind",
        "name",
        "value_type",
        "value_width",
    )

    def __init__(self, file: RedbFile, name: str, record: Record) -> None:
        self._file = file
        self._record = record
        self.name = name
        self.kind = "multimap" if record.kind == MULTIMAP else "table"
        self.key_type = str(record.key_type)
        self.value_type = str(record.value_type)
        self.key_width, self.value_width = record.shape
        self.entry_count = record.length

    def __repr__(self) -> str:
        return f"<RedbTable {self.name!r}: {self.key_type} -> {self.value_type}, {self.entry_count} entries>"

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Raw keys and values in key order; of a multimap one pair per member.

        raises   CorruptError, when the walk gets to the damage
        """
        return self._file._pairs(self.name, self._record, PageSet(), _Tally())

    def rows(self) -> Iterator[tuple[object, object]]:
        """The same decoded: text, integers, floats, bool, None. Types we do not know stay bytes.

        raises   CorruptError, also for text that is not UTF-8
        """
        key_codec, value_codec = CODECS.get(self._record.key_type), CODECS.get(self._record.value_type)
        decode_key = bytes if key_codec is None else key_codec.decode
        decode_value = bytes if value_codec is None else value_codec.decode
        for key, value in self.items():
            try:
                row = decode_key(key), decode_value(value)
            except ValueError as error:
                raise CorruptError(f"row {key[:80]!r} does not decode: {error}", table=self.name) from error
            yield row


class RedbFile:
    """A redb file, opened for reading. A context manager; any thread may use it.

    path             of the file, or a `Source` (bytes in memory, say)
    slot             a commit slot to read whatever the rules say: salvage of a damaged file
    lock_timeout     seconds to wait while another process has the file open for writing
    max_page_size    largest page to take into memory; a page holds at least one row

    commit           which commit is read, and why: a `Commit`
    raises           OSError; FormatError: not redb, or another format; CorruptError: damaged; LockedError
    """

    __slots__ = ("_geometry", "_max_page_size", "_slot", "_source", "commit", "header", "path")

    def __init__(
        self,
        path: str | os.PathLike[str] | Source,
        *,
        slot: int | None = None,
        lock_timeout: float = 0.0,
        max_page_size: int = MAX_PAGE_SIZE,
    ) -> None:
        self._source: Source | None = None
        source = FileSource(path, lock_timeout=lock_timeout) if isinstance(path, (str, os.PathLike)) else path
        self._source = source
        self._max_page_size = max_page_size
        self.path = source.name
        try:
            self.header: Header = decode_header(source.read(0, HEADER_SIZE), source.size)
            todo = plan(self.header, slot)
            self._geometry = Geometry.of(self.header, source.size)
            self._slot, self.commit = self._choose(todo)
        except FormatError as error:
            self.close()
            raise FormatError(f"{self.path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_source", None) is not None:
            warnings.warn(f"unclosed redb file {self.path}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def close(self) -> None:
        """Close the file; tables and walks of it raise `ClosedError` from then on. Idempotent."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    # ------------------------------------------------------------------------------------------ tables

    def tables(self) -> Iterator[RedbTable]:
        """The tables in the order of their names (redb's own ones are not among them)."""
        for name, record in self._catalogue(self._slot.user_root, PageSet(), _Tally()):
            yield RedbTable(self, name, record)

    def table(self, name: str) -> RedbTable:
        """The table of that name.

        raises   NoSuchTableError
        """
        for table in self.tables():
            if table.name == name:
                return table
        raise NoSuchTableError(f"{self.path} has no table {name!r}")

    # ------------------------------------------------------------------------------------------ report

    def report(self) -> Report:
        """Read everything once and say what is there; damage is in the report, not raised.

        cost     one pass over the pages in use
        """
        pages = PageSet()
        errors: list[str] = []
        notes = [*self.commit.warnings]
        tables: list[TableReport] = []
        catalogue = self._catalogue(self._slot.user_root, pages, _Tally())
        while True:
            try:
                name, record = next(catalogue)
            except StopIteration:
                break
            except (CorruptError, FormatError, LimitError) as error:
                errors.append(f"catalogue of the tables: {error}")
                break
            tables.append(self._report_table(name, record, pages, errors))
        try:
            self._verify_system(self._slot, pages)
        except (CorruptError, FormatError, LimitError) as error:
            notes.append(f"redb's own tables, which hold no rows of yours: {error}")
        if engine() == "python":
            notes.append("checksums are computed in Python at some 25 MB/s; pip install 'limpet[redb]' does 10 GB/s")
        return Report(
            path=self.path,
            file_size=self._file_size(),
            page_size=self.header.page_size,
            slots=tuple(
                SlotReport(
                    slot.index, slot.index == self.header.primary, slot.checksum_ok, slot.version, slot.transaction_id
                )
                for slot in self.header.slots
            ),
            commit=self.commit,
            tables=tuple(tables),
            checksums=engine(),
            errors=tuple(errors),
            warnings=tuple(notes),
        )

    def _report_table(self, name: str, record: Record, pages: PageSet, errors: list[str]) -> TableReport:
        tally = _Tally()
        rows = key_bytes = value_bytes = 0
        damage: str | None = None
        try:
            for key, value in self._pairs(name, record, pages, tally):
                rows += 1
                key_bytes += len(key)
                value_bytes += len(value)
        except (CorruptError, LimitError) as error:
            damage = str(error)
            errors.append(damage)
        table = RedbTable(self, name, record)
        return TableReport(
            name=name,
            kind=table.kind,
            key_type=table.key_type,
            value_type=table.value_type,
            entry_count=record.length,
            entries_read=rows,
            key_bytes=key_bytes,
            value_bytes=value_bytes,
            pages=tally.pages,
            page_bytes=tally.page_bytes,
            used_bytes=tally.used_bytes,
            depth=tally.depth,
            damage=damage,
        )

    # ------------------------------------------------------------------------------------------ choosing the commit

    def _choose(self, todo: Plan) -> tuple[Slot, Commit]:
        rejected = [*todo.rejected]
        last_error: CorruptError | None = None
        for index in todo.candidates:
            slot = self.header.slots[index]
            if todo.verify:
                try:
                    pages = PageSet()
                    for name, record in self._catalogue(slot.user_root, pages, _Tally()):
                        self._verify_table(name, record, pages)
                    self._verify_system(slot, pages)
                except _PageError as error:
                    last_error = error
                    rejected.append(f"slot {index} (transaction {slot.transaction_id}) is incomplete: {error}")
                    continue
            notes = (*todo.warnings,)
            if self._file_size() > self._geometry.end:
                notes += (f"{self._file_size() - self._geometry.end} bytes follow the end that the header gives",)
            commit = Commit(
                slot=index,
                transaction_id=slot.transaction_id,
                format_version=slot.version,
                clean=not self.header.recovery_required,
                verified=todo.verify,
                why=todo.why,
                rejected=tuple(rejected),
                warnings=notes,
            )
            return slot, commit
        raise CorruptError(
            f"not closed cleanly, and no commit is complete: {'; '.join(rejected)}",
            offset=None if last_error is None else last_error.offset,
        )

    def _verify_table(self, name: str, record: Record, pages: PageSet) -> None:
        for leaf in self._leaves(record.root, record.shape, pages, _Tally(), name):
            if record.kind != MULTIMAP:
                continue
            for value in decode_leaf(leaf, Shape(record.shape.key_width, None))[1]:
                collection = decode_collection(value)
                if isinstance(collection, Root):
                    for _ in self._leaves(collection, Shape(record.shape.value_width, 0), pages, _Tally(), name):
                        pass

    def _verify_system(self, slot: Slot, pages: PageSet) -> None:
        for name, record in self._catalogue(slot.system_root, pages, _Tally()):
            self._verify_table(name, record, pages)
        for _ in self._leaves(slot.freed_root, FREED, pages, _Tally(), None):
            pass

    # ------------------------------------------------------------------------------------------ walking

    def _catalogue(self, root: Root | None, pages: PageSet, tally: _Tally) -> Iterator[tuple[str, Record]]:
        count, last = 0, None
        for leaf in self._leaves(root, CATALOGUE, pages, tally, None):
            names, records = decode_leaf(leaf, CATALOGUE)
            check_order(names, last, _NAME_TYPE)
            last = names[-1]
            for raw_name, data in zip(names, records, strict=True):
                try:
                    name = raw_name.decode()
                except UnicodeDecodeError as error:
                    raise CorruptError("name of a table is not UTF-8", found=raw_name) from error
                with _Blame(table=name):
                    record = decode_record(data)
                yield name, record
            count += len(names)
        if root is not None and count != root.length:
            raise CorruptError("number of tables", expected=root.length, found=count)

    def _pairs(self, name: str, record: Record, pages: PageSet, tally: _Tally) -> Iterator[tuple[bytes, bytes]]:
        if record.kind == MULTIMAP:
            found = yield from self._members(name, record, pages, tally)
        else:
            found = 0
            last = None
            for leaf in self._leaves(record.root, record.shape, pages, tally, name):
                with _Blame(table=name):
                    keys, values = decode_leaf(leaf, record.shape)
                    check_order(keys, last, record.key_type)
                last = keys[-1]
                found += len(keys)
                yield from zip(keys, values, strict=True)
        if found != record.length:
            raise CorruptError("number of entries", expected=record.length, found=found, table=name)

    def _members(
        self, name: str, record: Record, pages: PageSet, tally: _Tally
    ) -> Generator[tuple[bytes, bytes], None, int]:
        members_shape = Shape(record.shape.value_width, 0)
        outer = Shape(record.shape.key_width, None)
        found = key_count = 0
        last = None
        for leaf in self._leaves(record.root, outer, pages, tally, name):
            with _Blame(table=name):
                keys, collections = decode_leaf(leaf, outer)
                check_order(keys, last, record.key_type)
            last = keys[-1]
            key_count += len(keys)
            for key, data in zip(keys, collections, strict=True):
                with _Blame(table=name):
                    collection = decode_collection(data)
                leaves = (
                    self._leaves(collection, members_shape, pages, tally, name)
                    if isinstance(collection, Root)
                    else iter((collection,))
                )
                last_member = None
                count = 0
                for image in leaves:
                    with _Blame(table=name):
                        members, _ = decode_leaf(image, members_shape)
                        check_order(members, last_member, record.value_type)
                    last_member = members[-1]
                    count += len(members)
                    for member in members:
                        yield key, member
                if isinstance(collection, Root) and count != collection.length:
                    raise CorruptError(f"members of {key!r}", expected=collection.length, found=count, table=name)
                found += count
        if record.root is not None and key_count != record.root.length:
            raise CorruptError("number of keys", expected=record.root.length, found=key_count, table=name)
        return found

    def _leaves(
        self, root: Root | None, shape: Shape, pages: PageSet, tally: _Tally, table: str | None
    ) -> Iterator[bytes]:
        """The leaves of a tree in key order, each verified and cut to its used length. Separators are not needed."""
        if root is None:
            return
        stack: list[Iterator[tuple[int, bytes]]] = [iter(((root.page_number, root.checksum),))]
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                continue
            place, page = self._page(*child, shape, table)
            with _Blame(offset=place.offset, table=table):
                pages.add(place)
                tally.pages += 1
                tally.page_bytes += place.length
                tally.used_bytes += len(page)
                tally.depth = max(tally.depth, len(stack))
                if page[0] == BRANCH:
                    check_separators(page, shape)
                    if len(stack) == MAX_DEPTH:
                        raise CorruptError(f"a tree deeper than {MAX_DEPTH} pages")
                    stack.append(children(page))
                    continue
            yield page

    def _page(self, page_number: int, expected: bytes, shape: Shape, table: str | None) -> tuple[Place, bytes]:
        """A page up to its used length, verified.

        raises   _PageError; LimitError; ClosedError
        """
        source = self._source
        if source is None:
            raise ClosedError(f"{self.path} is closed")
        offset: int | None = None
        try:
            place = self._geometry.locate(page_number)
            offset = place.offset
            page = self._used(source, place, shape)
            found = checksum(page)
            if found != expected:
                raise CorruptError("the page does not match its checksum", expected=expected.hex(), found=found.hex())
        except CorruptError as error:
            raise _PageError(
                error.message, offset=offset, expected=error.expected, found=error.found, table=table
            ) from None
        return place, page

    def _used(self, source: Source, place: Place, shape: Shape) -> bytes:
        head = source.read(place.offset, min(place.length, _HEAD_SIZE))
        if len(head) < 4:
            raise CorruptError("the file ends inside a page", expected=place.length, found=len(head))
        needed = measured_by(head, shape)
        if needed > place.length:
            raise CorruptError("the offsets of a page do not fit in it", expected=place.length, found=needed)
        if needed > len(head):
            head = source.read(place.offset, needed)
            if len(head) < needed:
                raise CorruptError("the file ends inside a page", expected=needed, found=len(head))
        used = used_length(head, shape)
        if not needed <= used <= place.length:
            raise CorruptError("used length of a page", expected=f"{needed} to {place.length}", found=used)
        if used > self._max_page_size:
            raise LimitError(
                f"a page of {used} bytes at offset {place.offset}: more than max_page_size={self._max_page_size}",
                size=used,
                limit=self._max_page_size,
            )
        if used <= len(head):
            return head[:used]
        page = source.read(place.offset, used)
        if len(page) < used:
            raise CorruptError("the file ends inside a page", expected=used, found=len(page))
        return page

    def _file_size(self) -> int:
        if self._source is None:
            raise ClosedError(f"{self.path} is closed")
        return self._source.size


class _Blame:
    """A context that fills in offset and table of a `CorruptError` that a function without that knowledge raised."""

    __slots__ = ("_offset", "_table")

    def __init__(self, *, offset: int | None = None, table: str | None = None) -> None:
        self._offset = offset
        self._table = table

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, CorruptError):
            error.offset = self._offset if error.offset is None else error.offset
            error.table = self._table if error.table is None else error.table
