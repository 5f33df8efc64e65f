"""Which commit a file holds. Reads and verifies, writes nothing, gives the same answer every time.

Each meta names a whole commit. The newest that can be trusted is chosen:

    a meta that fails its checksum    is a torn last commit, or damage: the other one is taken
    a durable meta                    its pages were on disk before it was written: trusted; if
                                      pages turn out bad, that is damage, and is reported
    a meta of an `os` commit          its pages may never have reached the disk: every page newer
                                      than the durable commit is verified first, and if one is
                                      bad, the durable commit is taken

A clean close leaves its mark in the newest meta; if the commit was durable before, that is a second
record of it, in the other slot. Without the mark the file may have been left by a failed sync, after
which Linux can show bytes in its cache that are not on disk: the caller drops the cache and looks
again before it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import btree
from .errors import CorruptError
from .format import (
    CATALOGUE_TREE,
    META_PGNOS,
    META_SIZE,
    PAGE,
    Meta,
    decode_catalogue_entry,
    decode_meta,
    map_height,
    ref_pgno,
    stamp_txid,
)
from .free_space import check_map_page
from .node import Branch, Overflow, decode_node
from .pager import Pager


@dataclass(slots=True)
class Choice:
    """The outcome.

    slot      index into META_PGNOS of the chosen meta, None if there is none
    meta      the commit
    older     the other meta, where it is valid and older (or equal): its pages must stay
    durable   slot of the newest meta known to be durable, which the next commit must not touch
    clean     whether the file was closed cleanly
    found     both metas, or what is wrong with them
    reasons   what was decided and why, one sentence each
    problem   why the chosen commit cannot be opened, or that there is none
    """

    found: list[Meta | CorruptError]
    slot: int | None = None
    meta: Meta | None = None
    older: Meta | None = None
    durable: int | None = None
    clean: bool = False
    reasons: list[str] = field(default_factory=list)
    problem: CorruptError | None = None


def read_metas(pager: Pager) -> list[Meta | CorruptError]:
    """Both metas from disk, each decoded or with its error."""
    found: list[Meta | CorruptError] = []
    for slot in META_PGNOS:
        data = pager.file.read(slot * pager.page_size, META_SIZE)
        try:
            found.append(decode_meta(data, slot, pager.page_size, pager.checksum, pager.seed))
        except CorruptError as error:
            found.append(error)
    return found


def choose(found: list[Meta | CorruptError], file_size: int, page_size: int, verify: Callable[[Meta], None]) -> Choice:
    """Choose the commit to open.

    found     both metas, as `read_metas` gives them
    verify    verifies the pages of a commit that is not known to be durable; raises CorruptError
    returns   the choice; `problem` is set where the file cannot be opened
    """
    choice = Choice(found)
    metas = [(meta.txid, meta.clean, slot) for slot, meta in enumerate(found) if isinstance(meta, Meta)]
    for slot, meta in enumerate(found):
        if isinstance(meta, CorruptError):
            choice.reasons.append(f"page {META_PGNOS[slot]}: {meta.message}; not used")
    rejected: list[int] = []
    for _, _, slot in sorted(metas, reverse=True):
        meta = found[slot]
        assert isinstance(meta, Meta)
        needed = meta.high_water * page_size
        error: CorruptError | None = None
        if file_size < needed:
            error = CorruptError(
                f"the file was cut short: commit {meta.txid} needs {needed} bytes",
                offset=file_size,
                expected=f"{needed} bytes",
                found=f"{file_size} bytes",
            )
        if not meta.is_durable:
            try:
                if error is None:
                    verify(meta)
            except CorruptError as bad:
                error = bad
            if error is not None:
                choice.reasons.append(
                    f"page {META_PGNOS[slot]}: commit {meta.txid} was never synced and is not whole ({error}); not used"
                )
                rejected.append(slot)
                continue
        choice.slot, choice.meta, choice.problem = slot, meta, error
        break
    if choice.meta is None or choice.slot is None:
        what = "; ".join(choice.reasons) or "both metas are empty"
        choice.problem = CorruptError(f"no commit can be read: {what}", offset=META_PGNOS[0] * page_size)
        return choice
    other_slot = 1 - choice.slot
    other = found[other_slot]
    if isinstance(other, Meta) and other_slot not in rejected:
        if file_size >= other.high_water * page_size:
            choice.older = other
        else:
            choice.reasons.append(
                f"page {META_PGNOS[other_slot]}: commit {other.txid} reaches beyond the file; not used"
            )
    if choice.meta.is_durable:
        choice.durable = choice.slot
        choice.reasons.append(
            f"page {META_PGNOS[choice.slot]}: commit {choice.meta.txid} is the newest durable one; chosen"
        )
    else:
        choice.durable = other_slot if choice.older is not None and choice.older.is_durable else choice.slot
        choice.reasons.append(
            f"page {META_PGNOS[choice.slot]}: commit {choice.meta.txid} was not synced, but all its pages since "
            f"commit {choice.meta.durable_txid} are whole; chosen"
        )
    choice.clean = choice.meta.clean and choice.older is not None
    return choice


def verify_since(pager: Pager, meta: Meta, txid: int) -> None:
    """Verify every page of a commit that is newer than commit `txid`, and what those refer to directly.

    raises   CorruptError for the first bad page
    cost     reads the pages written since, and their children
    """
    _verify_map(pager, meta, txid)
    for table, root, tree_id in _roots(pager, meta):
        try:
            _verify_tree(pager, root, tree_id, txid)
        except CorruptError as error:
            error.table = error.table or table
            raise


def _roots(pager: Pager, meta: Meta) -> list[tuple[str | None, int, int]]:
    roots: list[tuple[str | None, int, int]] = [(None, meta.catalogue_root, CATALOGUE_TREE)]
    if meta.catalogue_root:
        for keys, values in btree.scan(pager, meta.catalogue_root, CATALOGUE_TREE, None, None):
            for key, value in zip(keys, values, strict=True):
                name = key.decode(errors="replace")
                entry = decode_catalogue_entry(value, name)
                roots.append((name, entry.root, entry.tree_id))
    return roots


def _verify_tree(pager: Pager, root: int, tree_id: int, txid: int) -> None:
    waiting = [(root, -1)] if root else []
    seen: set[int] = set()
    while waiting:
        ref, level = waiting.pop()
        if ref in seen:  # branches that share children, level above level, would keep this busy for ever
            raise CorruptError("the page has two places in its tree", pgno=ref_pgno(ref))
        seen.add(ref)
        page = pager.page(ref)
        if stamp_txid(PAGE.unpack_from(page)[6]) <= txid:
            continue
        node = decode_node(page, ref_pgno(ref), tree_id)
        if level not in (-1, node.level):
            raise btree.wrong_level(ref, level, node.level)
        if isinstance(node, Branch):
            waiting.extend((child, node.level - 1) for child in node.children)
        else:
            for index in node.overflow:
                record = node.value(index)
                assert type(record) is Overflow
                pager.overflow_value(record, tree_id)


def _verify_map(pager: Pager, meta: Meta, txid: int) -> None:
    waiting = (
        [(int(meta.free_space_root), map_height(meta.high_water, pager.page_size))] if meta.free_space_root else []
    )
    while waiting:
        ref, level = waiting.pop()
        page = pager.page(ref)
        if stamp_txid(PAGE.unpack_from(page)[6]) > txid:
            waiting.extend((child, level - 1) for child in check_map_page(page, ref_pgno(ref), level) if child)
