"""`limpet-store`, every verb, where streams are closed, full, gone or of another encoding, and texts are hostile.

The verbs come from the parser, so that a new one is covered or makes a test fail that says what it needs to know.
"""

import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limpet.testing.commands import FORGED, HOSTILE, NOT_UTF8, SPOILS, Call, Outcome, run_calls, texts, verbs
from limpet_store import ExternalJob, Pending, QueuedTask, Store, schema
from limpet_store.cli import build_parser
from limpet_store.redb.testing import RedbMaker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the calls are forked")

CODES = {0, 1, 2, 3, 130, 141}
VERBS = verbs(build_parser())
NUMBERS = itertools.count()
EXACT = {"kv", "cron", "export"}  # print texts as they are stored when nobody looks
# Each call costs 60 ms, so that not every one is made under every condition.
SLOW = {"demo"}  # takes seconds
HAS_DIALOGUES = all(map(importlib.util.find_spec, ("yaml", "chatterbot_corpus")))  # else the demo says what it needs: 2
Run = Callable[[list[Call]], list[Outcome]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / HOSTILE
    found.mkdir()
    return found


@pytest.fixture
def path(folder: Path, make_task: Callable[..., QueuedTask], make_job: Callable[..., ExternalJob]) -> Path:
    """A store with hostile texts everywhere, in a folder with a hostile name, and files to import."""
    found = folder / "data.limpet"
    with Store.open(found, durability="os") as store:
        for role in ("user", HOSTILE):
            store.messages.append(HOSTILE, {"role": role, "content": HOSTILE})
        store.sessions.new_generation(HOSTILE)
        store.messages.append_many(
            HOSTILE, [{"role": HOSTILE, "content": HOSTILE}] * 150
        )  # more than a buffer of output
        store.sessions.patch(HOSTILE, title=HOSTILE, peer_name=HOSTILE)
        store.tasks.submit(make_task(HOSTILE, id=HOSTILE, session_key=HOSTILE, error=HOSTILE))
        store.jobs.enqueue(make_job(id=HOSTILE, session_key=HOSTILE, provider=HOSTILE, prompt=HOSTILE))
        store.cron.put(HOSTILE, HOSTILE)
        store.pairing.put(HOSTILE, HOSTILE, Pending(HOSTILE, 1_780_003_600))
        store.kv.set(HOSTILE, HOSTILE)
        store.aliases.put(HOSTILE, HOSTILE)
        store.permissions.put(HOSTILE, HOSTILE, HOSTILE)
        store.idempotency.mark_delivered(HOSTILE)
        with (folder / "all.jsonl").open("wb") as stream:
            store.export_jsonl(stream)
            stream.write(json.dumps({"table": HOSTILE, "key": HOSTILE, "row": 1}, ensure_ascii=False).encode() + b"\n")
            stream.write(b"\xff\n")
        with store.database.write() as txn:
            txn[schema.KV.table][f"{HOSTILE} bad"] = b"\xff"  # undecodable: check and kv tell of it
    maker = RedbMaker()
    maker.add_table("cron_jobs", [(HOSTILE, HOSTILE), (f"{HOSTILE}2", b"\xff")])
    maker.add_table(HOSTILE, [(HOSTILE, HOSTILE)])
    (folder / "data.redb").write_bytes(maker.file())
    home = folder / "openclaw"
    home.mkdir()
    (home / "sessions.json").write_text(json.dumps({HOSTILE: {"sessionId": HOSTILE, "origin": {"label": HOSTILE}}}))
    line = json.dumps({"type": "message", "message": {"role": "user", "content": HOSTILE}})
    (home / f"{HOSTILE}.jsonl").write_text(f"{line}\nbroken {HOSTILE}\n")
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(calls: list[Call]) -> list[Outcome]:
        (tmp_path / "calls").mkdir()
        return run_calls("limpet_store.cli", calls, tmp_path / "calls")

    return run


def argv(verb: str, path: Path) -> list[str | bytes]:
    """A sensible call. What reads standard input or is written there has its own place in the tests below."""
    folder = path.parent
    new = f"{folder}/new-{next(NUMBERS)}"
    files = {"export": new, "import": folder / "all.jsonl", "import-redb": folder / "data.redb"}
    files["inspect-redb"] = files["import-redb"]
    values = {
        "key": HOSTILE,
        "name": HOSTILE,
        "id": HOSTILE,
        "dir": folder / "openclaw",
        "target": new,
        "file": files.get(verb),
    }
    named = [action for action in VERBS[verb]._actions if not action.option_strings]
    options = {
        "demo": ["--sessions", "1", "--kills", "0", "--seed", "1"],
        "retention": ["--archive", "0s"],
        "archive": ["--all"],
    }
    store = new if verb in ("demo", "import", "import-openclaw") else path
    return [verb, *(str(values[action.dest]) for action in named), f"--store={store}", *options.get(verb, [])]


def every_call(path: Path, *, as_json: bool = True, **conditions: str) -> list[Call]:
    """Every verb for people and, if wanted, for programs; those that do without their argument also without it."""
    found = []
    for verb, parser in VERBS.items():
        if verb in SLOW and (conditions["stdout"] in ("terminal", "full") or conditions.get("encoding") == "ascii"):
            continue  # the rest is enough; what it rewrites on a terminal is in test_demo.py
        usual = argv(verb, path)
        found.append(Call(tuple(usual), **conditions))
        if as_json and verb not in SLOW:
            found.append(Call((*argv(verb, path), "--json"), **conditions))
        if any(action.nargs == "?" for action in parser._actions) and not verb.startswith("import"):
            found.append(Call((verb, f"--store={path}"), **conditions))
    return found


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
def test_every_verb_in_every_encoding(encoding: str, errors: str, stdout: str, path: Path, run: Run) -> None:
    """`messages` and `stats` gave a terminal what users had written, and JSON broke off where it was not UTF-8."""
    as_json = errors == "surrogateescape" or encoding == "utf-8"
    outcomes = run(every_call(path, as_json=as_json, stdout=stdout, encoding=encoding, errors=errors))
    assert not problems(outcomes)
    for outcome in outcomes:
        if "--json" in outcome.call.argv:
            assert json.loads(outcome.out.decode(encoding)) is not None
        elif outcome.call.argv[0] == "export" and len(outcome.call.argv) == 2:
            copy = io.BytesIO(outcome.out if stdout == "file" else outcome.out.decode(encoding).encode())
            with Store.open(":memory:") as store:
                report = store.import_jsonl(copy)
                assert (report.ok, store.kv.get(HOSTILE)) == (True, HOSTILE)
    assert any(FORGED.encode() in outcome.out for outcome in outcomes)
    codes = {outcome.code for outcome in outcomes if HAS_DIALOGUES or outcome.call.argv[0] != "demo"}
    assert codes == {0, 1}


@pytest.mark.parametrize("stdout", SPOILS)
def test_every_verb_without_a_way_to_say_anything(stdout: str, path: Path, run: Run) -> None:
    """Any verb ended in a traceback where standard output was closed, and at a full disk in the one about the first."""
    outcomes = run(every_call(path, as_json=stdout == "closed", stdout=stdout, stdin="closed"))
    assert not problems(outcomes)
    assert {outcome.code for outcome in outcomes} <= ({141, 1} if stdout == "gone" else {1})
    if stdout == "closed":
        assert [outcome for outcome in outcomes if not outcome.err] == []


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
            elif action.dest != "store" or verb == "kv":  # it is the same for every verb
                option = action.option_strings[-1].encode()
                calls += [Call((*usual, option + b"=" + text)) for text in (NOT_UTF8, hostile)]
    assert not problems(run(calls))


def test_import_without_standard_input_says_so(path: Path, run: Run) -> None:
    (outcome,) = run([Call(("import", "--store", f"{path}.new"), stdin="closed")])
    assert (outcome.code, outcome.err) == (1, b"limpet-store: [Errno 9] standard input is closed\n")
    assert not os.path.exists(f"{path}.new")


def test_a_real_process_without_streams(path: Path) -> None:
    """The forked calls above stand for this."""
    program = "import sys; from limpet_store.cli import main; sys.exit(main())"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", program, "stats", "--store", str(path)],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    message = b"limpet-store: the output could not be written: [Errno 9] standard output is closed\n"
    assert (done.returncode, done.stderr) == (1, message)
