"""The thread that does all the writing, and the pieces of work that it is given.

Who takes an outcome. A step runs in the thread, its outcome is handed over in the event loop, and the coroutine that
awaits it goes on some turns of the loop later; it can be cancelled at any moment up to there. Then its outcome is
nobody's, and if the step has taken something for its caller, a task from the queue, that must not stay taken. So it is
the coroutine that says what became of it (`take`), and nobody else: it goes on with the outcome, or it has it given
back. To give back is a piece of work that stands behind the step in the same queue, so that it finds the step not begun
(and then nothing is to be done), or run and committed, or run and failed, never half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..store import Store
from ..work import Work

logger = logging.getLogger("limpet_store")

MAX_STEPS = 64  # pieces in one commit: more of them save little of the sync, and hold the interpreter for longer


class Taken(Protocol):
    """What may have taken something for a caller who does not come to get it."""

    @property
    def takes(self) -> bool:
        """Whether it has taken something that may have to be given back."""

    def give_back(self, work: Work) -> None:
        """Give it back, in a later transaction; what has been changed by others meanwhile is left alone."""

    def settle(self) -> None:
        """Nothing is to be given back from now on."""


class Step:
    """A piece of work for the writer's thread, a function of a Work, and the future that its caller awaits."""

    __slots__ = ("function", "arguments", "future", "outcome", "error", "abandoned", "_unclaimed")

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], future: asyncio.Future[Any] | None
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future  # None: nobody waits
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.abandoned = False  # whoever waited does so no longer
        self._unclaimed: Sequence[Callable[[Work], None]] = ()

    @property
    def wanted(self) -> bool:
        """Whether it is to be run, when it has not been."""
        return self.future is None or not (self.abandoned or self.future.cancelled())

    @property
    def takes(self) -> bool:
        """Whether it took something for its caller that may have to be given back."""
        return bool(self._unclaimed)

    def run(self, work: Work) -> None:
        """Run it in the thread, in a transaction that goes on whatever becomes of it."""
        try:
            with work.savepoint():
                self.outcome = self.function(work, *self.arguments)
        except StopIteration as error:  # a future cannot carry it, nor a coroutine
            self.error = RuntimeError("the operation raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:  # noqa: BLE001  # it belongs to the caller, whatever it is
            self.error = error
        unclaimed = work.take_unclaimed()
        if self.error is None:
            self._unclaimed = unclaimed

    def settle(self, error: BaseException | None = None) -> None:
        """Nothing is to be given back from now on: its caller has got it, or what it did has come to nothing.

        error  why it has come to nothing, unless it failed by itself
        """
        self.error = self.error or error
        self._unclaimed = ()

    def give_back(self, work: Work) -> None:
        """Give back what it took for its caller."""
        for action in self._unclaimed:
            action(work)

    def resolve(self) -> None:
        """Hand the outcome over; runs in the event loop."""
        if self.future is None or self.future.done():  # cancelled meanwhile
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.outcome)


class GiveBack(Step):
    """A piece of work that nobody waits for: to give back what somebody has taken."""

    __slots__ = ("taken",)

    def __init__(self, taken: Taken) -> None:
        super().__init__(_give_back, (taken,), None)
        self.taken = taken


def _give_back(work: Work, taken: Taken) -> None:
    taken.give_back(work)


async def take(step: Step, give_back: Callable[[Taken], None]) -> Any:
    """Await a step's outcome; have it given back when its caller will not get it."""
    assert step.future is not None
    try:
        return await step.future
    except BaseException:  # also GeneratorExit: a task that its loop left behind
        step.abandoned = True
        if step.error is None:
            give_back(step)
        raise


class Group:
    """A group in the writer's thread: its steps arrive one by one while its transaction is open."""

    __slots__ = ("steps", "ready", "done", "options", "ended", "abandoned", "_ran")

    COMMIT, ABORT = "commit", "abort"

    def __init__(self, loop: asyncio.AbstractEventLoop, options: dict[str, Any]) -> None:
        self.steps: queue.SimpleQueue[Step | str] = queue.SimpleQueue()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.options = options
        self.ended = False
        self.abandoned = False  # whoever waited for its end does so no longer
        self._ran: list[Step] = []  # those that took something for a caller

    def end(self, how: str) -> None:
        """Have it committed or aborted after the steps that it was given."""
        if not self.ended:
            self.ended = True
            self.steps.put(how)

    def run(self, work: Work, call: Callable[..., object]) -> bool:
        """Run its steps as they come; returns whether to commit."""
        while isinstance(step := self.steps.get(), Step):
            if step.wanted:
                step.run(work)
                if step.takes:
                    self._ran.append(step)
                call(step.resolve)
        return step == Group.COMMIT and not self.abandoned

    @property
    def takes(self) -> bool:
        """Whether one of its steps took something that may have to be given back."""
        return any(step.takes for step in self._ran)

    def settle(self) -> None:
        """Nothing is to be given back from now on: the group has come to nothing, or all of it is given back."""
        for step in self._ran:
            step.settle()

    def give_back(self, work: Work) -> None:
        """Give back what its steps took."""
        for step in self._ran:
            step.give_back(work)


