"""What the engine asks of the operating system, counted at its file seam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from limpet.file import OSFile


@dataclass(slots=True)
class Calls:
    """Counts since the last `take`.

    writes      (offset, size) of each call, in order
    syncs       calls that wait for the disk; a write that waits is one of each
    reads       calls of read, and pages taken from the map; read_size their bytes
    """

    writes: list[tuple[int, int]] = field(default_factory=list)
    syncs: int = 0
    reads: int = 0
    read_size: int = 0

    @property
    def written_size(self) -> int:
        """Bytes written."""
        return sum(size for _, size in self.writes)

    @property
    def places(self) -> int:
        """How many stretches of the file were written: calls that continue each other are one."""
        count, end = 0, -1
        for offset, size in sorted(self.writes):
            count += offset > end
            end = max(end, offset + size)
        return count

    def take(self) -> Calls:
        """The counts so far; they begin again at zero."""
        found = Calls(self.writes, self.syncs, self.reads, self.read_size)
        self.writes, self.syncs, self.reads, self.read_size = [], 0, 0, 0
        return found


@contextlib.contextmanager
def counted_calls() -> Iterator[Calls]:
    """Count what every open file of the engine does in this process, until the end of the block."""
    calls = Calls()
    inside = False  # a call that makes another one counts once

    def counted(name: str, count: Callable[[tuple[Any, ...]], None]) -> Callable[..., Any]:
        original = getattr(OSFile, name)

        def call(file: OSFile, *arguments: Any) -> Any:
            nonlocal inside
            if inside:
                return original(file, *arguments)
            inside = True
            try:
                return original(file, *arguments)
            finally:
                inside = False
                count(arguments)

        return call

    def write(arguments: tuple[Any, ...]) -> None:
        offset, data = arguments
        calls.writes.append((offset, len(data)))

    def sync(_: tuple[Any, ...]) -> None:
        calls.syncs += 1

    def write_synced(arguments: tuple[Any, ...]) -> None:
        write(arguments)
        sync(arguments)

    def read(arguments: tuple[Any, ...]) -> None:
        calls.reads += 1
        calls.read_size += arguments[1]

    counters = {
        "write": write,
        "write_synced": write_synced,
        "sync": sync,
        "sync_all": sync,
        "read": read,
        "page": read,
    }
    with contextlib.ExitStack() as stack:
        for name, count in counters.items():
            stack.enter_context(mock.patch.object(OSFile, name, counted(name, count)))
        yield calls
