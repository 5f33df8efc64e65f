"""Which state a file holds: every combination of metas, every way in which a log can break off, and crashed files."""

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import limpet
from limpet.errors import CorruptError
from limpet.format import META_PGNOS, META_SIZE, Meta, Ref, Txid, make_stamp
from limpet.log import Log, LogEnd, Replay, encode_changes, encode_record, replay
from limpet.recovery import Choice, choose

NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
BAD = CorruptError("the checksum of the meta does not match")


# -- metas ---------------------------------------------------------------------------------------


def meta(txid: int, *, clean: bool = False, high_water: int = 10) -> Meta:
    return Meta(Txid(txid), 0, Ref(0), Ref(0), high_water, 0, 0, 2, 0, clean=clean)


def chosen(*found: Meta | CorruptError, size: int = 10 * 512) -> Choice:
    choice = choose(list(found), size, 512)
    if choice.meta is not None:
        choice.log = Replay([], choice.meta.txid, choice.meta.txid)
    return choice


def test_the_newer_checkpoint_is_chosen_in_either_slot() -> None:
    for first, second in ((meta(5), meta(6)), (meta(6), meta(5))):
        choice = chosen(first, second)
        assert choice.meta is not None
        assert choice.problem is None
        assert choice.meta.txid == 6
        assert choice.slot == [first, second].index(choice.meta)
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


def test_a_file_too_short_for_its_checkpoint_is_a_problem_and_not_an_older_one() -> None:
    choice = chosen(meta(5, high_water=8), meta(6, high_water=10), size=9 * 512)
    assert choice.problem is not None
    assert "cut short" in str(choice.problem)
    choice = chosen(meta(5, high_water=10), meta(6, high_water=8), size=9 * 512)
    assert choice.problem is None
    assert choice.older is None


def test_a_clean_close_is_what_the_newest_meta_says_and_no_record_denies() -> None:
    assert chosen(meta(5), meta(5, clean=True)).clean
    assert chosen(meta(5, clean=True), meta(5)).clean
    assert not chosen(meta(5), meta(6)).clean
    assert not chosen(BAD, meta(5, clean=True)).clean
    choice = chosen(meta(5), meta(5, clean=True))
    choice.log = build(epoch(5), 6).replay()
    assert choice.log.records
    assert not choice.clean


def test_the_choice_does_not_depend_on_the_order_of_the_slots() -> None:
    candidates: list[Meta | CorruptError] = [BAD, meta(5), meta(6), meta(6, clean=True)]
    for first, second in itertools.permutations(candidates, 2):
        one, other = chosen(first, second), chosen(second, first)
        assert (one.meta and one.meta.txid) == (other.meta and other.meta.txid)
        assert (one.problem is None) == (other.problem is None)
        if one.slot is not None and first != second:
            assert other.slot == 1 - one.slot
        if one.meta is not None and one.problem is None:
            assert one.reasons


# -- logs ----------------------------------------------------------------------------------------

START, SIZE, PAGE = 20, 12, 512


def epoch(txid: int, nonce: int = 3) -> int:
    return make_stamp(txid, nonce)


