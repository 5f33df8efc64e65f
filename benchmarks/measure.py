"""Measuring: what a run is made of, and peers that take turns.

Everything that is compared is measured in one interleaved run: in every round each peer does the same operations, and
another one begins. A disk that slows down, or a neighbour who takes a core, then slows all of them.

    Run       what a workload is told: sizes, seed, a directory, where to report progress
    Case      one line of a result: what was done, by whom, how long it took
    Target    a number that has to be reached, and whether it was
    Result    what a workload gives back
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import shutil
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent  # from where `python -m benchmarks` works
MIB = 1 << 20
OURS = "limpet"
UNITS = {"us": 1e3, "ms": 1e6, "s": 1e9}  # nanoseconds in each
HIGHER_IS_BETTER = frozenset({"/s"})

Samples = dict[str, "array[int]"]  # peer -> nanoseconds of each operation


@dataclass(frozen=True, slots=True)
class Run:
    """What a workload is told.

    quick      sizes that show only that everything works
    full       the sizes of the specification, where the usual ones are smaller
    seed       of everything random
    directory  where files may be made, on the disk to be measured
    """

    quick: bool
    full: bool
    seed: int
    directory: Path

    def size(self, usual: int, *, quick: int, full: int | None = None) -> int:
        """A number of rows, rounds or bytes that suits the run."""
        if self.quick:
            return quick
        return full if self.full and full is not None else usual

    def random(self) -> Random:
        """A generator of its own for each workload, so that they do not depend on their order."""
        return Random(self.seed)

    def folder(self, name: str) -> Path:
        """An empty folder; what an earlier workload left there is gone."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def progress(self, text: str) -> None:
        """Tell whoever waits what is going on."""
        print(f"    {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a result.

    what   the operation; lines with the same text are compared with each other
    peer   who did it
    unit   of the numbers: a unit of time, "/s", "MiB", "KiB"
    count  how many operations; 1 for a size
    """

    what: str
    peer: str
    unit: str
    count: int
    median: float
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A number that has to be reached: at most `limit`, or at least, if `at_least`."""

    text: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Result:
    """What a workload gives back.

    sizes  what the numbers depend on, by name
    notes  how it was measured, where that is not obvious
    """

    workload: str
    title: str
    sizes: dict[str, object]
    cases: list[Case] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, samples: Mapping[str, Sequence[int]], unit: str = "us") -> None:
        """Add a line for each peer from the nanoseconds that its operations took."""
        self.cases += [summary(what, peer, times, unit) for peer, times in samples.items()]

    def add_numbers(self, what: str, numbers: Mapping[str, Sequence[float]], unit: str) -> None:
        """Add a line for each peer from numbers of another kind: rates, sizes."""
        self.cases += [_summarise(what, peer, sorted(found), unit) for peer, found in numbers.items()]

    def note(self, text: str) -> None:
        """Say how something was measured, or what has to be known to judge it."""
        self.notes.append(text)

    def median(self, what: str, peer: str = OURS) -> float | None:
        """The median of a line; None when the peer was not there."""
        return next((case.median for case in self.cases if (case.what, case.peer) == (what, peer)), None)

    def aim(self, text: str, value: float | None, limit: float, unit: str = "", *, at_least: bool = False) -> None:
        """Add a target; a value of None (no such peer, no such system) cannot be judged and is noted instead."""
        if value is None:
            self.notes.append(f"not judged, since there is nothing to judge by: {text}")
        else:
            self.targets.append(Target(text, value, limit, unit, at_least))

    def ratio(self, what: str, peer: str) -> float | None:
        """Our median divided by a peer's."""
        ours, theirs = self.median(what), self.median(what, peer)
        return ours / theirs if ours is not None and theirs else None


def summary(what: str, peer: str, nanoseconds: Iterable[int], unit: str) -> Case:
    """A line of a result from times."""
    scale = UNITS[unit]
    return _summarise(what, peer, sorted(ns / scale for ns in nanoseconds), unit)


