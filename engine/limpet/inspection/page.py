"""One page, decoded as far as it goes.

A page that is damaged is decoded all the same, and `problem` says what is wrong with it: who looks
at a page wants to see what there is. The later pages of an overflow run or a log record have no
header of their own; what they belong to is found by going back to the first page of the run.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from ..check import RecordedCodecs, shown_range
from ..errors import CorruptError
from ..format import (
    CATALOGUE_TREE,
    FREE_SPACE,
    HEADER,
    HEADER_FIELDS,
    HEADER_PGNO,
    HOLDER_PGNO,
    LOG,
    LOG_CHANGES_AT,
    LOG_RECORD,
    LOG_RECORD_FIELDS,
    META,
    META_FIELDS,
    META_PGNOS,
    OVERFLOW,
    PAGE_HEADER_SIZE,
    PAGE_KIND_NAMES,
    REF_SIZE,
    PageHeader,
    decode_catalogue_entry,
    decode_page_header,
    ref_checksum,
    ref_pgno,
    stamp_nonce,
    stamp_txid,
)
from ..log import decode_changes
from ..node import Branch, Overflow, decode_node
from .commit import ShownCommit
from .raw import RawFile
from .results import DecodedPage, TableSummary, plain, when
from .tables import TableReader, summarize


class PageDecoder:
    """Decodes pages, with the codecs of the commit that is shown."""

    def __init__(self, raw: RawFile, commit: ShownCommit, tables: TableReader) -> None:
        self._raw = raw
        self._commit = commit
        self._tables = tables

    def decode(self, pgno: int) -> DecodedPage:
        """A page; `Inspection.page` says more."""
        if pgno < 0:
            raise ValueError(f"pages are numbered from 0, not {pgno}")
        data = self._raw.read(pgno)
        if pgno == HEADER_PGNO:
            return self._page(pgno, data, "header", self._raw.header_problem(), _header_fields(data))
        if pgno in META_PGNOS:
            problem = next((info.problem for info, _ in self._commit.metas() if info.pgno == pgno), None)
            return self._page(pgno, data, "meta", problem, _meta_fields(data))
        if pgno == HOLDER_PGNO:
            fields = self._raw.holder() or {}
            problem = None if fields or not any(data) else "not a note of who has the file open"
            return self._page(pgno, data, "holder", problem, fields)
        page_size = self._raw.pager.page_size
        if len(data) < page_size:
            where = f"the file has {self._raw.file.size()} bytes, the page would begin at {pgno * page_size}"
            return self._page(pgno, data, None, f"the file ends inside or before the page: {where}", {})
        if not any(data):
            return self._page(pgno, data, None, None, {})
        header = decode_page_header(data)
        if header.kind not in PAGE_KIND_NAMES or header.pgno != pgno:
            return self._decode_stray(pgno, data, header)
        if header.kind == LOG:
            return self._decode_record(pgno, data, header)
        return self._decode_node(pgno, data, header)

    def _page(
        self,
        pgno: int,
        data: bytes,
        kind: str | None,
        problem: str | None,
        fields: dict[str, Any],
        entries: list[dict[str, Any]] | None = None,
        table: TableSummary | None = None,
    ) -> DecodedPage:
        offset = pgno * self._raw.pager.page_size
        name = None if table is None else table.name
        return DecodedPage(pgno, offset, kind, name, problem, fields, entries or [], data)

    def _decode_stray(self, pgno: int, data: bytes, header: PageHeader) -> DecodedPage:
        """What does not begin like a page of this number: a later page of a run, or anything."""
        first = self._raw.run_around(pgno)
        if first is not None:
            table = self._tables.by_id().get(first.tree_id)
            fields = {"first_page": int(first.pgno)}
            return self._page(pgno, data, PAGE_KIND_NAMES[first.kind], None, fields, table=table)
        kind = PAGE_KIND_NAMES.get(header.kind)
        problem = (
            "not a page; perhaps a later one of an overflow run that is damaged or gone"
            if kind is None
            else f"by its own number this is page {header.pgno}"
        )
        return self._page(pgno, data, kind, problem, _page_header_fields(header))

    def _decode_node(self, pgno: int, data: bytes, header: PageHeader) -> DecodedPage:
        """A leaf or branch, the first page of an overflow run, or a page of the map of free space."""
        fields = _page_header_fields(header)
        problem: str | None = None
        if not self._raw.is_verifiable:
            problem = "the checksum cannot be verified: the header of the file is lost"
        elif header.kind == OVERFLOW:
            run = self._raw.run_length(pgno, header, data)
            fields["run_pages"] = run
            problem = None if run else "no run of pages from here on has the checksum"
        elif (found := self._raw.checksum_of(data)) != header.checksum:
            problem = f"the checksum does not match (expected {header.checksum:#010x}, found {found:#010x})"
        table = self._tables.by_id().get(header.tree_id)
        entries: list[dict[str, Any]] = []
        try:
            if header.kind == FREE_SPACE:
                entries = _map_entries(data, header)
            elif header.kind != OVERFLOW:
                entries = _node_entries(data, header, None if table is None else table.codecs)
        except CorruptError as error:
            problem = problem or error.message
        return self._page(pgno, data, PAGE_KIND_NAMES[header.kind], problem, fields, entries, table)

    def _decode_record(self, pgno: int, data: bytes, header: PageHeader) -> DecodedPage:
        """The first page of a log record, with all changes of the record."""
        record = self._raw.log_record(pgno, header) if self._raw.is_verifiable else None
        problem = None if record is not None else "the checksum does not match, or cannot be verified"
        more = _unpacked(LOG_RECORD, LOG_RECORD_FIELDS, data[PAGE_HEADER_SIZE:])
        changes = self._raw.log_run(pgno, header)[LOG_CHANGES_AT : LOG_CHANGES_AT + more["size"]]
        more["committed"] = when(more.pop("commit_us"))
        more["epoch"] = stamp_txid(more["epoch"])
        tables = self._tables.by_id()
        entries: list[dict[str, Any]] = []
        try:
            for group in decode_changes(changes, pgno):
                table = tables.get(group.tree_id)
                codecs = None if table is None else table.codecs
                for key, value in group.changes:
                    entries.append(
                        {
                            "index": len(entries),
                            "table": None if table is None else table.name,
                            "tree_id": group.tree_id,
                            "change": "delete" if value is None else "put",
                            **_decoded_entry(codecs, key, value),
                        }
                    )
        except CorruptError as error:
            problem = problem or error.message
        return self._page(pgno, data, PAGE_KIND_NAMES[LOG], problem, _page_header_fields(header) | more, entries)


# -- fields --------------------------------------------------------------------------------------


def _unpacked(record: struct.Struct, fields: tuple[tuple[str, int], ...], data: bytes) -> dict[str, Any]:
    """The fields of a record by name; none if it is cut off."""
    if len(data) < record.size:
        return {}
    names = (name for name, _ in fields if name != "zero")  # which is padding, and not unpacked
    return dict(zip(names, record.unpack_from(data), strict=True))


def _header_fields(data: bytes) -> dict[str, Any]:
    fields = {name: plain(value) for name, value in _unpacked(HEADER, HEADER_FIELDS, data).items()}
    if fields:
        fields["created"] = when(fields.pop("created_us"))
    return fields


def _meta_fields(data: bytes) -> dict[str, Any]:
    fields = _unpacked(META, META_FIELDS, data)
    if fields:
        stamp = fields.pop("stamp")
        fields["txid"], fields["nonce"] = stamp_txid(stamp), stamp_nonce(stamp)
        fields["committed"] = when(fields.pop("commit_us"))
        for name in ("catalogue_root", "free_space_root"):
            fields[name] = _shown_ref(fields[name])
    return fields


def _page_header_fields(header: PageHeader) -> dict[str, Any]:
    return {
        "checksum": header.checksum,
        "kind": header.kind,
        "level": header.level,
        "count": header.count,
        "pgno": int(header.pgno),
        "tree_id": header.tree_id,
        "txid": header.txid,
        "nonce": stamp_nonce(header.stamp),
    }


def _shown_ref(ref: int) -> dict[str, Any]:
    return {"page": int(ref_pgno(ref)) or None, "checksum": f"{ref_checksum(ref):#010x}"}


# -- entries -------------------------------------------------------------------------------------


def _map_entries(page: bytes, header: PageHeader) -> list[dict[str, Any]]:
    """Of a page of the map of free space: the ranges of free pages, or the children."""
    content = page[PAGE_HEADER_SIZE:]
    if header.level:
        count = min(header.count, len(content) // REF_SIZE)
        refs = struct.unpack_from(f"<{count}Q", content)
        return [{"index": index, **_shown_ref(ref)} for index, ref in enumerate(refs) if ref]
    bits = format(int.from_bytes(content, "little"), "b")[::-1]
    return [{"first_bit": run.start(), "count": run.end() - run.start()} for run in re.finditer("1+", bits)]


def _node_entries(page: bytes, header: PageHeader, codecs: RecordedCodecs | None) -> list[dict[str, Any]]:
    """Of a leaf: its entries; of a branch: its children."""
    node = decode_node(page, header.pgno, header.tree_id)
    is_catalogue = header.tree_id == CATALOGUE_TREE
    entries: list[dict[str, Any]] = []
    if isinstance(node, Branch):
        bounds = [None, *node.keys, None]
        for index, child in enumerate(node.children):
            low, high = bounds[index], bounds[index + 1]
            separator = {} if low is None else {"separator": plain(low)}
            keys = shown_range(None if codecs is None else codecs.key, low, high, "tables" if is_catalogue else "keys")
            entries.append({"index": index, **_shown_ref(child), **separator, "keys": keys})
        return entries
    for index, (key, value) in enumerate(zip(node.keys(), node.values(), strict=True)):
        decoded = _catalogue_entry(key, value) if is_catalogue else _decoded_entry(codecs, key, value)
        entries.append({"index": index, "key_size": len(key), "value_size": len(value), **decoded})
    return entries


def _catalogue_entry(key: bytes, value: bytes) -> dict[str, Any]:
    name = key.decode(errors="backslashreplace")
    try:
        return summarize(name, decode_catalogue_entry(value, name)).as_dict()
    except CorruptError as error:
        return {"name": name, "problem": error.message}


def _decoded_entry(codecs: RecordedCodecs | None, key: bytes, value: bytes | None) -> dict[str, Any]:
    """A key and its value as far as they can be decoded. value: None where a record deletes the key."""
    entry: dict[str, Any] = {}
    try:
        entry["key"] = plain(key if codecs is None else codecs.decode_key(key))
    except CorruptError as error:
        entry |= {"key": plain(key), "problem": error.message}
    if value is None:
        return entry
    if type(value) is Overflow:
        return entry | {"value_size": value.value_size, "overflow": _shown_ref(value.ref)}
    try:
        entry["value"] = plain(value if codecs is None else codecs.decode_value(value))
    except CorruptError as error:
        entry |= {"value": plain(value), "problem": error.message}
    return entry
