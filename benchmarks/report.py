"""What becomes of results: a table to read, JSON to compare, both with the machine they come from.

No host name, user or path goes into a file; the machine is described by its class: cores, Python, kernel, file system.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from .measure import HIGHER_IS_BETTER, OURS, Case, Result, Target, as_dict
from .peers import versions

WIDTH = 110
TIE = 0.03  # differences below this are noise


def machine(directory: Path) -> dict[str, object]:
    """The class of machine that the numbers come from."""
    release = re.match(r"\d+\.\d+", platform.release())
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {release[0] if release else 'unknown'}",
        "file_system": file_system(directory),
        "versions": versions(),
    }


def file_system(path: Path) -> str:
    """The type of the file system that a path is on."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    best, kind = -1, "unknown"
    real = path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = left.split()[4]
        if len(mounted) >= best and (real == Path(mounted) or Path(mounted) in real.parents):
            best, kind = len(mounted), right.split()[0]
    return kind


def render(result: Result, machine: Mapping[str, object], *, seed: int, mode: str, seconds: float) -> str:
    """A result as text."""
    found = machine["versions"]
    assert isinstance(found, dict)
    lines = [f"{result.workload}: {result.title}", ""]
    lines += _wrapped(
        "machine",
        f"{machine['cores']} cores ({machine['architecture']}), {machine['python']}, {machine['kernel']}, "
        f"{machine['file_system']}",
    )
    lines += _wrapped("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    lines += _wrapped("sizes", ", ".join(f"{name} {_plain(value)}" for name, value in result.sizes.items()))
    lines += _wrapped(
        "run", f"{mode}, seed {seed}, {seconds:.0f} s; peers take turns; p90, p99 and max are the slow end"
    )
    lines += ["", *_table(result.cases)]
    if result.targets:
        lines += ["", "targets"]
        for target in result.targets:
            lines += textwrap.wrap(verdict(target), WIDTH, initial_indent="  ", subsequent_indent=" " * 10)
    losses = list(losing(result))
    lines += ["", "where Limpet loses"]
    for loss in losses or ["nowhere in this workload"]:
        lines += textwrap.wrap(loss, WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    if result.notes:
        lines += ["", "notes"]
        for note in result.notes:
            lines += textwrap.wrap(note, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    if mode == "quick":
        lines += ["", "Quick sizes: these numbers show that the benchmark works, and nothing else."]
    return "\n".join(lines) + "\n"


def verdict(target: Target) -> str:
    """A target in one line."""
    how = ">=" if target.at_least else "<="
    number = f"{_number(target.value)} {target.unit}".rstrip()
    return f"{'met   ' if target.met else 'MISSED'}  {target.text}: {number} ({how} {_number(target.limit)})"


def losing(result: Result) -> Iterator[str]:
    """A line for every peer that does something better, in medians."""
    for case in result.cases:
        better = advantage(result, case)
        if better is not None and better < 1 - TIE and not case.peer.startswith(OURS):
            ours = result.median(case.what)
            assert ours is not None
            yield (
                f"{case.what}: {case.peer} is {1 / better:.2f} times as good "
                f"({_number(case.median)} against {_number(ours)} {case.unit})"
            )


def advantage(result: Result, case: Case) -> float | None:
    """How many times as good as this peer we are; None for ourselves and where there is nothing to compare."""
    ours = result.median(case.what)
    if ours is None or case.peer == OURS or not ours or not case.median:
        return None
    return ours / case.median if case.unit in HIGHER_IS_BETTER else case.median / ours


def save(folder: Path, result: Result, text: str, machine: Mapping[str, object], *, seed: int, mode: str) -> None:
    """Write <workload>.txt and <workload>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.workload}.txt").write_text(text, "utf-8")
    (folder / f"{result.workload}.json").write_text(as_json(result, machine, seed=seed, mode=mode) + "\n", "utf-8")


def as_json(result: Result, machine: Mapping[str, object], *, seed: int, mode: str) -> str:
    """A result as JSON text."""
    return json.dumps({**as_dict(result), "machine": machine, "seed": seed, "mode": mode}, indent=1)


def _table(cases: list[Case]) -> list[str]:
    width = max([len(case.peer) for case in cases], default=0)
    head = f"  {'':{width}}  {'median':>10}{'p90':>10}{'p99':>10}{'max':>10}  {'':6}{'count':>9}   limpet is"
    lines = [head]
    shown = Result("", "", {}, cases)
    for what in dict.fromkeys(case.what for case in cases):
        lines.append(what)
        for case in cases:
            if case.what != what:
                continue
            numbers = "".join(f"{_number(number):>10}" for number in (case.median, case.p90, case.p99, case.max))
            better = advantage(shown, case)
            note = "" if better is None else f"   {better:.2f} x as {_quality(case.unit)}"
            lines.append(f"  {case.peer:{width}}  {numbers}  {case.unit:6}{case.count:>9}{note}")
    return [line.rstrip() for line in lines]


def _quality(unit: str) -> str:
    return "small" if unit in {"KiB", "MB", "MiB", "calls", "commits"} else "fast"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:9}", subsequent_indent=" " * 11)


def warn(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr, flush=True)
