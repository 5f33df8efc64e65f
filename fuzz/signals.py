"""Signals all the while: a handler that commits, in a program that commits in several threads.

    python -m fuzz.signals --seconds 600

A child process commits rows in four threads, at all three durabilities, with checkpoints in between, and a thread of it
rings SIGUSR1 every 4 ms at the main one, whose handler commits (or reads, flushes, asks for numbers). Now and then the
parent stops the child between two instructions, copies the file as it is, lets it go on and looks: the copy opens, its
check is clean, and it holds every row that was acknowledged as outliving the process. BusyError in the handler is
right; it is counted. In the end the child closes, still under signals, and every acknowledged row is there.

What was acknowledged is in a small file that both map: for each writer and slot the number that was begun last and the
number that has to be there at least.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import limpet

from .harness import quiet
from .oracle import Wrong

WRITERS = 4  # threads; the handler comes on top
SLOTS = 40  # rows of each, written in turn
COUNTERS = ("commits", "handled", "busy", "stop", "ringing")
_WORD = struct.Struct("<Q")
_STATE_SIZE = _WORD.size * (2 * (WRITERS + 1) * SLOTS + len(COUNTERS))
_SILENCE_S = 15.0  # without a commit: it hangs
_DURABILITIES = ("sync", "os", "none")


class Notes:
    """The small file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_STATE_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _STATE_SIZE)

    def begun(self, writer: int, slot: int) -> int:
        """The number that was tried last."""
        return self._get(2 * (writer * SLOTS + slot))

    def safe(self, writer: int, slot: int) -> int:
        """The number that has to be there, or a later one."""
        return self._get(2 * (writer * SLOTS + slot) + 1)

    def set_begun(self, writer: int, slot: int, number: int) -> None:
        """A commit is about to begin."""
        self._set(2 * (writer * SLOTS + slot), number)

    def set_safe(self, writer: int, slot: int, number: int) -> None:
        """It outlives the process."""
        self._set(2 * (writer * SLOTS + slot) + 1, number)

    def counter(self, name: str) -> int:
        """One of COUNTERS."""
        return self._get(2 * (WRITERS + 1) * SLOTS + COUNTERS.index(name))

    def add(self, name: str, count: int = 1) -> None:
        """Count one more."""
        index = 2 * (WRITERS + 1) * SLOTS + COUNTERS.index(name)
        self._set(index, self._get(index) + count)

    def _get(self, index: int) -> int:
        found: int = _WORD.unpack_from(self._map, index * _WORD.size)[0]
        return found

    def _set(self, index: int, value: int) -> None:
        # Not by pack_into, which clears the place first: the parent may stop us just then, and read 0.
        self._map[index * _WORD.size : (index + 1) * _WORD.size] = _WORD.pack(value)


# -- the child -----------------------------------------------------------------------------------


class Writer:
    """One source of commits: rows `writer/slot` with ascending numbers."""

    def __init__(self, db: limpet.Database, notes: Notes, number: int, durability: str) -> None:
        self._db = db
        self._notes = notes
        self._number = number
        self._durability = durability
        self._rng = random.Random(number)
        self._weak: dict[int, int] = {}  # slot -> number, acknowledged in memory only
        self._next = 1

    def commit(self) -> None:
        """One commit."""
        notes, slot, number = self._notes, self._next % SLOTS, self._next
        durability = self._rng.choice(_DURABILITIES) if self._durability == "mixed" else self._durability
        notes.set_begun(self._number, slot, number)
        with self._db.write(durability=durability) as transaction:
            rows = transaction.table("rows")
            size = self._rng.choice((10, 10, 10, 10, 300, 9000)) if self._number else 20
            rows[b"%d/%d" % (self._number, slot)] = b"%d " % number + b"x" * size
            if not self._rng.randrange(60):
                scratch = f"scratch-{self._number}"
                if scratch in transaction.tables():
                    transaction.drop(scratch)
                else:
                    transaction.table(scratch)[b"k"] = b"v"
        self._next += 1
        self._weak[slot] = number
        if durability != "none":
            weak, self._weak = self._weak, {}
            for each, value in weak.items():
                notes.set_safe(self._number, each, value)
        notes.add("commits")

    def flushed(self, weak: dict[int, int]) -> None:
        """A flush that began after these has returned."""
        for slot, number in weak.items():
            if self._weak.get(slot) == number:
                del self._weak[slot]
            if self._notes.safe(self._number, slot) < number:
                self._notes.set_safe(self._number, slot, number)

    def weak(self) -> dict[int, int]:
        """What is acknowledged and need not outlive the process."""
        return dict(self._weak)


