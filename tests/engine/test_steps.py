"""Steps of a write transaction: what comes in their middle is refused, and one that was stopped cannot be committed."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest

import limpet
from limpet.overlay import WorkingTree
from limpet.transaction import WriteTransaction

ROWS = limpet.Table("rows")


@pytest.fixture
def db(tmp_path: Path) -> Any:
    with limpet.open(tmp_path / "x.limpet") as database:
        with database.write() as txn:
            txn[ROWS][b"k"] = b"0"
        yield database
        assert database.check().ok


def rows(db: limpet.Database) -> dict[bytes, bytes]:
    with db.read() as txn:
        return dict(txn[ROWS].items())


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_change_that_was_stopped_half_way_cannot_be_committed(db: limpet.Database) -> None:
    txn = db.write()
    list(txn[ROWS])  # from now on the order of the keys is kept, which comes in the middle of a change
    with mock.patch.object(WorkingTree, "_keep_sorted", stopped), pytest.raises(KeyboardInterrupt):
        txn[ROWS][b"new"] = b"1"
    with pytest.raises(limpet.LimpetError, match="half-way"):
        txn.commit()
    assert rows(db) == {b"k": b"0"}


def test_a_savepoint_around_it_takes_a_stopped_change_back(db: limpet.Database) -> None:
    with db.write() as txn:
        list(txn[ROWS])
        keep_sorted = mock.patch.object(WorkingTree, "_keep_sorted", stopped)
        with pytest.raises(KeyboardInterrupt), txn.savepoint(), keep_sorted:
            txn[ROWS][b"new"] = b"1"
        txn[ROWS][b"other"] = b"2"
        assert len(txn[ROWS]) == 2
    assert rows(db) == {b"k": b"0", b"other": b"2"}


def test_what_comes_into_a_change_is_refused(db: limpet.Database) -> None:
    refused: list[str] = []
    keep_sorted = WorkingTree._keep_sorted

    def come_in(tree: WorkingTree, key: bytes) -> None:
        keep_sorted(tree, key)
        for call in (txn.commit, txn.abort, db.close, lambda: txn[ROWS].pop(b"k"), lambda: list(txn[ROWS])):
            try:
                call()
            except limpet.BusyError as error:
                refused.append(str(error))

    with db.write() as txn:
        list(txn[ROWS])
        with mock.patch.object(WorkingTree, "_keep_sorted", come_in):
            txn[ROWS][b"new"] = b"1"
    assert len(refused) == 5
    assert rows(db) == {b"k": b"0", b"new": b"1"}


def test_a_transaction_whose_database_is_closed_does_not_end_without_a_word(tmp_path: Path) -> None:
    db = limpet.open(tmp_path / "y.limpet")

    def commit() -> None:
        with db.write() as txn:
            txn[ROWS][b"k"] = b"1"
            db.close()

    with pytest.raises(limpet.ClosedError, match="nothing of it was committed"):
        commit()


def test_a_transaction_that_somebody_ends_meanwhile_is_not_changed_without_a_word(db: limpet.Database) -> None:
    """Between two lines of `txn[TABLE]`, and between asking for the table and setting the entry."""
    lines = 0

    def end_at(number: int) -> None:
        nonlocal lines
        seen = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal seen
            if frame.f_code.co_name not in ("__getitem__", "__setitem__") or "limpet" not in frame.f_code.co_filename:
                return None
            if event == "line":
                seen += 1
                if seen == number:
                    sys.settrace(None)
                    txn.commit()
            return trace

        txn: WriteTransaction = db.write()
        before = rows(db)
        sys.settrace(trace)
        try:
            txn[ROWS][b"%d" % number] = b"x"
            made = True
        except limpet.ClosedError:
            made = False
        finally:
            sys.settrace(None)
        lines = max(lines, seen)
        if txn.is_open:
            txn.commit()
        assert rows(db) == {**before, **({b"%d" % number: b"x"} if made else {})}

    for number in range(1, 60):
        end_at(number)
    assert lines >= 20
