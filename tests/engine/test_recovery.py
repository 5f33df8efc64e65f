"""Which commit a file holds: every combination of metas, and crashes of a file with `os` commits."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet.errors import CorruptError
from limpet.format import META_PGNOS, META_SIZE, Meta, Ref, Txid
from limpet.recovery import Choice, choose

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
BAD = CorruptError("the checksum of the meta does not match")


def meta(txid: int, durable: int | None = None, *, clean: bool = False, high_water: int = 10) -> Meta:
    durable_txid = Txid(txid if durable is None else durable)
    return Meta(Txid(txid), 0, durable_txid, Ref(0), Ref(0), high_water, 0, 0, 2, 0, clean)


def chosen(*found: Meta | CorruptError, size: int = 10 * 512, whole: bool = True) -> Choice:
    def verify(meta: Meta) -> None:
        if not whole:
            raise CorruptError("a page is bad")

    return choose(list(found), size, 512, verify)


def test_the_newer_durable_commit_is_chosen_in_either_slot() -> None:
    for first, second in ((meta(5), meta(6)), (meta(6), meta(5))):
        choice = chosen(first, second)
        assert choice.meta is not None
        assert choice.problem is None
        assert choice.meta.txid == 6
        assert choice.slot == choice.durable == [first, second].index(choice.meta)
        assert choice.older is not None
        assert choice.older.txid == 5


def test_a_bad_meta_leaves_the_other_one() -> None:
    for found in ((BAD, meta(5)), (meta(5), BAD)):
        choice = chosen(*found)
        assert choice.meta is not None
        assert choice.meta.txid == 5
        assert choice.older is None
        assert any("not used" in reason for reason in choice.reasons)


def test_two_bad_metas_are_a_problem() -> None:
    choice = chosen(BAD, BAD)
    assert choice.meta is None
    assert isinstance(choice.problem, CorruptError)


def test_an_os_commit_is_chosen_if_it_is_whole_and_its_durable_one_if_not() -> None:
    for found in ((meta(5), meta(7, 5)), (meta(7, 5), meta(5))):
        whole, torn = chosen(*found), chosen(*found, whole=False)
        assert whole.meta is not None
        assert torn.meta is not None
        assert (whole.meta.txid, torn.meta.txid) == (7, 5)
        assert whole.durable == torn.durable == found.index(meta(5)), "the next commit must not touch the durable one"
        assert torn.older is None, "what the torn commit needed may be used again"


def test_an_os_commit_alone_that_is_not_whole_is_a_problem() -> None:
    choice = chosen(BAD, meta(7, 5), whole=False)
    assert choice.problem is not None


def test_a_file_too_short_for_a_durable_commit_is_a_problem_and_not_an_older_commit() -> None:
    choice = chosen(meta(5, high_water=8), meta(6, high_water=10), size=9 * 512)
    assert choice.problem is not None
    assert "cut short" in str(choice.problem)
    choice = chosen(meta(5, high_water=8), meta(6, 5, high_water=10), size=9 * 512)
    assert choice.problem is None
    assert choice.meta is not None
    assert choice.meta.txid == 5


def test_a_clean_close_is_what_both_metas_say() -> None:
    assert chosen(meta(5), meta(5, clean=True)).clean
    assert chosen(meta(5, clean=True), meta(5)).clean
    assert not chosen(meta(5), meta(6)).clean
    assert not chosen(BAD, meta(5, clean=True)).clean


def test_the_choice_does_not_depend_on_the_order_of_the_slots() -> None:
    candidates: list[Meta | CorruptError] = [BAD, meta(5), meta(6), meta(7, 5), meta(6, clean=True)]
    for (first, second), whole in itertools.product(itertools.permutations(candidates, 2), (True, False)):
        one, other = chosen(first, second, whole=whole), chosen(second, first, whole=whole)
        assert (one.meta and one.meta.txid) == (other.meta and other.meta.txid)
        assert (one.problem is None) == (other.problem is None)
        if one.slot is not None and first != second:
            assert other.slot == 1 - one.slot
        if one.meta is not None and one.problem is None:
            assert one.reasons


# -- on files ------------------------------------------------------------------------------------


def crashed(path: Path, durabilities: str) -> list[bytes]:
    """The file after each of some commits, as a killed process leaves it: "s" sync, "o" os, "n" none."""
    names = {"s": "sync", "o": "os", "n": "none"}
    states = []
    db = limpet.open(path, page_size=512)
    for number, letter in enumerate(durabilities):
        with db.write(durability=names[letter]) as txn:
            txn[NUMBERS].update({number * 100 + each: bytes(50) for each in range(20)})
            txn[NUMBERS][-1] = b"%d" % number
        states.append(path.read_bytes())
    db.close()
    return states


def newest(db: limpet.Database) -> int:
    with db.read() as txn:
        number = int(txn[NUMBERS][-1]) if txn[NUMBERS] else -1
        assert len(txn[NUMBERS]) == (number + 1) * 20 + (number >= 0)
    return number


@pytest.mark.parametrize("durabilities", ["ssss", "sooo", "ssoso", "oooo", "snsn", "sonos"])
def test_a_killed_process_leaves_its_newest_written_commit(
    open_db: Callable[..., limpet.Database], db_path: Path, durabilities: str
) -> None:
    states = crashed(db_path, durabilities)
    written = -1
    for number, (letter, state) in enumerate(zip(durabilities, states, strict=True)):
        written = number if letter != "n" else written
        db_path.write_bytes(state)
        for _ in range(2):  # recovering twice changes nothing
            with limpet.open(db_path, read_only=True) as db:
                assert newest(db) == written
            assert db_path.read_bytes() == state
        with open_db(db_path) as db:
            assert newest(db) == written
            with db.write() as txn:
                txn[NUMBERS][-5] = b"goes on"
            assert db.check().ok


def test_a_power_cut_that_lost_any_page_of_an_os_commit_brings_the_durable_one_back(
    open_db: Callable[..., limpet.Database], db_path: Path
) -> None:
    before, after = crashed(db_path, "so")
    before = before.ljust(len(after), b"\0")
    for start in range(4 * 512, len(after), 512):
        if before[start : start + 512] == after[start : start + 512]:
            continue
        db_path.write_bytes(after[:start] + before[start : start + 512] + after[start + 512 :])
        with limpet.open(db_path, read_only=True) as db:
            assert newest(db) == 0, f"page {start // 512}"
        with open_db(db_path) as db:
            assert newest(db) == 0
            with db.write() as txn:
                txn[NUMBERS][-5] = b"goes on"
    db_path.unlink()


def test_many_os_commits_leave_every_page_of_the_durable_commit_alone(
    open_db: Callable[..., limpet.Database], db_path: Path
) -> None:
    state = bytearray(crashed(db_path, "sooooooooo")[-1])
    stamps = {pgno: int.from_bytes(state[pgno * 512 + 8 : pgno * 512 + 14], "little") for pgno in META_PGNOS}
    lost = max(stamps, key=lambda pgno: stamps[pgno]) * 512  # the meta of the newest `os` commit did not survive
    state[lost : lost + META_SIZE] = bytes(META_SIZE)
    db_path.write_bytes(state)
    with open_db(db_path) as db:
        assert newest(db) == 0
        assert db.check().ok


@pytest.mark.parametrize("size", [0, 8, 40, 60, 64])
def test_a_torn_meta_is_a_commit_that_never_was(
    open_db: Callable[..., limpet.Database], db_path: Path, size: int
) -> None:
    before, after = crashed(db_path, "ss")
    changed = [pgno for pgno in META_PGNOS if before[pgno * 512 :][:META_SIZE] != after[pgno * 512 :][:META_SIZE]]
    (slot,) = changed
    at = slot * 512
    torn = after[:at] + after[at : at + size] + before[at + size : at + META_SIZE] + after[at + META_SIZE :]
    db_path.write_bytes(torn)
    with open_db(db_path) as db:
        assert newest(db) == 0


def test_a_bad_page_of_the_newest_durable_commit_is_reported_and_not_forgotten(db_path: Path) -> None:
    """Falling back to the older commit would lose an acknowledged one without a word."""
    _, after = crashed(db_path, "ss")
    data = bytearray(after)
    with limpet.open(db_path) as db:
        root = db._tip.tables["numbers"].root & 0xFFFFFFFF
    data[root * 512 + 300] ^= 1
    db_path.write_bytes(data)
    with pytest.raises(limpet.CorruptError) as caught:
        limpet.open(db_path)
    assert caught.value.table == "numbers"
    assert db_path.read_bytes() == data


def test_an_unclean_file_is_logged_with_what_was_decided(
    open_db: Callable[..., limpet.Database], db_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db_path.write_bytes(crashed(db_path, "ss")[-1])
    with caplog.at_level("INFO", "limpet"), open_db(db_path) as db, db.write() as txn:
        txn[NUMBERS][-5] = b"goes on"
    assert "not closed cleanly" in caplog.text
    assert "chosen" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "limpet"):
        open_db(db_path)
    assert "not closed cleanly" not in caplog.text