class _Aborted(Exception):
    """Ends the transaction of a group that is not to be committed."""


class Writer:
    """The thread that does all the writing.

    Steps that are asked for in one turn of the event loop are handed over together, when the turn is over. The thread
    would wake at the first one otherwise, and get hold of the interpreter at some point before the last: with sixteen
    sessions that made eight steps a commit instead of fifteen.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._asked_for: list[Step] = []  # in this turn of the loop
        self._waiting: queue.SimpleQueue[list[Step] | Group | None] = queue.SimpleQueue()
        self._taking: set[Taken] = set()  # they took something, and whether their callers get it is not known yet
        self._thread = threading.Thread(target=self._run, name="limpet-writer", daemon=True)
        self.stopped: asyncio.Future[None] = loop.create_future()
        self._thread.start()

    # --- for the event loop ------------------------------------------------------------------------------------------

    async def do(self, step: Step) -> Any:
        """Have a step done, and wait for its outcome."""
        if not self._asked_for:
            self._loop.call_soon(self._hand_over)
        self._asked_for.append(step)
        outcome = await take(step, self.give_back)
        step.settle()
        self._taking.discard(step)
        return outcome

    def put_group(self, group: Group) -> None:
        """Have a group begun when everything that was asked for before has been done."""
        self._hand_over()
        self._waiting.put(group)

    def stop(self) -> None:
        """Let the thread end when everything that is waiting now has been done."""
        self._hand_over()
        self._waiting.put(None)

    def _hand_over(self) -> None:
        if self._asked_for:
            asked_for, self._asked_for = self._asked_for, []
            self._waiting.put(asked_for)

    # --- for any thread ----------------------------------------------------------------------------------------------

    def give_back(self, taken: Taken) -> None:
        """Have what was taken given back in the next commit."""
        self._waiting.put([GiveBack(taken)])

    def finish(self) -> None:
        """Wait for the end of the thread, after `stop`; then give back what nobody can get any more."""
        self._thread.join()
        steps: list[Step] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._waiting.get_nowait()
                if isinstance(item, list):
                    steps += [step for step in item if isinstance(step, GiveBack)]
        steps += [GiveBack(taken) for taken in list(self._taking)]
        for step in steps:
            self._run_batch([step])

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        item = self._waiting.get()
        while item is not None:
            steps: list[Step] = []
            while isinstance(item, list) and item:
                steps += item
                item = self._next_at_once()
            for start in range(0, len(steps), MAX_STEPS):
                self._run_batch(steps[start : start + MAX_STEPS])
            if isinstance(item, Group):
                self._run_group(item)
            if item is not None:
                item = self._waiting.get()
        self._call(finish, self.stopped)

    def _next_at_once(self) -> list[Step] | Group | None:
        """What is waiting; an empty list when nothing is."""
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return []

    def _run_batch(self, batch: list[Step]) -> None:
        started: list[Step] = []
        try:
            with self._store.writing() as work:
                for step in batch:
                    if step.wanted:
                        started.append(step)
                        step.run(work)
                        if step.takes:
                            self._taking.add(step)
        except BaseException as error:  # noqa: BLE001  # the commit failed: that is everybody's outcome
            started = started or batch  # none was, when the transaction could not begin
            for step in started:
                step.settle(error)
        for step in started:
            if isinstance(step, GiveBack):
                self._see_to(step)
        self._call(_resolve_all, started)

    def _see_to(self, step: GiveBack) -> None:
        if step.error is None:
            step.taken.settle()
            self._taking.discard(step.taken)
        elif step.taken.takes:  # tried again when the store is closed
            logger.error("what a cancelled caller had taken could not be given back: %s", step.error)

    def _run_group(self, group: Group) -> None:
        error: BaseException | None = None
        try:
            if group.ready.cancelled():
                raise _Aborted
            with self._store.writing(**group.options) as work:
                self._call(finish, group.ready)
                if not group.run(work, self._call):
                    raise _Aborted
        except _Aborted:
            group.settle()
        except BaseException as failure:  # noqa: BLE001  # it is the group's outcome
            group.settle()
            error = failure
        self._call(finish, group.ready, error)
        self._call(finish, group.done, error)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        # The loop may be closed already, and then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def _resolve_all(steps: list[Step]) -> None:
    for step in steps:
        step.resolve()


def finish(future: asyncio.Future[None], error: BaseException | None = None) -> None:
    """End a future that nobody may wait for any more."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # somebody else may have been told already; it is not lost
