"""Opening and closing, transactions, the schema's version, retention, export and import, backup, check."""

import contextlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limpet
from limpet_store import (
    Approved,
    ExternalJob,
    MemoryTier,
    Pending,
    QueuedTask,
    SchemaError,
    SessionMeta,
    Store,
    TaskStatus,
    migrations,
    schema,
)

KEY = "agent:main:telegram:direct:u1"
Commits = Callable[..., int]


def test_open_logs_path_tier_and_format(db_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="limpet_store"), Store.open(db_path, tier=MemoryTier.LOW) as store:
        assert store.tier is MemoryTier.LOW
        assert store.database.path == str(db_path)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "limpet_store"]
    assert message == f"opened {db_path}: memory tier low (16 MiB of cache), format {store.database.format_version}"


def test_a_store_in_memory_works_and_the_tier_is_detected() -> None:
    with Store.open(":memory:") as store:
        assert store.tier is MemoryTier.detect()
        store.kv.set("a", "b")
        assert store.kv.get("a") == "b"
        assert store.check().ok


def test_what_was_written_is_there_after_closing_and_opening(db_path: Path) -> None:
    with Store.open(str(db_path)) as store:
        store.messages.append(KEY, {"n": 1})
        store.close()
        store.close()
        with pytest.raises(limpet.ClosedError):
            store.messages.load(KEY)
    with Store.open(db_path) as store:
        assert store.messages.load(KEY) == [{"n": 1}]


def test_opening_an_existing_store_commits_nothing(db_path: Path) -> None:
    with Store.open(db_path) as store, store.read() as tx:
        before = tx.txid
    with Store.open(db_path) as store, store.read() as tx:
        assert tx.txid == before


def test_a_read_only_store_reads_and_refuses_to_write(db_path: Path) -> None:
    with Store.open(db_path) as store:
        store.kv.set("a", "b")
    with Store.open(db_path, read_only=True) as store:
        assert store.kv.get("a") == "b"
        assert store.check().ok
        with pytest.raises(limpet.ReadOnlyError):
            store.kv.set("a", "c")
        with pytest.raises(limpet.ReadOnlyError):
            store.retention(idempotency_s=0)


def test_a_file_without_a_store_is_refused_read_only_and_left_alone(db_path: Path) -> None:
    limpet.open(db_path).close()
    with pytest.raises(SchemaError, match="no store") as caught:
        Store.open(db_path, read_only=True)
    assert (caught.value.found, caught.value.supported) == (None, schema.SCHEMA_VERSION)
    with limpet.open(db_path) as database:
        assert database.tables() == []


def test_tables_of_a_newer_release_are_refused(db_path: Path) -> None:
    with Store.open(db_path) as store, store.database.write() as txn:
        txn[schema.STORE.table]["schema"] = b'{"version":99}'
    for read_only in (False, True):
        with pytest.raises(SchemaError, match="99") as caught:
            Store.open(db_path, read_only=read_only)
        assert caught.value.found == 99


def test_a_version_that_cannot_be_read_is_refused_and_not_taken_for_a_new_file(
    store: Store, overwrite: Callable[[str, Any, bytes], None], expect_damage: list[str]
) -> None:
    expect_damage += ["version of the tables cannot be read", "store['schema'] cannot be decoded"]
    overwrite("store", "schema", b'{"vers')
    with store.reading() as work:
        for call in (migrations.is_current, migrations.stored_version):
            with pytest.raises(SchemaError, match="cannot be read"):
                call(work)