class Build:
    """A log that is written record by record."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.region = bytearray(SIZE * PAGE)
        self.at = self.previous = 0

    def add(self, txid: int, *, durable: int | None = None, size: int = 10, epoch: int | None = None) -> range:
        """A record; returns the bytes of the region that it takes."""
        changes = encode_changes(2, [(b"k", bytes(size))])
        self.previous, run = encode_record(
            changes,
            START + self.at,
            make_stamp(txid, 9),
            self.epoch if epoch is None else epoch,
            self.previous,
            txid - 1 if durable is None else durable,
            0,
            PAGE,
            zlib.crc32,
            0,
        )
        place = range(self.at * PAGE, self.at * PAGE + len(run))
        self.region[place.start : place.stop] = run
        self.at += len(run) // PAGE
        return place

    def replay(self, stamp: int | None = None) -> Replay:
        return replay(bytes(self.region), START, self.epoch if stamp is None else stamp, PAGE, zlib.crc32, 0)


def build(epoch: int, *txids: int) -> Build:
    log = Build(epoch)
    for txid in txids:
        log.add(txid)
    return log


def test_records_are_replayed_in_order_until_they_end() -> None:
    log = build(epoch(5), 6, 7)
    log.add(9, size=1200)  # txids may be left out, and records take several pages
    log.add(10)
    found = log.replay()
    assert found.problem is None
    assert [record.txid for record in found.records] == [6, 7, 9, 10]
    assert [record.pages for record in found.records] == [1, 1, 3, 1]
    assert (found.last_txid, found.used) == (10, 6)
    assert log.replay() == found
    empty = build(epoch(5)).replay()
    assert (empty.records, empty.last_txid, empty.used, empty.problem) == ([], 5, 0, None)


def test_a_torn_last_record_is_the_end() -> None:
    for at in range(0, 3 * PAGE, 97):
        log = build(epoch(5), 6, 7)
        place = log.add(8, size=1200)
        log.region[place.start + at] ^= 0x40
        found = log.replay()
        assert [record.txid for record in found.records] == [6, 7]
        assert found.problem is None


def test_a_damaged_record_that_a_later_one_knows_to_be_safe_is_damage() -> None:
    for damaged in range(3):
        log = build(epoch(5), 6, 7, 8, 9)
        log.region[damaged * PAGE + 100] ^= 1
        found = log.replay()
        assert found.problem is not None
        assert "damaged" in found.problem.message
        assert found.problem.pgno == START + damaged


def test_unsynced_records_behind_a_lost_one_are_no_damage() -> None:
    log = Build(epoch(5))
    log.add(6)
    place = log.add(7, durable=6)
    log.add(8, durable=6)  # an `os` commit: when it was written, 7 was not known to be safe
    log.region[place.start : place.stop] = bytes(PAGE)
    found = log.replay()
    assert found.problem is None
    assert found.last_txid == 6
    assert found.seen_txid == 8, "what is left of it must not be taken for a later commit of the same number"


def test_what_an_earlier_epoch_left_does_not_count() -> None:
    log = build(epoch(5), 6, 7, 8)
    found = log.replay(epoch(8))
    assert (found.records, found.problem) == ([], None)
    assert build(epoch(5, nonce=4), 6).replay(epoch(5, nonce=3)).records == []


def test_a_log_of_a_newer_epoch_means_that_the_newer_meta_is_damaged() -> None:
    found = build(epoch(9), 10).replay(epoch(5))
    assert found.problem is not None
    assert "meta" in found.problem.message


def test_a_record_that_does_not_continue_the_one_before_does_not_count() -> None:
    log = build(epoch(5), 6)
    log.previous ^= 1
    log.add(7, durable=5)
    assert log.replay().last_txid == 6
    log = build(epoch(5), 6)
    log.add(6)  # not newer
    assert len(log.replay().records) == 1
    log = build(epoch(5), 6)
    moved = bytes(log.region[:PAGE])
    log.region[PAGE : 2 * PAGE] = moved  # misdirected
    assert len(log.replay().records) == 1


def test_a_record_that_reaches_beyond_the_log_does_not_count() -> None:
    log = build(epoch(5), 6)
    log.add(7, size=20 * PAGE)
    assert len(replay(bytes(log.region[: SIZE * PAGE]), START, epoch(5), PAGE, zlib.crc32, 0).records) == 1
    assert replay(b"", START, epoch(5), PAGE, zlib.crc32, 0).records == []


def test_a_log_says_what_it_has_room_for() -> None:
    log = Log(1, START, SIZE, PAGE)
    assert not log.has_room(4 * PAGE, 4 * PAGE, 1), "more than a quarter"
    assert not log.has_room(100, 100, 5000), "too many changes"
    for used in range(SIZE):
        log.taken = used, 100 * used
        assert log.has_room(100 * (used + 1), 100, used + 1)
    log.taken = SIZE, 100 * SIZE
    assert not log.has_room(100 * SIZE + 1, 1, SIZE + 1)


def test_a_log_takes_no_more_than_the_next_checkpoint_is_promised_pages_for() -> None:
    log = Log(1, START, SIZE, PAGE)
    assert not log.is_promised(1, 1, 1), "nobody has promised anything yet"
    log.change_cost, log.limit = PAGE, 10 * PAGE + 3 * 100
    assert log.is_promised(100, 100, 10)
    assert not log.is_promised(101, 1, 10), "too many bytes"
    assert not log.is_promised(100, 1, 11), "too many changes"
    log.limit, log.large_limit = 1 << 40, PAGE
    assert log.is_promised(PAGE, PAGE, 1)
    assert not log.is_promised(PAGE + 1, PAGE, 1), "no run of pages for a large value"
    assert log.is_promised(PAGE + 1, 1, 2), "a small one needs none"


def test_a_log_counts_the_record_that_is_being_written_on_its_own() -> None:
    """What came while a record was on its way was thought to fit into the rest of that record's last page."""
    log = Log(1, START, SIZE, PAGE)
    log.end = LogEnd(used=SIZE - 1)
    log.taken = SIZE - 1, 0
    assert log.has_room(200, 100, 2), "together with what waits"
    log.taken = SIZE, 100
    assert not log.has_room(200, 100, 2), "the record with the first of the two fills the log"


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


