"""Checkpoints: all changes are in the trees, the trees are on the disk, and the log begins anew.

    advance   in memory: a commit whose changes are all in pages becomes the tip. What it took and freed
              goes into the books, and an epoch of the log begins
    begin     a plan: the pages of all such commits, the catalogue, the map of free space, and the meta
    write     the pages, a sync, the meta into the slot that does not hold the newest, a sync
    finish    the meta is in the file: its epoch counts
    undo      the pages could not be written: all commits that nobody has seen are taken back

Every one but `write` works on copies and puts them in place by one statement (books.py). `write` may be
done twice: the same bytes go to the same places; but pages that are synced, which a meta may name by now,
and a meta that is there, are left as they are. So a plan that an interrupt left behind is finished by
whoever flushes next.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from . import btree
from .backup import now_us
from .books import Books, Ledger, Plan
from .chain import Advance, Chain, Commit
from .codecs import describe_key
from .errors import CorruptError
from .format import (
    CATALOGUE_TREE,
    META_PGNOS,
    CatalogueEntry,
    Meta,
    Pgno,
    Ref,
    Txid,
    encode_catalogue_entry,
    encode_meta,
    make_stamp,
    ref_pgno,
    stamp_nonce,
)
from .free_space import FreeSpace
from .log import Log, LogEnd, region_size
from .overlay import TableInfo
from .snapshot import Snapshot
from .transaction import WriteTransaction


def advance(books: Books, chain: Chain, transaction: WriteTransaction, tables: dict[str, TableInfo]) -> Commit:
    """Make a transaction's result, all of which is in pages, the tip; the transaction is over. In memory only.

    The caller has the lock of the books.
    """
    ledger = books.ledger.copy()
    space = _loaded(books, ledger)
    txid = transaction.txid
    work = transaction.work()
    (allocated,) = work.allocated
    own = allocated.intersection(work.freed)
    held = work.held - own
    allocated = allocated - own
    freed = [pgno for pgno in work.freed if pgno not in own]
    log = _next_log(books, chain.tip.log, space, allocated, freed)
    transaction.page_work = None  # the pages are the commit's: whatever happens to the transaction, it gives none back
    young = [pgno for pgno in freed if pgno in ledger.young]
    if young:
        freed = [pgno for pgno in freed if pgno not in ledger.young]
    pending = space.commit(txid, allocated, freed, young)
    superseded = [pgno for pgno in (*young, *freed) if pgno in ledger.unwritten]
    ledger.unwritten.difference_update(superseded)
    ledger.unwritten |= held
    ledger.unwritten_size += books.held_size(held) - books.held_size(superseded)
    ledger.young.difference_update(young)
    ledger.young |= allocated
    ledger.nonce = stamp_nonce(transaction.stamp)
    ledger.dirty_tables.update(transaction.changed_tables())
    snapshot = Snapshot(txid, tables, transaction.next_tree_id, books.pager)
    commit = Commit(snapshot, transaction.durability, log, chain.tip)
    commit.advance = Advance(list(allocated), held, superseded, pending, work.stale, ledger.base)
    ledger.base = commit
    books.ledger, chain.last_txid, chain.tip, transaction.is_open = ledger, txid, commit, False
    books.pager.release(own)
    books.give_back(own)
    return commit


def _loaded(books: Books, ledger: Ledger) -> FreeSpace:
    """The free space of a ledger that is to be changed."""
    if ledger.space is None:
        ledger.space = books.space().copy()
    return ledger.space


def _next_log(books: Books, log: Log, space: FreeSpace, allocated: set[int], freed: list[int]) -> Log:
    """The empty log of the epoch that a checkpoint begins: in the same place, or in a larger one if there is room.

    allocated, freed  what the checkpoint takes and gives; the places join them
    """
    page_size, extent = books.page_size, books.extent
    wanted = region_size(space.high_water, page_size)
    # A new place is at the end of the file and takes more room, because what is free already may be promised.
    if log.start and (log.size * 4 >= wanted * 3 or not extent.try_reserve(extent.capacity + wanted)):
        return Log(0, log.start, log.size, page_size, blank=log.blank)
    if log.start or extent.try_reserve(space.high_water + wanted):
        run = space.run_at_end(wanted)
    else:
        run = space.allocate_run(region_size(0, page_size))  # `promise.check` has seen to it
    before = range(log.start, log.start + log.size)
    space.check_used([*freed, *before])  # a run of pages whose length lies may reach into the log
    allocated.update(run)
    freed.extend(before)
    return Log(0, run.start, len(run), page_size, blank=True)


# -- on the way to the disk ----------------------------------------------------------------------


def begin(books: Books, *, clean: bool) -> Plan:
    """Plan to make the newest checkpoint in memory the one of the file. The caller has the lock of the books.

    clean    whether the meta says that the file was closed cleanly
    raises   OSError, CorruptError: nothing has changed
    """
    ledger = books.ledger.copy()
    space = _loaded(books, ledger)
    base = ledger.base
    plan = Plan(base, 1 - ledger.metas.slot, ledger.unwritten, ledger.dirty_tables, books.extent.growth)
    ledger.unwritten, ledger.unwritten_size, ledger.dirty_tables = set(), 0, set()
    ledger.young = set()  # from here on, the pages of the checkpoint may be on disk
    plan.pages.update((pgno, books.pager.held[pgno]) for pgno in plan.unwritten)
    log = base.log
    if log.blank:  # real space, even if it was a hole
        plan.pages.update((pgno, bytes(books.page_size)) for pgno in range(log.start, log.start + log.size))
    stamp = make_stamp(base.txid, ledger.nonce)
    try:
        plan.catalogue_root = _write_catalogue(books, ledger, plan, space, stamp)
        map_root = _write_map(books, plan, space, stamp)
    except BaseException:
        high_water = books.high_water  # what the copy has added behind that goes with the copy
        books.give_back(pgno for pgno in plan.taken if pgno < high_water)
        raise
    plan.growth = books.extent.growth  # all of them may have needed room
    plan.meta = Meta(
        txid=Txid(base.txid),
        nonce=ledger.nonce,
        catalogue_root=Ref(plan.catalogue_root),
        free_space_root=map_root,
        high_water=space.high_water,
        free_count=space.free_count,
        table_count=len(base.snapshot.tables),
        next_tree_id=base.snapshot.next_tree_id,
        commit_us=now_us(),
        log_start=log.start,
        log_size=log.size,
        clean=clean,
    )
    ledger.plan = plan
    books.ledger = ledger
    return plan


def _write_catalogue(books: Books, ledger: Ledger, plan: Plan, space: FreeSpace, stamp: int) -> int:
    """Bring the catalogue up to the checkpoint; returns its root."""
    pager = books.pager
    snapshot = plan.base.snapshot
    changes: btree.Changes = {}
    for name in plan.dirty_tables:
        info = snapshot.tables.get(name)
        key = name.encode()
        if info is not None:
            shape, codecs = describe_key(info.key)
            changes[key] = encode_catalogue_entry(
                CatalogueEntry(Ref(info.root), info.root_count, info.tree_id, info.value.number, shape, codecs)
            )
        elif ledger.catalogue_root and btree.get(pager, ledger.catalogue_root, CATALOGUE_TREE, None, key) is not None:
            changes[key] = None
    if not changes:
        return ledger.catalogue_root
    edit = btree.apply(partial(pager.node, tree_id=CATALOGUE_TREE), pager.page_size, ledger.catalogue_root, changes)
    pgnos = _take(plan, space, edit.drafts, slack=1)
    root, pages = btree.seal(pager, edit, CATALOGUE_TREE, stamp, pgnos)
    plan.pages.update(pages)
    for ref in edit.freed:
        _drop(plan, space, ref_pgno(ref))
    return root


def _write_map(books: Books, plan: Plan, space: FreeSpace, stamp: int) -> Ref:
    """Bring the map of free space up to date, the plan's own pages included; returns its root."""
    if space.map_is_dirty:
        planned = space.plan_map(
            lambda count: _take(plan, space, count, slack=0), lambda pgno: _drop(plan, space, pgno)
        )
        pages, refs = space.encode_map(planned, stamp, books.pager.seal)
        plan.pages.update(pages)
        plan.map_before = space.install_map(refs)
    plan.pending = space.add_pending(plan.base.txid, plan.freed)
    return space.map_root()


