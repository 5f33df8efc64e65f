"""Whatever runs between two lines of the engine, and uses the same database, works completely or is told BusyError.

F18: an outer call (a commit of each kind, a flush, a close, a compaction, reads, savepoints: scenarios.py) is stopped
at one spot, a line, a return or an instruction, and an inner call on the same database is made there
(interruptions.py), or an interrupt raised, or an inner call that is stopped itself. The outer call must not notice;
what was acknowledged is there, in memory, in the file as a dying process leaves it, after a power cut if it was
durable, and after closing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .harness import Budget, Case, Failure, FaultClass, told_as
from .interruptions import INNERS
from .oracle import Wrong
from .reentry import Folder, Second, outer_spots, play
from .scenarios import OUTERS
from .spots import Spot


@dataclass
class Account:
    """What was tried.

    lines     spots visited, by outer call
    outcomes  how inner calls ended
    """

    lines: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    states: int = 0
    missed: int = 0

    def add(self, outcomes: list[str]) -> None:
        """One state."""
        self.states += 1
        self.missed += not outcomes
        for outcome in outcomes:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def __str__(self) -> str:
        ended = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        return (
            f"{sum(self.lines.values())} spots in {len(self.lines)} calls, {self.states} states compared; "
            f"inner calls: {ended}; {self.missed} spots not come to again"
        )


@contextmanager
def steady() -> Iterator[None]:
    """The collector runs when it is told to, and looks only at what was made since."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def suits(spot: Spot, inner_name: str) -> bool:
    """Whether an inner call can come at a spot: an exception only where a real one could."""
    return INNERS[inner_name].error is None or (spot.is_clean and spot.event == "line")


def exhaust(
    outer_name: str,
    inner_names: Sequence[str],
    account: Account,
    *,
    every: int = 1,
    first: int = 0,
    folder: Folder | None = None,
) -> None:
    """Every line of an outer call with every one of these inner calls; or an even choice of the pairs.

    every    one pair of so many, beginning with number `first`: of n inner calls, each line gets n / every
    folder   on real files there, not on a simulated disk
    raises   Failure, naming the spot
    """
    spots = outer_spots(OUTERS[outer_name], folder=folder)
    account.lines[outer_name] = len(spots)
    for number, spot in enumerate(spots):
        for offset, inner_name in enumerate(inner_names):
            if (number + offset) % every == first % every and suits(spot, inner_name):
                account.add(one(outer_name, spot, inner_name, folder=folder))


def one(
    outer_name: str, spot: Spot, inner_name: str, second: Second | None = None, folder: Folder | None = None
) -> list[str]:
    """One state; raises Failure with the spot in its message."""
    case: Case = {"outer": outer_name, "inner": inner_name, "function": spot.function, "event": spot.event}
    if second is not None:
        case |= {"second": second.inner.name, "number": second.number}
    inside = f", inside of it {second.inner.name} at line {second.number}" if second is not None else ""
    with told_as(case):
        try:
            return play(OUTERS[outer_name], spot, INNERS[inner_name], second, folder)
        except Wrong as error:
            raise Wrong(f"{outer_name}, at {spot}: {inner_name}{inside}: {error}") from None


def run(budget: Budget) -> None:
    """Outer calls at random, a batch of spots of each, all inner calls; instructions and two levels now and then."""
    names = list(OUTERS)
    with steady():
        while budget.more():
            name = budget.rng.choice(names)
            opcodes = budget.rng.random() < 0.3
            spots = outer_spots(OUTERS[name], opcodes=opcodes)
            for spot in budget.rng.sample(spots, min(12, len(spots))):
                if not budget.more():
                    break
                _some(name, spot, budget)
            gc.collect()


def _some(outer_name: str, spot: Spot, budget: Budget) -> None:
    """Some inner calls at one spot."""
    rng = budget.rng
    for inner_name in rng.sample(list(INNERS), 5):
        if not suits(spot, inner_name):
            continue
        second = None
        inner = INNERS[inner_name]
        if inner.error is None and rng.random() < 0.25:
            other = INNERS[rng.choice(list(INNERS))]
            # Two on the outer transaction would look for the same rows; who looks after a thread keeps its frames; and
            # what is forgotten while the collector runs stays open.
            apart = {inner.name, other.name} & {"other thread", "forgotten writer"}
            if other.error is None and not (inner.on_outer and other.on_outer) and not apart:
                second = Second(other, rng.randrange(rng.choice((20, 200, 2000))))
        for outcome in one(outer_name, spot, inner_name, second):
            budget.count(outcome)


def _replay(case: Case) -> None:
    """All spots in the function that the case was found in; all spots there are, if there is no such function."""
    outer = OUTERS[case["outer"]]
    inner = INNERS[case["inner"]]
    second = Second(INNERS[case["second"]], case["number"]) if "second" in case else None
    with steady():
        spots = outer_spots(outer, opcodes=case["event"] == "opcode")
        here = [spot for spot in spots if spot.function == case["function"] and spot.event == case["event"]] or spots
        for spot in here:
            if inner.error is None or spot.is_clean:
                one(case["outer"], spot, case["inner"], second)


CLASS: FaultClass = FaultClass("F18", "calls between two lines of other calls", run, _replay)


__all__ = ["CLASS", "Account", "Failure", "exhaust", "one", "steady"]
