"""What is found in a file, as values: frozen, and with a form for JSON."""

from __future__ import annotations

import dataclasses
import datetime
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

from ..check import RecordedCodecs
from ..checksum import KIND_NAMES
from ..errors import CorruptError
from ..format import CatalogueEntry, Header, Meta, ref_pgno


@dataclass(frozen=True, slots=True)
class MetaInfo:
    """One of the two metas.

    meta     the checkpoint it names, or None
    problem  why it cannot be used
    empty    whether there is nothing but zeros in its place
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

    def known_codecs(self) -> RecordedCodecs:
        """The codecs; CorruptError if they are not known."""
        if self.codecs is None:
            raise CorruptError(self.problem or "the codecs are not known", table=self.name)
        return self.codecs

    def as_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return _shown_fields(self)


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
        return _shown_fields(self)


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
        return _shown_fields(self)


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
        return _shown_fields(self)


# -- values for JSON -----------------------------------------------------------------------------


def _shown_fields(found: Any) -> dict[str, Any]:
    """The fields of a dataclass, those left out that its repr leaves out."""
    return {each.name: getattr(found, each.name) for each in dataclasses.fields(found) if each.repr}


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
