"""Pages by reference: verified whenever they come from the file, cached within bounds, written in runs."""

import pytest

from limpet.backup import new_header
from limpet.checksum import CRC32
from limpet.errors import ClosedError, CorruptError
from limpet.file import MemoryFile
from limpet.format import Pgno, Ref, make_ref, ref_checksum, ref_pgno
from limpet.node import Leaf, encode_leaf, encode_overflow, overflow_record
from limpet.pager import Pager

TREE = 2


class WatchedFile(MemoryFile):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[int, int]] = []

    def write(self, offset: int, data: bytes) -> None:
        self.writes.append((offset, len(data)))
        super().write(offset, data)


@pytest.fixture
def file() -> WatchedFile:
    return WatchedFile()


def new_pager(file: WatchedFile, cache_size: int = 1 << 20) -> Pager:
    return Pager(file, new_header(512, CRC32), cache_size)


def add_leaf(pager: Pager, pgno: int, key: bytes = b"k", *, write: bool = True) -> Ref:
    body, _, _ = encode_leaf([key], [b"v"], Pgno(pgno), TREE, 1, 512)
    ref, page = pager.seal(body, pgno)
    if write:
        pager.write({pgno: page})
    else:
        pager.hold({pgno: page})
    return ref


def test_a_page_is_read_once_and_then_comes_from_the_cache(file: WatchedFile) -> None:
    pager = new_pager(file)
    ref = add_leaf(pager, 4)
    first = pager.node(ref, TREE)
    assert pager.node(ref, TREE) is first
    assert pager.passing_node(ref, TREE) is first
    assert pager.read_count == 1


def test_who_comes_into_the_bookkeeping_of_the_cache_reads_past_it(file: WatchedFile) -> None:
    """A finalizer that only read waited for a lock of its own thread; entering it twice would leave wrong sizes."""
    pager = new_pager(file)
    ref = add_leaf(pager, 4)
    with pager._lock:
        assert isinstance(pager.node(ref, TREE), Leaf)
        assert ref not in pager.hot
    pager.node(ref, TREE)
    assert ref in pager.hot


def test_a_passing_node_enters_the_cache_only_while_there_is_room(file: WatchedFile) -> None:
    pager = new_pager(file, cache_size=10_000)
    refs = [add_leaf(pager, pgno) for pgno in range(4, 104)]
    pager.node(refs[0], TREE)
    for ref in refs:
        pager.passing_node(ref, TREE)
    kept = set(pager.hot)
    for ref in refs:
        pager.passing_node(ref, TREE)

    assert refs[0] in kept
    assert set(pager.hot) == kept
    assert 1 < len(kept) < len(refs)
    assert pager.cached_size <= 10_000


def test_the_cache_never_exceeds_its_size(file: WatchedFile) -> None:
    pager = new_pager(file, cache_size=10_000)
    refs = [add_leaf(pager, pgno) for pgno in range(4, 104)]
    for _ in range(3):
        for ref in refs:
            pager.node(ref, TREE)
            assert pager.cached_size <= 10_000
    assert pager.cached_size > 5000
    pager.forget()
    assert pager.cached_size == 0


def test_what_is_asked_for_often_stays_in_a_cache_that_is_too_small(file: WatchedFile) -> None:
    pager = new_pager(file, cache_size=10_000)
    refs = [add_leaf(pager, pgno) for pgno in range(4, 104)]
    favourite = refs[0]
    pager.node(favourite, TREE)
    missed = 0
    for ref in refs[1:]:
        pager.node(ref, TREE)
        before = pager.read_count
        pager.node(favourite, TREE)
        missed += pager.read_count - before
    assert missed < 15  # of 99


@pytest.mark.parametrize("at", [0, 3, 4, 8, 100, 511])
def test_a_changed_byte_anywhere_in_a_page_is_a_corrupt_error_with_all_its_numbers(file: WatchedFile, at: int) -> None:
    pager = new_pager(file)
    ref = add_leaf(pager, 4)
    data = bytearray(file.read(4 * 512, 512))
    data[at] ^= 1
    file.write(4 * 512, bytes(data))
    if at >= 4:
        with pytest.raises(CorruptError, match="checksum") as caught:
            pager.node(ref, TREE)
        assert (caught.value.pgno, caught.value.offset, caught.value.expected) == (4, 2048, ref_checksum(ref))
    else:  # the checksum field itself: the reference holds another copy of it
        assert pager.node(ref, TREE).level == 0


