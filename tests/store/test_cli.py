"""`limpet-store`, verb by verb: tables for people, JSON for programs, exit codes for scripts."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from limpet_store import Approved, ExternalJob, Pending, QueuedTask, Store, cli, schema

KEY = "agent:main:telegram:direct:u1"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], db_path: Path) -> Run:
    """Runs a verb on the test's store in this process."""

    def main(verb: str, *args: str, store: Path = db_path) -> Outcome:
        code = cli.main([verb, "--store", str(store), *args])
        return Outcome(code, *capsys.readouterr())

    return main


@pytest.fixture
def filled(
    db_path: Path, clock: Any, make_task: Callable[..., QueuedTask], make_job: Callable[..., ExternalJob]
) -> Path:
    """A closed store with something for each verb."""
    with Store.open(db_path, clock=clock) as store:
        store.messages.append(KEY, {"role": "user", "content": "hello"})
        store.messages.append(KEY, {"role": "assistant", "content": "hi \U0001f980\nthere"})
        store.sessions.new_generation(KEY)
        store.messages.append(KEY, {"role": "user", "content": "again " + "x" * 500})
        store.sessions.patch(KEY, title="Greetings", pinned=True)
        store.messages.append("other", {"role": "user", "content": "small"})
        store.tasks.submit(make_task("to do", id="t1"))
        store.jobs.enqueue(make_job(id="j1"))
        store.cron.put("brief", '{"every":60}')
        store.pairing.put("telegram", "u1", Approved())
        store.pairing.put("feishu", "u2", Pending("ABCD-2345", 1_780_003_600))
        store.kv.set("todo:a", "[]")
        store.kv.set("note", "x\ty")
        store.idempotency.mark_delivered("k")
    return db_path


def test_sessions(run: Run, filled: Path) -> None:
    out = run("sessions").out.splitlines()
    assert out[0].split() == ["session", "generation", "active", "archived", "last", "active", "title", "pinned"]
    assert out[2].split() == [KEY, "2", "1", "3", "2026-05-28", "20:26:40Z", "Greetings", "yes"]
    assert len(out) == 4
    rows = run("sessions", "--json", "--prefix", "agent:").json
    assert [(row["session"], row["archived"], row["row"]["title"]) for row in rows] == [(KEY, 3, "Greetings")]
    assert len(run("sessions", "--json", "--limit", "1").json) == 1
    assert run("sessions", "--prefix", "zz").out == "no sessions\n"


def test_messages(run: Run, filled: Path) -> None:
    assert run("messages", KEY).out == "user: again " + "x" * 500 + "\n"
    assert run("messages", "other", "--recent", "1", "--json").json == [{"role": "user", "content": "small"}]
    assert run("messages", "nobody").out == "no active messages\n"


def test_archive(run: Run, filled: Path) -> None:
    assert run("archive", KEY).out == "3 messages, numbers 0 to 1\ngenerations: 1, 2\n"
    assert run("archive", KEY, "--json").json == {
        "total_messages": 3,
        "oldest_seq": 0,
        "newest_seq": 1,
        "generations": [1, 2],
    }
    assert "hi \U0001f980 there" in run("archive", KEY, "--head", "2").out
    assert [row["generation"] for row in run("archive", KEY, "--tail", "2", "--json").json] == [1, 2]
    assert [row["seq"] for row in run("archive", KEY, "--grep", "HELLO", "--json").json] == [0]
    assert [row["seq"] for row in run("archive", KEY, "--grep", "HEL+O", "--regex", "--json").json] == [0]
    assert run("archive", KEY, "--grep", "HEL+O").out == "no such messages\n"
    assert len(run("archive", KEY, "--all", "--json").json) == 3
    assert len(run("archive", KEY, "--slice", "0-0", "--json").json) == 2
    assert len(run("archive", KEY, "--slice", "0-0", "--generation", "2", "--json").json) == 1
    assert run("archive", "nobody").out == "no archived messages\n"
    for wrong in (
        ["--grep", "(", "--regex"],
        ["--regex"],
        ["--grep", "x", "--regex", "--timeout", "0"],
        ["--slice", "x"],
    ):
        outcome = run("archive", KEY, *wrong)
        assert outcome.code == 2
        assert outcome.err.startswith("limpet-store: ")