def checkpoint(db: limpet.Database, number: int) -> None:
    """A commit that the log does not take."""
    with db.write() as txn:
        txn[NUMBERS].update({number * 100 + each: bytes(50) for each in range(20)})
        txn[NUMBERS][-1] = b"%d" % number
        txn[limpet.Table(f"made by {number}")][b""] = b""


@pytest.mark.parametrize("size", [0, 8, 40, 60, 64])
def test_a_torn_meta_is_a_checkpoint_that_never_was(
    open_db: Callable[..., limpet.Database], db_path: Path, size: int
) -> None:
    states = []
    with limpet.open(db_path, page_size=512) as db:
        for number in range(2):
            checkpoint(db, number)
            states.append(db_path.read_bytes())
    before, after = states
    changed = [pgno for pgno in META_PGNOS if before[pgno * 512 :][:META_SIZE] != after[pgno * 512 :][:META_SIZE]]
    (slot,) = changed
    at = slot * 512
    torn = after[:at] + after[at : at + size] + before[at + size : at + META_SIZE] + after[at + META_SIZE :]
    db_path.write_bytes(torn)
    with open_db(db_path) as db:
        assert newest(db) == 0


def test_after_the_first_record_no_single_meta_is_needed(db_path: Path) -> None:
    state = crashed(db_path, "sss")[-1]
    for slot in META_PGNOS:
        db_path.write_bytes(state[: slot * 512] + bytes(512) + state[(slot + 1) * 512 :])
        with limpet.open(db_path) as db:
            assert newest(db) == 2
            assert db.check().ok


def test_a_damaged_record_in_the_middle_is_reported_and_nothing_is_written(db_path: Path) -> None:
    state = crashed(db_path, "ssss")[-1]
    with limpet.open(db_path) as db:
        start = db._chain.tip.log.start
    reported = 0
    for pgno in range(start, start + 12):
        data = bytearray(state)
        data[pgno * 512 + 60] ^= 1
        db_path.write_bytes(data)
        try:
            with limpet.open(db_path, read_only=True) as db:
                assert newest(db) in (2, 3)  # only the last record can be missing
        except limpet.CorruptError:
            reported += 1
            with pytest.raises(limpet.CorruptError):
                limpet.open(db_path)
            assert db_path.read_bytes() == data
    assert reported


def test_a_bad_page_of_the_newest_checkpoint_is_reported_and_not_forgotten(db_path: Path) -> None:
    """Falling back to the older one would lose an acknowledged commit without a word."""
    with limpet.open(db_path, page_size=512) as db:
        for number in range(2):
            checkpoint(db, number)
        root = db._chain.tip.snapshot.tables["numbers"].root & 0xFFFFFFFF
        data = bytearray(db_path.read_bytes())
    data[root * 512 + 300] ^= 1
    db_path.write_bytes(data)
    with limpet.open(db_path) as db, db.read() as txn:
        with pytest.raises(limpet.CorruptError) as caught:
            list(txn[NUMBERS].items())
        assert caught.value.table == "numbers"
        assert not db.check().ok


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
