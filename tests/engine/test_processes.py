"""Between processes: the lock and its hand-off, fork, and SIGKILL in the middle of commits."""

# ruff: noqa: PT012 - what is done inside a block before an exception leaves it is the subject here

import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import limpet

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
Opener = Callable[..., limpet.Database]
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@contextmanager
def running(script: str, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """A Python process running `script`, killed at the end if it has not ended by itself."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def line_of(process: "subprocess.Popen[str]", timeout_s: float = 30) -> str:
    """The next line that a process prints, read byte by byte so that nothing stays in a buffer of ours."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        assert ready, "the process says nothing"
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            pytest.fail(f"the process ended: {process.communicate()[1]}")
        line += byte
    return line.decode().strip()


def result_of(process: "subprocess.Popen[str]") -> str:
    """The next line that is not one of the log's."""
    while (line := line_of(process)).startswith("log "):
        pass
    return line


HOLD = """
    import sys, limpet

    table = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
    db = limpet.open(sys.argv[1])
    with db.write() as txn:
        txn[table][len(txn[table])] = b"held"
    print("holding", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "close":
        db.close()
        print("closed", flush=True)
        sys.stdin.readline()
"""

WAIT = """
    import logging, sys, time, limpet

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="log %(message)s")
    started = time.monotonic()
    with limpet.open(sys.argv[1], lock_timeout=30) as db:
        table = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
        with db.write() as txn:
            number = len(txn[table])
            txn[table][number] = b"taken over"
        print("took over", number, flush=True)
"""


# -- the lock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "end", "kill"])
def test_a_waiting_process_takes_over_when_the_holder_closes_ends_or_is_killed(
    open_db: Opener, db_path: Path, how: str
) -> None:
    with running(HOLD, db_path, how) as holder:
        assert line_of(holder) == "holding"
        with running(WAIT, db_path) as waiter:
            assert "waiting up to 30 s" in line_of(waiter)  # one line of the log says that it waits
            if how == "kill":
                holder.send_signal(signal.SIGKILL)
            else:
                assert holder.stdin is not None
                holder.stdin.write("\n")
                holder.stdin.flush()
            assert result_of(waiter) == "took over 1"
            assert waiter.wait(20) == 0
    with open_db(db_path) as db, db.read() as txn:
        assert dict(txn[NUMBERS]) == {0: b"held", 1: b"taken over"}


@pytest.mark.parametrize("read_only", [False, True])
def test_a_locked_error_names_the_holder_and_how_long_we_waited(
    db_path: Path, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(HOLD, db_path, "end") as holder:
        assert line_of(holder) == "holding"
        started = time.monotonic()
        with pytest.raises(limpet.LockedError) as caught:
            limpet.open(db_path, lock_timeout=0.2, read_only=read_only)
        waited = time.monotonic() - started
        assert f"pid {holder.pid} " in str(caught.value)
        assert caught.value.holder is not None
        assert os.uname().nodename in caught.value.holder
        assert "since" in caught.value.holder
        assert 0.2 <= caught.value.waited_s <= waited
        monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited, with a lock_timeout of 0"))
        with pytest.raises(limpet.LockedError):
            limpet.open(db_path, lock_timeout=0)


def test_several_read_only_processes_share_a_file_and_keep_a_writer_out(open_db: Opener, db_path: Path) -> None:
    with open_db(db_path) as db, db.write() as txn:
        txn[NUMBERS][1] = b"one"
    script = """
        import sys, limpet

        with limpet.open(sys.argv[1], read_only=True, lock_timeout=5) as db, db.read() as txn:
            print(txn["numbers"].first()[1].decode(), flush=True)
            sys.stdin.readline()
    """
    with running(script, db_path) as first, running(script, db_path) as second:
        assert line_of(first) == line_of(second) == "one"
        with limpet.open(db_path, read_only=True) as db:
            assert db.tables() == ["numbers"]
        with pytest.raises(limpet.LockedError):
            limpet.open(db_path, lock_timeout=0.05)
    open_db(db_path)


def test_a_process_that_waits_while_the_file_is_compacted_opens_the_new_one(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    with db.write() as txn:
        txn[NUMBERS][0] = b"before"
    with running(WAIT, db_path) as waiter:
        assert "waiting" in line_of(waiter)
        db.compact()
        with db.write() as txn:
            txn[NUMBERS][1] = b"after"
        db.close()
        assert result_of(waiter) == "took over 2"
        assert waiter.wait(20) == 0
    with open_db(db_path) as db, db.read() as txn:
        assert dict(txn[NUMBERS]) == {0: b"before", 1: b"after", 2: b"taken over"}


def test_two_processes_that_create_the_same_file_end_up_with_one(open_db: Opener, db_path: Path) -> None:
    with running(WAIT, db_path) as first, running(WAIT, db_path) as second:
        assert {result_of(first), result_of(second)} == {"took over 0", "took over 1"}
    assert os.listdir(db_path.parent) == [db_path.name]
    open_db(db_path)


# -- fork ----------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], None]) -> None:
    """Run in a forked child; what goes wrong there fails here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = b""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 the child must not return into pytest
            message = f"{type(error).__name__}: {error}".encode()
        finally:
            os.write(writing, message)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    assert not message, message.decode()


@posix_only
def test_a_forked_child_gets_a_closed_error_from_everything_and_the_parent_goes_on(
    open_db: Opener, db_path: Path
) -> None:
    db = open_db(db_path)
    with db.write() as setup:
        setup[NUMBERS].update(dict.fromkeys(range(100), b"x"))
    for _ in range(2):  # records of the log, for which there may be a descriptor, too
        with db.write() as setup:
            setup[NUMBERS][0] = b"x"
    reader = db.read()
    assert reader[NUMBERS][5] == b"x"  # in the cache
    writer = db.write()
    writer[NUMBERS][1000] = b"by the parent"

    def child() -> None:
        assert descriptors_of(db_path) == 0
        uses: list[Callable[[], object]] = [
            db.read,
            db.write,
            db.tables,
            db.stats,
            db.check,
            db.flush,
            db.compact,
            lambda: db.backup(db_path.with_name("copy")),
            lambda: reader[NUMBERS].get(5),
            lambda: list(reader[NUMBERS]),
            writer.commit,
        ]
        for number, use in enumerate(uses):
            with pytest.raises(limpet.ClosedError):
                use()
                raise RuntimeError(f"use {number} went through")
        with pytest.raises(limpet.LockedError):
            limpet.open(db_path, lock_timeout=0)  # the parent has it
        reader.close()
        db.close()
        db.close()

    before = db_path.read_bytes()
    assert descriptors_of(db_path) > 0 or not Path("/proc/self/fd").is_dir()
    in_a_child(child)
    assert db_path.read_bytes() == before
    assert os.listdir(db_path.parent) == [db_path.name]
    writer.commit()
    reader.close()
    with pytest.raises(limpet.LockedError):  # the child's close has not released the parent's lock
        limpet.open(db_path, lock_timeout=0)
    script = "import sys, limpet; limpet.open(sys.argv[1], lock_timeout=0)"
    with running(script, db_path) as other:
        assert other.wait(30) == 1
        assert other.stderr is not None
        assert "LockedError" in other.stderr.read()
    with db.read() as after:
        assert after[NUMBERS][1000] == b"by the parent"
    db.close()
    assert descriptors_of(db_path) == 0


def descriptors_of(path: Path) -> int:
    """How many descriptors of this process are open on a file, where the system tells."""
    found = Path("/proc/self/fd")
    if not found.is_dir():
        return 0
    return sum(os.path.realpath(each) == str(path.resolve()) for each in found.iterdir())


@posix_only
def test_a_forked_child_can_open_the_file_itself_once_the_parent_has_closed_it(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path)
    ready, go = os.pipe()

    def child() -> None:
        os.close(go)
        os.read(ready, 1)  # until the parent has closed
        with limpet.open(db_path, lock_timeout=10) as own, own.write() as txn:
            txn[NUMBERS][1] = b"by the child"

    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    db.close()
    os.close(go)
    os.close(ready)
    os.waitpid(pid, 0)
    with open_db(db_path) as db, db.read() as txn:
        assert txn[NUMBERS][1] == b"by the child"


# -- SIGKILL -------------------------------------------------------------------------------------

# For each line of its input this process forks one that commits for ever, so that a round does not cost the start of an
# interpreter. After each commit the number goes into a file, which survives the process. Numbers rise from commit to
# commit.
COMMITTERS = """
    import os, random, signal, sys, limpet

    path, acknowledgements, durability, page_size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    log = limpet.Table("log", key=limpet.INT, value=limpet.BYTES)
    latest = limpet.Table("latest", key=limpet.STR, value=limpet.INT)

    def commit_for_ever(rng, out):
        with limpet.open(path, durability=durability, page_size=page_size, lock_timeout=20) as db:
            with db.read() as txn:
                number = txn[log].last()[0] if txn[log] else 0
            while True:
                number += 1
                with db.write() as txn:
                    txn[log][number] = random.Random(number).randbytes(number * 37 % 3000)
                    for _ in range(rng.randrange(1, 8)):
                        txn[latest][f"key {rng.randrange(300)}"] = number
                    txn[latest]["newest"] = number
                    if number > 150:
                        txn[log].pop_first()
                    if number % 50 == 0:
                        txn[latest].delete_range("key 1", "key 2")
                os.write(out, b"%d\\n" % number)
                if number % 97 == 0:
                    db.compact()
                if durability == "none" and number % 20 == 0:
                    db.flush()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                commit_for_ever(random.Random(int(line)), os.open(acknowledgements, os.O_WRONLY | os.O_APPEND))
            finally:
                os._exit(1)
        print(pid, flush=True)
"""


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("durability", "page_size", "rounds"), [("sync", 4096, 110), ("os", 512, 50), ("none", 1024, 20)]
)
def test_no_acknowledged_commit_is_lost_when_the_process_is_killed_again_and_again(
    open_db: Opener, db_path: Path, tmp_path: Path, seed: int, durability: str, page_size: int, rounds: int
) -> None:
    rng = random.Random(seed)
    log = limpet.Table("log", key=limpet.INT, value=limpet.BYTES)
    latest = limpet.Table("latest", key=limpet.STR, value=limpet.INT)
    acknowledgements = tmp_path / "acknowledged"
    acknowledgements.write_bytes(b"")
    newest = 0
    with running(COMMITTERS, db_path, acknowledgements, durability, str(page_size)) as committers:
        assert committers.stdin is not None
        for turn in range(rounds):
            size = acknowledgements.stat().st_size
            committers.stdin.write(f"{rng.randrange(2**32)}\n")
            committers.stdin.flush()
            pid = int(line_of(committers))
            deadline = time.monotonic() + 20
            while acknowledgements.stat().st_size == size:  # until its first commit
                assert time.monotonic() < deadline, "no commit for 20 seconds"
                time.sleep(0.002)
            time.sleep(rng.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            with limpet.open(db_path, lock_timeout=20) as db, db.read() as txn:
                acknowledged = int(acknowledgements.read_bytes().split()[-1])
                newest = txn[latest].get("newest", 0)
                if durability != "none":  # which promises nothing until a stronger commit, or a flush
                    assert acknowledged <= newest <= acknowledged + 1, f"turn {turn} of seed {seed}"
                assert list(txn[log]) == list(
                    range(max(1, newest - 149), newest + 1)
                )  # whole commits, a prefix of them
                for number, value in txn[log].items():
                    assert value == random.Random(number).randbytes(number * 37 % 3000)
                assert max(txn[latest].values(), default=0) == newest
                if turn % 5 == 0:
                    assert db.check().ok
    assert newest > rounds // 4
    left_behind = {name for name in os.listdir(tmp_path) if not name.endswith(".new")}  # of a compaction cut short
    assert left_behind == {db_path.name, acknowledgements.name}
    open_db(db_path)
