"""`python -m fuzz --seconds 60 --class F1`: run the fault classes and say what was tried.

Without --class the time is shared among all of them. The seed is printed; the same seed tries the same things as far as
the time allows. What fails is cut down, stored under fuzz/regressions/ and replayed by the test suite from then on.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import os
import random
import sys
import time

from .classes import fault_classes
from .harness import Budget, Failure, FaultClass, quiet, run_class, save, shrink

_SHARES = {"F4": 3.0}  # the mutants need more time than one class


@quiet()
def main() -> int:
    """Run, report, and return the exit code: 1 if anything failed."""
    arguments = _arguments()
    classes = fault_classes()
    if arguments.classes:
        wanted = [name.strip().upper() for name in ",".join(arguments.classes).split(",")]
        unknown = set(wanted) - {each.name for each in classes}
        if unknown:
            print(f"no such class: {', '.join(sorted(unknown))}; there are {', '.join(each.name for each in classes)}")
            return 64
        classes = [each for each in classes if each.name in wanted]
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed} (repeat with --seed {seed}), {arguments.seconds:g} seconds, {len(classes)} classes")
    shares = [_SHARES.get(each.name, 1.0) for each in classes]
    rows, failed = [], 0
    for each, share in zip(classes, shares, strict=True):
        seconds = arguments.seconds * share / sum(shares)
        faulthandler.dump_traceback_later(seconds * 3 + 180, exit=True)
        budget = Budget(seconds, seed, progress=functools.partial(_progress, each))
        failure = run_class(each, budget)
        spent = budget.spent
        _erase()
        if failure is not None:
            failed += 1
            _report(each, failure)
        rows.append((each, budget, spent, 0 if failure is None else 1))
    faulthandler.cancel_dump_traceback_later()
    _table(rows)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Run the fault classes.")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for all classes together (60)")
    parser.add_argument("--class", dest="classes", action="append", metavar="F1", help="only this one; F1,F2 for some")
    parser.add_argument("--seed", type=int, help="try the same things again")
    return parser.parse_args()


def _progress(each: FaultClass, budget: Budget) -> None:
    if sys.stdout.isatty():
        print(f"\r{each.name:4} {each.title:52} {budget.states:8} states {budget.spent:6.1f} s", end="", flush=True)


def _erase() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * 90 + "\r", end="")


def _report(each: FaultClass, failure: Failure) -> None:
    print(f"{each.name} FAILED: {failure.message}")
    print(f"{each.name} cutting the case down ...", flush=True)
    smaller = shrink(each, failure)
    path = save(each, smaller)
    print(f"{each.name} stored as {os.path.relpath(path)}: {smaller.message.splitlines()[0]}")


def _table(rows: list[tuple[FaultClass, Budget, float, int]]) -> None:
    print(f"\n{'class':6}{'what':54}{'states':>9}{'seconds':>9}{'failures':>10}")
    for each, budget, spent, failures in rows:
        print(f"{each.name:6}{each.title:54}{budget.states:9}{spent:9.1f}{failures:10}")
    states = sum(budget.states for _, budget, _, _ in rows)
    seconds = sum(spent for _, _, spent, _ in rows)
    failures = sum(row[3] for row in rows)
    print(f"{'all':6}{time.strftime('%Y-%m-%d %H:%M:%S'):54}{states:9}{seconds:9.1f}{failures:10}")


if __name__ == "__main__":
    sys.exit(main())