def test_tasks_jobs_cron_pairings_and_kv(run: Run, filled: Path) -> None:
    assert "to do" in run("tasks").out
    assert run("tasks", "--status", "done").out == "no tasks\n"
    (task,) = run("tasks", "--status", "pending", "--json").json
    assert (task["id"], task["row"]["messages"][0]["text"]) == ("t1", "to do")
    (job,) = run("jobs", "--json").json
    assert (job["id"], job["version"], job["row"]["prompt"]) == ("j1", 1, "a crab surfing")
    assert run("jobs", "--status", "Done").out == "no jobs\n"
    assert "brief" in run("cron").out
    assert run("cron", "brief").out == '{"every":60}\n'
    assert run("cron", "nobody").code == 1
    assert [row["state"] for row in run("pairings", "--json").json] == ["Pending", "Approved"]
    assert [row["peer"] for row in run("pairings", "--channel", "telegram", "--json").json] == ["u1"]
    assert run("kv", "note").out == "x\ty\n"
    assert run("kv", "--prefix", "todo:", "--json").json == [{"name": "todo:a", "value": "[]"}]
    assert run("kv", "nobody").code == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tasks", "--status", "nope"), "'nope' is none of pending, running, done, failed, dead"),
        (("jobs", "--status", "nope"), "choose from 'Pending', 'Polling', 'Done', 'Failed', 'TimedOut'"),
        (("tasks", "--limit", "nope"), "'nope' is no whole number"),
        (("stats", "--limit", "0"), "0 is not 1 or more"),
        (("messages", "k", "--recent", "1.5"), "'1.5' is no whole number"),
        (("archive", "k", "--tail", "nope"), "'nope' is no whole number"),
        (("demo", "--kills", "nope"), "'nope' is no whole number"),
        (
            (
                "demo",
                "--kills=-1",
            ),
            "-1 is not 0 or more",
        ),
        (("retention", "--jobs", "nope"), "write 90s, 15m"),
        (("retention", "--jobs", "9" * 5000), "write 90s, 15m"),
        (("retention", "--step", "nope"), "'nope' is no whole number"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_be_right(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    """What was given was called an "invalid <lambda> value", or the like with the name of a function of ours."""
    with pytest.raises(SystemExit) as usage:
        run(*arguments)
    assert usage.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "invalid " not in said.replace("invalid choice", "")


def test_stats(run: Run, filled: Path) -> None:
    stats = run("stats", "--json").json
    counts = {entry["table"]: entry["rows"] for entry in stats["tables"]}
    assert (counts["messages"], counts["archive"], counts["tasks"], counts["kv"]) == (2, 4, 1, 2)
    assert stats["tasks"] == {"Pending": 1, "Running": 0, "Done": 0, "Failed": 0, "Dead": 0}
    assert [entry["session"] for entry in stats["largest_sessions"]] == [KEY, "other"]
    assert stats["file_size"] == filled.stat().st_size
    with Store.open(filled, read_only=True) as store, store.database.read() as txn:
        for entry in stats["tables"]:
            assert entry["bytes"] == sum(map(len, txn.table(entry["table"]).values())), entry
    assert "largest conversations" in run("stats").out


def test_check_is_silent_about_nothing(run: Run, filled: Path) -> None:
    assert run("check") == (0, "OK\n", "")
    with Store.open(filled) as store, store.database.write() as txn:
        txn[schema.KV.table]["bad"] = b"\xff"
        del txn[schema.TASK_QUEUE.table]["Pending", 2, 1_780_000_000, 1]
    outcome = run("check")
    assert outcome.code == 1
    assert "error: kv['bad'] cannot be decoded" in outcome.out
    assert outcome.out.endswith("2 errors found\n")
    assert run("check", "--json").json["ok"] is False


def test_export_and_import(run: Run, filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"
    outcome = run("export", str(target))
    assert outcome.code == 0
    text = target.read_text("utf-8")
    assert run("export").out == text
    assert run("export", str(target)).code == 1, "an export overwrites nothing"
    copy = tmp_path / "copy.limpet"
    assert run("import", str(target), store=copy).code == 0
    assert run("export", store=copy).out == text
    assert run("import", str(target), "--json", store=copy).json["changed"] == 0
    target.write_bytes(text.encode() + b"broken\n\xff\n")
    outcome = run("import", str(target), store=copy)
    count = text.count("\n")
    assert outcome.code == 1
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == [
        f"{target}:{count + 1}",
        f"{target}:{count + 2}",
    ]


def test_backup(run: Run, filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.limpet"
    assert run("backup", str(target)).code == 0
    assert run("check", store=target).code == 0
    assert run("export", store=target).out == run("export").out
    assert run("backup", str(target)).code == 1


def test_retention(run: Run, filled: Path) -> None:
    removed = run("retention", "--json", "--sessions", "never", "--archive", "1s", "--step", "1", "--force").json
    # The store was filled by a clock of its own; the verb's is the machine's.
    assert removed.keys() == {"sessions", "archive", "idempotency", "jobs"}
    assert run("retention", "--force").code == 0
    with pytest.raises(SystemExit):
        run("retention", "--archive", "soon")


@pytest.fixture
def openclaw(tmp_path: Path) -> Path:
    """An OpenClaw home with two agents, odd keys, broken lines, a missing transcript."""
    home = tmp_path / "openclaw"
    main = home / "agents" / "main" / "sessions"
    other = home / "agents" / "other" / "sessions"
    main.mkdir(parents=True)
    other.mkdir(parents=True)

    def message(role: str, content: Any, **fields: Any) -> str:
        return json.dumps({"type": "message", "id": "x", "message": {"role": role, "content": content, **fields}})

    (main / "s1.jsonl").write_text(
        "\n".join(
            [
                '{"type":"session","id":"s1","version":3}',
                message("user", "hello", timestamp=1_700_000_000_000),
                message(
                    "assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}], model="m"
                ),
                message("assistant", [{"type": "tool_use", "name": "run"}]),
                message("toolResult", [{"type": "image", "data": "AAAA"}]),
                "broken {",
                message("user", "bad \ud800"),
                '{"type":"compaction","summary":"..."}',
                "",
            ]
        )
    )
    sessions = {
        "agent:main:openclaw-weixin:acc:direct:u1": {
            "sessionId": "s1",
            "updatedAt": 1_700_000_500_000,
            "sessionStartedAt": 1_700_000_000_000,
            "origin": {"label": "Ada"},
        },
        "main": {"sessionId": "gone"},
    }
    (main / "sessions.json").write_text(json.dumps(sessions))
    (other / "s2.jsonl").write_text(message("user", "from another agent") + "\n")
    (other / "sessions.json").write_text(
        json.dumps({"main": {"sessionId": "s2", "sessionFile": "/elsewhere/s2.jsonl"}})
    )
    return home


def test_import_openclaw(run: Run, openclaw: Path, db_path: Path) -> None:
    key = "agent:main:openclaw-weixin:acc:direct:u1"
    dry = run("import-openclaw", str(openclaw), "--dry-run", "--json").json
    assert not db_path.exists()
    outcome = run("import-openclaw", str(openclaw), "--json")
    assert outcome.code == 1, "a line was left out"
    assert outcome.json == dry
    assert (dry["sessions"], dry["messages"], dry["aliases"], dry["sessions_without_a_transcript"]) == (2, 4, 3, 1)
    assert [error.split(": ")[0].rpartition(":")[2] for error in dry["errors"]] == ["6"]
    assert [where.rpartition(":")[2] for where in dry["mended"]] == ["7"]
    assert dry["adds_up"]
    with Store.open(db_path) as store:
        assert store.sessions.list() == [key, "agent:other:main"]
        assert store.messages.load(key) == [
            {"role": "user", "content": "hello", "model": None, "timestamp": 1_700_000_000_000, "source": "openclaw"},
            {
                "role": "assistant",
                "content": "[thinking] hm\nhi",
                "model": "m",
                "timestamp": None,
                "source": "openclaw",
            },
            {"role": "user", "content": "bad \ufffd", "model": None, "timestamp": None, "source": "openclaw"},
        ]
        meta = store.sessions.get(key)
        assert meta is not None
        assert (meta.created_at, meta.last_active, meta.peer_name) == (1_700_000_000, 1_700_000_500, "Ada")
        assert store.aliases.all() == {
            "agent:main:openclaw-weixin:direct:u1": key,
            "agent:main:wechat:acc:direct:u1": key,
            "agent:main:wechat:direct:u1": key,
        }
    with (openclaw / "agents" / "other" / "sessions" / "s2.jsonl").open("a") as transcript:
        transcript.write('{"type":"message","message":{"role":"user","content":"later"}}\n')
    again = run("import-openclaw", str(openclaw), "--json").json
    assert (again["messages"], again["aliases"]) == (1, 0)
    assert run("import-openclaw", str(openclaw / "agents" / "other"), "--json").json["messages"] == 0
    assert "0 messages" in run("import-openclaw", str(openclaw / "agents" / "other" / "sessions")).out
    assert run("import-openclaw", str(openclaw / "agents")).code == 3


def test_a_time_of_openclaw_that_no_row_can_hold_is_left_out(run: Run, openclaw: Path, db_path: Path) -> None:
    """Such a time ended the import in the middle, in a traceback."""
    index = openclaw / "agents" / "other" / "sessions" / "sessions.json"
    sessions = json.loads(index.read_text())
    sessions["main"] |= {"updatedAt": 10**30, "sessionStartedAt": 10**30}
    index.write_text(json.dumps(sessions))
    assert run("import-openclaw", str(openclaw), "--json").json["messages"] == 4
    with Store.open(db_path) as store:
        meta = store.sessions.get("agent:other:main")
        assert meta is not None
        assert 0 < meta.created_at <= meta.last_active < 10**10


def test_a_store_that_a_gateway_holds_is_refused_and_its_holder_named(run: Run, filled: Path) -> None:
    hold = (
        "import sys; from limpet_store import Store; "
        "store = Store.open(sys.argv[1]); print('ok', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(filled)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        assert gateway.stdout.readline() == "ok\n"
        outcome = run("sessions")
        assert outcome.code == 3
        assert str(gateway.pid) in outcome.err
        assert gateway.stdin is not None
        gateway.stdin.close()
        gateway.wait(10)
    assert run("sessions").code == 0


def test_what_is_no_store_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run("sessions", store=tmp_path / "nowhere.limpet")
    assert outcome.code == 3
    assert "no such file" in outcome.err
    other = tmp_path / "other"
    other.write_text("something else entirely")
    assert run("stats", store=other).code == 3
    assert other.read_text() == "something else entirely"


def test_every_verb_has_help_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert "--json" in out
        assert "--store" in out
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_the_command_is_installed_and_stops_quietly_at_a_closed_pipe(filled: Path) -> None:
    command = [sys.executable, "-c", "import sys; from limpet_store.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, "export", "-s", str(filled)], capture_output=True, text=True)
    assert done.returncode == 0
    with Store.open(":memory:") as store:
        assert store.import_jsonl(io.StringIO(done.stdout)).ok
