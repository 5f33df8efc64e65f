"""`table.update`: what a dict does, also when it fails in the middle.

An update that failed dropped the thousand entries among which the error was, although it had consumed them: neither
what a dict does, which keeps what came before the error, nor all or nothing.
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest

import limpet

TEXTS = limpet.Table("texts", key=limpet.INT, value=limpet.STR)
RAW = limpet.Table("raw")


@pytest.fixture
def txn() -> Iterator[limpet.WriteTransaction]:
    with limpet.open(":memory:") as db, db.write() as txn:
        yield txn


def failing(count: int, error: BaseException) -> Iterator[tuple[int, str]]:
    for number in range(count):
        yield number, str(number)
    raise error


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_pairs_that_raise_leave_what_came_before(
    txn: limpet.WriteTransaction, count: int, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        txn[TEXTS].update(failing(count, error))
    assert dict(txn[TEXTS]) == {number: str(number) for number in range(count)}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ((7, 7), TypeError),
        (("7", "7"), TypeError),
        ((2**63, "7"), limpet.LimitError),
        ((7, "\ud800"), ValueError),
        ((7,), ValueError),
        ((7, "7", "7"), ValueError),
        (7, TypeError),
    ],
)
def test_an_entry_that_cannot_be_set_leaves_what_came_before(
    txn: limpet.WriteTransaction, seed: int, wrong: Any, error: type[Exception]
) -> None:
    at = random.Random(seed).randrange(3000)
    pairs: list[Any] = [(number, str(number)) for number in range(10, 3010)]
    pairs[at] = wrong
    with pytest.raises(error):
        txn[TEXTS].update(pairs)
    assert dict(txn[TEXTS]) == dict(pairs[:at])


def test_a_key_that_is_too_large_leaves_what_came_before(txn: limpet.WriteTransaction) -> None:
    with pytest.raises(limpet.LimitError, match="1024"):
        txn[RAW].update([(b"a", b"1"), (b"b", b"2"), (b"k" * 1025, b"3"), (b"c", b"4")])
    assert dict(txn[RAW]) == {b"a": b"1", b"b": b"2"}


def test_an_update_that_sets_nothing_makes_no_table(txn: limpet.WriteTransaction) -> None:
    with pytest.raises(TypeError):
        txn[TEXTS].update([("wrong", "type")])
    txn[TEXTS].update([])
    assert txn.tables() == []


def test_pairs_may_be_anything_that_can_be_unpacked_once(txn: limpet.WriteTransaction) -> None:
    txn[TEXTS].update([iter((1, "a")), [2, "b"], (3, "c")])
    assert dict(txn[TEXTS]) == {1: "a", 2: "b", 3: "c"}
    with pytest.raises(TypeError):
        txn[TEXTS].update([iter((4, "d")), iter((5, 5))])
    assert txn[TEXTS][4] == "d"