def test_an_older_format_is_upgraded_on_open_but_not_read_only(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(db_path).close()
    upgraded: list[tuple[Path, float]] = []
    real = limpet.open

    def old_until_upgraded(path: Path, **options: Any) -> limpet.Database:
        if not upgraded:
            raise limpet.UpgradeRequiredError("an older format")
        return real(path, **options)

    monkeypatch.setattr(limpet, "open", old_until_upgraded)
    monkeypatch.setattr(limpet, "upgrade", lambda path, *, lock_timeout: upgraded.append((path, lock_timeout)))
    with pytest.raises(limpet.UpgradeRequiredError):
        Store.open(db_path, read_only=True)
    with Store.open(db_path, lock_timeout=2.5) as store:
        assert store.check().ok
    assert upgraded == [(db_path, 2.5)], "the upgrade waits for the lock as long as the opening does"


def test_migrations_run_step_by_step_and_once(store: Store) -> None:
    ran: list[int] = []

    def step(version: int) -> Callable[[Any], None]:
        def run(work: Any) -> None:
            assert migrations.stored_version(work) == schema.SCHEMA_VERSION
            ran.append(version)

        return run

    first = schema.SCHEMA_VERSION
    steps = {version: step(version) for version in (first, first + 1)}
    for _ in range(2):
        with store.writing() as work:
            migrations.prepare(work, "x", steps, first + 2)
    assert ran == [first, first + 1]
    with store.writing() as work:
        assert migrations.stored_version(work) == first + 2
        work.put(schema.STORE, "schema", {"version": first}, {"version": first + 2})


def test_a_migration_that_fails_leaves_the_old_version(store: Store) -> None:
    def fail(_work: Any) -> None:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError), store.writing() as work:
        migrations.prepare(work, "x", {schema.SCHEMA_VERSION: fail}, schema.SCHEMA_VERSION + 1)
    with store.reading() as work:
        assert migrations.is_current(work)


def test_write_is_all_or_nothing_over_families(store: Store, make_task: Callable[..., QueuedTask]) -> None:
    def fail() -> None:
        with store.write() as tx:
            tx.messages.append(KEY, {"n": 1})
            tx.kv.set("a", "b")
            tx.tasks.submit(make_task())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (store.sessions.list(), store.kv.items(), store.tasks.list()) == ([], [], [])


