"""SIGTERM whose handler closes the database: the usual shutdown, at each line and each call of a commit.

    python -m fuzz.shutdowns --every 1

A child opens a file, commits, and tells what was acknowledged; at the nth line of the engine, or before or after the
nth call of a function in C, in one of its commits, it gets SIGTERM. Its handler is one of

    exits     lambda *_: (db.close(), os._exit(0)), as everybody writes it
    goes on   the same, but for BusyError, upon which the program ends after the commit under way

Whatever the handler did, and where: the child ends by itself, the file opens, its check is clean, every acknowledged
row is there, and no other ones but those of the commit under way.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import limpet

from .harness import quiet
from .oracle import GROWTH, Wrong, tuned
from .spots import VisitNumber, is_ours, tracing

HANDLERS = ("exits", "goes on")
COMMITS = {"a commit": 4, "a checkpoint": 5}  # which commit of the child it is, from 0
LEVELS = ("line", "call")
DURABILITIES = ("sync", "os", "none")
_ROWS = 9
_DEATH_S = 5.0  # whoever takes longer hangs
_OVER = 70  # exit code: the spot was not come to


@dataclass(frozen=True)
class Shutdown:
    """One child.

    number  of the line or call; -1: at a random time
    """

    handler: str
    commit: str
    level: str
    durability: str
    number: int
    seed: int = 0

    def __str__(self) -> str:
        where = f"{self.level} {self.number} of {self.commit}" if self.number >= 0 else f"a random time ({self.seed})"
        return f"SIGTERM at {where}, durability {self.durability}, a handler that {self.handler}"


class _Calls:
    """A profile function that rings before and after calls in C, at the nth of these.

    clean  only after them: where CPython looks for signals itself, so that a handler may raise there
    """

    def __init__(self, number: int, act: Callable[[], None], *, clean: bool) -> None:
        self._left = number
        self._act = act
        self._events = ("c_return", "c_exception") if clean else ("c_call", "c_return", "c_exception")

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in self._events and is_ours(frame.f_code):
            self._left -= 1
            if self._left == -1:
                self._act()


def _child(path: Path, plan: Shutdown, sender: int) -> int:
    """Open, commit, be told to end; returns the exit code."""
    reached: list[bool] = []
    ending: list[bool] = []
    may_raise = plan.handler == "exits"  # BusyError comes out of the line then, as a KeyboardInterrupt would

    def tell(text: str) -> None:
        os.write(sender, f"{text}\n".encode())

    def exits(*_: object) -> None:
        db.close()
        os._exit(0)

    def goes_on(*_: object) -> None:
        try:
            db.close()
        except limpet.BusyError:
            ending.append(True)
        else:
            os._exit(0)

    def ring() -> None:
        reached.append(True)
        signal.raise_signal(signal.SIGTERM)

    def commit(number: int) -> None:
        tell(f"begin {number}")
        with db.write() as transaction:
            transaction.table("rows")[b"%d" % number] = b"x" * 20
            if number == COMMITS["a checkpoint"]:
                transaction.table("another")[b"k"] = b"y" * 900
        tell(f"end {number}")

    with tuned(GROWTH), limpet.open(path, page_size=512, cache_size=1 << 14, durability=plan.durability) as db:
        signal.signal(signal.SIGTERM, exits if plan.handler == "exits" else goes_on)
        tell("ready")
        for number in range(_ROWS if plan.number >= 0 else 100_000):
            if ending:
                break
            if number != COMMITS[plan.commit] or plan.number < 0:
                commit(number)
            elif plan.level == "line":
                with tracing(VisitNumber(plan.number, ring, clean=may_raise)):
                    commit(number)
            else:
                sys.setprofile(_Calls(plan.number, ring, clean=may_raise))
                commit(number)
                sys.setprofile(None)
    return 0 if reached or plan.number < 0 else _OVER


def shut_down(path: Path, plan: Shutdown) -> bool:
    """One child, from its birth to what it left.

    returns  False if it never came to the spot
    raises   Wrong
    """
    for leftover in path.parent.iterdir():
        leftover.unlink()
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(receiver)
            code = _child(path, plan, sender)
        except limpet.BusyError:  # its handler let it out, into the commit: the program ends by it
            code = 0
        except BaseException as error:  # noqa: BLE001 told to the parent
            os.write(sender, f"error {error!r}\n".encode())
        finally:
            os._exit(code)
    os.close(sender)
    try:
        told, code = _follow(child, receiver, plan)
    finally:
        os.close(receiver)
    if code not in (0, _OVER):
        raise Wrong(f"{plan}: the program failed: {told[-1:]}, exit code {code}")
    _verify(path, plan, told)
    return code != _OVER


def _follow(child: int, receiver: int, plan: Shutdown) -> tuple[list[str], int]:
    """Read what a child tells, send it the signal if it is for us to do, and wait for its end."""
    text, deadline = b"", time.monotonic() + _DEATH_S
    rings_at = time.monotonic() + 5.0
    rng = random.Random(plan.seed)
    sent = plan.number >= 0
    while time.monotonic() < deadline:
        ready, _, _ = select.select([receiver], [], [], 0.002 if not sent else 0.5)
        if ready:
            piece = os.read(receiver, 1 << 16)
            if not piece:
                _, status = os.waitpid(child, 0)
                return text.decode().splitlines(), os.waitstatus_to_exitcode(status)
            if not text:
                rings_at = time.monotonic() + 0.002 + rng.random() * 0.08
            text += piece
        if not sent and time.monotonic() >= rings_at:
            os.kill(child, signal.SIGTERM)
            sent = True
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Wrong(f"{plan}: hangs after {text.decode().splitlines()[-1:]}")


def _verify(path: Path, plan: Shutdown, told: list[str]) -> None:
    begun = max((int(line[6:]) for line in told if line.startswith("begin ")), default=-1)
    ended = max((int(line[4:]) for line in told if line.startswith("end ")), default=-1)
    try:
        with limpet.open(path, lock_timeout=1.0) as db:
            report = db.check()
            with db.read() as transaction:
                found = {int(key) for key in transaction.table("rows")}
    except limpet.LimpetError as error:
        raise Wrong(f"{plan}: the file does not open: {error!r}") from error
    lost = set(range(ended + 1)) - found
    if lost:
        raise Wrong(f"{plan}: rows {sorted(lost)[:5]} of {ended + 1} acknowledged ones are lost")
    if not found <= set(range(begun + 1)):
        raise Wrong(f"{plan}: rows that were never written: {sorted(found)[-3:]}")
    if not report.ok:
        raise Wrong(f"{plan}: check: {'; '.join(map(str, report.errors[:2]))}")


def run_all(folder: Path, *, every: int = 1, first: int = 0, at_random: int = 0, stop: bool = True) -> dict[str, int]:
    """Every handler at every nth line and call of both commits, and some random times; returns how many children.

    stop    raise at the first that is wrong; else count
    raises  Wrong
    """
    counts = {"children": 0, "wrong": 0}
    path = folder / "shutdown.limpet"

    def one(plan: Shutdown) -> bool:
        counts["children"] += 1
        try:
            return shut_down(path, plan)
        except Wrong as error:
            if stop:
                raise
            counts["wrong"] += 1
            print(str(error)[:300], flush=True)
            return True

    number = 0
    for handler in HANDLERS:
        for commit in COMMITS:
            for level in LEVELS:
                number = first % every
                while one(Shutdown(handler, commit, level, DURABILITIES[number // every % 3], number)):
                    number += every
    for seed in range(first, first + at_random):
        one(Shutdown(HANDLERS[seed % 2], "a commit", "line", DURABILITIES[seed // 2 % 3], -1, seed))
    return counts


@quiet()
def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.shutdowns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="one line or call of so many (1)")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one (0)")
    parser.add_argument("--random", type=int, default=120, help="children that get the signal at a random time (120)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run_all(
            Path(folder), every=arguments.every, first=arguments.first, at_random=arguments.random, stop=False
        )
    print(counts)
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
