"""Real files, with trouble between the engine and the operating system.

KillSwitch    a file system whose process dies, by SIGKILL, at a given call: before it, after it,
              or half-way through a write
ShortCalls    reads and writes of the operating system that do only part of what was asked
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from .. import file as _file
from ..file import File, FileSystem, OSFileSystem

_CACHE_PAGE = 4096
BEFORE, HALF_WAY, AFTER = "before", "half", "after"


class KillSwitch(FileSystem):
    """The machine's own file system; the process kills itself at one of the calls.

    at     index of the call, counting all calls that change something; -1: never
    when   BEFORE, HALF_WAY or AFTER it
    """

    def __init__(self, at: int, when: str = BEFORE) -> None:
        self._inner = OSFileSystem()
        self.at = at
        self.when = when
        self.calls = 0

    @contextmanager
    def call(self, half: tuple[File, int, bytes] | None = None) -> Iterator[None]:
        """Around one call."""
        doomed = self.calls == self.at
        self.calls += 1
        if doomed and self.when == BEFORE:
            _die()
        if doomed and self.when == HALF_WAY and half is not None:
            file, offset, data = half
            # The kernel copies what fits into one page of its cache at once, signal or no signal.
            middle = (offset + len(data) // 2) // _CACHE_PAGE * _CACHE_PAGE
            if middle > offset:
                file.write(offset, data[: middle - offset])
            _die()
        yield
        if doomed:
            _die()

    def resolve(self, path: str) -> str:
        return self._inner.resolve(path)

    def open(self, path: str, *, writable: bool) -> File:
        return _DoomedFile(self, self._inner.open(path, writable=writable))

    def create(self, path: str, *, built_for: str | None = None) -> File:
        with self.call():
            return _DoomedFile(self, self._inner.create(path, built_for=built_for))

    def exists(self, path: str) -> bool:
        return self._inner.exists(path)

    def is_held(self, path: str) -> bool:
        return self._inner.is_held(path)

    def beside(self, path: str) -> list[str]:
        return self._inner.beside(path)

    def link(self, source: str, target: str) -> None:
        with self.call():
            self._inner.link(source, target)

    def replace(self, source: str, target: str) -> None:
        with self.call():
            self._inner.replace(source, target)

    def remove(self, path: str) -> None:
        with self.call():
            self._inner.remove(path)

    def sync_directory(self, path: str) -> None:
        with self.call():
            self._inner.sync_directory(path)


class _DoomedFile(File):
    """A file of a KillSwitch."""

    def __init__(self, owner: KillSwitch, inner: File) -> None:
        self._owner = owner
        self._inner = inner

    @property
    def path(self) -> str:  # the engine renames a file by assigning to it
        return self._inner.path

    @path.setter
    def path(self, path: str) -> None:
        self._inner.path = path

    def size(self) -> int:
        return self._inner.size()

    def read(self, offset: int, size: int) -> bytes:
        return self._inner.read(offset, size)

    def page(self, offset: int, size: int) -> bytes:
        return self._inner.page(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        with self._owner.call((self._inner, offset, data)):
            self._inner.write(offset, data)

    def write_synced(self, offset: int, data: bytes) -> None:
        with self._owner.call((self._inner, offset, data)):
            self._inner.write_synced(offset, data)

    def grow(self, size: int) -> None:
        with self._owner.call():
            self._inner.grow(size)

    def truncate(self, size: int) -> None:
        with self._owner.call():
            self._inner.truncate(size)

    def sync(self) -> None:
        with self._owner.call():
            self._inner.sync()

    def sync_all(self) -> None:
        with self._owner.call():
            self._inner.sync_all()

    def drop_cache(self, size: int = 0) -> bool:
        with self._owner.call():
            return self._inner.drop_cache(size)

    def try_lock(self, *, exclusive: bool) -> bool:
        return self._inner.try_lock(exclusive=exclusive)

    def is_at(self, path: str) -> bool:
        return self._inner.is_at(path)

    def close(self) -> None:
        self._inner.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # the signal is on its way


class ShortCalls:
    """While entered, the operating system reads and writes less than was asked for.

    rng      decides how much less
    nothing  a write now and then takes no byte at all, and must not be tried for ever
    """

    def __init__(self, rng: random.Random, *, nothing: bool = False) -> None:
        self._rng = rng
        self._nothing = nothing
        self.calls = 0

    def __enter__(self) -> Self:
        self._pread, self._pwrite = _file._pread, _file._pwrite
        _file._pread = self._short_read
        _file._pwrite = self._short_write
        return self

    def __exit__(self, *_: object) -> None:
        _file._pread = self._pread
        _file._pwrite = self._pwrite

    def _short_read(self, descriptor: int, size: int, offset: int) -> bytes:
        self.calls += 1
        return self._pread(descriptor, self._rng.randint(1, max(1, size)), offset)

    def _short_write(self, descriptor: int, data: Any, offset: int) -> int:
        self.calls += 1
        if self._nothing and self._rng.random() < 0.2:
            return 0
        return self._pwrite(descriptor, memoryview(data)[: self._rng.randint(1, max(1, len(data)))], offset)
