"""The last comparison, on the closed file, and what is told at the end."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import limpet
from limpet.console import escaped

from .. import Store
from .driver import Day
from .ledger import Ledger
from .process import child_environment
from .screen import Screen, counted
from .script import Session
from .verify import Findings, verify_sessions, verify_tasks

LABEL_WIDTH = 12
VERBS = ("info", "check")
MAX_SHOWN = 10  # errors; the rest is counted


@dataclass(slots=True)
class Result:
    """The day, and what is left of it."""

    path: str
    seed: int
    day: Day
    source: str  # what a session comes from: "language" or "transcript"
    findings: Findings = field(default_factory=Findings)
    txid: int = 0
    file_size: int = 0
    live_size: int = 0
    commands: dict[str, str] = field(default_factory=dict)  # command line -> what it printed
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        day = self.day.as_dict()
        day.pop("errors")
        return {
            "ok": not self.errors,
            "errors": self.errors,
            "warnings": self.warnings,
            "seed": self.seed,
            **day,
            "turns_per_s": round(_rate(self.day.turns, self.day), 1),
            "commits_per_s": round(_rate(self.txid, self.day), 1),
            "verified_lines": self.findings.lines,
            "txid": self.txid,
            "path": self.path,
            "file_size": self.file_size,
            "live_size": self.live_size,
            "commands": self.commands,
        }


def opening(sessions: Sequence[Session], *, path: str, seed: int, kills: int, day_s: float | None) -> str:
    """What is said before the day begins."""
    turns = sum(step.turn is not None for session in sessions for step in session.steps)
    length = f"for {day_s:.0f} s" if day_s is not None else "to the end"
    return (
        f"A gateway's day: {counted(len(sessions), 'session')} with {counted(turns, 'turn')}, {length};"
        f" {counted(kills, 'kill')}.\n"
        f"Store: {escaped(path)}\n"
        f"Seed:  {seed}"
    )


def conclude(path: str, day: Day, ledger: Ledger, *, seed: int, source: str) -> Result:
    """Compare everything once more, then verify the file itself."""
    result = Result(path, seed, day, source, errors=list(day.errors))
    if not os.path.exists(path):
        if not day.interrupted:
            result.errors.append(f"there is no file {path}")
        return result
    try:
        with Store.open(path, read_only=True) as store:
            result.findings = verify_sessions(store, ledger)
            result.errors += result.findings.errors
            result.errors += verify_tasks(store, ledger, finished=not day.interrupted and not day.errors)
            report = store.check()
            result.errors += report.errors
            result.warnings += report.warnings
            stats = store.database.stats()
    except limpet.LimpetError as error:
        result.errors.append(f"{type(error).__name__}: {error}")
        return result
    result.txid, result.file_size, result.live_size = stats.txid, stats.file_size, stats.live_size
    for verb in VERBS:
        code, output = _limpet(verb, path)
        result.commands[f"limpet {verb} {path}"] = output
        if code != 0:
            result.errors.append(f"`limpet {verb} {path}` ended with exit code {code}")
    return result


def _limpet(verb: str, path: str) -> tuple[int, str]:
    """Run the inspector on the file, as whoever reads this may do next; returns exit code and output."""
    run = subprocess.run(
        [sys.executable, "-m", "limpet", verb, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=child_environment() | {"COLUMNS": str(shutil.get_terminal_size().columns)},
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return run.returncode, run.stdout.rstrip()


def show(result: Result, screen: Screen) -> None:
    """The end of the day, for people."""
    day = result.day
    _item(
        screen,
        "Played",
        f"{counted(day.sessions, 'session')} on {counted(day.channels, 'channel')}, from"
        f" {counted(day.origins, result.source)}: {counted(day.turns, 'turn')} and"
        f" {counted(day.restarts, 'fresh start')}",
    )
    _item(
        screen,
        "Killed",
        f"{counted(day.kills, 'time')} with SIGKILL; {counted(day.recoveries, 'recovery', 'recoveries')}"
        + (f", {max(day.open_s) * 1000:.0f} ms at most to open the store again" if day.open_s else "")
        + f"; {counted(day.requeued, 'task')} put back into the queue, {counted(day.redelivered, 'message')} delivered"
        f" again, {counted(day.unacked, 'line')} stored whose acknowledgement was lost",
    )
    _item(
        screen,
        "Throughput",
        f"{_rate(day.turns, day):,.0f} turns a second while a worker was serving ({day.alive_s:.1f} s);"
        f" {_rate(result.txid, day):,.0f} commits a second, four in five of them synced",
    )
    if result.errors:
        _item(screen, "WRONG", f"{counted(len(result.errors), 'error')}:")
        for error in result.errors[:MAX_SHOWN]:
            screen.say(f"  {error}")
        if len(result.errors) > MAX_SHOWN:
            screen.say(f"  ... and {len(result.errors) - MAX_SHOWN:,} more")
    else:
        _item(
            screen,
            "Verified",
            f"{result.findings.lines:,} acknowledged lines, each in its session or archived with it, in order, exactly"
            f" once, after each kill and at the end; every task done once; every page, index and counter",
        )
    for warning in result.warnings[:MAX_SHOWN]:
        _item(screen, "Warning", warning)
    _item(screen, "File", f"{result.path}, {_size(result.file_size)}, of which {_size(result.live_size)} are in use")
    for command, output in result.commands.items():
        screen.verbatim(f"\n$ {escaped(command)}\n{output}")
    path = escaped(shlex.quote(result.path))
    screen.verbatim(
        f"\nThe file stays where it is. To look around:\n"
        f"  {_typed('limpet-store')} sessions --store {path}\n"
        f"  {_typed('limpet')} pages {path}"
    )


def _typed(command: str) -> str:
    """A command as it has to be typed here: with its folder, unless the shell finds it without."""
    beside = Path(sys.executable).with_name(command)
    return command if shutil.which(command) or not beside.exists() else shlex.quote(str(beside))


def _item(screen: Screen, label: str, text: str) -> None:
    screen.item(label.ljust(LABEL_WIDTH), text)


def _rate(count: int, day: Day) -> float:
    return count / day.alive_s if day.alive_s else 0.0


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"
