"""Where the reference store loses or mixes data, one test for each of the 18 scenarios, named after it."""

import io
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet import ClosedError
from limpet_store import (
    ConflictError,
    ExternalJob,
    ExternalJobStatus,
    MemoryTier,
    NotFoundError,
    QueuedMessage,
    QueuedTask,
    Store,
    TaskStatus,
    schema,
)

KEY = "agent:main:telegram:direct:u1"
MakeTask = Callable[..., QueuedTask]
MakeJob = Callable[..., ExternalJob]
Overwrite = Callable[[str, Any, bytes], None]
Commits = Callable[..., int]


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Run `work(0)` ... `work(count - 1)` at the same moment; a failure in one is the test's."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001  # it is raised again by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_01_deleting_or_compacting_a_session_never_overwrites_its_archive(store: Store) -> None:
    expected = []
    for round_ in range(4):
        for number in range(3):
            message = {"round": round_, "n": number}
            store.messages.append(KEY, message)
            expected.append(message)
        if round_ == 0:
            store.sessions.delete(KEY)
        elif round_ == 1:
            store.messages.replace(KEY, [{"summary": "of it all"}])
        elif round_ == 2:
            store.sessions.delete(KEY)
            store.archive.purge(KEY, before_generation=1)
            store.sessions.new_generation(KEY)
    rows = store.archive.load(KEY)
    assert [row.message for row in rows] == expected
    assert len({(row.generation, row.seq) for row in rows}) == len(rows)


def test_02_appends_and_new_generations_at_once_lose_no_message(store: Store) -> None:
    per_thread = 25

    def work(number: int) -> None:
        for n in range(per_thread):
            store.messages.append(KEY, {"thread": number, "n": n})
            if number == 0 and n % 10 == 9:
                store.sessions.new_generation(KEY)

    in_threads(4, work)
    rows = store.archive.load(KEY)
    assert len(rows) == 4 * per_thread
    assert len({(row.generation, row.seq) for row in rows}) == len(rows)
    for number in range(4):
        assert [row.message["n"] for row in rows if row.message["thread"] == number] == list(range(per_thread))
    meta = store.sessions.get(KEY)
    assert meta is not None
    assert meta.message_count == len(store.messages.load(KEY))


NASTY_KEYS = [
    "agent:a:c:group:G",
    "agent:a:c:group:G:topic:T",
    "agent:a:c:group:G:",
    "agent:a:c:group:G\0",
    "agent:a:c:group:G\x01",
    "archive",
    "archive:agent:a:c:group:G",
    "archive\0agent:a:c:group:G\0gen1",
    "",
    "\0",
    "\uffff",
    "\U0010ffff",
]


@pytest.mark.parametrize("victim", NASTY_KEYS, ids=ascii)
def test_03_loading_and_deleting_hit_exactly_one_session(store: Store, victim: str) -> None:
    for key in NASTY_KEYS:
        store.messages.append(key, {"of": key})
        store.sessions.new_generation(key)
        store.messages.append(key, {"of": key, "again": True})
    assert store.messages.load(victim) == [{"of": victim, "again": True}]
    assert [row.message["of"] for row in store.archive.load(victim)] == [victim] * 2
    store.sessions.delete(victim)
    store.archive.purge(victim)
    assert store.messages.load(victim) == []
    assert store.archive.load(victim) == []
    for key in NASTY_KEYS:
        if key != victim:
            assert store.messages.load(key) == [{"of": key, "again": True}]
            assert store.archive.stat(key).total_messages == 2


def test_04_stat_head_and_tail_of_a_long_archive_read_what_they_return(store: Store) -> None:
    for _ in range(12):  # generation 10 sorts after 2
        store.messages.append_many(KEY, [{"n": n} for n in range(200)])
        store.sessions.new_generation(KEY)
    decoded = count_decoded()
    assert store.archive.stat(KEY).total_messages == 2400
    assert decoded == []
    assert [row.generation for row in store.archive.tail(KEY, 5)] == [12] * 5
    assert [row.seq for row in store.archive.head(KEY, 5)] == [0, 1, 2, 3, 4]
    assert len(decoded) == 10
    assert store.messages.count(KEY) == 0
    assert len(decoded) == 10


