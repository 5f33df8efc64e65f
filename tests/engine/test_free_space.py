"""Free space: what is handed out and when, undo, and the map on disk."""

import errno
import random
import zlib
from collections.abc import Callable

import pytest

from limpet.errors import CorruptError
from limpet.format import FIRST_NODE_PGNO, Ref, bitmap_bits, map_fanout, seal_page
from limpet.free_space import FreeSpace, load_map

PAGE_SIZE = 512


def new_space(high_water: int = 4, reserve: Callable[[int], None] = lambda high_water: None) -> FreeSpace:
    return FreeSpace(PAGE_SIZE, high_water, bytearray(-(-high_water // 8)), {}, reserve)


def used_space(pages: int) -> FreeSpace:
    """Space of which pages 4 to 4 + pages are used."""
    space = new_space()
    space.commit(1, space.allocate(pages), [], [])
    return space


def test_the_first_pages_come_in_one_run_behind_the_head() -> None:
    space = new_space()
    assert space.allocate(3) == [4, 5, 6]
    assert space.allocate(0) == []
    assert list(space.allocate_run(5)) == [7, 8, 9, 10, 11]
    assert space.high_water >= 12


def test_a_page_freed_by_a_commit_is_handed_out_only_when_the_horizon_has_passed_it() -> None:
    space = used_space(10)
    space.commit(5, [], [6, 7], [])
    assert space.reclaim(4, 4) == []
    assert not set(space.allocate(4)) & {6, 7}
    assert space.pending_count == 2
    assert sorted(space.reclaim(5, 5)) == [6, 7]
    assert set(space.allocate(2)) == {6, 7}
    assert space.pending_count == 0


def test_a_young_page_waits_for_readers_only() -> None:
    space = used_space(10)
    space.commit(5, [], [6], [8])
    assert space.reclaim(4, 5) == [8]
    assert space.reclaim(4, 9) == []
    assert space.reclaim(5, 5) == [6]


def test_a_failed_reservation_changes_nothing() -> None:
    def refuse(high_water: int) -> None:
        raise OSError(28, "no space")

    space = new_space(reserve=refuse)
    for _ in range(2):
        with pytest.raises(OSError):
            space.allocate(1)
        with pytest.raises(OSError):
            space.allocate_run(3)
        assert (space.high_water, space.free_count, space.reusable_count) == (4, 0, 0)


def test_the_reservation_is_asked_before_the_mark_moves() -> None:
    asked: list[int] = []
    space = new_space(reserve=asked.append)
    space.allocate(3)
    space.allocate(100)
    assert asked == sorted(asked)
    assert asked[-1] == space.high_water


def test_pages_given_back_are_handed_out_again() -> None:
    space = new_space()
    pages = space.allocate(8)
    space.give_back(pages)
    space.give_back(pages)  # a second time changes nothing
    assert sorted(space.allocate(8)) == pages
    assert space.reusable_count + 8 == space.high_water - FIRST_NODE_PGNO


def test_an_undone_commit_leaves_no_trace() -> None:
    space = used_space(20)
    before = (bytes(space._bits), space.free_count, space.reusable_count, space.pending_count)
    taken = space.allocate(4)
    grown = (bytes(space._bits), space.free_count, space.reusable_count + 4, space.pending_count)
    undo = space.commit(2, taken, [5, 6], [7])
    space.undo(taken, undo)
    space.give_back(taken)
    after = (bytes(space._bits), space.free_count, space.reusable_count, space.pending_count)
    assert after in (before, grown)
    assert space.reclaim(100, 100) == []


def test_handing_out_or_freeing_a_page_twice_is_our_own_mistake_and_asserts() -> None:
    space = used_space(5)
    with pytest.raises(AssertionError, match="twice"):
        space.mark_used([4])
    space.mark_free([4])
    with pytest.raises(AssertionError, match="twice"):
        space.mark_free([4])


def test_random_use_never_hands_out_a_page_that_is_used_or_needed(seed: int) -> None:
    """A model of the rule of reuse: pages freed by commit k may come again once the horizon is at k or above."""
    rng = random.Random(seed)
    space = new_space()
    used: set[int] = set()
    freed_by: dict[int, int] = {}
    horizon = 1
    for txid in range(2, 400):
        if rng.random() < 0.3:
            horizon = rng.randrange(horizon, txid)
            for pgno in space.reclaim(horizon, horizon):
                assert freed_by.pop(pgno) <= horizon
            assert all(by > horizon for by in freed_by.values())
        taken = space.allocate(rng.randrange(6), slack=rng.randrange(3))
        if rng.random() < 0.3:
            taken += space.allocate_run(rng.randrange(1, 12))
        assert len(set(taken)) == len(taken)
        assert not set(taken) & used
        assert not set(taken) & freed_by.keys()
        assert all(FIRST_NODE_PGNO <= pgno < space.high_water for pgno in taken)
        if rng.random() < 0.2:
            space.give_back(taken)
            continue
        freed = rng.sample(sorted(used), min(len(used), rng.randrange(8)))
        space.commit(txid, taken, freed, [])
        used = used - set(freed) | set(taken)
        freed_by.update(dict.fromkeys(freed, txid))
        assert space.free_count == space.high_water - FIRST_NODE_PGNO - len(used)
        assert space.pending_count == len(freed_by)


def test_pages_come_contiguously_while_there_is_such_a_run_and_in_pieces_before_the_file_grows_on() -> None:
    space = used_space(60)
    high_water = space.high_water
    space.commit(2, [], list(range(4, 64, 2)), [])  # every other page
    space.reclaim(9, 9)
    pieces = space.allocate(20)
    assert pieces == sorted(pieces)
    assert max(pieces) < high_water, "half of the file is free: it is used before the file grows"
    assert space.high_water == high_water
    run = space.allocate_run(5)
    assert list(run) == list(range(run.start, run.start + 5))


def full_after(high_water: int) -> Callable[[int], None]:
    """A file that cannot have more than `high_water` pages."""

    def reserve(wanted: int) -> None:
        if wanted > high_water:
            raise OSError(errno.ENOSPC, "no space")

    return reserve


def test_pieces_and_the_end_of_the_file_together_do_when_the_disk_is_full() -> None:
    space = new_space(reserve=full_after(16))
    pages = space.allocate(10)
    assert pages == list(range(4, 14))
    space.give_back([4, 6, 8])
    assert space.allocate(5) == [4, 6, 8, 14, 15]
    with pytest.raises(OSError, match="no space"):
        space.allocate(1)
    assert space.reusable_count == 0


def test_pages_without_room_on_the_disk_come_last_and_get_it_back_first() -> None:
    filled: list[tuple[int, int]] = []
    space = FreeSpace(
        PAGE_SIZE, 4, bytearray(1), {}, full_after(20), lambda first, count: filled.append((first, count))
    )
    space.give_back(space.allocate(16))
    space.hollow(range(4, 10))
    assert space.reusable_count == 10
    assert list(space.allocate_run(10)) == list(range(10, 20))
    assert filled == []
    assert list(space.allocate_run(6)) == list(range(4, 10))
    assert filled == [(4, 6)]


def test_several_runs_come_one_behind_the_other_or_from_where_there_is_room_for_each() -> None:
    space = used_space(60)
    space.commit(2, [], [*range(10, 20), *range(30, 34)], [])
    space.reclaim(9, 9)
    assert space.allocate_runs([3, 1, 2]) == [range(10, 13), range(13, 14), range(14, 16)]
    assert space.allocate_runs([4, 4]) == [range(16, 20), range(30, 34)]
    high_water = space.high_water
    assert space.allocate_runs([2, 3]) == [range(high_water, high_water + 2), range(high_water + 2, high_water + 5)]


def test_several_runs_that_the_file_has_no_room_for_are_given_back() -> None:
    space = used_space(60)
    space.commit(2, [], range(10, 20), [])
    space.reclaim(9, 9)

    def refuse(high_water: int) -> None:
        raise OSError(28, "no space left")

    space._reserve = refuse
    with pytest.raises(OSError, match="no space"):
        space.allocate_runs([4, 4, 4])
    assert space.reusable_count == 10
    assert space.allocate_runs([4, 4]) == [range(10, 14), range(14, 18)]


# -- the map on disk -----------------------------------------------------------------------------


class Disk:
    """Keeps the pages of a map."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}

    def flush(self, space: FreeSpace, txid: int) -> Ref:
        """Write the map as a flush does; returns its root."""
        freed: list[int] = []

        def take(count: int) -> list[int]:
            pgnos = space.allocate(count)
            space.mark_used(pgnos)
            return pgnos

        def free(pgno: int) -> None:
            space.mark_free((pgno,))
            freed.append(pgno)

        planned = space.plan_map(take, free)
        pages, refs = space.encode_map(planned, txid, lambda body, pgno: seal_page(body, pgno, zlib.crc32, 0))
        self.pages.update(pages)
        space.install_map(refs)
        space.add_pending(txid, freed)
        return space.map_root()

    def read(self, ref: int) -> bytes:
        return self.pages[ref & 0xFFFFFFFF]


@pytest.mark.parametrize("pages", [10, 3000, bitmap_bits(PAGE_SIZE) + 100, bitmap_bits(PAGE_SIZE) * 3])
def test_a_map_of_one_or_more_levels_is_read_back_as_it_was(pages: int, seed: int) -> None:
    rng = random.Random(seed)
    disk, space = Disk(), used_space(pages)
    for txid in range(2, 6):
        known = [pgno for pgno in range(4, 4 + pages) if not space._bits[pgno >> 3] >> (pgno & 7) & 1]
        mine = [pgno for pgno in known if pgno not in disk.pages]
        space.commit(txid, space.allocate(5), rng.sample(mine, min(3, len(mine))), [])
        root = disk.flush(space, txid)
        bits, refs = load_map(root, space.high_water, PAGE_SIZE, disk.read)
        assert bits == space._bits[: len(bits)]
        assert refs == {place: ref for place, ref in space._refs.items() if place in refs}
        assert int.from_bytes(bits, "little").bit_count() == space.free_count
        for ref in refs.values():
            assert not bits[(ref & 0xFFFFFFFF) >> 3] >> (ref & 7) & 1, "the map's own pages are in use"
        assert not space.map_is_dirty


def test_a_map_with_many_children_needs_only_the_pages_that_changed() -> None:
    disk, space = Disk(), used_space(bitmap_bits(PAGE_SIZE) * 4)
    space.commit(2, [], range(4, bitmap_bits(PAGE_SIZE) * 4, 700), [])
    disk.flush(space, 2)
    space.reclaim(3, 3)
    before = len(disk.pages)
    space.commit(4, [], [5], [])
    disk.flush(space, 4)
    assert len(disk.pages) - before <= 6


def test_a_reopened_file_keeps_what_the_older_commit_needs_and_frees_the_rest() -> None:
    bits = bytearray(3)
    for pgno in (6, 7, 8, 9):
        bits[pgno >> 3] |= 1 << (pgno & 7)
    older = bytearray(3)
    for pgno in (6, 7):  # free for both; 8 and 9 are used by the older commit
        older[pgno >> 3] |= 1 << (pgno & 7)
    space = FreeSpace(PAGE_SIZE, 20, bits, {}, lambda high_water: None)
    space.set_pending(5, bytes(older))
    assert space.reusable_count == 2
    assert sorted(space.allocate_run(2)) == [6, 7]
    assert space.reclaim(4, 9) == []
    assert sorted(space.reclaim(5, 9)) == [8, 9]
    alone = FreeSpace(PAGE_SIZE, 20, bytearray(bits), {}, lambda high_water: None)
    alone.set_pending(5, None)
    assert alone.reusable_count == 4


@pytest.mark.parametrize("damage", ["kind", "level", "pgno", "tree", "behind", "head", "count"])
def test_a_map_page_that_contradicts_itself_is_a_corrupt_error(damage: str) -> None:
    disk, space = Disk(), used_space(bitmap_bits(PAGE_SIZE) + 500)
    space.commit(2, [], [5, bitmap_bits(PAGE_SIZE) + 5], [])
    root = disk.flush(space, 2)
    pgno = root & 0xFFFFFFFF
    leaf_pgno = space._refs[0, 0] & 0xFFFFFFFF
    last_pgno = space._refs[0, 1] & 0xFFFFFFFF
    offset, target, value = {
        "kind": (4, pgno, 9),
        "level": (5, pgno, 0),
        "pgno": (8, leaf_pgno, 77),
        "tree": (12, leaf_pgno, 9),
        "behind": (511, last_pgno, 0x80),
        "head": (24, leaf_pgno, 0x01),
        "count": (6, pgno, 200),
    }[damage]
    page = bytearray(disk.pages[target])
    page[offset] = value
    disk.pages[target] = bytes(page)
    with pytest.raises(CorruptError):
        load_map(root, space.high_water, PAGE_SIZE, disk.read)
    assert map_fanout(PAGE_SIZE) < 200


def test_an_empty_map_is_no_map() -> None:
    bits, refs = load_map(0, 100, PAGE_SIZE, lambda ref: b"")
    assert not any(bits)
    assert refs == {}
    assert new_space().map_root() == 0
