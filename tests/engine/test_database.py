"""The database over a disk that refuses: no space, failed syncs, failed metas, slow syncs. And what it writes when."""

# ruff: noqa: PT012 - what is done inside a block before an exception leaves it is the subject here

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

import limpet
from limpet.database import open_on
from limpet.file import File, OSFile, OSFileSystem
from limpet.format import META_SIZE

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)


class Plan:
    """What is to fail, and what was called.

    failing   name of a call -> how often it works before it fails for good
    calls     the names, in order; a write to a meta is "meta"
    syncing   set once a sync waits, inside of `syncs_held`
    """

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.error = errno.EIO
        self.calls: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.syncing = threading.Event()

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            if self.failing[name] == 0:
                raise OSError(self.error, os.strerror(self.error), "the file")
            self.failing[name] -= 1

    @contextlib.contextmanager
    def syncs_held(self) -> Iterator[None]:
        """No sync begins before the block ends."""
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()

    def wait(self) -> None:
        if not self.go_on.is_set():
            self.syncing.set()
            assert self.go_on.wait(60)


class StubbornFile(OSFile):
    """A real file whose calls fail as planned."""

    plan: Plan

    def write(self, offset: int, data: bytes) -> None:
        self.plan.call("meta" if len(data) == META_SIZE else "write")
        super().write(offset, data)

    def write_synced(self, offset: int, data: bytes) -> None:
        self.write(offset, data)  # in two calls, so that each can fail
        self.sync()

    def grow(self, size: int) -> None:
        self.plan.call("grow")
        super().grow(size)

    def sync(self) -> None:
        self.plan.wait()
        self.plan.call("sync")
        super().sync()

    def sync_all(self) -> None:
        self.plan.wait()
        self.plan.call("sync")
        super().sync_all()


class StubbornFileSystem(OSFileSystem):
    """Gives out StubbornFiles."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def open(self, path: str, *, writable: bool) -> File:
        return self._stubborn(super().open(path, writable=writable))

    def create(self, path: str, *, built_for: str | None = None) -> File:
        return self._stubborn(super().create(path, built_for=built_for))

    def _stubborn(self, file: File) -> File:
        assert isinstance(file, OSFile)
        file.__class__ = StubbornFile
        assert isinstance(file, StubbornFile)
        file.plan = self.plan
        return file


@pytest.fixture
def plan() -> Plan:
    return Plan()


@pytest.fixture
def db(plan: Plan, db_path: Path) -> Iterator[limpet.Database]:
    """A database on a stubborn disk, with one row. Afterwards the file is opened as usual and checked."""
    db = open_on(StubbornFileSystem(plan), str(db_path), page_size=512, lock_timeout=1)
    with db.write() as txn:
        txn[NUMBERS][0] = b"first"
    plan.calls.clear()
    try:
        yield db
    finally:
        plan.failing.clear()
        db.close()
    with limpet.open(db_path) as again:
        report = again.check()
        assert report.ok, report.errors


def commit(db: limpet.Database, number: int, *, size: int = 5, durability: str | None = None) -> None:
    with db.write(durability=durability) as txn:
        txn[NUMBERS][number] = bytes(size)


def wait_until(state: Callable[[], bool]) -> None:
    """Return when the state is reached; how long that takes is the machine's business."""
    deadline = time.monotonic() + 60
    while not state():
        assert time.monotonic() < deadline, "the state is not reached"
        time.sleep(0.001)


def rows(db: limpet.Database) -> list[int]:
    with db.read() as txn:
        return list(txn[NUMBERS])


# -- the order of things -------------------------------------------------------------------------


def test_a_durable_commit_is_one_write_and_one_sync(db: limpet.Database, plan: Plan) -> None:
    commit(db, 1)
    assert plan.calls == ["write", "meta", "sync"]  # the first after a checkpoint records that a second time
    for number in range(2, 10):
        plan.calls.clear()
        commit(db, number)
        assert plan.calls == ["write", "sync"]