def count_decoded() -> list[str]:
    """Every row that is decoded from now on, by the name of its table; counters are no rows of the user's."""
    decoded: list[str] = []
    for rows in schema.ROWS:
        if rows is schema.COUNTERS:
            continue

        def decode(key: Any, raw: bytes, name: str = rows.name, original: Any = rows.decode) -> Any:
            decoded.append(name)
            return original(key, raw)

        object.__setattr__(rows, "decode", decode)  # they are frozen; `_restore_decoders` puts them back
    return decoded


def test_05_reads_never_write_and_no_error_is_swallowed(
    store: Store, make_task: MakeTask, make_job: MakeJob, commits: Commits
) -> None:
    store.messages.append(KEY, {"n": 0})
    store.sessions.delete(KEY)
    store.messages.append(KEY, {"n": 1})
    store.tasks.submit(make_task(id="t"))
    store.jobs.enqueue(make_job(id="j"))

    def read_everything() -> None:
        store.sessions.get(KEY)
        store.sessions.items()
        store.messages.load(KEY)
        store.messages.load_recent(KEY, 5)
        store.archive.load(KEY)
        store.archive.stat(KEY)
        store.archive.grep(KEY, "x")
        store.pairing.approved("telegram")
        store.kv.items()
        store.aliases.all()
        store.tasks.list()
        store.tasks.get("t")
        store.jobs.due(2**40)
        store.idempotency.is_delivered("k")
        store.permissions.items()
        store.cron.items()
        store.check()
        store.export_jsonl(io.StringIO())

    assert commits(read_everything) == 0
    closed = Store.open(":memory:")
    closed.close()
    with pytest.raises(ClosedError):
        closed.messages.load(KEY)


def test_06_one_message_costs_five_commits_and_an_idle_hour_none(
    store: Store, make_task: MakeTask, clock: Any, commits: Commits
) -> None:
    def one_message() -> None:
        store.tasks.submit(make_task("hello"))
        task = store.tasks.dequeue()
        assert task is not None
        store.messages.append(task.session_key, {"role": "user", "content": "hello"})
        store.messages.append(task.session_key, {"role": "assistant", "content": "hi"})
        store.tasks.finish_turn(task.id, 1, "hi", f"task:{task.id}:turn:1", TaskStatus.DONE)

    assert commits(one_message) == 5
    store.tasks.cleanup_expired()

    def idle_hour() -> None:
        for _ in range(720):
            clock.advance(5)
            store.tasks.cleanup_expired()
            assert store.tasks.dequeue() is None
            assert store.jobs.claim_due(clock.now) == []
            store.jobs.cleanup_finished(86400)
            store.idempotency.cleanup(86400)
            store.retention()

    assert commits(idle_hour) == 0


def test_07_a_long_queue_dequeues_like_a_short_one_and_images_are_not_rewritten(
    make_task: MakeTask, make_message: Callable[..., QueuedMessage]
) -> None:
    def best_dequeue_s(waiting: int) -> float:
        with Store.open(":memory:", durability="none") as store:
            with store.write() as tx:
                for number in range(waiting):
                    tx.tasks.enqueue(make_task(session_key=str(number)))
            times = []
            for _ in range(10):
                start = time.thread_time()  # of this thread alone: others may be using the machine
                store.tasks.dequeue()
                times.append(time.thread_time() - start)
            return min(times)

    short = best_dequeue_s(10)
    assert best_dequeue_s(3000) < 4 * short + 0.0005  # a scan would take a hundred times as long

    image = "data:image/png;base64," + "A" * 1_000_000
    with Store.open(":memory:") as store:
        id_ = store.tasks.enqueue(make_task(messages=[make_message("look", images=[image])]))
        task = store.tasks.dequeue()
        assert task is not None
        assert task.messages[0].images == [image]
        with store.database.read() as txn:
            assert len(txn[schema.TASKS.table][1]) < 1000
        decoded = count_decoded()
        store.tasks.finish_turn(id_, 1, "nice", None, TaskStatus.DONE)
        store.tasks.mark_notified(id_)
        store.tasks.cleanup_expired()
        assert "task_messages" not in decoded


