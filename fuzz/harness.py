"""What all fault classes share: their list, their budget, and what happens when one of them finds something.

A class is a function that spends a budget and raises Failure with a case: a JSON object from which
`replay` makes the same failure again. The case is cut down and stored under fuzz/regressions/,
where the test suite replays it from then on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limpet.testing import Violation

Case = dict[str, Any]

REGRESSIONS = Path(__file__).parent / "regressions"
LONGEST_STATE_S = 2.0  # of processor time; whatever takes longer hangs
SHRINK_S = 20.0


class Failure(Exception):
    """A promise was broken.

    case  what makes it happen again
    """

    def __init__(self, message: str, case: Case) -> None:
        super().__init__(message)
        self.message = message
        self.case = case


class Hang(Exception):
    """One state took longer than LONGEST_STATE_S."""


@dataclass
class Budget:
    """Time and luck of one run of a class.

    seconds  how long to go on, by `clock`; classes with an end stop there
    states   what was tried
    clock    time.monotonic, or time.process_time for as many states on a busy machine as on an idle one
    """

    seconds: float
    seed: int
    least: int = 0  # go on until so many states were tried, whatever the time
    most: int = 0  # stop after so many states; 0: no limit
    workload: str = ""  # only this one; "": all
    progress: Callable[[Budget], None] | None = None
    clock: Callable[[], float] = time.monotonic
    states: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    _told: float = 0.0

    def __post_init__(self) -> None:
        """Seed the luck, and begin."""
        self.rng = random.Random(self.seed)
        self.started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    def more(self) -> bool:
        """Whether there is time for another state."""
        in_time = self.spent < self.seconds or self.states < self.least
        return in_time and not 0 < self.most <= self.states

    def count(self, note: str = "") -> None:
        """One more state was tried."""
        self.states += 1
        if note:
            self.notes[note] = self.notes.get(note, 0) + 1
        if self.progress is not None and not self.states & 63 and self.spent - self._told > 0.5:
            self._told = self.spent
            self.progress(self)


@dataclass(frozen=True)
class FaultClass:
    """One file of this folder.

    name     F1 to F18, S1: as DESIGN.md and the survey behind it count them
    title    in a few words
    run      spends a budget; raises Failure
    replay   runs one case again; raises Failure if it still fails
    """

    name: str
    title: str
    run: Callable[[Budget], None]
    replay: Callable[[Case], None]
    module: str = ""


@contextmanager
def no_hang(seconds: float = LONGEST_STATE_S) -> Iterator[None]:
    """Raise Hang if the body takes more processor time than that. Main thread only; elsewhere it does nothing."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: object) -> None:
        raise Hang(f"still running after {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Nobody is shown what the engine and the store log: they tell of every fault they meet.

    Handlers of their loggers go on to hear it, unlike with `logging.disable`.
    """
    loggers = [logging.getLogger(name) for name in ("limpet", "limpet_store")]
    before = [logger.propagate for logger in loggers]
    nobody = logging.NullHandler()
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(nobody)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.propagate = propagate
            logger.removeHandler(nobody)


@contextmanager
def told_as(case: Case) -> Iterator[None]:
    """Turn whatever goes wrong inside into a Failure with this case."""
    try:
        yield
    except Failure:
        raise
    except (Exception, Violation) as error:
        lines = traceback.format_exception(error)
        raise Failure(f"{type(error).__name__}: {error}\n{''.join(lines[-6:])}", case) from error


def fails(fault_class: FaultClass, case: Case) -> Failure | None:
    """Replay a case; returns how it fails, if it does."""
    try:
        fault_class.replay(case)
    except Failure as failure:
        return failure
    return None


def shrink(fault_class: FaultClass, failure: Failure, seconds: float = SHRINK_S) -> Failure:
    """Cut steps and choices from a case for as long as it goes on failing."""
    deadline = time.monotonic() + seconds
    best = fails(fault_class, failure.case)
    if best is None:
        return failure  # it does not repeat: keep what there is
    for name in ("steps", "choices"):
        size = -(-len(best.case.get(name) or ()) // 2)
        while size and time.monotonic() < deadline:
            at = 0
            while at < len(best.case[name]) and time.monotonic() < deadline:
                found = fails(fault_class, _without(best.case, name, at, size))
                if found is None or found.case[name] == best.case[name]:
                    at += size
                else:
                    best = found
                    at += size if name == "choices" else 0
            size = 0 if size == 1 else -(-size // 2)
    return best


def _without(case: Case, name: str, at: int, size: int) -> Case:
    """A smaller case: fewer steps, tried at every point anew; or more units that keep their old content."""
    items = case[name]
    if name == "choices":
        return {**case, name: items[:at] + [0] * len(items[at : at + size]) + items[at + size :]}
    searching = {key: value for key, value in case.items() if key not in ("point", "choices")}
    return {**searching, name: items[:at] + items[at + size :]}


def save(fault_class: FaultClass, failure: Failure) -> Path:
    """Store a case for the test suite."""
    case = {"class": fault_class.name, "found": failure.message.splitlines()[0][:300], **failure.case}
    text = json.dumps(case)
    path = REGRESSIONS / f"{fault_class.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    REGRESSIONS.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def run_class(fault_class: FaultClass, budget: Budget) -> Failure | None:
    """Spend a budget on a class; returns what it found."""
    try:
        fault_class.run(budget)
    except Failure as failure:
        return failure
    return None
