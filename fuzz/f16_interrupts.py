"""KeyboardInterrupt or MemoryError at any line of a commit leaves the commit made or not made, and nothing in between.

F16: an exception is raised at the Nth line that the engine executes, in a commit, a compaction or a close. After it the
handle is either as it was, and the next commit works, or it says that it is poisoned; opened again, the file holds the
state before or after. Steps of the clock change nothing.
"""

from __future__ import annotations

import gc
import linecache
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import limpet
from limpet.testing import SimDisk

from .crashes import workloads
from .harness import Budget, Case, FaultClass, told_as
from .oracle import PATH, Run, Wrong, difference, read_all, tuned, verify
from .workloads import Step, apply_to_model, apply_to_transaction

_ERRORS: tuple[type[BaseException], ...] = (KeyboardInterrupt, MemoryError)
_NOT_LINES = ("/fuzz/", "/testing/")  # our own lines do not count
# Between the taking of a lock and the `try` that gives it back no program in Python can guard itself, nor in __del__.
_NOT_IN = ("__del__", "write")


def run(budget: Budget) -> None:
    """Lines at random, in commits of all workloads."""
    for _, steps in workloads(budget, 4):
        total = _lines(steps)
        for _ in range(40):
            if not budget.more():
                return
            case: Case = {"steps": steps, "line": budget.rng.randrange(total), "error": budget.rng.randrange(2)}
            case["clock"] = budget.rng.choice((0, -86400, 10**9))
            budget.count(_ERRORS[case["error"]].__name__)
            with told_as(case):
                _one(case)


class _Tracer:
    """Counts the engine's lines, and raises at one of them."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at = at
        self.error = error
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if "limpet" not in name or any(part in name for part in _NOT_LINES) or frame.f_code.co_name in _NOT_IN:
            return None
        return self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """One line, or a return."""
        if event == "line" and not _is_safe(frame):
            self.lines += 1
            if self.lines == self.at:
                raise self.error("injected")
        return self.line


def _is_safe(frame: FrameType) -> bool:
    """Whether no real interrupt can come at this line, although tracing stops there: `try`, and the end of a `with`.

    CPython looks for signals after calls and at jumps backwards; what a `with` calls at its end is done by then.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return line.startswith(("with ", "try:"))


def _traced(tracer: _Tracer, action: Callable[[], None]) -> BaseException | None:
    """Run the action; returns the exception it ended with, without the frames that would keep the transaction alive."""
    found: BaseException | None = None
    sys.settrace(tracer)
    try:
        action()
    except BaseException as error:  # noqa: BLE001 whatever comes is looked at by the caller
        found = error
    finally:
        sys.settrace(None)
    each = found
    while each is not None:
        each.__traceback__ = None
        each = each.__context__
    gc.collect()
    return found


def _lines(steps: list[Step]) -> int:
    """How many lines the last commit takes."""
    run, action = _prepared(steps)
    tracer = _Tracer(-1, MemoryError)
    with tuned(run.growth):
        error = _traced(tracer, action)
        run.abandon()
    if error is not None:
        raise error
    return max(1, tracer.lines)


def _prepared(steps: list[Step]) -> tuple[Run, Callable[[], None]]:
    """A database after all commits but the last, and that last one."""
    run = Run(SimDisk(), monitored=False)  # the monitors use the engine's decoding, and are not to be interrupted
    commits = [step for step in steps if step[0] == "commit"] or [["commit", "sync", [["put", "t", 1, 9, 9]]]]
    with tuned(run.growth):
        run.open()
        for step in commits[:-1]:
            run.step(["commit", "sync", step[2]])
    db = run.db
    assert db is not None
    changes = [*commits[-1][2], ["put", "traced", 1, 900, 1]]

    def action() -> None:
        with db.write() as transaction:
            apply_to_transaction(transaction, changes)

    run.states.append(apply_to_model(run.states[-1], changes))
    run.begun = len(run.states) - 1
    return run, action


def _one(case: Case) -> None:
    run, action = _prepared(case["steps"])
    db = run.db
    assert db is not None
    allowed = run.states[-2:]
    clock = time.time_ns
    time.time_ns = lambda: max(0, clock() + case["clock"] * 10**9)
    try:
        with tuned(run.growth), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the collector ends a transaction that nobody could
            error = _traced(_Tracer(case["line"] + 1, _ERRORS[case["error"]]), action)
            if error is None:
                allowed = allowed[-1:]
            elif not isinstance(error, (*_ERRORS, limpet.LimpetError)) and "injected" not in repr(error):
                raise Wrong(f"an interrupt became {error!r}") from error
            _usable_or_poisoned(run, allowed)
            run.abandon()
            run.disk.kill()
            with_next = [apply_to_model(state, _NEXT) for state in allowed]
            verify(SimDisk.of({PATH: run.disk.content(PATH)}), [*allowed, *with_next], must_exist=True, monitored=False)
    finally:
        time.time_ns = clock
        run.abandon()


_NEXT: list[Step] = [["put", "next", 1, 40, 77]]


def _usable_or_poisoned(run: Run, allowed: list[Any]) -> None:
    db = run.db
    assert db is not None
    try:
        found = read_all(db)
    except limpet.PoisonedError:
        return
    if found not in allowed:
        raise Wrong(f"after an interrupt: {difference(found, allowed[-1])}")
    try:
        with db.write(timeout=1.0) as transaction:
            apply_to_transaction(transaction, _NEXT)
    except limpet.PoisonedError:
        return
    after = read_all(db)
    if after not in [apply_to_model(state, _NEXT) for state in allowed]:
        raise Wrong(f"the commit after an interrupt: {difference(after, apply_to_model(found, _NEXT))}")
    report = db.check()
    if not report.ok:
        raise Wrong(f"after an interrupt: {report.errors[:2]}")


def _replay(case: Case) -> None:
    with told_as(case):
        _one(case)


CLASS: FaultClass = FaultClass("F16", "interrupts and lack of memory at any line", run, _replay)
