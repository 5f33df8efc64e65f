"""`limpet`, every verb, where streams are closed, full, gone or of another encoding, and texts are hostile.

The verbs come from the parser, so that a new one is covered or makes a test fail that says what it needs to know.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet.cli import build_parser
from limpet.testing.commands import FORGED, HOSTILE, NOT_UTF8, SPOILS, Call, Outcome, run_calls, texts, verbs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the calls are forked")

CODES = {0, 1, 2, 3, 4, 64, 130, 141}
TABLE = limpet.Table(HOSTILE, key=limpet.STR, value=limpet.STR)
VERBS = verbs(build_parser())
NUMBERS = itertools.count()
EXACT = {"get"}  # prints the value as it is stored when nobody looks
Run = Callable[[list[Call]], list[Outcome]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with hostile names in a folder with a hostile name, and a damaged page."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    found = folder / "app.limpet"
    with limpet.open(found, page_size=512, durability="os") as db, db.write() as txn:
        txn[TABLE].update({f"{HOSTILE}{number}": HOSTILE * (number % 9) for number in range(60)})
        txn[TABLE][HOSTILE] = HOSTILE
    return found


@pytest.fixture
def damaged(path: Path) -> Path:
    with limpet.inspect(path) as inspection:
        pgno = inspection.path(HOSTILE, f"{HOSTILE}47")[-1].pgno
    copy = path.with_name("damaged.limpet")
    copy.write_bytes(path.read_bytes())
    with copy.open("r+b") as file:
        file.seek(pgno * 512 + 300)
        file.write(b"\xff\xff\xff")
    return copy


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(calls: list[Call]) -> list[Outcome]:
        (tmp_path / "calls").mkdir()
        return run_calls("limpet.cli", calls, tmp_path / "calls")

    return run


def argv(verb: str, path: Path, key: str | bytes = HOSTILE, table: str | bytes = HOSTILE) -> list[str | bytes]:
    """A sensible call."""
    values = {
        "file": str(path),
        "table": table,
        "key": key,
        "pgno": "8",
        "target": f"{path}.{next(NUMBERS)}",
    }
    named = [action for action in VERBS[verb]._actions if not action.option_strings]
    return [verb, *(values[action.dest] for action in named)]


def problems(outcomes: list[Outcome]) -> str:
    return "\n".join(
        problem
        for outcome in outcomes
        for problem in outcome.problems(
            CODES,
            exact=outcome.call.argv[0] in EXACT and outcome.call.stdout == "file" and "--json" not in outcome.call.argv,
        )
    )


@pytest.mark.parametrize(
    ("encoding", "errors", "stdout"),
    [
        ("ascii", "surrogateescape", "file"),
        ("ascii", "strict", "terminal"),
        ("latin-1", "strict", "file"),
        ("utf-8", "strict", "terminal"),
    ],
)
def test_every_verb_in_every_encoding(
    encoding: str, errors: str, stdout: str, path: Path, damaged: Path, run: Run
) -> None:
    """Files name their tables and keys as they like: a terminal was steered by them, or could not show them."""
    calls = [
        Call((*argv(verb, file), *more), stdout=stdout, encoding=encoding, errors=errors)
        for verb in VERBS
        for file, more in ((path, []), (path, ["--json"]), (damaged, []))
    ]
    outcomes = run(calls)
    assert not problems(outcomes)
    for outcome in outcomes:
        if "--json" in outcome.call.argv:
            assert [json.loads(line) for line in outcome.out.decode(encoding).splitlines()], outcome
    assert any(FORGED.encode() in outcome.out for outcome in outcomes)
    assert [outcome for outcome in outcomes if str(path) in outcome.call.argv and outcome.code] == []


@pytest.mark.parametrize("stdout", SPOILS)
def test_every_verb_without_a_way_to_say_anything(stdout: str, path: Path, damaged: Path, run: Run) -> None:
    """Any verb ended in a traceback where standard output was closed, and at a full disk in the one about the first."""
    outcomes = run(
        [
            Call((*argv(verb, file), *more), stdout=stdout, stdin="closed")
            for verb in VERBS
            for file, more in ((path, ["--json"]), (damaged, []))
        ]
    )
    assert not problems(outcomes)
    wanted = {141} if stdout == "gone" else {4}
    assert {outcome.code for outcome in outcomes if outcome.code != 2} == wanted  # damage is told on stderr too
    if stdout == "closed":
        assert [outcome for outcome in outcomes if outcome.code == 4 and b"output is closed" not in outcome.err] == []


def test_every_text_argument_of_every_verb_may_be_anything(path: Path, run: Run) -> None:
    """A key that was not UTF-8 ended in a traceback, and what argparse complained about was repeated raw."""
    hostile = HOSTILE.encode()
    calls = [Call((text,)) for text in (NOT_UTF8, hostile)]
    for verb, parser in VERBS.items():
        usual = argv(verb, path)
        names = [action for action in parser._actions if not action.option_strings]
        calls.append(Call((*usual, hostile, b"--" + NOT_UTF8)))
        for action in texts(parser):
            if not action.option_strings:  # the calls above have hostile ones
                at = 1 + names.index(action)
                calls.append(Call((*usual[:at], NOT_UTF8, *usual[at + 1 :])))
            else:
                option = action.option_strings[-1].encode()
                calls += [Call((*usual, option + b"=" + text)) for text in (NOT_UTF8, hostile)]
    assert not problems(run(calls))


def test_a_real_process_without_streams(path: Path) -> None:
    """The forked calls above stand for this."""
    shell = 'exec "$@" <&- >&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "limpet", "check", str(path)],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        4,
        b"limpet: the output could not be written: [Errno 9] standard output is closed\n",
    )