def _take(plan: Plan, space: FreeSpace, count: int, slack: int) -> list[int]:
    pgnos = space.allocate(count, slack)
    plan.taken.update(pgnos)
    space.mark_used(pgnos)
    return pgnos


def _drop(plan: Plan, space: FreeSpace, pgno: int) -> None:
    space.check_used((pgno,))
    if pgno in plan.taken:  # it was free and in use at once; giving it back twice would not be undone
        raise CorruptError("a page that is in use is marked free", pgno=Pgno(pgno))
    space.mark_free((pgno,))
    plan.freed.append(pgno)


def write_pages(books: Books, plan: Plan) -> None:
    """Step one: everything but the meta. No sync. OSError: nothing of it counts yet."""
    if not plan.is_synced:
        books.pager.write(plan.pages)


def write_meta(books: Books, plan: Plan, *, again: bool) -> None:
    """Step two: sync, the meta, sync. OSError: what is on the disk is not known any more.

    again   the meta may be there already
    """
    assert plan.meta is not None
    if not plan.is_synced:
        sync_pages(books, full=plan.growth != books.extent.growth_synced)
        plan.is_synced = True
    if again:
        write_once(books, META_PGNOS[plan.slot] * books.page_size, encode_in(books, plan.meta, plan.slot))
        books.file.sync()
    else:
        write_synced_meta(books, plan.meta, plan.slot)