def test_a_checkpoint_writes_pages_syncs_writes_the_meta_and_syncs(db: limpet.Database, plan: Plan) -> None:
    commit(db, 1)
    plan.calls.clear()
    with db.write() as txn:
        txn.create(limpet.Table("another", key=limpet.INT, value=limpet.BYTES))
    assert [call for call in plan.calls if call != "grow"] == ["write", "sync", "meta", "sync"]
    assert rows(db) == [0, 1]


def test_an_os_commit_writes_its_record_and_syncs_nothing(db: limpet.Database, plan: Plan) -> None:
    commit(db, 1, durability="os")
    assert plan.calls == ["write"]
    commit(db, 2, durability="os")
    assert plan.calls == ["write", "write"]
    assert db.stats().durable_txid < db.stats().txid
    db.flush()
    assert plan.calls == ["write", "write", "meta", "sync"]
    assert db.stats().durable_txid == db.stats().txid


def test_a_none_commit_touches_the_file_not_at_all_and_flush_writes_it(db: limpet.Database, plan: Plan) -> None:
    for number in range(1, 6):
        commit(db, number, durability="none")
    assert [call for call in plan.calls if call != "grow"] == []
    assert rows(db) == list(range(6))
    db.flush()
    assert plan.calls == ["write", "meta", "sync"]


