"""What the head of a file is worth: whether its header and metas are what they should be, and what it means if not.

Everything in a file is found by way of its first three pages, so a check of the pages behind them
says nothing as long as nobody has looked at these:

    of an open database   they are compared with what the handle believes (`check_head`). What counts
                          is what the next opening would find: that it fails, or finds less, is an
                          error; a bad meta that it would do without is a warning
    of a file             a meta that cannot be read is a torn checkpoint that nobody relied on, a
                          copy, or the newest state of all. What else is in the file tells which
                          (`judge_metas`): a whole log record on top of a checkpoint is proof that its
                          meta was whole; pages of one show only that it was begun, for they are
                          written before the meta is; if there are neither, nothing is missing

Reads and verifies, writes nothing, raises nothing for what is in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .check import Finding, Report
from .errors import CorruptError, FormatError
from .format import (
    BRANCH,
    CHECKSUM,
    FREE_SPACE,
    HEADER_PGNO,
    HEADER_SIZE,
    LEAF,
    LOG,
    LOG_RECORD,
    META_PGNOS,
    META_SIZE,
    PAGE,
    Meta,
    decode_header,
    header_damage,
    page_checksum,
    stamp_txid,
)
from .log import decode_record
from .pager import Pager
from .recovery import Choice, recover

_CHUNK = 1 << 20  # bytes read at once
_LONGEST_RECORD = 64 << 20  # bytes; what a page says of its length is not believed before its checksum


@dataclass(slots=True)
class Head:
    """What was found at the head of a file. advice: what helps as long as the pages are whole."""

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    advice: str = ""

    def add_to(self, report: Report) -> None:
        """Put it before what a check of the pages found, in the report of which it becomes a part."""
        if self.errors and report.ok:
            self.errors[-1] = replace(self.errors[-1], message=self.errors[-1].message + self.advice)
        report.errors[:0] = self.errors
        report.warnings[:0] = self.warnings


# -- of an open database -------------------------------------------------------------------------


def check_head(pager: Pager, believed: Sequence[Meta | None], txid: int) -> Head:
    """Compare the head of the file of an open database with what its handle believes. Nobody may write meanwhile.

    believed  what is in either slot; None: nothing that can be read, left so by a crash before the database was opened
    txid      the newest commit that was written to the file
    cost      two metas; where they are not as believed, one look at each page of the log
    """
    head = Head(advice=". As long as it stays open here, backup(path) writes a whole copy of it")
    try:
        problem = _header_problem(pager)
        choice = recover(pager)
    except OSError as error:
        head.errors.append(Finding("io", f"the system cannot read the head of the file: {error}", HEADER_PGNO, 0))
        return head
    if problem is not None:
        head.errors.append(Finding("header", f"{problem}; the file would not open any more", HEADER_PGNO, 0))
    for slot, expected in zip(META_PGNOS, believed, strict=True):
        found = choice.found[slot - META_PGNOS[0]]
        if isinstance(found, CorruptError):
            since = "it was whole before" if expected is not None else _interrupted(pager, slot)
            head.warnings.append(_about(slot, pager, f"{found.message}; {since}", found))
        elif expected is not None and found != expected:
            text = f"the meta is whole, and not the one that was written here: of checkpoint {found.txid}"
            head.warnings.append(Finding("meta", text, slot, slot * pager.page_size, None, expected.txid, found.txid))
    newest = max((meta for meta in believed if meta is not None), key=lambda meta: meta.txid)
    reached = txid if choice.log is None else int(choice.log.last_txid)
    if choice.meta is None:
        text = "neither meta can be read; the file would not open any more"
    elif choice.problem is not None and choice.meta.epoch != newest.epoch:
        text = f"{choice.problem.message}; the file would not open any more"
    elif choice.problem is None and reached < txid:
        text = f"the file would open at commit {reached}; what was committed after it, up to {txid}, would be lost"
    elif choice.problem is None and reached > txid:
        text = f"another program has written to the file: commit {reached} is in it, and this one knows {txid}"
        head.advice = ""
    else:  # as it should be; or the log is damaged, of which the check of the pages tells
        return head
    head.errors.append(Finding("meta", text, META_PGNOS[0], META_PGNOS[0] * pager.page_size))
    return head


def _header_problem(pager: Pager) -> str | None:
    """Why the header on disk does not open the file; None if it is the one that did."""
    data = pager.file.read(0, HEADER_SIZE)
    try:
        found = decode_header(data, pager.file.path)
    except FormatError as error:
        if not any(data):
            return "the header is gone: there are zeros in its place" if data else "the header is gone"
        return header_damage(data) or str(error)
    return None if found == pager.header else f"the header is another one: of a file with the id {found.file_id.hex()}"


# -- of a file -----------------------------------------------------------------------------------


def judge_metas(pager: Pager, choice: Choice) -> Head:
    """What it means that a meta cannot be read, where the other one can.

    cost      nothing if both can; else one look at every page of the file
    """
    head = Head()
    meta = choice.meta
    bad = [
        (slot, found) for slot, found in zip(META_PGNOS, choice.found, strict=True) if isinstance(found, CorruptError)
    ]
    if meta is None or not bad:
        return head
    slot, error = bad[0]
    last = int(meta.txid) if choice.log is None else int(choice.log.last_txid)
    begun, proof = newer_than(pager, meta, last)
    text = f"{error.message}; {_interrupted(pager, slot)}. Commit {last} is used"
    if proof is not None:
        text = (
            f"{error.message}, and it was whole: the log has a record, of commit {proof}, on top of the checkpoint "
            f"that it named. What was committed after commit {last} is lost with it"
        )
        head.errors.append(_about(slot, pager, text, error))
    elif begun is not None:
        lost = f"commit {begun} is" if begun == last + 1 else f"commits {last + 1} to {begun} are"
        text += (
            f". There are pages of commit {begun}, which is newer: if the program or the machine died while that was "
            f"being written, nobody was told that it succeeded, and nothing is missing; if not, {lost} lost"
        )
        head.warnings.append(_about(slot, pager, text, error))
    else:
        text += ". Nothing else in the file is newer, so nothing is missing"
        head.warnings.append(_about(slot, pager, text, error))
    return head


def newer_than(pager: Pager, meta: Meta, txid: int) -> tuple[int | None, int | None]:
    """What there is of commits that no meta leads to.

    meta, txid  the checkpoint that is used, and the newest commit in its log
    returns     (the newest commit with a whole page of a tree or of the map, the newest in a whole log record of a
                later epoch); None where there is none
    cost        one look at every page
    """
    begun: int | None = None
    proof: int | None = None
    page_size = pager.page_size
    size = pager.file.size()
    for start in range(0, size, _CHUNK):
        try:
            data = pager.file.read(start, min(_CHUNK, size - start))
        except OSError:
            continue  # the check of the pages tells of it, where they are in use
        for at in range(0, len(data) - page_size + 1, page_size):
            _, kind, _, count, pgno, _, stamp = PAGE.unpack_from(data, at)
            if pgno * page_size != start + at or stamp_txid(stamp) <= txid:
                continue
            if kind == LOG:
                length = min(count * page_size, _LONGEST_RECORD)
                found = stamp_txid(LOG_RECORD.unpack_from(data, at + PAGE.size)[0]) > meta.txid and decode_record(
                    pager.file.read(start + at, length), 0, pgno, page_size, pager.checksum, pager.seed
                )
                if found:
                    proof = max(proof or 0, found.txid)
            elif kind in (LEAF, BRANCH, FREE_SPACE):
                page = data[at : at + page_size]
                if page_checksum(page, pager.checksum, pager.seed) == CHECKSUM.unpack_from(page)[0]:
                    begun = max(begun or 0, stamp_txid(stamp))
    return begun, proof


def _interrupted(pager: Pager, slot: int) -> str:
    """What may have made a meta unreadable."""
    if any(pager.file.read(slot * pager.page_size, META_SIZE)):
        return "a commit that was interrupted leaves that, or damage"
    return "a file has both metas from its creation on, and a commit that was interrupted leaves no zeros: it is damage"


def _about(slot: int, pager: Pager, text: str, error: CorruptError) -> Finding:
    return Finding("meta", text, slot, slot * pager.page_size, None, error.expected, error.found)
