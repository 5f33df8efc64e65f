"""The seat of the writer: one at a time, whoever comes at whatever moment."""

import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from limpet.errors import BusyError
from limpet.turn import Seat


class Somebody:
    """Who wants the seat."""

    def __init__(self) -> None:
        self.is_open = True
        self.thread = threading.get_ident()


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def elsewhere() -> Somebody:
    found = Somebody()
    found.thread = 0
    return found


def test_the_seat_is_free_when_its_holder_is_over_or_was_forgotten() -> None:
    seat = Seat()
    first = elsewhere()
    assert seat.take(first, 0)
    assert not seat.take(Somebody(), 0)
    first.is_open = False  # and nobody rings
    second = elsewhere()
    assert seat.take(second, 0)
    assert seat.holder() is second
    del second
    assert seat.holder() is None
    assert seat.take(Somebody(), 0)


def test_a_thread_does_not_wait_for_itself() -> None:
    seat = Seat()
    first = Somebody()
    assert seat.take(first, None)
    with pytest.raises(BusyError, match="this thread"):
        seat.take(Somebody(), None)


def test_a_lost_ring_costs_a_moment_and_not_for_ever() -> None:
    seat = Seat()
    first = elsewhere()
    assert seat.take(first, 0)
    taken = threading.Event()

    def wait() -> None:
        if seat.take(Somebody(), None):
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not seat.waiting:
        time.sleep(0.001)
    first.is_open = False
    assert taken.wait(20)
    thread.join()


def take_with_somebody_between(number: int) -> bool:
    """Take a seat, and have somebody else take it at the instruction of that number; False if there are not so many."""
    seat, first, second, over = Seat(), elsewhere(), elsewhere(), elsewhere()
    assert seat.take(over, 0)
    over.is_open = False
    takes: list[bool] = []
    spots = 0

    def come_between(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal spots
        frame.f_trace_opcodes = frame.f_code.co_filename.endswith("turn.py")
        if event == "opcode" and not takes:
            spots += 1
            if spots > number:
                sys.settrace(None)
                takes.append(seat.take(second, 0))
        return come_between

    sys.settrace(come_between)
    try:
        taken = seat.take(first, 0)
    finally:
        sys.settrace(None)
    if not takes:
        return False
    assert [taken, *takes].count(True) == 1, f"at instruction {number}"
    assert seat.holder() is (first if taken else second)
    return True


def test_two_never_have_the_seat_whoever_comes_between_two_instructions() -> None:
    visited = 0
    while take_with_somebody_between(visited):
        visited += 1
    assert visited > 30


def test_two_never_have_the_seat(hurried: None) -> None:
    seat = Seat()
    inside = 0
    wrong: list[int] = []
    counts = [0] * 4

    def work(number: int) -> None:
        nonlocal inside
        while not wrong and counts[number] < 3000:
            me = Somebody()
            assert seat.take(me, None)
            inside += 1
            if inside != 1:
                wrong.append(inside)
            counts[number] += 1
            inside -= 1
            me.is_open = False
            seat.ring()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert counts == [3000] * 4
