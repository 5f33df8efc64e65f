"""The commit protocol of format 2, small enough to be searched whole.

A machine of a few cells: two metas, a log of LOG places, PAGES tree pages (a checkpoint takes one). Writes go to the
cache. A sync makes them durable. What may happen at any step, and is tried in every combination within the bounds:

    power cut      of each cell written since the last sync: the old value, any written since, or a torn one
    kill           the cache stays, with what is not yet synced in it
    failed sync    any of the cells got to the disk; the cache goes on showing all of them, and counts them as clean
    damage         when nobody has the file open, one cell is unreadable
    interrupt      the process stops what it does, and goes on: the commits of a record wait for the next one, which
                   goes to the same place; a checkpoint writes the same pages again, unless they are synced, and the
                   same meta (a search of its own)

A run commits (into the log with and without a sync, in memory only, as a checkpoint), closes, opens again, and so on.
A state of the database is the tuple of the commits it contains. After each opening the following has to hold:

    what was acknowledged is there, and what is there is a beginning of what was committed
    what an opening has shown is not lost later
    both metas, if they are whole, lead to whole checkpoints: the older one is there to be fallen back to
    a single damage gives the whole state or an error; but for records that no later one knows to be safe (the last one,
    and unsynced ones right before it), and for the newest meta before the first synced record made a copy of it

`explore` gives the trace of the first violation, or None. FAULTS are ways to do it wrong, each of which it has to find.

Bounds: COMMITS commits; CRASHES power cuts, kills and closings; one failed sync; in any order and at any step. A deeper
search, by hand: `python tests/engine/test_commit_protocol.py COMMITS CRASHES`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest

LOG = 2
PAGES = 4
META = (0, 1)
LOGS = tuple(range(2, 2 + LOG))
TREE = tuple(range(2 + LOG, 2 + LOG + PAGES))
TORN = "torn"

COMMITS = 3
CRASHES = 2

Content = tuple[int, ...]
Cells = tuple[Any, ...]

FAULTS = {
    "meta-before-pages": "a meta is written before the pages of its checkpoint are synced",
    "winner-slot": "a meta is written over the newest one",
    "reuse-at-once": "a checkpoint reuses the page that the older meta needs",
    "log-before-meta": "the log is begun anew before the new meta is synced",
    "copy-before-meta": "both slots are written with one sync",
    "any-record": "a record counts whatever comes before it",
    "no-open-sync": "an opening after a crash does not sync what it found in the cache",
    "no-drop": "an opening after a crash believes the cache",
    "no-poison": "the process goes on after a failed sync",
    "sync-own-cell": "a commit syncs its own record only, though others before it are not synced",
    "rotten-is-end": "a damaged record is always taken for the end of the log",
    "newer-epoch-ignored": "records of an epoch whose meta is missing are passed over",
    "waiting-forgotten": "commits that wait in memory are left out of the next checkpoint",
    "recovery-forgets-used": "the first record after an opening goes to the head of the log",
}
INTERRUPTED = {
    "interrupt-acknowledges": "an interrupted record counts as written",
    "interrupt-moves-on": "the next record goes behind an interrupted one",
    "interrupt-forgets": "an interrupted checkpoint is forgotten, and the next one takes the same page",
    "interrupt-begins-anew": "an interrupted checkpoint writes its pages once more, though a meta may name them by now",
}


class Meta(NamedTuple):
    """What a meta cell holds."""

    txid: int
    stamp: int
    page: int
    content: Content
    clean: bool


class Record(NamedTuple):
    """What a place in the log holds."""

    epoch: int
    epoch_txid: int
    previous: int
    stamp: int
    txid: int
    durable: int
    added: Content


class Found(NamedTuple):
    """What an opening finds."""

    slot: int
    meta: Meta
    older: Meta | None
    content: Content
    used: int
    previous: int
    txid: int
    seen: int
    clean: bool
    problem: str


class Process(NamedTuple):
    """An open database. script: what it is about to do; begun: all of that, from its beginning; waiting: commits
    in memory only.
    """

    slot: int
    metas: tuple[Meta | None, Meta | None]
    used: int
    previous: int
    txid: int
    durable: int
    tip: Content
    waiting: Content
    unsynced: bool
    poisoned: bool
    script: tuple[Any, ...]
    begun: tuple[Any, ...] = ()


class State(NamedTuple):
    """Everything.

    disk, cache  cells; pending: (cell, value) written and not synced, in order
    safe         what a power cut may not take; kept: what a kill may not take
    """

    disk: Cells
    cache: Cells
    pending: tuple[tuple[int, Any], ...]
    process: Process | None
    safe: Content
    kept: Content
    committed: Content
    commits: int
    crashes: int
    failures: int
    stamp: int
    budget: tuple[int, int] = (COMMITS, CRASHES)
    interrupts: int = 0  # that may still come


class Violation(Exception):
    """A promise is broken."""


def initial() -> State:
    """A file as it is created: checkpoint 1 in both slots, without content."""
    meta = Meta(1, 1, TREE[0], (), True)
    cells: list[Any] = [None] * (2 + LOG + PAGES)
    cells[0] = cells[1] = meta
    cells[TREE[0]] = 1
    return State(tuple(cells), tuple(cells), (), None, (), (), (), 0, 0, 0, 1)


def recover(cells: Cells, faults: frozenset[str]) -> Found:
    """What is in a file, by the rules of opening."""
    valid = [(meta.txid, meta.clean, slot) for slot in META if isinstance(meta := cells[slot], Meta)]
    if not valid:
        return Found(0, Meta(0, 0, 0, (), False), None, (), 0, 0, 0, 0, False, "no meta")
    slot = max(valid)[2]
    meta, other = cells[slot], cells[1 - slot]
    problem = "" if cells[meta.page] == meta.stamp else "a page of the checkpoint is bad"
    content, used, previous, txid = meta.content, 0, 0, meta.txid
    for place in LOGS:
        record = cells[place]
        if not isinstance(record, Record):
            break
        continues = (record.epoch, record.previous) == (meta.stamp, previous) and record.txid > txid
        if not continues and "any-record" not in faults:
            break
        content, used, previous, txid = content + record.added, used + 1, record.stamp, record.txid
    seen = txid
    for place in LOGS[used:]:
        record = cells[place]
        if isinstance(record, Record):
            seen = max(seen, record.txid)
            if record.epoch == meta.stamp and record.durable > txid and "rotten-is-end" not in faults:
                problem = problem or "a record is missing"
            if record.epoch_txid > meta.txid and "newer-epoch-ignored" not in faults:
                problem = problem or "a meta is missing"
    older = other if isinstance(other, Meta) else None
    clean = meta.clean and older is not None and not used
    return Found(slot, meta, older, content, used, previous, txid, seen, clean, problem)


# -- what a process does -------------------------------------------------------------------------


def scripts(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """The things that an idle process may begin."""
    process = state.process
    assert process is not None
    stamp = state.stamp + 1
    txid = process.txid + 1
    if state.commits < state.budget[0]:
        commit = state.commits + 1
        begun = state._replace(commits=commit, committed=(*process.tip, commit), stamp=stamp)
        tip = (*process.tip, commit)
        if not process.waiting:
            yield (
                f"commit {commit} in memory",
                begun._replace(process=process._replace(tip=tip, waiting=(commit,))),
            )
        added = (*process.waiting, commit)
        if process.used < LOG:
            for sync in (True, False):
                steps = _log_steps(process, added, tip, txid, stamp, sync, faults)
                name = f"commit {commit} into the log, {'sync' if sync else 'os'}"
                yield name, begun._replace(process=process._replace(script=steps, begun=steps))
        steps = _checkpoint_steps(process, tip, txid, stamp, False, faults)
        yield f"commit {commit} as a checkpoint", begun._replace(process=process._replace(script=steps, begun=steps))
    if state.crashes >= state.budget[1]:
        return
    steps = _checkpoint_steps(process, process.tip, txid, stamp, True, faults)
    yield (
        "close",
        state._replace(stamp=stamp, process=process._replace(script=(*steps, ("exit",)), begun=(*steps, ("exit",)))),
    )


def _log_steps(
    process: Process, added: Content, tip: Content, txid: int, stamp: int, sync: bool, faults: frozenset[str]
) -> tuple[Any, ...]:
    meta = process.metas[process.slot]
    assert meta is not None
    record = Record(meta.stamp, meta.txid, process.previous, stamp, txid, process.durable, added)
    place = LOGS[process.used]
    steps: list[Any] = [("write", place, record)]
    other = process.metas[1 - process.slot]
    copies = sync and (other is None or other.txid != meta.txid)
    if copies:
        steps.append(("write", 1 - process.slot, meta._replace(clean=False)))
    if sync:
        alone = not copies and (not process.unsynced or "sync-own-cell" in faults)
        steps.append(("sync", (place,) if alone else None))
    steps.append(("logged", tip, txid, stamp, sync, copies))
    return tuple(steps)


def _checkpoint_steps(
    process: Process, tip: Content, txid: int, stamp: int, clean: bool, faults: frozenset[str]
) -> tuple[Any, ...]:
    newest = process.metas[process.slot]
    assert newest is not None
    needed = {meta.page for meta in process.metas if meta is not None}
    if "reuse-at-once" in faults:
        needed = {newest.page}
    page = next(page for page in TREE if page not in needed)
    if "waiting-forgotten" in faults:
        tip = tuple(commit for commit in tip if commit not in process.waiting)
    meta = Meta(txid, stamp, page, tip, clean)
    slot = process.slot if "winner-slot" in faults else 1 - process.slot
    steps: list[Any] = [("write", page, stamp), ("sync", None), ("write", slot, meta), ("sync", None)]
    if "meta-before-pages" in faults:
        steps = [("write", page, stamp), ("write", slot, meta), ("sync", None)]
    if "log-before-meta" in faults:
        steps = steps[:-1]
    if "copy-before-meta" in faults:
        steps[-1:] = [("write", 1 - slot, meta), ("sync", None)]
    return (*steps, ("checkpointed", tip, txid, stamp, slot, meta))


def step(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """The next thing that the process does, or fails to do."""
    process = state.process
    assert process is not None
    if not process.script:
        if not process.poisoned or "no-poison" in faults:
            yield from scripts(state, faults)
        return
    if state.interrupts and process.script != process.begun:
        yield "interrupted", _interrupted(state, process, faults)
    (kind, *rest), script = process.script[0], process.script[1:]
    after = state._replace(process=process._replace(script=script))
    if kind == "write":
        cell, value = rest
        yield (
            f"write {cell}",
            after._replace(cache=_put(state.cache, cell, value), pending=(*state.pending, (cell, value))),
        )
    elif kind == "sync":
        yield "sync", _synced(after, rest[0])
        if not state.failures:
            for disk in outcomes(state, torn=False):
                failed = after._replace(disk=disk, pending=(), failures=1)
                if "no-poison" in faults:
                    yield "a sync fails, unnoticed", failed._replace(process=process._replace(script=()))
                else:
                    dead = process._replace(script=(), poisoned=True)
                    yield "a sync fails", failed._replace(process=dead)
    elif kind == "logged":
        tip, txid, stamp, sync, copies = rest
        metas = process.metas
        if copies:
            copy = metas[process.slot]
            metas = (copy, copy)
        done = process._replace(
            script=script,
            begun=script,
            tip=tip,
            txid=txid,
            previous=stamp,
            used=process.used + 1,
            waiting=(),
            metas=metas,
            unsynced=not sync,
            durable=txid if sync else process.durable,
        )
        yield "acknowledged", state._replace(process=done, safe=tip if sync else state.safe, kept=tip)
    elif kind == "checkpointed":
        tip, txid, _, slot, meta = rest
        metas = (meta, process.metas[1]) if slot == 0 else (process.metas[0], meta)
        done = process._replace(
            script=script,
            begun=script,
            tip=tip,
            txid=txid,
            durable=txid,
            previous=0,
            used=0,
            waiting=(),
            metas=metas,
            slot=slot,
            unsynced=False,
        )
        promised = process.tip if len(process.tip) > len(tip) else state.committed
        yield "acknowledged", state._replace(process=done, safe=promised, kept=promised)
    else:
        yield "closed", state._replace(process=None, crashes=state.crashes + 1)


def _interrupted(state: State, process: Process, faults: frozenset[str]) -> State:
    """What was under way has stopped before its next step, and nothing has failed."""
    after = state._replace(interrupts=state.interrupts - 1)
    kind, *rest = process.begun[-1]
    if kind == "logged":
        tip, txid, stamp, *_ = rest
        waiting = process.begun[0][2].added
        idle = process._replace(script=(), begun=(), tip=tip, txid=txid, waiting=waiting)
        if "interrupt-acknowledges" in faults:
            idle = idle._replace(waiting=(), used=process.used + 1, previous=stamp, unsynced=True)
            return after._replace(process=idle, safe=tip, kept=tip)
        if "interrupt-moves-on" in faults and process.used + 1 < LOG:
            idle = idle._replace(used=process.used + 1)
        return after._replace(process=idle)
    if "interrupt-forgets" in faults:
        tip, txid = next(step[1:3] for step in process.begun if step[0] == "checkpointed")
        waiting = (*process.waiting, *tip[len(process.tip) :])
        return after._replace(process=process._replace(script=(), begun=(), tip=tip, txid=txid, waiting=waiting))
    again = process.begun
    if len(process.script) < len(again) - 1 and "interrupt-begins-anew" not in faults:
        again = again[2:]  # the page is synced
    return after._replace(process=process._replace(script=again))


def _put(cells: Cells, cell: int, value: Any) -> Cells:
    return (*cells[:cell], value, *cells[cell + 1 :])


def _synced(state: State, cells: tuple[int, ...] | None) -> State:
    disk = state.disk
    rest = []
    for cell, value in state.pending:
        if cells is None or cell in cells:
            disk = _put(disk, cell, value)
        else:
            rest.append((cell, value))
    return state._replace(disk=disk, pending=tuple(rest))


def outcomes(state: State, *, torn: bool = True) -> Iterator[Cells]:
    """What may be on the disk now."""
    written: dict[int, list[Any]] = {}
    for cell, value in state.pending:
        written.setdefault(cell, []).append(value)
    choices = [
        [(cell, value) for value in (state.disk[cell], *values, *([TORN] if torn else []))]
        for cell, values in written.items()
    ]
    for chosen in product(*choices):
        disk = state.disk
        for cell, value in chosen:
            disk = _put(disk, cell, value)
        yield disk


# -- crashes, openings, damage -------------------------------------------------------------------


def crashes(state: State) -> Iterator[tuple[str, State]]:
    """The ways in which it may all end now."""
    if state.crashes >= state.budget[1]:
        return
    base = state._replace(process=None, crashes=state.crashes + 1)
    for disk in set(outcomes(state)):
        yield "power cut", base._replace(disk=disk, cache=disk, pending=(), kept=state.safe)
    yield "kill", base


def opening(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """Open the file: sync, drop the metas from the cache, look; if it was not closed, drop the rest and look again.

    The first sync is needed even if the file looks as if it had been closed: the mark of that may be in the cache only,
    and records on top of a meta that a power cut takes away would be an epoch without a meta.
    """
    synced = state
    if "no-open-sync" not in faults:
        if not state.failures and state.pending:
            for disk in set(outcomes(state, torn=False)):
                yield "the sync of an opening fails", state._replace(disk=disk, pending=(), failures=1, kept=state.safe)
        synced = _synced(state, None)
    floor = state.safe if state.failures else state.kept  # what a failed sync lost was acknowledged to nobody
    if "no-drop" not in faults:
        synced = _dropped(synced, META)
    found = recover(synced.cache, faults)
    if found.clean and not found.problem:
        yield "open, clean", _opened(synced, found, floor)
        return
    if "no-drop" not in faults:
        synced = _dropped(synced, range(len(state.cache)))
    yield "open", _opened(synced, recover(synced.cache, faults), floor)


def _dropped(state: State, cells: Iterable[int]) -> State:
    """The cache shows of these cells what is on the disk, and what is still to be written."""
    cache = state.cache
    dirty = {cell for cell, _ in state.pending}
    for cell in cells:
        if cell not in dirty:
            cache = _put(cache, cell, state.disk[cell])
    return state._replace(cache=cache)


def _opened(state: State, found: Found, floor: Content) -> State:
    if found.problem:
        raise Violation(f"the file is called damaged: {found.problem}")
    if found.content[: len(floor)] != floor:
        raise Violation(f"{floor} was promised, and {found.content} is there")
    if state.committed[: len(found.content)] != found.content:
        raise Violation(f"{found.content} is there, which is no beginning of {state.committed}")
    if found.older is not None and state.cache[found.older.page] != found.older.stamp:
        raise Violation("the older meta leads to a page that is not its own any more")
    metas: tuple[Meta | None, Meta | None] = (found.meta, found.older) if found.slot == 0 else (found.older, found.meta)
    process = Process(
        found.slot,
        metas,
        found.used,
        found.previous,
        max(found.seen, *(meta.txid for meta in metas if meta is not None)),
        found.txid,
        found.content,
        (),
        False,
        False,
        (),
    )
    return state._replace(process=process, safe=found.content, kept=found.content, committed=found.content)


def damages(state: State, faults: frozenset[str]) -> None:
    """One cell is unreadable, while nobody has the file open and all of it is on the disk."""
    if state.pending or state.cache != state.disk:
        return
    whole = recover(state.disk, faults)
    if whole.problem:
        return
    for cell in range(len(state.disk)):
        found = recover(_put(state.disk, cell, TORN), faults)
        if found.problem or found.content == whole.content:
            continue
        if found.content == whole.content[: len(found.content)] and found.content[: len(state.safe)] == state.safe:
            continue  # what is missing was promised to nobody
        later = [state.disk[place] for place in LOGS[: whole.used] if place > cell]
        record = state.disk[cell]
        if cell in LOGS and record.txid > max([each.durable for each in later], default=0):
            continue  # no later record knows it to be safe: cannot be told from a commit that was being written
        twin = state.disk[1 - whole.slot]
        if cell == whole.slot and not whole.used and (not isinstance(twin, Meta) or twin.txid != whole.meta.txid):
            continue  # cannot be told from a checkpoint that was being written
        raise Violation(f"cell {cell} is damaged, and {found.content} is shown in the place of {whole.content}")


def explore(
    fault: str = "", budget: tuple[int, int] = (COMMITS, CRASHES), interrupts: int = 0
) -> tuple[list[str] | None, int]:
    """Search everything; returns (the trace of the first violation, how many states there were)."""
    faults = frozenset([fault] if fault else [])
    start = initial()._replace(budget=budget, interrupts=interrupts)
    parents: dict[State, tuple[State | None, str]] = {start: (None, "created")}
    waiting = [start]
    while waiting:
        state = waiting.pop()
        following: list[tuple[str, State]] = []
        try:
            if state.process is None:
                damages(state, faults)
                following += opening(state, faults)
            else:
                following += step(state, faults)
                following += crashes(state)
        except Violation as violation:
            return [*_trace(parents, state), str(violation)], len(parents)
        if fault == "recovery-forgets-used":
            following = [(name, _forgetful(state, after)) for name, after in following]
        for name, after in following:
            if after not in parents:
                parents[after] = (state, name)
                waiting.append(after)
    return None, len(parents)


def _forgetful(before: State, after: State) -> State:
    if before.process is None and after.process is not None and after.process.used:
        return after._replace(process=after.process._replace(used=0, previous=0))
    return after


def _trace(parents: dict[State, tuple[State | None, str]], state: State) -> list[str]:
    names: list[str] = []
    at: State | None = state
    while at is not None:
        at, name = parents[at]
        names.append(name)
    return names[::-1]


# -- tests ---------------------------------------------------------------------------------------


def test_no_order_of_writes_crashes_and_failures_breaks_the_protocol() -> None:
    trace, states = explore()
    assert trace is None, "\n".join(trace)
    assert states > 100_000, "the search has become smaller than it was"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_way_to_do_it_wrong_is_found(fault: str) -> None:
    trace, _ = explore(fault)
    assert trace is not None, FAULTS[fault]


def test_interrupts_at_any_step_break_nothing() -> None:
    trace, states = explore(budget=(3, 1), interrupts=1)
    assert trace is None, "\n".join(trace)
    assert states > 20_000, "the search has become smaller than it was"


@pytest.mark.parametrize("fault", INTERRUPTED)
def test_every_way_to_go_on_wrongly_after_an_interrupt_is_found(fault: str) -> None:
    trace, _ = explore(fault, budget=(3, 1), interrupts=1)
    assert trace is not None, INTERRUPTED[fault]


if __name__ == "__main__":
    found, count = explore(budget=(int(sys.argv[1]), int(sys.argv[2])))
    print(f"{count:,} states;", "no violation" if found is None else "\n".join(["violation:", *found]))