def test_a_stale_or_misplaced_page_is_told_from_a_damaged_one(file: WatchedFile) -> None:
    pager = new_pager(file)
    old = add_leaf(pager, 4, b"old")
    new = add_leaf(pager, 4, b"new")
    assert ref_pgno(old) == ref_pgno(new)
    with pytest.raises(CorruptError, match="stale"):
        pager.page(old)
    other = add_leaf(pager, 5, b"other")
    file.write(4 * 512, file.read(5 * 512, 512))
    with pytest.raises(CorruptError, match="stale"):
        pager.page(new)
    with pytest.raises(CorruptError, match="belongs elsewhere"):
        pager.node(make_ref(4, ref_checksum(other)), TREE)


def test_a_page_of_another_file_is_a_corrupt_error(file: WatchedFile) -> None:
    ref = add_leaf(new_pager(file), 4)
    with pytest.raises(CorruptError):
        new_pager(file).page(ref)  # another file id: another seed


def test_a_page_behind_the_end_or_in_the_head_is_a_corrupt_error(file: WatchedFile) -> None:
    pager = new_pager(file)
    ref = add_leaf(pager, 4)
    file.truncate(4 * 512 + 100)
    with pytest.raises(CorruptError, match="cut short"):
        pager.page(ref)
    with pytest.raises(CorruptError, match="head"):
        pager.page(make_ref(1, pager.checksum(file.read(512, 512)[4:], pager.seed)))
    file.truncate(0)
    with pytest.raises(CorruptError):
        pager.page(ref)


def test_held_pages_are_read_before_the_file_and_until_they_are_released(file: WatchedFile) -> None:
    pager = new_pager(file, cache_size=0)
    ref = add_leaf(pager, 4, write=False)
    assert pager.node(ref, TREE).level == 0
    assert file.writes == []
    pager.release([4, 99])
    with pytest.raises(CorruptError):
        pager.node(ref, TREE)


def test_pages_are_written_in_contiguous_runs(file: WatchedFile) -> None:
    pager = new_pager(file)
    pages = {pgno: bytes([pgno]) * 512 for pgno in (9, 4, 5, 6, 20)}
    pages[10] = bytes(3 * 512)  # a run of overflow pages
    pager.write(pages)
    assert file.writes == [(4 * 512, 3 * 512), (9 * 512, 4 * 512), (20 * 512, 512)]
    pager.write({})
    assert len(file.writes) == 3


def test_an_overflow_value_is_verified_as_a_whole(file: WatchedFile) -> None:
    pager = new_pager(file)
    value = bytes(range(256)) * 10
    ref, run = pager.seal(encode_overflow(value, Pgno(4), TREE, 1, 512), 4)
    pager.write({4: run})
    record = overflow_record(len(value), ref)
    assert pager.overflow_value(record, TREE) == value
    with pytest.raises(CorruptError, match="overflow"):
        pager.overflow_value(record, TREE + 1)
    with pytest.raises(CorruptError):
        pager.overflow_value(overflow_record(len(value) + 1000, ref), TREE)
    file.write(4 * 512 + 2000, b"\xff")
    with pytest.raises(CorruptError) as caught:
        pager.overflow_value(record, TREE)
    assert caught.value.pgno == 4
    leaf = add_leaf(pager, 20)
    with pytest.raises(CorruptError, match="overflow"):
        pager.overflow_value(overflow_record(100, leaf), TREE)


def test_an_abandoned_pager_reads_nothing_from_the_cache_neither(file: WatchedFile) -> None:
    pager = new_pager(file)
    ref = add_leaf(pager, 4)
    pager.node(ref, TREE)
    pager._lock.acquire()  # as if another thread had held it when the process forked
    pager.abandon("gone")
    with pytest.raises(ClosedError, match="gone"):
        pager.node(ref, TREE)