def test_the_error_of_a_commit_is_what_the_caller_gets(
    store: Store, make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store aborted a transaction once more after its commit had failed and ended it. The caller was told that the
    transaction has ended (ClosedError) instead of what went wrong, and a job kept a version that was not stored."""

    def full_disk(self: Any) -> None:
        self.abort()
        raise OSError(28, "No space left on device")

    job = make_job()
    store.jobs.enqueue(job)
    job.poll_count = 1
    with monkeypatch.context() as patched:
        patched.setattr(limpet.WriteTransaction, "commit", full_disk)
        with pytest.raises(OSError, match="No space left"):
            store.jobs.update(job)
    assert job.version == 1
    assert store.jobs.update(job) == 2


def test_a_method_that_raises_leaves_no_trace_in_a_transaction_that_goes_on(
    store: Store, make_task: Callable[..., QueuedTask], make_message: Callable[..., Any]
) -> None:
    broken = make_task(messages=[make_message("a"), make_message("b", chat_id="\ud800")])
    with store.write() as tx:
        tx.kv.set("before", "1")
        with pytest.raises(ValueError):
            tx.tasks.enqueue(broken)
        tx.kv.set("after", "2")
    assert store.tasks.list() == []
    assert [key for key, _ in store.kv.items()] == ["after", "before"]


def test_a_transaction_that_changes_nothing_commits_nothing(store: Store, commits: Commits) -> None:
    store.kv.set("a", "b")

    def nothing() -> None:
        with store.write() as tx:
            tx.kv.set("a", "b")
            tx.kv.delete("missing")
            with contextlib.suppress(ZeroDivisionError), tx.savepoint():
                tx.kv.set("a", "c")
                raise ZeroDivisionError
            assert tx.kv.get("a") == "b"

    assert commits(nothing) == 0


def test_read_is_one_snapshot(store: Store) -> None:
    store.kv.set("a", "1")
    with store.read() as tx:
        store.kv.set("a", "2")
        store.messages.append(KEY, {})
        assert tx.kv.get("a") == "1"
        assert tx.sessions.list() == []
        with pytest.raises(limpet.ReadOnlyError):
            tx.kv.set("a", "3")
    assert store.kv.get("a") == "2"


def test_a_writer_waits_for_another_and_gives_up_when_told(store: Store) -> None:
    import threading

    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.write() as tx:
            tx.kv.set("held", "1")
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with pytest.raises(limpet.BusyError), store.write(timeout=0.01):
        pass
    leave.set()
    thread.join()
    assert store.kv.get("held") == "1"


@pytest.fixture
def full(store: Store, clock: Any, make_task: Callable[..., QueuedTask], make_job: Callable[..., ExternalJob]) -> Store:
    """Something in every table, with what is hard: generations, quarantine, large and odd values, unknown fields."""
    store.messages.append_many(KEY, [{"n": n, "text": "\u00e4\n"} for n in range(3)])
    store.sessions.new_generation(KEY)
    store.messages.append(KEY, {"n": 3})
    store.messages.replace(KEY, [{"summary": True}])
    store.messages.append("gone", {"n": 0})
    store.sessions.delete("gone")
    store.archive.purge("gone")
    store.messages.append("archive", {"content": "x" * 10_000})
    store.sessions.put("novel", SessionMeta(session_key="novel", extra={"f": 0.5}))
    store.pairing.put("telegram", "u1", Approved())
    store.pairing.put("telegram", "u2", Pending("ABCD-2345", 1))
    store.kv.set("todo:a\0b", "[]")
    store.aliases.put("old", KEY)
    store.tasks.submit(make_task("a", id="a"))
    store.tasks.submit(make_task("b"))
    store.tasks.submit(make_task("c", id="c", session_key="other"))
    store.tasks.dequeue()
    store.tasks.requeue_running()
    store.jobs.enqueue(make_job(id="j"))
    store.jobs.claim_due(clock.now + 10)
    store.idempotency.mark_delivered("task:a:turn:1")
    store.permissions.put("main", "browser", '{"decision":"allow_always"}')
    store.cron.put("brief", "0 9 * * *")
    with store.database.write() as txn:
        txn[schema.PAIRING.table]["telegram", "bad"] = b"\xff"
        txn[schema.PAIRING.table]["telegram", "odd"] = b'"Maybe"'
    store.pairing.approved("telegram")
    store.pairing.delete("telegram", "nobody")
    return store


def exported(store: Store) -> str:
    stream = io.StringIO()
    store.export_jsonl(stream)
    return stream.getvalue()


def test_export_and_import_bring_everything_over_and_twice_is_once(full: Store, clock: Any) -> None:
    text = exported(full)
    clock.advance(1000)
    with Store.open(":memory:", clock=clock) as copy:
        report = copy.import_jsonl(io.StringIO(text))
        assert report.errors == []
        assert report.lines == text.count("\n")
        assert exported(copy) == text
        report = copy.import_jsonl(io.BytesIO(text.encode()))
        assert (report.changed, report.ok) == (0, True)
        assert copy.check().errors == []
        assert copy.messages.load(KEY) == [{"summary": True}]
        assert copy.archive.load(KEY) == full.archive.load(KEY)
        assert copy.archive.stat(KEY) == full.archive.stat(KEY)
        assert copy.messages.append("gone", {}) == 0
        assert copy.archive.stat("gone").generations == [2], "generation 1 was used, though nothing is left of it"
        task = copy.tasks.dequeue()
        assert task is not None
        assert (task.id, task.attempts, [message.text for message in task.messages]) == ("a", 1, ["a", "b"])
        job = copy.jobs.get("j")
        assert job is not None
        assert job.version == 2
    tables = {json.loads(line)["table"] for line in text.splitlines()}
    derived = {"counters", "task_messages"}
    assert tables == {rows.name for rows in schema.ROWS} - derived | {"generations"}


def test_export_to_a_binary_stream_is_the_same(full: Store) -> None:
    stream = io.BytesIO()
    assert full.export_jsonl(stream) == stream.getvalue().count(b"\n")
    assert stream.getvalue().decode() == exported(full)


def test_a_row_that_somebody_indented_is_still_one_line(store: Store, overwrite: Callable[..., None]) -> None:
    overwrite("pairing", ("c", "p"), b'{\n  "Pending": {"code": "A",\r\n "expires_at": 1}\n}')
    lines = exported(store).splitlines()
    assert '{"table":"pairing","key":["c","p"],"row":{"Pending":{"code":"A","expires_at":1}}}' in lines


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        '{"table":"nobody","key":"a","row":"b"}',
        '{"table":["kv"],"key":"a","row":"b"}',
        '{"table":"kv","key":"a"}',
        '{"table":"kv","key":1,"row":"b"}',
        '{"table":"kv","key":"a","row":{}}',
        '{"table":"messages","key":["a"],"row":{}}',
        '{"table":"messages","key":["a",0],"row":[]}',
        '{"table":"archive","key":["a",0,0],"row":[1,{}]}',
        '{"table":"archive","key":["a",1,0],"row":{}}',
        '{"table":"sessions","key":"a","row":{"session_key":"b","message_count":0,"last_active":0,"created_at":0}}',
        '{"table":"tasks","key":1,"row":{}}',
        '{"table":"jobs","key":"j","row":[1,{}]}',
        '{"table":"generations","key":["a",0],"row":1}',
        '{"table":"store","key":"schema","row":{"version":"1"}}',
        '{"table":"store","key":"schema","row":{"version":0}}',
        '{"table":"kv","key":"x","row":"y","row":"z"}',
        '{"table":"messages","key":["x",0],"row":{"a":{"b":1,"c":2,"b":1}}}',
        '{"table":"messages","key":["x",0],"row":{"a":1e400}}',
        '{"table":"kv","key":"\\ud800","row":"b"}',
        '{"table":"tasks","key":true,"row":[0,{}]}',
        '{"table":"jobs","key":"j","row":[true,{}]}',
        '{"table":"quarantine","key":1,"row":5}',
        '{"table":"quarantine","key":1,"row":{"table":"kv","key":["k"]}}',
    ],
)
def test_a_broken_import_line_is_reported_and_the_rest_imported(store: Store, line: str) -> None:
    good = ['{"table":"kv","key":"a","row":"b"}\n', "\n", '{"table":"kv","key":"c","row":"d"}\n']
    report = store.import_jsonl([*good[:2], line + "\n", good[2]])
    assert [number for number, _ in report.errors] == [3]
    assert (report.lines, report.changed, report.ok) == (3, 2, False)
    assert store.kv.items() == [("a", "b"), ("c", "d")]


def test_import_never_overwrites_a_message(store: Store) -> None:
    store.messages.append(KEY, {"n": "ours"})
    lines = [
        json.dumps({"table": "messages", "key": [KEY, 0], "row": {"n": "theirs"}}),
        json.dumps({"table": "archive", "key": [KEY, 1, 0], "row": [5, {"n": "theirs"}]}),
    ]
    report = store.import_jsonl(lines)
    assert [number for number, _ in report.errors] == [1, 2]
    assert store.messages.load(KEY) == [{"n": "ours"}]


def out_of_range(first: int) -> list[int]:
    """Integers that an import must not bring where the store counts from `first`."""
    return [first - 1, -(2**63), schema.NUMBER_MAX + 1, schema.KEY_INT_MAX - 1, schema.KEY_INT_MAX, 2**64 - 1, 10**30]


def numbered_lines(make_task: Callable[..., QueuedTask], make_job: Callable[..., ExternalJob]) -> list[tuple[int, Any]]:
    """(first legal number, number -> line) for every number that a line can bring."""
    task, job = make_task("hello", id="t").to_dict(), make_job(id="j").to_dict()

    def session(**changes: int) -> dict[str, Any]:
        return {"table": "sessions", "key": KEY, "row": SessionMeta(session_key=KEY).to_dict() | changes}

    return [
        (0, lambda n: session(message_count=n)),
        (1, lambda n: session(generation=n)),
        (1, lambda n: {"table": "tasks", "key": n, "row": [0, task]}),
        (0, lambda n: {"table": "tasks", "key": 1, "row": [n, task]}),
        (1, lambda n: {"table": "jobs", "key": "j", "row": [n, job]}),
        (0, lambda n: {"table": "messages", "key": [KEY, n], "row": {"n": 1}}),
        (0, lambda n: {"table": "archive", "key": [KEY, 1, n], "row": [5, {"n": 1}]}),
        (1, lambda n: {"table": "archive", "key": [KEY, n, 0], "row": [5, {"n": 1}]}),
        (1, lambda n: {"table": "generations", "key": [KEY, n], "row": 0}),
        (0, lambda n: {"table": "generations", "key": [KEY, 1], "row": n}),
        (1, lambda n: {"table": "quarantine", "key": n, "row": {"table": "kv", "key": ["k"], "reason": "r", "at": 1}}),
    ]


def test_no_number_of_an_import_is_out_of_range(
    store: Store, make_task: Callable[..., QueuedTask], make_job: Callable[..., ExternalJob]
) -> None:
    """Numbers were taken as they came. After a task with the largest number there is, no task could be submitted any
    more; a message, a generation or a quarantined row did the same to what is numbered after it."""
    lines = [json.dumps(line(n)) for first, line in numbered_lines(make_task, make_job) for n in out_of_range(first)]
    before = exported(store)
    report = store.import_jsonl(lines)
    assert [lines[number - 1] for number, _ in report.errors] == lines
    assert "9223372036854775807" in report.errors[4][1], "the message names the number"
    assert (report.changed, exported(store)) == (0, before)


def test_after_the_largest_numbers_of_an_import_there_are_more(
    store: Store,
    make_task: Callable[..., QueuedTask],
    make_job: Callable[..., ExternalJob],
    overwrite: Callable[..., None],
) -> None:
    largest = schema.NUMBER_MAX - 1
    for _, line in numbered_lines(make_task, make_job):
        assert store.import_jsonl([json.dumps(line(largest))]).errors == []
    for text in ("a", "b", "c"):
        assert store.tasks.submit(make_task(text, session_key=text)).kind == "new"
    assert store.messages.append_many(KEY, [{}] * 3) == [largest + 1, largest + 2, largest + 3]
    assert [store.sessions.new_generation(KEY) for _ in range(3)] == [largest + 1, largest + 2, largest + 3]
    assert store.messages.append(KEY, {}) == 0
    job = store.jobs.get("j")
    assert job is not None
    job.prompt = "another"
    assert store.jobs.update(job) == largest + 1
    for name in ("x", "y"):
        overwrite("pairing", ("c", name), b"damaged")
        store.pairing.approved("c")
        store.pairing.delete("c", "nobody")
    with store.reading() as work:
        assert list(work.view(schema.QUARANTINE.table)) == [largest, largest + 1, largest + 2]


def test_backup_is_a_store(full: Store, tmp_path: Path, clock: Any) -> None:
    full.backup(tmp_path / "copy.limpet")
    with Store.open(tmp_path / "copy.limpet", read_only=True, clock=clock) as copy:
        assert exported(copy) == exported(full)
        assert copy.check().errors == []


def test_check_finds_what_does_not_fit(
    full: Store, overwrite: Callable[[str, Any, bytes], None], expect_damage: list[str]
) -> None:
    expect_damage += ["counters", "task_queue", "sessions", "task_messages", "kv", "messages"]
    assert full.check().ok
    with full.database.write() as txn:
        txn[schema.TASK_QUEUE.table]["Pending", 0, 0, 99] = b""
        txn[schema.SESSION_HOURS.table].pop_first()
        txn[schema.MESSAGES.table]["archive", 7] = b"{}"
        txn[schema.TASK_MESSAGES.table][77, 0] = b"{}"
        txn[schema.KV.table]["bad"] = b"\xff"
        txn[schema.COUNTERS.table]["nobody", 1] = b"[5,5,0,5,0]"
    errors = "\n".join(full.check().errors)
    assert "task_queue has 1 entries that no row of tasks accounts for" in errors
    assert "in session_hours is missing" in errors
    assert "counters[('archive', 0)]" in errors
    assert "task_messages has 1 rows of a task 77" in errors
    assert "kv['bad'] cannot be decoded" in errors
    assert "counters[('nobody', 1)]" in errors


def test_retention_removes_what_is_older_and_counts_it_by_family(
    store: Store, clock: Any, make_job: Callable[..., ExternalJob]
) -> None:
    day = 86400
    store.messages.append_many("old", [{"n": 0}, {"n": 1}])
    store.messages.append("pinned", {"n": 0})
    store.sessions.patch("pinned", pinned=True)
    store.idempotency.mark_delivered("old")
    store.jobs.enqueue(make_job(id="over", status="Done", delivered_at=1))
    store.jobs.enqueue(make_job(id="open"))
    clock.advance(day)
    store.messages.append("new", {"n": 0})
    store.messages.append("pinned", {"n": 1})
    store.idempotency.mark_delivered("new")
    clock.advance(1)
    nothing = {"sessions": 0, "archive": 0, "idempotency": 0, "jobs": 0}
    assert store.retention(idempotency_s=None, jobs_s=None) == nothing
    assert store.retention() == nothing | {"idempotency": 1, "jobs": 1}
    assert store.retention(sessions_s=day, archive_s=day) == nothing | {"sessions": 1, "archive": 3}
    assert store.sessions.list() == ["new", "pinned"]
    assert store.archive.stat("old").total_messages == 0
    assert [row.message for row in store.archive.load("pinned")] == [{"n": 1}]
    assert store.archive.stat("pinned").oldest_seq == 1
    assert store.jobs.get("open") is not None
    assert store.messages.append("old", {}) == 0
    assert store.archive.stat("old").generations == [2]


def test_retention_works_in_small_steps_and_then_commits_nothing(store: Store, clock: Any, commits: Commits) -> None:
    for number in range(5):
        store.messages.append(f"s{number}", {"n": 0})
        store.messages.append(f"s{number}", {"n": 1})
        store.idempotency.mark_delivered(str(number))
    clock.advance(1000)
    steps = []
    while sum((step := store.retention(sessions_s=1, archive_s=1, idempotency_s=1, limit=4)).values()):
        assert sum(step.values()) <= 4
        assert store.check().ok
        steps.append(step)
    assert {name: sum(step[name] for step in steps) for name in steps[0]} == {
        "sessions": 5,
        "archive": 10,
        "idempotency": 5,
        "jobs": 0,
    }
    assert commits(lambda: store.retention(sessions_s=1, archive_s=1, idempotency_s=1)) == 0
    with pytest.raises(ValueError):
        store.retention(limit=0)
    with pytest.raises(ValueError):
        store.retention(archive_s=-1)


def test_counters_of_statuses_follow_the_tasks(full: Store) -> None:
    assert [task.id for task in full.tasks.list(TaskStatus.PENDING)] == ["a", "c"]
    assert full.tasks.list(TaskStatus.DEAD) == []


def test_retention_sets_undecodable_rows_aside_instead_of_deleting_them(
    store: Store, clock: Any, overwrite: Callable[[str, Any, bytes], None], make_job: Callable[..., ExternalJob]
) -> None:
    store.messages.append_many(KEY, [{"n": n} for n in range(4)])
    store.idempotency.mark_delivered("k")
    store.jobs.enqueue(make_job(id="j", status="Done", delivered_at=1))
    overwrite("archive", (KEY, 1, 0), b"first")
    overwrite("archive", (KEY, 1, 2), b"third")
    overwrite("idempotency", "k", b"when?")
    overwrite("jobs", "j", b"[1,{}]")
    clock.advance(10**6)
    assert store.retention(archive_s=1) == {"sessions": 0, "archive": 2, "idempotency": 0, "jobs": 0}
    assert store.archive.stat(KEY).total_messages == 0
    report = store.check()
    assert report.errors == []
    assert report.warnings[0].startswith("4 rows are in quarantine")


def test_import_sets_an_undecodable_row_aside_before_it_writes_another(
    store: Store, overwrite: Callable[[str, Any, bytes], None]
) -> None:
    store.idempotency.mark_delivered("k")
    overwrite("idempotency", "k", b"when?")
    assert store.import_jsonl(['{"table":"idempotency","key":"k","row":5}']).ok
    assert store.idempotency.is_delivered("k")
    assert store.check().errors == []