def test_08_an_undecodable_row_is_set_aside_and_the_queue_goes_on(
    store: Store, make_task: MakeTask, make_job: MakeJob, overwrite: Overwrite, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        store.tasks.enqueue(make_task(name, id=name, session_key="s"))
        store.jobs.enqueue(make_job(id=name, next_poll_at=0))
    with store.database.read() as txn:
        task, job = txn[schema.TASKS.table][1], txn[schema.JOBS.table]["bad"]
    overwrite("tasks", 1, task.replace(b'"Pending"', b'"Paused!"'))
    overwrite("jobs", "bad", job.replace(b'"Pending"', b'"Paused!"'))

    # Reads skip it, and say so once.
    for _ in range(2):
        assert [task.id for task in store.tasks.list()] == ["good"]
        assert store.tasks.get("bad") is None
        assert store.jobs.get("bad") is None
        assert [job.id for job in store.jobs.due(0)] == ["good"]
    assert len([record for record in caplog.records if "cannot be decoded" in record.getMessage()]) == 2

    # The next write moves it away; nothing stops.
    assert store.tasks.submit(make_task("later", session_key="t")).kind == "new"
    assert store.jobs.delete("missing") is False
    taken = [store.tasks.dequeue() for _ in range(3)]
    assert [task and task.messages[0].text for task in taken] == ["good", "later", None]
    assert store.tasks.requeue_running() == 2
    report = store.check()
    assert report.ok
    assert any("3 rows are in quarantine" in warning for warning in report.warnings)  # two rows and a task's message
    with store.database.read() as txn:
        kept = b"".join(txn[schema.QUARANTINE.table].values())
    assert kept.count(b"Paused!") == 4, "in the row's text and in the reason, twice"
    store.tasks.enqueue(make_task(id="bad", session_key="s"))  # its id is free again


def test_08_a_write_that_meets_an_undecodable_row_moves_it_at_once(
    store: Store, make_task: MakeTask, overwrite: Overwrite
) -> None:
    for number in range(3):
        store.tasks.enqueue(make_task(id=str(number), session_key="s"))
    overwrite("tasks", 1, b"\xff not even text")
    overwrite("tasks", 2, b"[0,{}]")
    task = store.tasks.dequeue()
    assert task is not None
    assert task.id == "2"
    assert store.check().ok
    assert len(store.tasks.list()) == 1


def test_08_other_families_set_rows_aside_too(store: Store, overwrite: Overwrite, clock: Any) -> None:
    store.messages.append_many(KEY, [{"n": 0}, {"n": 1}, {"n": 2}])
    store.idempotency.mark_delivered("k")
    overwrite("messages", (KEY, 1), b"[1]")
    overwrite("archive", (KEY, 1, 0), b"oops")
    overwrite("kv", "text", b"\xff")
    overwrite("idempotency", "k", b"yesterday")
    assert store.messages.load(KEY) == [{"n": 0}, {"n": 2}]
    assert [row.seq for row in store.archive.load(KEY)] == [1, 2]
    assert store.kv.items() == []
    assert not store.idempotency.is_delivered("k")
    assert not store.check().ok
    store.messages.append(KEY, {"n": 3})
    store.archive.purge(KEY, before_generation=0)
    store.kv.set("other", "x")
    store.idempotency.mark_delivered("l")
    assert store.check().ok
    assert store.messages.count(KEY) == 3
    assert store.archive.stat(KEY).total_messages == 3
    assert store.archive.stat(KEY).oldest_seq == 1
    clock.advance(10**6)
    assert store.idempotency.cleanup(0) == 1


def test_09_submits_at_once_make_one_task_with_every_message(store: Store, make_task: MakeTask) -> None:
    kinds: list[str] = []
    in_threads(8, lambda number: kinds.append(store.tasks.submit(make_task(f"text {number}")).kind))
    assert sorted(kinds) == ["merged"] * 7 + ["new"]
    (task,) = store.tasks.list()
    assert sorted(message.text for message in task.messages) == [f"text {number}" for number in range(8)]
    kinds.clear()
    in_threads(8, lambda _: kinds.append(store.tasks.submit(make_task("same", session_key="other")).kind))
    assert sorted(kinds) == ["duplicate"] * 7 + ["new"]


def test_10_messages_of_one_second_keep_their_order(store: Store, make_task: MakeTask) -> None:
    expected = [store.tasks.enqueue(make_task(session_key=str(number))) for number in range(50)]
    taken = iter(store.tasks.dequeue, None)
    assert [task.id for task in taken] == expected


def test_11_running_tasks_and_undelivered_replies_do_not_expire(store: Store, make_task: MakeTask, clock: Any) -> None:
    running = store.tasks.enqueue(make_task(session_key="a"))
    undelivered = store.tasks.enqueue(make_task(session_key="b"))
    for _ in range(2):
        store.tasks.dequeue()
    store.tasks.finish_turn(undelivered, 1, "the answer", None, TaskStatus.DONE)
    waiting = store.tasks.enqueue(make_task(session_key="c"))
    clock.advance(3601)
    assert store.tasks.cleanup_expired() == 1
    assert store.tasks.get(waiting) is None
    store.tasks.set_turn(running, 1)
    store.tasks.mark_notified(undelivered)
    assert store.tasks.cleanup_expired() == 1
    assert [task.id for task in store.tasks.list()] == [running]


CRASH = """
    import os, sys
    from limpet_store import QueuedMessage, QueuedTask, Store, TaskStatus

    store = Store.open(sys.argv[1])
    message = QueuedMessage(text="hello", sender="u1", channel="telegram", chat_id="u1")
    store.tasks.submit(QueuedTask(id="t", session_key="s", messages=[message]))
    store.tasks.dequeue()
    if sys.argv[2] == "after":
        store.tasks.finish_turn("t", 1, "the answer", "task:t:turn:1", TaskStatus.DONE)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_12_a_turn_is_recorded_whole_or_not_at_all(db_path: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CRASH), str(db_path), moment])
    assert done.returncode == -9
    with Store.open(db_path) as store:
        revived = store.tasks.requeue_running()
        task = store.tasks.get("t")
        assert task is not None
        recorded = (task.turns, task.last_reply, task.status, store.idempotency.is_delivered("task:t:turn:1"))
        if moment == "after":
            assert recorded == (1, "the answer", TaskStatus.DONE, True)
            assert revived == 0
        else:
            assert recorded == (0, None, TaskStatus.PENDING, False)
            assert revived == 1
        assert store.check().ok


def test_13_a_task_that_kills_the_process_is_dead_in_the_end(store: Store, make_task: MakeTask) -> None:
    id_ = store.tasks.enqueue(make_task())
    for revived in range(1, 6):
        assert store.tasks.dequeue() is not None
        assert store.tasks.requeue_running() == 1
        task = store.tasks.get(id_)
        assert task is not None
        assert (task.status, task.attempts, task.retries) == (TaskStatus.PENDING, revived, 0)
    assert store.tasks.dequeue() is not None
    assert store.tasks.requeue_running() == 0
    task = store.tasks.get(id_)
    assert task is not None
    assert task.status is TaskStatus.DEAD
    assert task.error is not None
    assert "6 times" in task.error
    other = store.tasks.enqueue(make_task())
    store.tasks.dequeue()
    assert store.tasks.requeue_running(max_attempts=0) == 0
    task = store.tasks.get(other)
    assert task is not None
    assert task.status is TaskStatus.DEAD


def test_14_two_pollers_never_get_the_same_job_and_old_data_does_not_win(
    store: Store, make_job: MakeJob, clock: Any
) -> None:
    for number in range(40):
        store.jobs.enqueue(make_job(id=str(number), next_poll_at=clock.now))
    claimed: list[str] = []

    def poll(_: int) -> None:
        while jobs := store.jobs.claim_due(clock.now, limit=3, lease=600):
            claimed.extend(job.id for job in jobs)

    in_threads(4, poll)
    assert sorted(claimed, key=int) == [str(number) for number in range(40)]

    clock.advance(600)
    (slow,) = store.jobs.claim_due(clock.now, limit=1)
    clock.advance(600)
    (fast,) = [job for job in store.jobs.claim_due(clock.now, limit=40) if job.id == slow.id]
    fast.status = ExternalJobStatus.DONE
    store.jobs.update(fast)
    slow.status = ExternalJobStatus.PENDING
    with pytest.raises(ConflictError):
        store.jobs.update(slow)
    kept = store.jobs.get(slow.id)
    assert kept is not None
    assert kept.status is ExternalJobStatus.DONE


def test_15_a_cron_job_deleted_while_it_runs_stays_deleted(store: Store) -> None:
    store.cron.put("brief", '{"runs":0}')
    seen = store.cron.get("brief")
    assert seen is not None
    assert store.cron.delete("brief")
    with pytest.raises(NotFoundError):
        store.cron.update("brief", lambda text: text.replace("0", "1"))
    assert store.cron.items() == []
    store.cron.put("count", "0")
    in_threads(4, lambda _: [store.cron.update("count", lambda text: str(int(text) + 1)) for _ in range(10)])
    assert store.cron.get("count") == "40"


def test_16_every_table_exists_after_open(db_path: Path) -> None:
    with Store.open(db_path) as store:
        assert set(store.database.tables()) == {table.name for table in schema.TABLES}
    with Store.open(db_path, read_only=True) as store:
        assert store.cron.items() == []


HOLD = """
    import sys, time
    from limpet_store import Store

    store = Store.open(sys.argv[1])
    store.messages.append("s", {"n": 0})
    print("open", flush=True)
    sys.stdin.readline()
    for n in range(1, 20):
        store.messages.append("s", {"n": n})
        time.sleep(0.01)
    store.close()
    print("closed", flush=True)
"""


def test_17_a_gateway_that_starts_waits_for_the_one_that_ends_and_sees_everything(db_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(db_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as old:
        assert old.stdin is not None
        assert old.stdout is not None
        assert old.stdout.readline() == "open\n"
        opened: list[Store] = []
        new = threading.Thread(target=lambda: opened.append(Store.open(db_path, lock_timeout=20)))
        new.start()
        old.stdin.write("go on\n")
        old.stdin.flush()
        new.join(20)
        assert old.stdout.readline() == "closed\n"
    (store,) = opened
    with store:
        assert [message["n"] for message in store.messages.load("s")] == list(range(20))
        assert store.messages.append("s", {"n": 20}) == 20


def test_18_backup_check_retention_and_export_cover_the_whole_store(
    store: Store, make_task: MakeTask, make_job: MakeJob, tmp_path: Path, clock: Any
) -> None:
    for number in range(3):
        store.messages.append(KEY, {"n": number})
        store.sessions.new_generation(KEY)
    store.tasks.submit(make_task())
    store.jobs.enqueue(make_job())
    store.cron.put("brief", "0 9 * * *")
    stream = io.StringIO()
    store.export_jsonl(stream)
    store.backup(tmp_path / "backup.limpet")
    with Store.open(tmp_path / "backup.limpet", clock=clock, durability="os") as copy:
        assert copy.check().ok
        again = io.StringIO()
        copy.export_jsonl(again)
        assert again.getvalue() == stream.getvalue()
        clock.advance(1000)
        assert copy.retention(archive_s=100)["archive"] == 3
        assert copy.check().ok
    with Store.open(tmp_path / "imported.limpet", tier=MemoryTier.LOW, clock=clock, durability="os") as imported:
        assert imported.import_jsonl(io.StringIO(stream.getvalue())).ok
        assert [row.message["n"] for row in imported.archive.load(KEY)] == [0, 1, 2]


@pytest.fixture(autouse=True)
def _restore_decoders() -> Iterator[None]:
    before = {rows: rows.decode for rows in schema.ROWS}
    yield
    for rows, decode in before.items():
        object.__setattr__(rows, "decode", decode)
