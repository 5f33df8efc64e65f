"""Who may go next: the seat of the one writer, and the turn to flush.

Any Python code may run between any two lines of ours: a signal handler, a finalizer, a trace
function; and an exception may come up there. Two rules make that harmless here:

- Who owns a lock is known to the interpreter, not to a variable of ours beside the lock. So every
  lock is an RLock that is entered by `with`, which no interrupt can divide, and `is_mine` asks it.
  It is never entered twice all the same: who comes in from outside looks at `is_mine` first and
  raises BusyError (`Committer`).
- The writer is a transaction that is open. When it is over, or was forgotten, the seat is free,
  whether or not somebody got as far as saying so. Who is next is settled by one step of the
  interpreter, so there is no moment in which the seat is half taken.

Waiting is done at a bell, a lock of one's own that somebody else releases. A ring that an
interrupt swallowed costs a waiter `_LOST_RING_S`, not its life: it then looks for itself.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .errors import BusyError

_LOST_RING_S = 0.2  # seconds; long against a flush, so that looking costs nothing


def owner_of(lock: threading.RLock) -> Callable[[], bool]:
    """A function that says whether the calling thread has the lock. Cost: 20 ns."""
    found: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # as threading.Condition asks it
    return found


class Holder(Protocol):
    """Who may have the seat: it has it as long as it is open."""

    is_open: bool
    thread: int  # which began it, by threading.get_ident()


class _Place(weakref.ref[Holder]):
    """One holder in the line of those who have had the seat; weak, because one that was forgotten must be collected.

    after   who came next, under the key 0: `setdefault` says in one step who that is, for good
    """

    __slots__ = ("after",)
    after: dict[int, _Place]


class _Nobody:
    """Who has the seat at first."""

    __slots__ = ("__weakref__",)
    is_open = False
    thread = 0


class Seat:
    """The place of the writer: one at a time, held until it is over.

    There is no lock in it: holders form a line, and who wants the seat goes behind the last, if that is over.
    """

    __slots__ = ("_last", "waiting")

    def __init__(self) -> None:
        self._last = _Place(_Nobody())  # or one before it: those after it are found from there
        self._last.after = {}
        self.waiting: deque[threading.Lock] = deque()  # bells, in the order of their coming

    def holder(self) -> Holder | None:
        """Who has it; None if it is free."""
        place = self._last
        while True:
            holder = place()
            if holder is not None and holder.is_open:
                return holder
            following = place.after.get(0)
            if following is None:
                return None
            place = following

    def take(self, holder: Holder, timeout_s: float | None) -> bool:
        """Let `holder`, which is open, have it; waits until it is free.

        timeout_s  seconds to wait, 0 or more; None: as long as it takes
        returns    False if it did not become free in time
        raises     BusyError if this thread has it already
        After an interrupt it may be taken or not: end the holder, and call `ring`
        """
        own = _Place(holder)
        own.after = {}
        place = self._last
        last = place()
        if (last is None or not last.is_open) and place.after.setdefault(0, own) is own:  # as `_try`, mostly
            self._last = own
            return True
        end = None if timeout_s is None else time.monotonic() + timeout_s
        bell = threading.Lock()
        bell.acquire()
        try:
            while True:
                if bell not in self.waiting:
                    self.waiting.append(bell)
                if self._try(own):
                    return True
                pause_s = _LOST_RING_S
                if end is not None:
                    pause_s = min(pause_s, end - time.monotonic())
                    if pause_s <= 0:
                        return False
                bell.acquire(True, pause_s)
        finally:
            try:
                self.waiting.remove(bell)
            except ValueError:  # it was rung for us
                if self.holder() is None:  # and we do not stay
                    self.ring()

    def _try(self, own: _Place) -> bool:
        place = self._last
        while True:
            holder = place()
            if holder is not None and holder.is_open:
                if holder.thread == threading.get_ident():
                    raise BusyError(
                        "this thread has a write transaction open already; end it, or use a savepoint inside it"
                    )
                return False
            place = place.after.setdefault(0, own)
            if place is own:
                self._last = own
                return True

    def ring(self) -> None:
        """A holder is over: wake the one who waits longest."""
        if self.waiting:
            try:
                self.waiting.popleft().release()
            except (IndexError, RuntimeError):
                pass  # nobody waits any more, or has not yet heard the ring before


class Turn:
    """The flush lock. Who waits for it is let go as soon as somebody's flush has done what they wait for.

    With the lock alone, committers who have long been served queue up behind the next flush, which
    then carries only the commits of those few who did not. With a condition, each flush wakes all
    who wait, most of them in vain. So each waits at a bell; whoever ends its turn rings for those
    who are served, and for the first of the others.

    lock   enter it by `with`; then set `busy`, and reset it before the end; call `ring` afterwards
    busy   whether a flush is under way: only a hint that waiting at a bell is better than at the lock
    """

    __slots__ = ("waiting", "busy", "is_mine", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_mine = owner_of(self.lock)
        self.busy = False
        self.waiting: dict[threading.Lock, Callable[[], bool]] = {}  # in the order of their coming

    def wait(self, is_served: Callable[[], bool]) -> None:
        """Return when somebody has done it for us, or when it may be our turn: then try the lock."""
        bell = threading.Lock()
        bell.acquire()
        try:
            while True:
                self.waiting[bell] = is_served
                if not self.busy or is_served() or not bell.acquire(True, _LOST_RING_S):
                    return
        finally:
            self.waiting.pop(bell, None)

    def ring(self) -> None:
        """The lock is free again, or will be at once: wake those who are served, and one who may go next."""
        if not self.waiting:
            return
        has_next = False
        for bell, is_served in list(self.waiting.items()):
            if is_served() or not has_next:
                has_next = has_next or not is_served()
                if self.waiting.pop(bell, None) is not None:
                    try:
                        bell.release()
                    except RuntimeError:
                        pass  # it has not yet heard the ring before