def test_reading_writes_nothing(db: limpet.Database, plan: Plan) -> None:
    assert rows(db) == [0]
    assert db.check().ok
    db.stats()
    with db.write():
        pass
    assert plan.calls == []


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["grow", "write"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_of_new_pages_aborts_that_transaction_only(
    db: limpet.Database, plan: Plan, call: str, error: int
) -> None:
    with db.read() as reader:
        for turn in range(3):
            plan.failing, plan.error = {call: 0}, error
            with pytest.raises(OSError) as caught:
                commit(db, 1 + turn, size=200_000)
            assert caught.value.errno == error
            assert caught.value.filename
            plan.failing.clear()
            assert rows(db) == [0]
        assert list(reader[NUMBERS]) == [0]
    commit(db, 10, size=200_000)
    assert rows(db) == [0, 10]
    sizes = db.stats()
    assert sizes.live_size - sizes.log_size < 210_000 + 10 * 512  # nothing of the failed ones is held on to


def test_a_failed_write_of_a_none_commits_flush_keeps_what_readers_have_seen(db: limpet.Database, plan: Plan) -> None:
    commit(db, 1, durability="none")
    commit(db, 2, durability="none")
    plan.failing, plan.error = {"write": 0}, errno.ENOSPC
    with pytest.raises(OSError):
        commit(db, 3)
    assert rows(db) == [0, 1, 2]  # the two were visible, so they stay; the third was not
    with pytest.raises(OSError):
        db.flush()
    assert rows(db) == [0, 1, 2]
    plan.failing.clear()
    commit(db, 4)
    assert rows(db) == [0, 1, 2, 4]
    db.close()
    with limpet.open(db.path) as again:
        assert rows(again) == [0, 1, 2, 4]


def test_space_that_ran_out_in_the_middle_of_a_large_transaction_aborts_it(plan: Plan, db_path: Path) -> None:
    with open_on(StubbornFileSystem(plan), str(db_path), cache_size=0) as db:
        plan.failing, plan.error = {"write": 3}, errno.ENOSPC
        with pytest.raises(OSError) as caught, db.write() as txn:
            for number in range(100_000):  # applied early and written as it grows
                txn[NUMBERS][number] = bytes(100)
        assert caught.value.errno == errno.ENOSPC
        plan.failing.clear()
        assert db.tables() == []
        commit(db, 1)
    with limpet.open(db_path) as db:
        assert rows(db) == [1]
        assert db.check().ok


@pytest.mark.parametrize(("call", "good"), [("sync", 0), ("write", 0)])
def test_a_failed_sync_or_record_poisons_the_handle_and_loses_nothing_acknowledged(
    db: limpet.Database, plan: Plan, call: str, good: int
) -> None:
    commit(db, 1)
    reader = db.read()
    plan.failing = {call: good}
    with pytest.raises(OSError):
        commit(db, 2)
    plan.failing.clear()  # the disk works again, and the handle does not believe it
    uses: list[Callable[[], object]] = [db.read, db.write, db.tables, db.flush, db.stats, db.check, db.compact]
    for use in uses:
        with pytest.raises(limpet.PoisonedError, match="open it again"):
            use()
    plan.calls.clear()
    reader.close()
    db.close()
    assert plan.calls == []  # not even close wrote anything
    with pytest.raises(limpet.LimpetError):
        db.read()
    with limpet.open(db.path) as again:
        assert rows(again) in ([0, 1], [0, 1, 2])  # the third was never acknowledged: either is right
        commit(again, 3)
        assert rows(again)[-1] == 3


@pytest.mark.parametrize(("call", "good"), [("sync", 0), ("sync", 1), ("meta", 0)])
def test_a_failed_sync_or_meta_of_a_checkpoint_poisons_the_handle(
    db: limpet.Database, plan: Plan, call: str, good: int
) -> None:
    commit(db, 1)
    plan.failing = {call: good}
    with pytest.raises(OSError):
        commit(db, 2, size=200_000)
    plan.failing.clear()
    with pytest.raises(limpet.PoisonedError):
        db.write()
    plan.calls.clear()
    db.close()
    assert plan.calls == []
    with limpet.open(db.path) as again:
        assert rows(again) in ([0, 1], [0, 1, 2])


def test_a_full_disk_at_a_record_takes_back_that_commit_only(db: limpet.Database, plan: Plan) -> None:
    commit(db, 1)
    for _ in range(3):
        plan.failing, plan.error = {"write": 0}, errno.ENOSPC
        with pytest.raises(OSError) as caught:
            commit(db, 2)
        assert caught.value.errno == errno.ENOSPC
        plan.failing.clear()
        assert rows(db) == [0, 1]
    commit(db, 3)
    db.close()
    with limpet.open(db.path) as again:
        assert rows(again) == [0, 1, 3]


def test_a_log_that_cannot_be_folded_on_close_is_replayed(plan: Plan, db_path: Path) -> None:
    db = open_on(StubbornFileSystem(plan), str(db_path))
    for number in range(5):
        commit(db, number)
    plan.failing, plan.error = {"grow": 0, "write": 0}, errno.ENOSPC
    db.close()  # nothing is lost by it, so it does not fail
    with limpet.open(db_path) as again:
        assert rows(again) == list(range(5))
        assert again.check().ok


def test_a_poisoned_database_fails_all_who_wait_for_the_same_flush(db: limpet.Database, plan: Plan) -> None:
    commits = db.stats().commits
    plan.failing = {"sync": 0}
    with ThreadPoolExecutor(5) as pool:
        with plan.syncs_held():
            waiting = [pool.submit(commit, db, number) for number in range(1, 6)]
            wait_until(lambda: plan.syncing.is_set() and db.stats().commits - commits == 5)
        outcomes = {type(each.exception(60)) for each in waiting}
    assert outcomes == {OSError, limpet.PoisonedError}  # the first says what it met, the rest that they came after it


def test_a_failed_close_releases_the_file_all_the_same(plan: Plan, db_path: Path) -> None:
    db = open_on(StubbornFileSystem(plan), str(db_path))
    commit(db, 1)
    commit(db, 2, durability="none")
    plan.failing, plan.error = {"write": 0}, errno.ENOSPC
    with pytest.raises(OSError):
        db.close()
    db.close()
    with pytest.raises(limpet.ClosedError):
        db.read()
    with limpet.open(db_path, lock_timeout=0) as again:
        assert rows(again) == [1]


def test_a_file_that_cannot_be_created_leaves_nothing_behind(plan: Plan, db_path: Path) -> None:
    for call in ("grow", "write", "sync"):
        plan.failing = {call: 0}
        with pytest.raises(OSError):
            open_on(StubbornFileSystem(plan), str(db_path))
        assert os.listdir(db_path.parent) == []


# -- group commit --------------------------------------------------------------------------------


def test_committers_who_wait_for_a_slow_disk_share_its_syncs(db: limpet.Database, plan: Plan) -> None:
    before = db.stats()
    with ThreadPoolExecutor(12) as pool:
        with plan.syncs_held():
            committing = [pool.submit(commit, db, 1)]
            assert plan.syncing.wait(60)
            committing += [pool.submit(commit, db, number) for number in range(2, 13)]
            wait_until(lambda: db.stats().commits - before.commits == 12)  # all are made, and wait for the disk
            assert not any(each.done() for each in committing)
        for each in committing:
            each.result(60)
    after = db.stats()
    assert after.syncs - before.syncs == 2  # the first one's, and one for all who came meanwhile
    assert after.durable_txid == after.txid
    assert rows(db) == list(range(13))


def test_a_reader_does_not_see_a_commit_before_it_is_durable(db: limpet.Database, plan: Plan) -> None:
    before = db.stats().durable_txid
    with ThreadPoolExecutor(1) as pool:
        with plan.syncs_held():
            committing = pool.submit(commit, db, 1)
            assert plan.syncing.wait(60)
            assert rows(db) == [0]
            assert db.stats().durable_txid == before
        while not committing.done():
            found, durable = rows(db), db.stats().durable_txid  # in this order: what was seen is durable by now
            assert 1 not in found or durable > before
        committing.result(60)
    assert db.stats().durable_txid > before
    assert rows(db) == [0, 1]


def test_a_writer_can_begin_while_an_earlier_commit_is_still_being_synced(db: limpet.Database, plan: Plan) -> None:
    with ThreadPoolExecutor(1) as pool:
        with plan.syncs_held():
            committing = pool.submit(commit, db, 1)
            assert plan.syncing.wait(60)
            with db.write(durability="none") as txn:  # sees what is not published yet
                assert list(txn[NUMBERS]) == [0, 1]
                assert not committing.done()
                txn.abort()
        committing.result(60)
    assert rows(db) == [0, 1]


def test_who_saw_a_commit_on_its_way_to_the_disk_is_let_go_only_when_it_is_there(tmp_path: Path) -> None:
    """A transaction that changes nothing commits nothing, but what it saw, it would tell.

    "You have sent this already" must not be said of a message that a failing disk takes back.
    """
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn[NUMBERS][0] = b"there"
        with db.write() as txn:
            txn[NUMBERS][0] = b"the log is in use"
        reached, go_on = threading.Event(), threading.Event()
        write_synced = db._committer.books.file.write_synced

        def slow(offset: int, data: bytes) -> None:
            reached.set()
            assert go_on.wait(20)
            write_synced(offset, data)

        def commit() -> None:
            with db.write() as txn:
                txn[NUMBERS][1] = b"on its way"

        seen: list[bytes | None] = []
        told = threading.Event()

        def look() -> None:
            with db.write() as txn:
                seen.append(txn[NUMBERS].get(1))
                with contextlib.suppress(KeyError), txn.savepoint():
                    txn[NUMBERS][2] = b"undone"
                    raise KeyError
            told.set()

        with mock.patch.object(db._committer.books.file, "write_synced", slow):
            threads = [threading.Thread(target=commit), threading.Thread(target=look)]
            threads[0].start()
            assert reached.wait(20)
            threads[1].start()
            assert not told.wait(0.2)
            commits = db.stats().commits
            go_on.set()
            for thread in threads:
                thread.join(20)
        assert told.is_set()
        assert seen == [b"on its way"]
        assert db.stats().commits == commits
        assert db.stats().durable_txid == db.stats().txid
