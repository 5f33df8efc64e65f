"""`python -m benchmarks`: run workloads, print and keep their results."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

from . import WORKLOADS, report
from .measure import Result, Run

RESULTS = Path(__file__).resolve().parent / "results"
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}  # file systems on which a sync costs nothing


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of Limpet beside sqlite3 and LMDB."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"workloads; all by default: {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument(
        "--full", action="store_true", help="the sizes of the specification, where usual ones are smaller"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line, instead of tables")
    parser.add_argument("--seed", type=int, default=20260101, metavar="N")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to put the files; on the disk to be measured")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help=f"where to keep results ({RESULTS.name}/ of this package)"
    )
    arguments = parser.parse_args()
    names: list[str] = arguments.names or list(WORKLOADS)
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if arguments.quick and arguments.full:
        parser.error("--quick and --full exclude each other")
    mode = "quick" if arguments.quick else "full" if arguments.full else "usual sizes"
    # A quick run must not replace results that mean something.
    results: Path | None = arguments.results or (None if arguments.quick else RESULTS)
    done: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="limpet-bench-", dir=arguments.dir or _real_disk()) as temporary:
        directory = Path(temporary)
        machine = report.machine(directory)
        if machine["file_system"] in IN_MEMORY:
            report.warn(
                f"{machine['file_system']} keeps files in memory: durable commits cost nothing there; use --dir"
            )
        for number, name in enumerate(names, 1):
            report.warn(f"[{number}/{len(names)}] {name}")
            run = Run(arguments.quick, arguments.full, arguments.seed, directory / name)
            began = time.monotonic()
            result: Result = importlib.import_module(f".{name}", __package__).run(run)
            text = report.render(result, machine, seed=run.seed, mode=mode, seconds=time.monotonic() - began)
            if arguments.json:
                print(" ".join(report.as_json(result, machine, seed=run.seed, mode=mode).split("\n")), flush=True)
            else:
                print(text, flush=True)
            if results is not None:
                report.save(results, result, text, machine, seed=run.seed, mode=mode)
            done.append(result)
    for result in done:
        for target in result.targets:
            report.warn(f"{result.workload + ':':10}{report.verdict(target)}")
    return 0


def _real_disk() -> str | None:
    """The directory for temporary files, or this one if that is kept in memory."""
    usual = Path(tempfile.gettempdir())
    return os.curdir if report.file_system(usual) in IN_MEMORY else None


if __name__ == "__main__":
    sys.exit(main())
