"""Searching with regular expressions that a model wrote, in bounded time.

A pattern such as `(a+)+$` takes time exponential in the length of the text, and Python's `re` holds the interpreter all
the while: no other thread runs, an event loop stands still, and nothing can end it. Looking at the pattern beforehand
is no way out, since which ones take so long is not to be seen from them: `(?:a|a)+$` and `(.*)\\1{20}` do, and a
hundred ranges of characters take a second to compile. So `re` runs in a process of its own, regex_child.py, which is
killed when its time is over. Whoever waits for its answers waits at a pipe, and others run meanwhile.

What is bounded: the time from the start of the search to its end, in all; the size of the pattern; the memory of the
process (where the system can do that); and the process ends by itself when ours is killed.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable
from itertools import islice
from typing import IO, TypeVar

from . import regex_child
from .errors import PatternError, SearchLimitError
from .regex_child import ASK, SIZE, frame

T = TypeVar("T")

TIMEOUT_S = 2.0  # of one search; starting the process takes 0.02 s of it
TIMEOUT_MAX_S = 3600.0  # more is a mistake, and the system's limits are whole numbers
PATTERN_MAX = 1000  # characters
BATCH = 256  # texts that go to the process at once; a question for each would double the time


class _Search:
    """The process, and the clock that ends it. For one thread."""

    def __init__(self, pattern: str, timeout: float) -> None:
        self._timeout = timeout
        self._searched = 0
        self._deadline = time.monotonic() + timeout
        self._process = _start(math.ceil(timeout) + 1)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self._clock = threading.Timer(timeout, self._process.kill)
        self._clock.daemon = True
        self._clock.start()
        try:
            self._write(frame(pattern))
            if self._read(1) != b"+":
                raise PatternError(f"not a regular expression: {self._answers.read().decode(errors='replace')}")
        except BaseException:
            self.close()
            raise

    def matching(self, texts: list[str]) -> bytes:
        """For each text 1 if the pattern is found in it, else 0."""
        self._write(b"".join([*map(frame, texts), SIZE.pack(ASK)]))
        found = self._read(len(texts))
        self._searched += len(texts)
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        self._clock.cancel()
        self._process.kill()
        for stream in (self._questions, self._answers):
            try:
                stream.close()
            except OSError:  # what was not written yet finds nobody to read it
                pass
        self._process.wait()

    def _write(self, data: bytes) -> None:
        try:
            self._questions.write(data)
            self._questions.flush()
        except OSError as error:
            raise self._ended() from error

    def _read(self, size: int) -> bytes:
        data = self._answers.read(size)
        if len(data) < size:
            raise self._ended()
        return data

    def _ended(self) -> SearchLimitError:
        over = time.monotonic() >= self._deadline
        bound = (
            f"{self._timeout:g} s"
            if over
            else f"{regex_child.MEMORY >> 20} MiB of memory (or somebody ended its process)"
        )
        return SearchLimitError(
            f"the search was ended at its bound, {bound}, after {self._searched:,} messages; write a simpler pattern "
            "(no repetition inside of a repetition, no alternatives that begin alike), search for literal text, or "
            "allow more time",
            timeout=self._timeout,
            searched=self._searched,
        )


def matching(pattern: str, items: Iterable[tuple[str, T]], *, timeout: float = TIMEOUT_S) -> Generator[T, None, None]:
    """Those items in whose text the pattern is found, whatever the case, in their order.

    pattern  a regular expression (module `re`) of at most PATTERN_MAX characters
    items    (text, item); taken BATCH at a time
    timeout  seconds for all of it, until the iterator is at its end or closed
    raises   PatternError when the pattern is none or too long; SearchLimitError at the bound; ValueError
    cost     0.02 s to start the process; then what `re` takes, and 1 us a KiB of text to hand it over
    """
    if len(pattern) > PATTERN_MAX:
        raise PatternError(f"a pattern has at most {PATTERN_MAX:,} characters, this one {len(pattern):,}")
    if not 0 < timeout <= TIMEOUT_MAX_S:
        raise ValueError(f"a timeout is more than 0 and at most {TIMEOUT_MAX_S:g} seconds, not {timeout}")
    search = _Search(pattern, timeout)
    try:
        rest = iter(items)
        while batch := list(islice(rest, BATCH)):
            for found, (_, item) in zip(search.matching([text for text, _ in batch]), batch, strict=True):
                if found:
                    yield item
    finally:
        search.close()


def _start(cpu_seconds: int) -> subprocess.Popen[bytes]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise PatternError(
            "a regular expression needs a Python interpreter to run in, and this program has none; "
            "search for literal text"
        )
    command = [sys.executable, "-I", "-S", regex_child.__file__, str(cpu_seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