def sync_pages(books: Books, *, full: bool) -> None:
    """Sync what a meta needs; the size of the file too if it is `full`."""
    if full:
        books.file.sync_all()
    else:
        books.file.sync()


def write_synced_meta(books: Books, meta: Meta, slot: int) -> None:
    """Write a meta all of whose pages are synced; returns when it is on stable storage."""
    books.file.write_synced(META_PGNOS[slot] * books.page_size, encode_in(books, meta, slot))


def write_mark(books: Books) -> None:
    """Write the newest meta once more, with the mark of a clean close, into the other slot."""
    metas = books.ledger.metas
    meta = replace(metas.newest, clean=True)
    sync_pages(books, full=not books.extent.is_synced)
    write_once(books, META_PGNOS[1 - metas.slot] * books.page_size, encode_in(books, meta, 1 - metas.slot))
    books.file.sync()
    with books.lock:
        ledger = replace(books.ledger, metas=metas.turned(meta))
        books.ledger, books.clean = ledger, True


def write_copy_of_meta(books: Books, meta: Meta, slot: int) -> None:
    """Write a meta into a slot, without a sync."""
    write_once(books, META_PGNOS[slot] * books.page_size, encode_in(books, meta, slot))


def write_once(books: Books, offset: int, data: bytes) -> None:
    """Write, unless the same bytes are there: what may count already is not written over. No sync."""
    if data and books.file.read(offset, len(data)) != data:
        books.file.write(offset, data)


def encode_in(books: Books, meta: Meta, slot: int) -> bytes:
    """A meta as it stands in a slot."""
    return encode_meta(meta, META_PGNOS[slot], books.pager.checksum, books.pager.seed)


def finish_copy(books: Books, chain: Chain, copy: Meta) -> None:
    """Both metas are at the newest checkpoint, so what it freed can be used. The caller has the lock of the books."""
    log = chain.tip.log
    end, ledger = log.end._replace(doubled=True), replace(books.ledger, metas=books.ledger.metas.doubled(copy))
    log.end, books.ledger, books.clean = end, ledger, False


def finish(books: Books, chain: Chain, plan: Plan) -> list[int]:
    """The meta is in the file: its epoch begins. The caller has the lock of the books.

    returns  references of nodes that nobody needs any more
    """
    meta = plan.meta
    assert meta is not None
    base, log = plan.base, plan.base.log
    stale = [ref for commit in _up_to(chain, base) if commit.advance is not None for ref in commit.advance.stale]
    metas = books.ledger.metas.turned(meta)
    ledger = replace(books.ledger, metas=metas, catalogue_root=plan.catalogue_root, plan=None)
    shown = base if chain.is_unseen(base) else chain.shown
    log.epoch, log.end, log.blank = meta.epoch, LogEnd(), False
    books.extent.growth_synced, books.clean = plan.growth, meta.clean
    books.ledger, chain.written, chain.shown = ledger, base, shown
    base.before = base.advance = None
    chain.show(shown, base.txid, sync=True)
    books.pager.release(plan.unwritten)
    return stale


def _up_to(chain: Chain, commit: Commit) -> list[Commit]:
    """The commits that readers see from now on, with this one as the newest."""
    found = []
    each: Commit | None = commit
    while each is not None and each is not chain.shown:
        found.append(each)
        each = each.before
    return found


def undo(books: Books, chain: Chain, cause: OSError) -> None:
    """Forget all commits that nobody has seen. The caller has the lock of the books.

    cause    what those who wait for them get
    """
    undone = chain.since(chain.shown)
    for commit in reversed(undone):  # from the tip on: an undo that was interrupted is known by it, and goes on
        commit.error = commit.error or cause
    ledger = books.ledger.copy()
    given_back: list[int] = []
    unwritten = ledger.unwritten
    plan = ledger.plan
    if plan is not None:
        unwritten |= plan.unwritten
        ledger.dirty_tables |= plan.dirty_tables
    advances = [commit.advance for commit in undone if commit.advance is not None]
    space = ledger.space
    if space is not None:
        if plan is not None:
            if plan.map_before is not None:
                space.restore_map(plan.map_before)
            space.undo(plan.taken, plan.pending)
            given_back += plan.taken
        for each in reversed(advances):
            space.undo(each.allocated, each.pending)
            given_back += each.allocated
    for each in reversed(advances):
        unwritten -= each.held
        unwritten.update(each.superseded)
        ledger.base = each.base
    for each in advances:
        unwritten -= each.held
    ledger.unwritten_size = books.held_size(unwritten)
    ledger.plan = None
    log = chain.shown.log
    taken = log.end.used, chain.written.size if chain.written.log is log else 0
    books.ledger, chain.tip, chain.pending, log.taken = ledger, chain.shown, None, taken
    for each in advances:
        books.pager.release(each.held)
    if space is not None:
        space.give_back(given_back)
