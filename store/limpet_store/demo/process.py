"""The worker as its driver sees it: started, spoken to, heard, killed.

A thread reads what the worker says into a queue, so that the worker never waits for its driver, and everything that it
wrote before it died is heard. A last line without an end was cut off by the kill and acknowledges nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any

GOODBYE_S = 30.0  # a worker that was asked to finish does so in milliseconds, unless its disk is very slow


def child_environment() -> dict[str, str]:
    """The environment in which a child finds the modules that we have found, and writes as we read."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    return dict(os.environ, PYTHONPATH=paths, PYTHONIOENCODING="utf-8")


class WorkerProcess:
    """One life of the worker."""

    def __init__(self, path: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self.started = time.monotonic()
        self.ended: float | None = None
        self.was_killed = False
        self._is_heard_out = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "limpet_store.demo.worker", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the driver, which then ends the worker in its own way
        )
        self.pid = self._process.pid
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="demo reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                if line.endswith(b"\n"):
                    self._events.put(json.loads(line))
        self._events.put(None)

    def send(self, message: dict[str, Any]) -> None:
        """Give the worker a message; a worker that is dead does not get it, and its driver will hear of the death."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """The next thing that it says, in order.

        returns  an event; None when it has ended, and everything it said was heard
        raises   queue.Empty after the timeout
        """
        if self._is_heard_out:
            return None
        event = self._events.get(timeout=max(0.0, timeout_s))
        if event is None:
            self._is_heard_out = True
            self._process.wait()
            self.ended = self.ended or time.monotonic()
        return event

    def rest(self) -> Iterable[dict[str, Any]]:
        """What it still says until it ends."""
        while (event := self.hear(GOODBYE_S)) is not None:
            yield event

    def kill(self) -> None:
        """End it at once: SIGKILL where there is such a thing."""
        self.was_killed = True
        self._process.kill()
        self._process.wait()
        self.ended = time.monotonic()

    def finish(self) -> None:
        """End of input: it finishes what it is at, and closes the store."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    @property
    def returncode(self) -> int | None:
        """The exit code; negative after a signal, None while it lives."""
        return self._process.poll()

    def complaint(self) -> str:
        """What it wrote to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._process.poll() is None:
            self.kill()
        self.finish()
        self._reader.join()
        self._errors.close()
