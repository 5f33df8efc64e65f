"""The harness sees: an engine with any one of its rules broken does not get past it.

F4: each mutant of mutants.py runs under the classes that should notice, until one fails. A mutant that survives all of
them is a failure of the harness.
"""

from __future__ import annotations

import gc
import time
import warnings

from .harness import Budget, Case, Failure, FaultClass, quiet, told_as
from .mutants import MUTANTS, Mutant

SECONDS = 6.0  # for one class to notice one mutant


def run(budget: Budget) -> None:
    """Every mutant once, or as many as there is time for."""
    for mutant in MUTANTS:
        if not budget.more():
            break
        killer = hunt(mutant, budget.seed)
        if killer is None:
            raise Failure(f"a mutant survives: {mutant.rule}", {"mutant": mutant.rule, "seed": budget.seed})
        budget.count(killer.split(":")[0])


def hunt(mutant: Mutant, seed: int, seconds: float = SECONDS) -> str | None:
    """Run a mutant until a class notices; returns "class: what it saw", or None if it survives."""
    from .classes import fault_classes  # this class is one of them

    known = {each.name: each for each in fault_classes()}
    for name in mutant.killers:
        with mutant.applied(), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the engine is broken, after all
            try:
                known[name].run(Budget(seconds, seed, workload=mutant.workload, clock=time.process_time))
            except Failure as failure:
                found = f"{name}: {failure.message.splitlines()[0]}"
                failure.with_traceback(None)
                gc.collect()  # what the broken engine left open ends here, where nobody is told of it
                return found
    return None


def _replay(case: Case) -> None:
    mutant = next(each for each in MUTANTS if each.rule == case["mutant"])
    with told_as(case):
        if hunt(mutant, case["seed"]) is None:
            raise Failure(f"a mutant survives: {mutant.rule}", case)


CLASS: FaultClass = FaultClass("F4", "broken engines are noticed", run, _replay)