def _summarise(what: str, peer: str, ordered: Sequence[float], unit: str) -> Case:
    if len(ordered) == 1:
        return Case(what, peer, unit, 1, ordered[0])
    if unit in HIGHER_IS_BETTER:  # the far end of the tail is the slow one
        ordered = ordered[::-1]
    return Case(
        what,
        peer,
        unit,
        len(ordered),
        quantile(ordered, 0.5),
        quantile(ordered, 0.9),
        quantile(ordered, 0.99),
        ordered[-1],
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which this part of an ordered, non-empty sequence lies; between two values, their mean."""
    at = part * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def take_turns(
    operations: Mapping[str, Callable[[T], object]],
    arguments: Sequence[T],
    *,
    batch: int = 1,
    warm_up: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Let every peer do the same operations, in batches by turns, and time each one.

    operations  peer -> what it does with an argument
    arguments   one for each operation; the first `warm_up` are not counted
    batch       operations of one peer in a row; the order of the peers moves on by one every time
    clock       of nanoseconds
    returns     nanoseconds; the clock itself takes about 0.05 us of each
    """
    samples: Samples = {peer: array("q") for peer in operations}
    order = list(operations)
    gc.collect()
    for start in range(0, len(arguments), batch):
        part = arguments[start : start + batch]
        for peer in order:
            operation = operations[peer]
            add = samples[peer].append
            for argument in part:
                began = clock()
                operation(argument)
                add(clock() - began)
        order.append(order.pop(0))
    for times in samples.values():
        del times[:warm_up]
    return samples


def timed(function: Callable[[], object]) -> int:
    """How many nanoseconds a call takes."""
    began = time.perf_counter_ns()
    function()
    return time.perf_counter_ns() - began


def in_threads(
    count: int, each: int, operation: Callable[[int], object], around: Callable[[], AbstractContextManager[object]]
) -> tuple[float, list[int]]:
    """Run an operation in several threads at once.

    each       operations of each thread
    operation  gets a number that is different each time
    around     what each thread enters before its first operation and leaves after its last; not timed
    returns    (operations a second, nanoseconds of every operation)
    """
    times: list[list[int]] = [[] for _ in range(count)]
    errors: list[BaseException] = []
    gate = threading.Barrier(count + 1)

    def work(thread: int) -> None:
        add, clock = times[thread].append, time.perf_counter_ns
        try:
            with around():
                gate.wait()
                for number in range(thread * each, (thread + 1) * each):
                    began = clock()
                    operation(number)
                    add(clock() - began)
                gate.wait()
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(count)]
    for thread in threads:
        thread.start()
    elapsed = 0
    with contextlib.suppress(threading.BrokenBarrierError):
        gate.wait()
        began = time.perf_counter_ns()
        gate.wait()
        elapsed = time.perf_counter_ns() - began
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return count * each / (elapsed / 1e9), [ns for found in times for ns in found]


def random_rows(random: Random, count: int, *, key_size: int = 24, value_size: int = 150) -> list[tuple[bytes, bytes]]:
    """Rows with different random keys, in random order."""
    keys: dict[bytes, None] = {}
    while len(keys) < count:
        keys[random.randbytes(key_size)] = None
    return [(key, random.randbytes(value_size)) for key in keys]


def anonymous_memory() -> int | None:
    """Bytes of anonymous memory of this process: what malloc has taken, without mapped files. None where unknown."""
    return memory_status().get("RssAnon")


def memory_status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes; empty where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text("ascii", errors="replace")
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields}


def child(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `python -m benchmarks.<module>` with its standard input and output as pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen[str]) -> str:
    """Wait for a child to end; what it printed. CalledProcessError if it failed."""
    with process:
        text, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, text)
    return text


def as_dict(result: Result) -> dict[str, object]:
    """A result as JSON wants it."""
    found = dataclasses.asdict(result)
    found["targets"] = [{**dataclasses.asdict(target), "met": target.met} for target in result.targets]
    return found
