"""The hand-shake of readers without locks, small enough to be searched whole.

Every commit replaces one page. The page of snapshot s is freed by commit s + 1, and a later commit may take it. Three
actors take their steps in every order:

    reader     looks at the published snapshot, pins it, looks again, reads its page twice, lets go; READS times
    writer     begins (looks at the published snapshot, then at the pins), takes a free page, writes it; COMMITS times
    publisher  at some time shows the newest commit to readers: a flush that ends late

The promise: a page that a reader reads has what its snapshot put there. FAULTS are ways to do it wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

COMMITS = 4
READS = 2

FAULTS = {
    "no-second-look": "the reader goes on after the pin",
    "unpin-early": "the reader lets go before it has read all",
    "pins-only": "the writer asks the pins alone, not what is published",
    "published-only": "the writer asks what is published alone, not the pins",
    "pins-first": "the writer looks at the pins before it looks at what is published",
    "goes-back": "what is published may become an older snapshot again",
}


class State(NamedTuple):
    """Everything. pages: the snapshot that last wrote each; places: the page of each snapshot, by txid."""

    pages: tuple[int, ...] = (0,)
    places: tuple[int, ...] = (0,)
    published: int = 0
    pins: tuple[int, ...] = ()
    writer: tuple[str, int] = ("idle", 0)
    reader: tuple[str, int] = ("idle", 0)
    reads: int = 0


def reader_steps(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """What the reader may do next."""
    doing, txid = state.reader
    if doing == "idle" and state.reads < READS:
        yield "reader looks", state._replace(reader=("looked", state.published), reads=state.reads + 1)
    elif doing == "looked":
        pinned = "first read" if "no-second-look" in faults else "pinned"
        yield f"reader pins {txid}", state._replace(reader=(pinned, txid), pins=(txid,))
    elif doing == "pinned" and state.published == txid:
        yield "reader looks again", state._replace(reader=("first read", txid))
    elif doing == "pinned":
        yield "reader starts over", state._replace(reader=("idle", 0), reads=state.reads - 1, pins=())
    elif doing == "first read":
        pins = () if "unpin-early" in faults else state.pins
        yield f"reader reads {txid}", state._replace(reader=("second read", txid), pins=pins)
    elif doing == "second read":
        yield f"reader reads {txid} and lets go", state._replace(reader=("idle", 0), pins=())


def writer_steps(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """What the writer may do next."""
    doing, horizon = state.writer
    tip = len(state.places) - 1
    if doing == "idle" and tip < COMMITS:
        if "pins-only" in faults:
            seen = tip
        elif "pins-first" in faults:
            seen = min([tip, *state.pins])
        else:
            seen = state.published
        yield "writer begins", state._replace(writer=("begun", seen))
    elif doing == "begun":
        if "pins-first" in faults:
            horizon = min(horizon, state.published)
        elif "published-only" not in faults:
            horizon = min([horizon, *state.pins])
        yield f"writer may take what {horizon} freed", state._replace(writer=("writing", horizon))
    elif doing == "writing":
        free = [place for txid, place in enumerate(state.places[:-1]) if txid + 1 <= horizon]
        free = [place for place in free if place not in state.places[horizon:]]
        for place in {*free, len(state.pages)}:
            pages = (*state.pages[:place], tip + 1, *state.pages[place + 1 :])
            yield (
                f"writer commits {tip + 1} in page {place}",
                state._replace(pages=pages, places=(*state.places, place), writer=("idle", 0)),
            )


def publisher_steps(state: State, faults: frozenset[str]) -> Iterator[tuple[str, State]]:
    """What may be shown to readers next."""
    tip = len(state.places) - 1
    if state.published < tip:
        yield f"{tip} is published", state._replace(published=tip)
    if state.published and "goes-back" in faults:
        yield f"{state.published - 1} is published again", state._replace(published=state.published - 1)


def explore(fault: str = "") -> tuple[list[str] | None, int]:
    """Search everything; returns (the trace to the first wrong read, how many states there were)."""
    faults = frozenset([fault] if fault else [])
    start = State()
    waiting: list[tuple[State, tuple[str, ...]]] = [(start, ())]
    seen = {start}
    while waiting:
        state, trace = waiting.pop()
        doing, txid = state.reader
        if doing.endswith(" read") and state.pages[state.places[txid]] != txid:
            return [*trace, f"a reader of {txid} finds what {state.pages[state.places[txid]]} wrote"], len(seen)
        for steps in (reader_steps, writer_steps, publisher_steps):
            for name, after in steps(state, faults):
                if after not in seen:
                    seen.add(after)
                    waiting.append((after, (*trace, name)))
    return None, len(seen)


# -- tests ---------------------------------------------------------------------------------------


def test_no_interleaving_lets_a_reader_see_a_page_that_was_taken() -> None:
    trace, states = explore()
    assert trace is None, "\n".join(trace)
    assert states > 3_000, "the search has become smaller than it was"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_way_to_do_it_wrong_is_found(fault: str) -> None:
    trace, _ = explore(fault)
    assert trace is not None, FAULTS[fault]
