"""Where other code may run: every line of the engine and the store, and the steps between them.

A signal handler runs between two instructions, a finalizer wherever a reference is dropped or the collector comes by,
a trace function at each line. All of them see the engine half-way through what it does. Here such places are listed
(`spots_of`) and visited (`visiting`):

    Spot    a line in the engine, and how it was come to: the calls above it. A loop that passes ten times
            gives two spots, the first time and the last; two callers of one function give each their own
    Watch   turns a wait that never ends into an error that names the line

Levels: "line" is every line and every return, "opcode" every instruction, as the collector of cycles sees them.
"""

from __future__ import annotations

import dis
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, Self

import limpet

_PACKAGES = Path(limpet.__file__).parent
_ROOTS: list[str] = [f"{_PACKAGES}{os.sep}"]
_NOT_OURS = (f"{_PACKAGES / 'testing'}{os.sep}",)  # the simulated disk stands for the kernel
_MUTANT = "<mutant of limpet"  # what mutants.py calls the source of a changed function
# CPython looks for signals when a function begins, after calls, and at jumps backwards.
_LOOKS_FOR_SIGNALS = ("CALL", "RESUME", "JUMP_BACKWARD")

Trace = Callable[[FrameType, str, Any], Any]
Place = tuple[CodeType, int]


def include(package_file: str) -> None:
    """Count the lines of another package as well, named by the file of its __init__."""
    root = f"{Path(package_file).parent}{os.sep}"
    if root not in _ROOTS:
        _ROOTS.append(root)
        _known.clear()


_known: dict[CodeType, bool] = {}


def is_ours(code: CodeType) -> bool:
    """Whether a function belongs to what is tried."""
    found = _known.get(code)
    if found is None:
        name = code.co_filename
        found = name.startswith(_MUTANT) or (name.startswith(tuple(_ROOTS)) and not name.startswith(_NOT_OURS))
        _known[code] = found
    return found


class Spot(NamedTuple):
    """One place and one moment.

    event       "line", "return", or "opcode"
    path        functions and lines, the innermost first; for an opcode its offset comes before the line
    occurrence  how many times the same was passed before
    is_clean    whether a real KeyboardInterrupt could come here
    """

    event: str
    path: tuple[Place, ...]
    offset: int
    occurrence: int
    is_clean: bool

    def __str__(self) -> str:
        code, line = self.path[0]
        above = ", ".join(each.co_name for each, _ in self.path[1:4])
        event = "" if self.event == "line" else f" {self.event}"
        name = Path(code.co_filename).name
        return f"{name}:{line}{event} {code.co_qualname}" + (f" (from {above})" if above else "")

    @property
    def function(self) -> str:
        """The function of the engine, as `file:Class.method`: what a stored case says, since lines move."""
        code = self.path[0][0]
        return f"{Path(code.co_filename).name}:{code.co_qualname}"


def spots_of(action: Callable[[], object], *, opcodes: bool = False, depth: int = 0) -> list[Spot]:
    """Run an action and list the spots that it passes, in the order of their first occurrence.

    depth  how many of the calls above make a spot another one; 0: all of them
    """
    seen: dict[tuple[str, tuple[Place, ...], int], list[Any]] = {}
    last_opcode: dict[FrameType, int] = {}
    wanted = ("opcode",) if opcodes else ("line", "return")

    def visit(frame: FrameType, event: str) -> None:
        if event not in wanted:
            return
        offset = frame.f_lasti if event == "opcode" else -1
        key = (event, _path(frame, depth), offset)
        entry = seen.get(key)
        if entry is not None:
            entry[0] += 1
        elif event == "opcode":
            before = last_opcode.get(frame)
            entry = seen[key] = [0, before is None or _may_be_interrupted(frame.f_code, before)]
        else:
            entry = seen[key] = [0, event == "line" and not _is_safe(frame)]
        if event == "opcode":
            last_opcode[frame] = frame.f_lasti
        if any(code.co_name == "__del__" for code, _ in key[1]):
            entry[1] = False  # what a finalizer raises goes nowhere

    with tracing(_tracer(visit, opcodes=opcodes)):
        action()
    last_opcode.clear()
    spots = []
    for (event, path, offset), (count, clean) in seen.items():
        spots.append(Spot(event, path, offset, 0, clean))
        if count:
            spots.append(Spot(event, path, offset, count, clean))
    return spots


