"""A slice of every fault class, every case that ever failed, and the proof that broken engines are noticed.

`make fuzz` runs the same classes for as long as one likes. What fails here is stored under fuzz/regressions/.
"""

import itertools
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the fuzzers are not installed; they lie beside the tests

from fuzz import f10_flipped_bits, f13_kills  # noqa: E402 the path comes first
from fuzz.classes import fault_classes  # noqa: E402 the path comes first
from fuzz.damage import sample  # noqa: E402 the path comes first
from fuzz.f04_broken_engines import hunt  # noqa: E402 the path comes first
from fuzz.harness import REGRESSIONS, Budget, Failure, FaultClass, quiet, run_class, save  # noqa: E402 as above
from fuzz.mutants import MUTANTS, Mutant  # noqa: E402 the path comes first

CLASSES = {each.name: each for each in fault_classes()}

# Seconds for each class: together a minute of one core. F4, F10 and F13 have tests of their own below.
SECONDS = {
    "F1": 5,
    "F2": 7,
    "F3": 4,
    "F5": 5,
    "F6": 6,
    "F7": 5,
    "F8": 2,
    "F9": 3,
    "F11": 3,
    "F12": 7,
    "F14": 3,
    "F15": 2,
    "F16": 4,
    "F17": 4,
    "F18": 8,
    "S1": 4,
}
KILLS = 320  # some of the doomed processes are through before their call comes
KILL_BATCHES = 4
CASES = sorted(REGRESSIONS.glob("*.json"))


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


def complain(fault_class: FaultClass, failure: Failure, seed: int) -> None:
    path = save(fault_class, failure)
    pytest.fail(
        f"{failure.message}\nstored as {os.path.relpath(path)}; `make fuzz CLASS={fault_class.name} "
        f"ARGS='--seed {seed}'` cuts it down",
        pytrace=False,
    )


@pytest.mark.parametrize("name", SECONDS)
def test_a_slice_of_every_class_finds_nothing(name: str, seed: int) -> None:
    budget = Budget(SECONDS[name], seed, least=11)
    failure = run_class(CLASSES[name], budget)
    print(f"{name}: {budget.states} states in {budget.spent:.1f} s, seed {seed}, {budget.notes}")
    if failure is not None:
        complain(CLASSES[name], failure, seed)
    assert budget.states > 10


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_failed_once_does_not_fail_again(path: Path) -> None:
    case = json.loads(path.read_text("utf-8"))
    CLASSES[case["class"]].replay(case)


@pytest.mark.parametrize("clean", [False, True], ids=["crashed", "closed"])
def test_no_flipped_bit_gives_a_wrong_value(clean: bool, seed: int) -> None:
    """Every bit of both metas and of the header, one random bit of every byte of the file."""
    whole = sample(random.Random(seed), clean=clean, commits=3)
    assert len(whole.image) >= 16 * whole.page_size
    budget = Budget(60.0, seed)
    for bit in f10_flipped_bits.flips(whole, random.Random(seed)):
        case = {"seed": seed, "clean": clean, "page_size": whole.page_size, "commits": 3, "bit": bit}
        f10_flipped_bits.flip(whole, bit, case, budget)
    assert budget.states >= 3 * 96 * 8 + len(whole.image)
    print(f"F10: {budget.states} flips, {budget.notes}")


@pytest.mark.parametrize("batch", range(KILL_BATCHES))
def test_killed_processes_lose_nothing_they_acknowledged(batch: int, seed: int) -> None:
    count = KILLS // KILL_BATCHES
    outcomes: list[str] = []
    kills = f13_kills.kills(10 * count, seed + 1000 * batch)
    outcomes.extend(itertools.takewhile(lambda _: sum(each != "lived" for each in outcomes) < count, kills))
    killed = sum(each != "lived" for each in outcomes)
    print(f"F13: {killed} processes killed, {len(outcomes) - killed} lived")
    assert killed >= count


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule.replace(" ", "-"))
def test_a_broken_engine_is_noticed(mutant: Mutant, seed: int) -> None:
    killer = hunt(mutant, seed, 10.0)
    assert killer is not None, f"the mutant survives {', '.join(mutant.killers)}: {mutant.rule}"
    print(f"{mutant.rule}: noticed by {killer}")


def test_there_are_enough_mutants_and_classes() -> None:
    assert len(MUTANTS) >= 15
    assert {f"F{number}" for number in range(1, 19)} <= CLASSES.keys()
    assert SECONDS.keys() | {"F4", "F10", "F13"} == CLASSES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_opens_with_its_promise(name: str) -> None:
    module = sys.modules[CLASSES[name].run.__module__]
    assert module.__doc__ is not None
    assert f"\n{name}: " in module.__doc__
