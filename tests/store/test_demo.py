"""The demo: a day with kills loses nothing, and a store that did lose something is found out."""

import importlib.util
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet_store import Store, TaskStatus
from limpet_store.cli import main
from limpet_store.demo import driver, report, script, sources, worker
from limpet_store.demo.ledger import Ledger, ProtocolError, Talk
from limpet_store.demo.screen import Screen
from limpet_store.demo.script import Session, Step
from limpet_store.demo.sources import Dialogue, SourceError, Turn
from limpet_store.demo.verify import verify_sessions, verify_tasks
from limpet_store.schema import ARCHIVE, MESSAGES, TASK_IDS, TASKS

SEED = 20_261
# A shell starts what it runs in the background with SIGINT ignored, and a child would inherit that from these tests.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = "import sys; from limpet_store.cli import main; sys.exit(main())"
KEY = "agent:main:web:direct:u1"


# --- the whole of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed_corpus() -> None:
    """For a test that plays the corpus: it is skipped where the packages of the extra `demo` are missing."""
    for package in ("yaml", "chatterbot_corpus"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: the extra `demo` is not installed")


@pytest.fixture(scope="module")
def dialogues(installed_corpus: None) -> list[Dialogue]:
    """The corpus, read once."""
    return sources.corpus()


def test_a_day_with_three_kills_loses_nothing(
    db_path: Path, dialogues: list[Dialogue], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["demo", "--sessions", "2", "--kills", "3", "--seed", str(SEED), "--store", str(db_path)])
    told = " ".join(capsys.readouterr().out.split())
    assert code == 0, told
    assert f"Seed: {SEED}" in told
    assert "SIGKILL 3 of 3" in told
    assert "acknowledged lines, each in its session" in told
    assert str(db_path) in told
    with Store.open(db_path) as store:
        assert store.check().ok
        keys = store.sessions.list()
        assert len(keys) == 2
        assert all(task.status is TaskStatus.DONE and task.notified for task in store.tasks.list())
        archived = sum(store.archive.stat(key).total_messages for key in keys)
    assert f"{archived:,} acknowledged lines" in told
    planned = script.from_corpus(dialogues, random.Random(SEED))[:2]
    assert archived == 2 * sum(step.turn is not None for session in planned for step in session.steps)


def test_transcripts_in_json_lines_are_played_and_reported_as_json(
    tmp_path: Path, db_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "transcripts"
    write_transcripts(folder)
    code = main(
        [
            "demo",
            "--from",
            str(folder),
            "--sessions",
            "9",
            "--kills",
            "1",
            "--seed",
            "1",
            "--store",
            str(db_path),
            "--json",
        ]
    )
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert code == 0, result
    assert result["ok"] is True
    assert result["errors"] == []
    assert (result["sessions"], result["turns"], result["lines"], result["kills"]) == (2, 13, 26, 1)
    assert result["verified_lines"] == 26
    assert "SIGKILL" in told.err, "progress goes to standard error"
    with Store.open(db_path) as store:
        said = {message["content"] for key in store.sessions.list() for message in store.messages.load(key)}
    assert {"question 3", "answer 3", "good\nmorning", "\u65e9\u4e0a\u597d"} <= said


def test_a_deleted_row_makes_it_end_with_exit_code_1(
    tmp_path: Path, db_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "transcripts"
    write_transcripts(folder)
    conclude = report.conclude

    def sabotaged(path: str, *args: Any, **options: Any) -> report.Result:
        with Store.open(path) as store, store.database.write() as txn:
            txn[ARCHIVE.table].pop_first()
        return conclude(path, *args, **options)

    monkeypatch.setattr(report, "conclude", sabotaged)
    code = main(
        ["demo", "--from", str(folder), "--sessions", "9", "--kills", "0", "--seed", "1", "--store", str(db_path)]
    )
    told = " ".join(capsys.readouterr().out.split())
    assert code == 1
    assert "WRONG" in told
    assert "lines were acknowledged, and" in told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
def test_ctrl_c_ends_it_in_peace(db_path: Path, installed_corpus: None) -> None:
    demo = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HEARS_CTRL_C + COMMAND,
            "demo",
            "--seed",
            str(SEED),
            "--store",
            str(db_path),
            "--kills",
            "99",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "back after" in line:
            break
    demo.send_signal(signal.SIGINT)
    told, complaints = demo.communicate(timeout=60)
    assert demo.returncode == 130, told + complaints
    assert complaints == ""
    assert "Verified" in told
    with Store.open(db_path, lock_timeout=0.0) as store:  # nobody is left who holds it
        assert store.check().ok


def test_the_commands_at_the_end_can_be_typed_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` puts them into a virtual environment that no search path names, and the demo named them bare."""
    beside = tmp_path / "a b" / "limpet"
    beside.parent.mkdir()
    beside.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert shlex.split(report._typed("limpet")) == [str(beside)]
    monkeypatch.setenv("PATH", str(beside.parent))
    assert report._typed("limpet") == "limpet"


def test_an_existing_file_is_left_alone(db_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db_path.write_bytes(b"somebody's")
    assert main(["demo", "--store", str(db_path)]) == 2
    assert "new store only" in capsys.readouterr().err
    assert db_path.read_bytes() == b"somebody's"


def test_a_store_in_a_folder_that_does_not_exist_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--store", str(tmp_path / "nowhere" / "x.limpet")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_a_worker_that_dies_by_itself_is_an_error_with_its_last_words(
    tmp_path: Path, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMPET_MEMORY_TIER", "enormous")
    session = Session(KEY, "web", "u1", "english", (Step(Turn("hello", "hi"), "greetings"),))
    player = driver.Driver(
        str(db_path), [session], kills=0, day_s=None, rng=random.Random(SEED), screen=Screen(io.StringIO())
    )
    [error] = player.play().errors
    assert "exit code 1" in error
    assert "'enormous' names no memory tier" in error


# --- sources ---------------------------------------------------------------------------------------------------------


def write_transcripts(folder: Path) -> None:
    folder.mkdir()
    questions = [
        {"role": role, "content": f"{word} {number}"}
        for number in range(12)
        for role, word in (("user", "question"), ("assistant", "answer"))
    ]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(message) for message in questions) + "\n")
    conversation = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "good"}, {"type": "text", "text": "morning"}]},
        {"role": "assistant", "content": "\u65e9\u4e0a\u597d"},
        {"role": "user", "content": "nobody answers this"},
    ]
    (folder / "b.jsonl").write_text('not JSON\n{"neither": "role"}\n\n' + json.dumps({"messages": conversation}))


def test_the_corpus_gives_dialogues_in_many_languages(dialogues: list[Dialogue]) -> None:
    assert len({dialogue.origin for dialogue in dialogues}) >= 20
    assert all(line.strip() for dialogue in dialogues for turn in dialogue.turns for line in turn)


def test_the_same_seed_gives_the_same_sessions_and_every_line_is_said_once(dialogues: list[Dialogue]) -> None:
    once, again = (script.from_corpus(dialogues, random.Random(SEED)) for _ in range(2))
    assert once == again
    assert len({session.key for session in once}) == len(once)
    said = [step.turn for session in once for step in session.steps if step.turn is not None]
    assert sorted(said) == sorted(turn for dialogue in dialogues for turn in dialogue.turns)


@pytest.mark.parametrize("package", ["PyYAML", "chatterbot-corpus"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "PyYAML":
        monkeypatch.setitem(sys.modules, "yaml", None)
    else:
        monkeypatch.setitem(sys.modules, "yaml", types.ModuleType("yaml"))  # there, whatever is installed
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    complaint = capsys.readouterr().err
    assert f"{package} is not installed" in complaint
    assert "pip install 'limpet[demo]'" in complaint
    assert "--from FOLDER" in complaint


def test_a_folder_without_a_turn_says_what_it_takes_and_what_was_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"role": "assistant", "content": "hello?"}\n[1]\n')
    with pytest.raises(SourceError, match=r"x\.jsonl, line 2: a JSON object is needed"):
        sources.transcripts(tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        sources.transcripts(tmp_path / "nowhere")


def test_half_a_surrogate_pair_in_a_transcript_becomes_storable(tmp_path: Path) -> None:
    lines = [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "ok"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    [dialogue] = sources.transcripts(tmp_path)
    assert dialogue.turns == (Turn("?", "ok"),)


# --- the ledger and the verifier -------------------------------------------------------------------------------------


@pytest.fixture
def played(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Ledger]]:
    """A session that was played to its end without another process, with a fresh start in the middle."""
    steps = [Step(Turn(f"question {n}", f"answer {n}"), "numbers") for n in range(4)]
    session = Session(KEY, "web", "u1", "english", (*steps[:2], Step(None, "numbers"), *steps[2:]))
    ledger = Ledger()
    talk = ledger.begin(session)

    def hear(self: worker.Worker, event: str, **fields: Any) -> None:
        ledger.hear({"event": event, **fields})

    monkeypatch.setattr(worker.Worker, "tell", hear)
    with Store.open(db_path, durability="os") as store:
        gateway = worker.Worker(store)
        while not talk.is_over:
            answer_next(gateway, talk)
        yield store, ledger


def answer_next(gateway: worker.Worker, talk: Talk) -> None:
    gateway.accept(talk.say())
    task = gateway.store.tasks.dequeue()
    assert task is not None
    gateway.answer(task)


def complaints(store: Store, ledger: Ledger) -> list[str]:
    return verify_sessions(store, ledger).errors + verify_tasks(store, ledger, finished=True)


def test_what_was_played_is_found_line_by_line(played: tuple[Store, Ledger]) -> None:
    store, ledger = played
    assert complaints(store, ledger) == []
    findings = verify_sessions(store, ledger)
    assert (findings.lines, findings.sessions, findings.unacked) == (8, 1, 0)
    assert [message["content"] for message in store.messages.load(KEY)] == [
        "question 2",
        "answer 2",
        "question 3",
        "answer 3",
    ]
    assert store.archive.stat(KEY).generations == [1, 2]


def lose_archived(store: Store) -> None:
    with store.database.write() as txn:
        del txn[ARCHIVE.table][KEY, 1, 2]


def lose_active(store: Store) -> None:
    with store.database.write() as txn:
        txn[MESSAGES.table].pop_last()


def lose_session(store: Store) -> None:
    store.sessions.delete(KEY)


def lose_task(store: Store) -> None:
    with store.database.write() as txn:
        arrival = txn[TASK_IDS.table].pop(f"{KEY}#0")
        del txn[TASKS.table][arrival]


def double_line(store: Store) -> None:
    store.messages.append(KEY, store.messages.load(KEY)[-1])


def change_line(store: Store) -> None:
    with store.database.write() as txn:
        rows = txn[ARCHIVE.table]
        rows[KEY, 1, 0] = rows[KEY, 1, 0].replace(b"question", b"assertion")


def swap_lines(store: Store) -> None:
    with store.database.write() as txn:
        rows = txn[ARCHIVE.table]
        rows[KEY, 1, 0], rows[KEY, 1, 1] = rows[KEY, 1, 1], rows[KEY, 1, 0]


def run_again(store: Store) -> None:
    store.tasks.set_status(f"{KEY}#1", TaskStatus.PENDING)


def begin_another(store: Store) -> None:
    store.messages.append("somebody else", {"role": "user", "content": "hello"})


@pytest.mark.parametrize(
    "sabotage",
    [
        lose_archived,
        lose_active,
        lose_session,
        lose_task,
        double_line,
        change_line,
        swap_lines,
        run_again,
        begin_another,
    ],
    ids=lambda sabotage: sabotage.__name__,
)
def test_sabotage_is_found_out(played: tuple[Store, Ledger], sabotage: Callable[[Store], None]) -> None:
    store, ledger = played
    sabotage(store)
    assert complaints(store, ledger)


def test_a_line_in_flight_may_be_stored_once_or_not_at_all(played: tuple[Store, Ledger]) -> None:
    store, ledger = played
    talk = ledger.talks[KEY]
    talk.answered -= 1  # the last exchange is in flight again, and its acknowledgements were never heard
    talk.acked -= 2
    del talk.sent[-2:]
    talk.say()
    findings = verify_sessions(store, ledger)
    assert (findings.errors, findings.lines, findings.unacked) == ([], 6, 2)
    double_line(store)
    assert verify_sessions(store, ledger).errors


def test_a_message_delivered_again_is_answered_from_what_is_stored(played: tuple[Store, Ledger]) -> None:
    store, ledger = played
    talk = ledger.talks[KEY]
    talk.answered -= 1
    talk.acked -= 2
    del talk.sent[-2:]
    worker.Worker(store).accept(talk.say())
    assert talk.is_over
    assert store.tasks.dequeue() is None
    assert complaints(store, ledger) == []


def test_a_turn_that_is_done_again_after_a_crash_appends_nothing_twice(played: tuple[Store, Ledger]) -> None:
    # The worker dies after the user's line is stored; the task is put back and done again from its beginning.
    store, ledger = played
    session = Session("k", "web", "u2", "english", (Step(Turn("hello", "hi"), "greetings"),))
    talk = ledger.begin(session)
    gateway = worker.Worker(store)
    gateway.accept(talk.say())
    task = store.tasks.dequeue()
    assert task is not None
    with store.write() as tx:
        tx.messages.append("k", {"role": "user", "content": "hello", "id": "k#0:user"})
        tx.idempotency.mark_delivered(f"task:{task.id}:user")
    assert verify_sessions(store, ledger).unacked == 1
    assert store.tasks.requeue_running() == 1
    again = store.tasks.dequeue()
    assert again is not None
    gateway.answer(again)
    assert talk.is_over
    assert complaints(store, ledger) == []


def test_a_wrong_reply_and_a_stranger_are_protocol_errors() -> None:
    ledger = Ledger()
    talk = ledger.begin(Session(KEY, "web", "u1", "english", (Step(Turn("hello", "hi"), "greetings"),)))
    talk.say()
    with pytest.raises(ProtocolError, match="'good bye', and 'hi' was expected"):
        ledger.hear({"event": "answered", "id": f"{KEY}#0", "seq": 1, "text": "good bye"})
    with pytest.raises(ProtocolError, match="which nobody sent"):
        ledger.hear({"event": "queued", "id": "stranger#0"})


# --- the screen ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_status_line_stays_on_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    screen = Screen(stream)
    screen.status("\u4f60\u597d " * 60 + "\n")
    screen.status("short")
    assert "\n" not in stream.getvalue()
    first, second = stream.getvalue().split("\r")[1:]
    assert 2 * sum(ord(character) > 255 for character in first) + sum(ord(c) < 256 for c in first) < columns
    assert len(second) < columns
    screen.say("done")
    assert stream.getvalue().endswith("\rdone\n")


def test_output_that_is_no_terminal_has_plain_lines_only() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen = Screen(stream)
    screen.status("caf\u00e9")
    screen.note("done")
    stream.flush()
    assert raw.getvalue().split(b"\n")[0].endswith(b"s  caf?")
    assert b"\r" not in raw.getvalue().replace(os.linesep.encode(), b"\n")