def _path(frame: FrameType, depth: int) -> tuple[Place, ...]:
    found: list[Place] = []
    above: FrameType | None = frame
    while above is not None and (not depth or len(found) < depth):
        if is_ours(above.f_code):
            found.append((above.f_code, above.f_lineno))
        above = above.f_back
    return tuple(found)


def _is_safe(frame: FrameType) -> bool:
    """Whether no real interrupt can come at this line, although tracing stops there: `try`, and the end of a `with`.

    CPython looks for signals after calls and at jumps backwards; what a `with` calls at its end is done by then.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return line.startswith(("with ", "try:"))


_opcodes: dict[CodeType, dict[int, str]] = {}


def _may_be_interrupted(code: CodeType, before: int) -> bool:
    """Whether the instruction that was carried out before looks for signals."""
    names = _opcodes.get(code)
    if names is None:
        names = _opcodes[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
    return names.get(before, "").startswith(_LOOKS_FOR_SIGNALS)


def _tracer(visit: Callable[[FrameType, str], None], *, opcodes: bool) -> Trace:
    def call(frame: FrameType, event: str, argument: Any) -> Any:
        if not is_ours(frame.f_code):
            return None
        if opcodes:
            frame.f_trace_opcodes = True
        return local

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        visit(frame, event)
        return local

    return call


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """The trace function sees this thread's calls inside."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class Visit:
    """A trace function that does something at one spot.

    act      called there, once; what it raises comes out of the line
    reached  whether that has happened
    """

    def __init__(self, spot: Spot, act: Callable[[], None]) -> None:
        self._spot = spot
        self._act = act
        self._code, self._line = spot.path[0]
        self._left = spot.occurrence
        self.reached = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.reached or not is_ours(frame.f_code):
            return None
        if self._spot.event == "opcode":
            frame.f_trace_opcodes = True
        return self.local

    def local(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A line, a return, an instruction."""
        spot = self._spot
        if (
            event == spot.event
            and frame.f_code is self._code
            and frame.f_lineno == self._line
            and not self.reached
            and (spot.offset < 0 or frame.f_lasti == spot.offset)
            and _path(frame, len(spot.path)) == spot.path
        ):
            if self._left:
                self._left -= 1
            else:
                self.reached = True
                self._act()
        return self.local


class VisitNumber:
    """A trace function that does something at the nth line; for what was not listed beforehand.

    clean  only lines at which a real KeyboardInterrupt could come are counted
    """

    def __init__(self, number: int, act: Callable[[], None], *, clean: bool = False) -> None:
        self._number = number
        self._act = act
        self._clean = clean
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.local if is_ours(frame.f_code) else None

    def local(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A line."""
        if event == "line" and not (self._clean and _is_safe(frame)):
            self.lines += 1
            if self.lines == self._number + 1:
                self._act()
        return self.local


def traced_inside(trace: Trace, action: Callable[[], None]) -> None:
    """Run an action with a trace function of its own, from inside another one, where nothing would be traced."""

    def run() -> None:
        with tracing(trace):
            action()

    sys.call_tracing(run, ())


# -- waits that never end ------------------------------------------------------------------------


class Stuck(BaseException):
    """Raised out of a wait that has taken too long."""


class Watch:
    """While entered in the main thread, a wait of more than `seconds` ends with Stuck, and again every second after.

    fired  the stack at the first of them, the innermost line last; "" if there was none
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_main = threading.current_thread() is threading.main_thread()
        self.fired = ""

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        stack = traceback.extract_stack(frame)
        lines = [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in stack[-6:]]
        self.fired = self.fired or " > ".join(lines)
        raise Stuck(f"still waiting after {self._seconds:g} s: {self.fired}")


def is_still(thread: int, polls: int = 4, pause_s: float = 0.0005) -> bool:
    """Whether a thread stands at one instruction for some time: it waits."""
    last = _position(thread)
    for _ in range(polls):
        time.sleep(pause_s)
        now = _position(thread)
        if now != last:
            return False
    return True


def _position(thread: int) -> tuple[int, int] | None:
    frame = sys._current_frames().get(thread)
    return None if frame is None else (id(frame), frame.f_lasti)


def stack_of(thread: int) -> str:
    """Where a thread is, for messages."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "ended"
    return " > ".join(f"{Path(e.filename).name}:{e.lineno} {e.name}" for e in traceback.extract_stack(frame)[-5:])
