"""`limpet info`: a file at a glance."""

from __future__ import annotations

import argparse

from ..checksum import KIND_NAMES
from ..console import say
from ..errors import command
from ..format import ref_pgno
from ..inspection import Info, MetaInfo, inspect, when
from .terminal import (
    DAMAGED,
    FINE,
    NOT_OURS,
    WARNINGS,
    UsageError,
    Verbs,
    add_page_size,
    add_verb,
    emit,
    human,
    plural,
    print_fields,
)

_TEXT = """\
Shows the header, both metas, which commit would be opened and why, and the sizes, without opening
the database. Nothing is verified but header and metas; `limpet check` verifies the rest.

exit codes: 0 fine, 1 one of the metas is bad, 2 damaged, 3 not a Limpet file or a newer one

example
  limpet info app.limpet
"""


def add(verbs: Verbs) -> None:
    """Add the verb's arguments."""
    add_page_size(add_verb(verbs, "info", run, "header, metas, the commit that would be opened, sizes", _TEXT))


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    try:
        inspection = inspect(arguments.file, page_size=arguments.page_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with inspection:
        info = inspection.info()
    code = _code(info)
    if arguments.json:
        emit("info", {**info.as_dict(), "exit": code})
    else:
        print_fields(_fields(info))
        if code in (WARNINGS, DAMAGED):
            size = () if arguments.page_size is None else ("--page-size", str(arguments.page_size))
            say(f"{command('check', arguments.file, *size)} says what that means, and what can be saved")
    return code


def _code(info: Info) -> int:
    if not info.is_ours:
        return NOT_OURS
    if info.problem is not None or info.commit_problem is not None or info.meta is None:
        return DAMAGED
    return WARNINGS if any(meta.problem is not None for meta in info.metas) else FINE


def _fields(info: Info) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = []
    pages = ""
    if info.page_size is not None:
        count = -(-info.file_size // info.page_size)
        pages = f", {plural(count, 'page')} of {info.page_size} bytes"
    fields.append(("file", f"{info.filename}, {human(info.file_size)}{pages}"))
    if info.problem is not None:
        fields.append(("header", info.problem))
    fields += [("instead", text) for text in info.notes]
    header = info.header
    if header is not None:
        kind = KIND_NAMES[header.checksum_kind]
        made = f"made {when(header.created_us)}"
        fields.append(("format", f"{header.format_version}, checksums {kind}, id {header.file_id.hex()}, {made}"))
        features = header.features_incompatible | header.features_read_only
        if features:
            fields.append(("features", f"{header.features_incompatible:#x}, read-only {header.features_read_only:#x}"))
    fields += [(f"meta {meta.pgno}", _describe(meta)) for meta in info.metas]
    fields += [("chosen" if "; chosen" in reason else "note", reason) for reason in info.reasons]
    if info.commit_problem is not None:
        fields.append(("damage", info.commit_problem))
    if info.meta is not None:
        fields += [
            ("newest", f"commit {info.txid} of {info.committed}"),
            ("log", _log(info)),
            ("tables", info.meta.table_count),
            ("live", f"{human(info.live_size)} in use by checkpoint {info.meta.txid} and the log"),
            ("free", f"{human(info.free_size)} inside the file, to be used again"),
            ("spare", f"{human(info.spare_size)} behind the last page ever used"),
        ]
    if info.metas:
        closed = "not cleanly: it is in use, or its process was killed"
        if info.closed_cleanly:
            closed = "cleanly"
        elif any(meta.problem is not None for meta in info.metas):
            closed = "not known, since one of the metas cannot be read"
        fields.append(("closed", closed))
    holder = info.holder
    if holder is not None:
        who = f"pid {holder['pid']} on {holder['host']} ({holder['program']}), at {holder['since']}"
        fields.append(("opened", f"for writing last by {who}; by its own account"))
    return fields


def _log(info: Info) -> str:
    assert info.meta is not None
    if not info.log_size:
        return "none yet; the first commit takes the space for it"
    start = info.meta.log_start
    pages = f"pages {start} to {start + info.meta.log_size - 1}"
    return f"{plural(info.record_count, 'record')} in {human(info.log_used)} of {human(info.log_size)}, {pages}"


def _describe(found: MetaInfo) -> str:
    meta = found.meta
    if meta is None:
        return "lost: there are zeros in its place" if found.empty else f"{found.problem}"
    catalogue = f"catalogue at page {ref_pgno(meta.catalogue_root)}" if meta.catalogue_root else "no tables"
    return (
        f"checkpoint {meta.txid} of {when(meta.commit_us)}{', closed' if meta.clean else ''}; {catalogue}, "
        f"high water {meta.high_water}, {meta.free_count} free"
    )
