"""Interrupts at places where something has begun that others see: a file that got its name, commits that are undone."""

import errno
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import pytest

import limpet
from limpet import checkpoint, record_writer
from limpet.books import Books, Ledger
from limpet.chain import Record
from limpet.committer import Committer
from limpet.database import open_on
from limpet.testing import OLD, SimDisk, SimFileSystem

ROWS = limpet.Table("rows")


def interrupting(code: CodeType) -> Callable[[FrameType, str, Any], None]:
    """A trace function that raises KeyboardInterrupt when that function is entered, once."""

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code is code:
            sys.settrace(None)
            raise KeyboardInterrupt

    return trace


def test_a_compaction_that_is_interrupted_when_the_new_file_has_the_name_goes_on_with_it(tmp_path: Path) -> None:
    """Later commits went to the old file, which had no name any more: acknowledged, and gone with it."""
    path = tmp_path / "x.limpet"
    with limpet.open(path) as db:
        with db.write() as txn:
            txn[ROWS][b"before"] = b"1"
        sys.settrace(interrupting(Committer.switch.__code__))
        try:
            with pytest.raises(KeyboardInterrupt):
                db.compact()
        finally:
            sys.settrace(None)
        with db.write() as txn:
            txn[ROWS][b"after"] = b"2"
        assert db.check().ok
    assert [each.name for each in tmp_path.iterdir()] == ["x.limpet"]
    with limpet.open(path) as db, db.read() as reader:
        assert dict(reader[ROWS].items()) == {b"before": b"1", b"after": b"2"}


def test_an_interrupted_undo_is_finished_before_anything_is_built_on_it(tmp_path: Path) -> None:
    """One committer was told that the disk is full; then a transaction that had begun on its commit brought it back."""
    path = tmp_path / "x.limpet"
    write, copy = record_writer.write, Ledger.copy
    flushing, go_on = threading.Event(), threading.Event()
    results: dict[str, str] = {}

    def full(books: Books, record: Record, *, again: bool) -> None:
        if flushing.is_set():
            write(books, record, again=again)
            return
        flushing.set()
        assert go_on.wait(20)
        raise OSError(errno.ENOSPC, "full")

    def interrupted(ledger: Ledger) -> Ledger:
        if sys._getframe(1).f_code is checkpoint.undo.__code__ and not results:
            results["undo"] = "interrupted"
            raise KeyboardInterrupt
        return copy(ledger)

    def commit(name: str) -> None:
        try:
            with db.write() as txn:
                txn[ROWS][name.encode()] = b"x"
            results[name] = "made"
        except (OSError, KeyboardInterrupt) as error:
            results[name] = type(error).__name__

    with limpet.open(path) as db:
        for _ in range(2):
            with db.write() as txn:
                txn[ROWS][b"before"] = b"1"
        with mock.patch.object(record_writer, "write", full), mock.patch.object(Ledger, "copy", interrupted):
            first = threading.Thread(target=commit, args=("first",))
            first.start()
            assert flushing.wait(20)
            commits = db.stats().commits
            second = threading.Thread(target=commit, args=("second",))
            second.start()
            while db.stats().commits == commits:
                pass
            third = db.write()
            third[ROWS][b"third"] = b"x"
            go_on.set()
            first.join(20)
            with pytest.raises(OSError, match="could not be written"):
                third.commit()
            second.join(20)
        assert results == {"undo": "interrupted", "first": "KeyboardInterrupt", "second": "OSError"}
        with db.write() as txn:
            txn[ROWS][b"after"] = b"2"
    with limpet.open(path) as db, db.read() as reader:
        assert dict(reader[ROWS].items()) == {b"before": b"1", b"after": b"2"}


def test_many_threads_give_back_what_they_did_not_commit(tmp_path: Path) -> None:
    """Two that aborted at the same time took the same pages to give back: IndexError."""
    errors: list[BaseException] = []

    def abort() -> None:
        try:
            for number in range(150):
                txn = db.write()
                txn[ROWS][b"%d" % number] = b"x"
                txn.rename("rows", "other")
                txn.abort()
        except BaseException as error:  # noqa: BLE001 told below
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with limpet.open(tmp_path / "x.limpet") as db:
            with db.write() as txn:
                txn[ROWS][b"k"] = b"v"
            threads = [threading.Thread(target=abort) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors
            assert db.check().ok
    finally:
        sys.setswitchinterval(before)


def test_the_name_of_a_compacted_file_is_durable_before_anything_is_committed_to_it() -> None:
    """The interrupt came before the folder was synced; a power cut brought the old file back, without later commits."""
    disk = SimDisk()
    db = open_on(SimFileSystem(disk), "/sim/x.limpet", page_size=512)
    with db.write() as txn:
        txn[ROWS][b"before"] = b"1"
    sync_directory, calls = SimFileSystem.sync_directory, []

    def interrupted(file_system: SimFileSystem, path: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        sync_directory(file_system, path)

    with mock.patch.object(SimFileSystem, "sync_directory", interrupted), suppress(KeyboardInterrupt):
        db.compact()
    assert len(calls) == 2
    with db.write() as txn:
        txn[ROWS][b"after"] = b"2"
    units = disk.units()
    after = disk.crash(units, [OLD] * len(units))
    db.close()
    with open_on(SimFileSystem(after), "/sim/x.limpet", page_size=512) as again, again.read() as reader:
        assert dict(reader[ROWS].items()) == {b"before": b"1", b"after": b"2"}