def child(path: str, notes: Notes, durability: str, every_ms: float) -> None:
    """Commit until told to stop; close; under signals all the while."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    db = limpet.open(path, page_size=512, cache_size=1 << 14)
    writers = [Writer(db, notes, number, durability) for number in range(WRITERS + 1)]
    in_handler, errors, rng = writers[WRITERS], [], random.Random(99)

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            what = rng.randrange(20)
            if what == 0:
                db.flush()
            elif what == 1:
                db.stats()
            elif what == 2:
                with db.read() as transaction:
                    dict(transaction.table("rows").items())
            else:
                in_handler.commit()
            notes.add("handled")
        except limpet.BusyError:
            notes.add("busy")
        except limpet.ClosedError:
            if not notes.counter("stop"):
                raise

    def ring() -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not over.wait(every_ms / 1000):
            signal.pthread_kill(main, signal.SIGUSR1)

    def work(writer: Writer) -> None:
        try:
            while not notes.counter("stop"):
                writer.commit()
                time.sleep(0.0005)
        except BaseException as error:  # noqa: BLE001 told by the main thread
            errors.append(error)

    over = threading.Event()
    signal.signal(signal.SIGUSR1, handle)
    threads = [threading.Thread(target=work, args=(writer,), daemon=True) for writer in writers[1:WRITERS]]
    ringer = threading.Thread(target=ring, daemon=True)
    for thread in (*threads, ringer):
        thread.start()
    count = 0
    while not notes.counter("stop") and not errors:
        writers[0].commit()
        count += 1
        if not count % 300:
            weak = writers[0].weak()
            db.flush()
            writers[0].flushed(weak)
    for thread in threads:
        thread.join()
    db.close()
    over.set()
    ringer.join()
    if errors:
        raise errors[0]


# -- the parent ----------------------------------------------------------------------------------


def run(seconds: float, durability: str, every_ms: float, folder: Path, pause_s: float = 0.05) -> dict[str, int]:
    """Let a child commit, and look at copies of its file; returns the counts.

    raises   Wrong
    """
    path, notes_path = folder / "signals.limpet", folder / "notes"
    notes = Notes(notes_path)
    command = [sys.executable, "-m", "fuzz.signals", "--child", str(path), str(notes_path)]
    command += ["--durability", durability, "--every-ms", str(every_ms)]
    said = (folder / "stderr").open("w+b")
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stderr=said)
    copies = 0
    last, changed = -1, time.monotonic()
    started: float | None = None
    try:
        while process.poll() is None and (started is None or time.monotonic() - started < seconds):
            time.sleep(pause_s)
            commits = notes.counter("commits") + notes.counter("busy")
            if commits != last:
                last, changed = commits, time.monotonic()
            elif time.monotonic() - changed > _SILENCE_S:
                raise Wrong(f"it hangs after {commits} commits\n{_stacks(process, said)}")
            if commits > 10:
                started = started or time.monotonic()
                _look_at_copy(process.pid, path, folder / "copy.limpet", notes)
                copies += 1
        notes.add("stop")
        try:
            code = process.wait(_SILENCE_S)
        except subprocess.TimeoutExpired:
            raise Wrong(f"it does not end\n{_stacks(process, said)}") from None
        if code:
            raise Wrong(f"the program failed: {_tail(said)}")
        _compare(path, _snapshot(notes))  # closing makes everything durable, so all that was acknowledged is there
    finally:
        process.kill()
        process.wait()
        said.close()
    return {"copies": copies, **{name: notes.counter(name) for name in ("commits", "handled", "busy")}}


def _look_at_copy(pid: int, path: Path, copy: Path, notes: Notes) -> None:
    """Stop the child wherever it is, copy the file, let it go on, and look at the copy."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while not _is_stopped(pid):
            time.sleep(0.0002)
        copy.write_bytes(path.read_bytes())
        safe = _snapshot(notes)
    finally:
        os.kill(pid, signal.SIGCONT)
    _compare(copy, safe)


def _is_stopped(pid: int) -> bool:
    """All threads stand; those that are ended do too."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            state = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "TtZX":
            return False
    return True


Numbers = dict[tuple[int, int], tuple[int, int]]


def _snapshot(notes: Notes) -> Numbers:
    return {
        (writer, slot): (notes.safe(writer, slot), notes.begun(writer, slot))
        for writer in range(WRITERS + 1)
        for slot in range(SLOTS)
    }


def _compare(path: Path, numbers: Numbers) -> None:
    try:
        with limpet.open(path, cache_size=1 << 22, lock_timeout=1.0) as db:
            with db.read() as transaction:
                rows = dict(transaction.table("rows").items())
            report = db.check()
    except limpet.LimpetError as error:
        raise Wrong(f"a copy does not open: {error!r}") from error
    for (writer, slot), (safe, begun) in numbers.items():
        found = int(rows.get(b"%d/%d" % (writer, slot), b"0 ").split()[0])
        if not safe <= found <= begun:
            raise Wrong(f"row {writer}/{slot} has number {found}; {safe} was acknowledged, {begun} was begun")
    if not report.ok:
        raise Wrong(f"check of a copy: {'; '.join(map(str, report.errors[:2]))}")


def _stacks(process: subprocess.Popen[bytes], said: Any) -> str:
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.5)
    return _tail(said)


def _tail(said: Any) -> str:
    said.seek(0)
    text: str = said.read().decode(errors="replace")
    return text[-3000:]


@quiet()
def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.signals", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all durabilities together (60)")
    parser.add_argument("--every-ms", type=float, default=4.0, help="between two signals (4)")
    parser.add_argument("--durability", default="", help="sync, os, none or mixed; all in turn by default")
    parser.add_argument("--child", nargs=2, metavar=("PATH", "NOTES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], Notes(Path(arguments.child[1])), arguments.durability, arguments.every_ms)
        return 0
    kinds = [arguments.durability] if arguments.durability else [*_DURABILITIES, "mixed"]
    failed = 0
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            try:
                counts: object = run(arguments.seconds / len(kinds), kind, arguments.every_ms, Path(folder))
            except Wrong as error:
                counts, failed = f"FAILED: {error}", failed + 1
            print(f"{kind:6} {time.monotonic() - started:6.1f} s  {counts}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
