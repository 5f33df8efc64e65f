"""The contract of transactions: isolation, savepoints, drop, rename, durability, threads. On file and in memory."""

# ruff: noqa: PT012 - what is done inside a block before an exception leaves it is the subject here

import gc
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limpet

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.BYTES)
TINY = {"page_size": 512, "cache_size": 0}  # overlays are applied early from 1 MiB on


class Oops(Exception):
    """Raised on purpose, to leave a block."""


def content(db: limpet.Database) -> dict[str, dict[bytes, bytes]]:
    with db.read() as txn:
        return {name: dict(txn[name]) for name in txn.tables()}


# -- commit and abort ----------------------------------------------------------------------------


def test_a_block_that_ends_well_commits_and_one_that_raises_aborts(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
    with pytest.raises(Oops), db.write() as txn:
        txn[USERS]["bob"] = 2
        raise Oops
    with db.read() as txn:
        assert dict(txn[USERS]) == {"ada": 1}


def test_commit_and_abort_may_be_called_by_hand(db: limpet.Database) -> None:
    txn = db.write()
    txn[USERS]["ada"] = 1
    txn.commit()
    txn = db.write()
    txn[USERS]["bob"] = 2
    txn.abort()
    with db.write() as txn:
        txn[USERS]["eve"] = 3
        txn.commit()  # the end of the block then has nothing to do
    with db.write() as txn:
        txn[USERS]["mallory"] = 4
        txn.abort()
    with db.read() as reader:
        assert dict(reader[USERS]) == {"ada": 1, "eve": 3}


def test_a_transaction_sees_its_own_changes_and_nobody_else_does(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        assert txn[USERS]["ada"] == 1
        assert txn.tables() == ["users"]
        with db.read() as reader:
            assert reader.tables() == []
            assert "ada" not in reader[USERS]


def test_the_txid_grows_with_each_commit_and_readers_show_the_newest(db: limpet.Database) -> None:
    seen = []
    for number in range(5):
        with db.write() as txn:
            txn[USERS]["n"] = number
            seen.append(txn.txid)
        with db.read() as reader:
            assert reader.txid == seen[-1]
    assert seen == sorted(set(seen))
    with pytest.raises(Oops), db.write() as txn:
        txn[USERS]["n"] = -1
        raise Oops
    with db.read() as reader:
        assert reader.txid == seen[-1]
    with db.write() as txn:
        assert txn.txid > seen[-1]


def test_a_transaction_that_changed_nothing_commits_nothing(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
    before = db.stats()
    with db.write() as txn:
        assert txn[USERS]["ada"] == 1
        assert len(txn[NUMBERS]) == 0
    after = db.stats()
    assert (after.txid, after.commits, after.syncs) == (before.txid, before.commits, before.syncs)
    assert db.tables() == ["users"]


def test_a_table_is_created_by_its_first_write_and_not_by_reading(db: limpet.Database) -> None:
    with db.write() as txn:
        assert txn[USERS].get("ada") is None
        assert list(txn[USERS]) == []
        assert len(txn[USERS]) == 0
        assert txn[USERS].first() is None
        txn[USERS].clear()
        assert txn[USERS].delete_range("a", "b") == 0
        assert txn.tables() == []
        txn[NUMBERS][1] = b""
    assert db.tables() == ["numbers"]
    with db.read() as reader:
        assert len(reader[USERS]) == 0
        assert list(reader[USERS].items()) == []


def test_create_makes_a_table_that_holds_nothing(db: limpet.Database) -> None:
    with db.write() as txn:
        assert len(txn.create(USERS)) == 0
        assert txn.tables() == ["users"]
    with db.write() as txn:
        txn.create(USERS)["ada"] = 1  # it is there already
    with db.read() as txn:
        assert dict(txn[USERS]) == {"ada": 1}


def test_tables_come_in_order_and_with_the_changes_made_so_far(db: limpet.Database) -> None:
    names = ["zoe", "a", "m", "\u00e9"]
    with db.write() as txn:
        for name in names:
            txn[name][b"k"] = b"v"
    with db.write() as txn:
        txn.drop("m")
        txn["b"][b"k"] = b"v"
        txn.rename("a", "y")
        assert txn.tables() == ["b", "y", "zoe", "\u00e9"]
        assert db.tables() == ["a", "m", "zoe", "\u00e9"]
    assert db.tables() == ["b", "y", "zoe", "\u00e9"]


# -- drop and rename -----------------------------------------------------------------------------


def test_drop_removes_a_table_and_what_it_held(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[NUMBERS].update({number: bytes(100) for number in range(1000)})
        txn[USERS]["ada"] = 1
    with db.write() as txn:
        txn.drop(NUMBERS)
        assert len(txn[NUMBERS]) == 0
        assert txn.tables() == ["users"]
    assert db.tables() == ["users"]
    with db.write() as txn:  # the name is free for other codecs
        txn[limpet.Table("numbers", key=limpet.STR)]["x"] = b"y"
        txn.drop("users")
    assert content(db) == {"numbers": {b"x": b"y"}}


def test_drop_and_create_again_in_one_transaction(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[NUMBERS][1] = b"old"
    with db.write() as txn:
        view = txn[NUMBERS]
        txn.drop(NUMBERS)
        assert list(view) == []
        view[2] = b"new"
        assert dict(txn[NUMBERS]) == {2: b"new"}
    with db.read() as txn:
        assert dict(txn[NUMBERS]) == {2: b"new"}
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        txn.drop(USERS)
    assert db.tables() == ["numbers"]


def test_dropping_or_renaming_what_does_not_exist_is_a_no_such_table_error(db: limpet.Database) -> None:
    with db.write() as txn:
        for missing in (USERS, "users"):
            with pytest.raises(limpet.NoSuchTableError, match="'users'"):
                txn.drop(missing)
            with pytest.raises(limpet.NoSuchTableError):
                txn.rename(missing, "others")
        txn[USERS]["ada"] = 1
        txn.drop(USERS)
        with pytest.raises(KeyError):  # which it is, too
            txn.drop(USERS)


def test_rename_keeps_the_content_and_the_codecs(db: limpet.Database) -> None:
    people = limpet.Table("people", key=limpet.STR, value=limpet.JSON)
    with db.write() as txn:
        txn[USERS].update({f"{number:04}": number for number in range(300)})
    with db.write() as txn:
        old_view = txn[USERS]
        old_view["new"] = 1
        txn.rename(USERS, "people")
        assert txn[people]["new"] == 1
        assert len(txn[people]) == 301
        assert len(txn[USERS]) == len(old_view) == 0
        with pytest.raises(limpet.TableTypeError):
            txn[limpet.Table("people")]
    assert db.tables() == ["people"]
    with db.write() as txn:
        txn.rename("people", "users")  # a bare name does as well
        txn.rename("users", "users")  # to itself: nothing happens
        txn[USERS]["newer"] = 2
    with db.read() as txn:
        assert len(txn[USERS]) == 302


def test_renaming_to_a_name_that_is_taken_or_is_no_name_is_refused(db: limpet.Database) -> None:
    wrong: Any = 5
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        txn[NUMBERS][1] = b""
        with pytest.raises(ValueError, match="numbers"):
            txn.rename(USERS, "numbers")
        with pytest.raises(ValueError):
            txn.rename(USERS, "")
        with pytest.raises(TypeError):
            txn.rename(USERS, wrong)
        txn.drop(NUMBERS)
        txn.rename(USERS, "numbers")  # free now
    assert db.tables() == ["numbers"]


def test_two_tables_can_swap_their_names(db: limpet.Database) -> None:
    with db.write() as txn:
        txn["a"][b"k"] = b"from a"
        txn["b"][b"k"] = b"from b"
    with db.write() as txn:
        txn.rename("a", "tmp")
        txn.rename("b", "a")
        txn.rename("tmp", "b")
    assert content(db) == {"a": {b"k": b"from b"}, "b": {b"k": b"from a"}}


# -- savepoints ----------------------------------------------------------------------------------


def test_an_exception_inside_a_savepoint_undoes_just_that_part(db: limpet.Database) -> None:
    with db.write() as txn:
        users = txn[USERS]
        users.update({"a": 1, "b": 2})
        with pytest.raises(Oops), txn.savepoint():
            users["a"] = 10
            users["c"] = 3
            del users["b"]
            assert len(users) == 2
            raise Oops
        assert dict(users) == {"a": 1, "b": 2}
        assert len(users) == 2
        with txn.savepoint():
            users["d"] = 4
        assert dict(users) == {"a": 1, "b": 2, "d": 4}
    with db.read() as reader:
        assert dict(reader[USERS]) == {"a": 1, "b": 2, "d": 4}


def test_savepoints_nest(db: limpet.Database) -> None:
    with db.write() as txn:
        users = txn[USERS]
        users["keep"] = 0
        with txn.savepoint():
            users["outer"] = 1
            with pytest.raises(Oops), txn.savepoint():
                users["inner"] = 2
                with txn.savepoint():
                    users["innermost"] = 3
                assert len(users) == 4
                raise Oops
            assert dict(users) == {"keep": 0, "outer": 1}
            with txn.savepoint():
                users["second"] = 4
        assert dict(users) == {"keep": 0, "outer": 1, "second": 4}
        with pytest.raises(Oops), txn.savepoint():
            with txn.savepoint():
                users["done"] = 5
                del users["keep"]
            raise Oops
        assert dict(users) == {"keep": 0, "outer": 1, "second": 4}


def test_an_undone_savepoint_takes_back_tables_that_came_went_or_changed_their_names(db: limpet.Database) -> None:
    with db.write() as txn:
        txn["dropped"].update({b"%03d" % number: bytes(300) for number in range(100)})
        txn["renamed"][b"k"] = b"v"
        txn["cleared"].update({b"%03d" % number: b"x" for number in range(100)})
    before = content(db)
    for again in range(2):  # with and without changes of the transaction below
        with db.write() as txn:
            if again:
                for name in before:
                    txn[name][b"more"] = b"changes"
                    before[name][b"more"] = b"changes"
            with pytest.raises(Oops), txn.savepoint():
                txn.drop("dropped")
                txn["dropped"][b"in the new one"] = b""
                txn.rename("renamed", "elsewhere")
                txn["elsewhere"][b"k"] = b"changed"
                txn["cleared"].clear()
                txn["created"][b"k"] = b"v"
                assert txn.tables() == ["cleared", "created", "dropped", "elsewhere"]
                raise Oops
            assert txn.tables() == ["cleared", "dropped", "renamed"]
            assert {name: dict(txn[name]) for name in txn.tables()} == before
            assert {name: len(txn[name]) for name in txn.tables()} == {name: len(before[name]) for name in before}
            txn["created"][b"for"] = b"good"
            txn["elsewhere"][b"and"] = b"this"
        assert content(db) == {**before, "created": {b"for": b"good"}, "elsewhere": {b"and": b"this"}}
        with db.write() as txn:
            txn.drop("created")
            txn.drop("elsewhere")


def test_a_savepoint_that_ends_well_keeps_tables_that_came_went_or_changed_their_names(db: limpet.Database) -> None:
    with db.write() as txn:
        txn["dropped"][b"k"] = b"v"
        txn["renamed"][b"k"] = b"v"
    with db.write() as txn, txn.savepoint():
        txn.drop("dropped")
        txn.rename("renamed", "elsewhere")
        with txn.savepoint():
            txn["created"][b"k"] = b"v"
    assert content(db) == {"created": {b"k": b"v"}, "elsewhere": {b"k": b"v"}}


def test_views_given_out_before_and_inside_survive_an_undone_savepoint(db: limpet.Database) -> None:
    with db.write() as txn:
        users, numbers = txn[USERS], txn[NUMBERS]
        users["ada"] = 1
        with pytest.raises(Oops), txn.savepoint():
            inside = txn["fresh"]
            inside[b"k"] = b"v"
            numbers[1] = b"created inside"
            txn.drop(USERS)
            raise Oops
        assert dict(users) == {"ada": 1}
        assert len(numbers) == len(inside) == 0
        assert txn.tables() == ["users"]
        users["bob"] = 2
        numbers[2] = b"after"
        inside[b"after"] = b"too"
    assert content(db) == {
        "users": {b"ada": b"1", b"bob": b"2"},
        "numbers": {b"\x80" + bytes(6) + b"\2": b"after"},
        "fresh": {b"after": b"too"},
    }


def test_iteration_goes_on_after_a_savepoint_was_undone_under_it(db: limpet.Database) -> None:
    with db.write() as txn:
        numbers = txn[NUMBERS]
        numbers.update(dict.fromkeys(range(100), b""))
        visited = []
        for key in numbers:
            visited.append(key)
            with pytest.raises(Oops), txn.savepoint():
                numbers.clear()
                numbers[key + 1000] = b""
                raise Oops
        assert visited == list(range(100))


@pytest.mark.parametrize("already_large", [False, True])
def test_a_savepoint_is_undone_exactly_after_its_changes_were_applied_early(
    open_db: Callable[..., limpet.Database], place: str | Path, already_large: bool
) -> None:
    db = open_db(place, **TINY)
    big = {number: bytes(150) for number in range(4000)}  # more than 1 MiB: applied before the end
    with db.write() as txn:
        numbers = txn[NUMBERS]
        if already_large:
            numbers.update(big)
            txn[USERS]["ada"] = 1
        numbers.update({-1: b"before", 3: b"before"})
        expected = dict(numbers)
        for _ in range(2):
            with pytest.raises(Oops), txn.savepoint():
                with txn.savepoint():
                    numbers.update(dict.fromkeys(range(3000, 7000), b"inside" * 25))
                with pytest.raises(Oops), txn.savepoint():
                    numbers.delete_range(0, 5000)
                    numbers.update(dict.fromkeys(range(-3000, 0), b"innermost" * 20))
                    txn["other"].update({b"%d" % number: bytes(100) for number in range(4000)})
                    raise Oops
                assert len(numbers) == len(expected.keys() | set(range(3000, 7000)))
                raise Oops
            assert dict(numbers) == expected
            assert len(numbers) == len(expected)
        with txn.savepoint():
            numbers.update(dict.fromkeys(range(20000, 23000), b"kept" * 40))
        expected |= dict.fromkeys(range(20000, 23000), b"kept" * 40)
    with db.read() as txn:
        assert dict(txn[NUMBERS]) == expected
        assert txn.tables() == (["numbers", "users"] if already_large else ["numbers"])


def test_an_undone_savepoint_gives_its_space_back(open_db: Callable[..., limpet.Database], place: str | Path) -> None:
    db = open_db(place, **TINY)
    with db.write() as txn:
        txn[NUMBERS][0] = b"x"
        sizes = []
        for _ in range(8):
            with pytest.raises(Oops), txn.savepoint():
                txn[NUMBERS].update({number: bytes(150) for number in range(8000)})
                raise Oops
            sizes.append(db.stats().file_size)
    assert sizes[-1] < 2 * sizes[0]  # a little is lost to pieces that are too small
    stats = db.stats()
    assert stats.live_size - stats.log_size < 20 * 512


def test_a_commit_inside_an_open_savepoint_is_refused_and_aborts(db: limpet.Database) -> None:
    with db.write() as txn:
        with pytest.raises(RuntimeError, match="savepoint"), txn.savepoint():
            txn[USERS]["ada"] = 1
            txn.commit()
        with pytest.raises(limpet.ClosedError):
            txn[USERS]["bob"] = 1
    assert db.tables() == []


def test_an_abort_inside_a_savepoint_ends_the_transaction(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        with txn.savepoint(), txn.savepoint():
            txn[USERS]["bob"] = 1
            txn.abort()
    assert db.tables() == []


def test_a_savepoint_cannot_be_entered_inside_of_itself_but_once_more_afterwards(db: limpet.Database) -> None:
    with db.write() as txn:
        savepoint = txn.savepoint()
        with savepoint:
            txn[NUMBERS][1] = b"a"
            with pytest.raises(RuntimeError, match="open already"):
                savepoint.__enter__()
        with savepoint:
            txn[NUMBERS][2] = b"b"
    with db.read() as reader:
        assert dict(reader[NUMBERS]) == {1: b"a", 2: b"b"}


def test_savepoints_have_to_end_in_reverse_order(db: limpet.Database) -> None:
    with db.write() as txn:
        outer, inner = txn.savepoint(), txn.savepoint()
        outer.__enter__()
        inner.__enter__()
        with pytest.raises(RuntimeError):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        outer.__exit__(None, None, None)
        txn[USERS]["ada"] = 1


# -- snapshots -----------------------------------------------------------------------------------


def test_a_reader_keeps_its_snapshot_across_commits_drops_and_compaction(
    open_db: Callable[..., limpet.Database], place: str | Path
) -> None:
    db = open_db(place, **TINY)  # without a cache: what the reader sees comes from the file
    with db.write() as txn:
        txn[NUMBERS].update({number: b"first %d" % number for number in range(2000)})
        txn[USERS]["ada"] = 1
    with db.read() as old:
        pairs = iter(old[NUMBERS].items())
        assert next(pairs) == (0, b"first 0")
        for turn in range(5):
            with db.write() as txn:
                txn[NUMBERS].update(dict.fromkeys(range(0, 2000, 3), b"later %d" % turn))
        with db.write() as txn:
            txn.drop(USERS)
            txn[NUMBERS].delete_range(500, 1500)
        with db.write() as txn:
            txn.drop(NUMBERS)
        db.compact()
        with db.write() as txn:
            txn["new"].update({b"%d" % number: bytes(100) for number in range(3000)})
        assert list(pairs) == [(number, b"first %d" % number) for number in range(1, 2000)]
        assert dict(old[NUMBERS]) == {number: b"first %d" % number for number in range(2000)}
        assert old[USERS]["ada"] == 1
        assert old.tables() == ["numbers", "users"]
    assert db.tables() == ["new"]


def test_many_readers_see_each_their_own_commit(db: limpet.Database) -> None:
    readers = []
    for number in range(20):
        with db.write() as txn:
            txn[NUMBERS].update(dict.fromkeys(range(100), b"%d" % number))
        readers.append(db.read())
    for number, reader in enumerate(readers):
        assert set(reader[NUMBERS].values()) == {b"%d" % number}
        reader.close()
    assert db.stats().readers == 0


def test_a_reader_is_never_blocked_by_a_writer(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        done = threading.Event()

        def look() -> None:
            with db.read() as reader:
                assert "ada" not in reader[USERS]
            done.set()

        thread = threading.Thread(target=look)
        thread.start()
        assert done.wait(10)
        thread.join()


def test_a_forgotten_reader_releases_its_snapshot_with_a_resource_warning(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
    reader = db.read()
    assert reader[USERS]["ada"] == 1
    assert db.stats().readers == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del reader
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "never closed" in str(caught[0].message)
    assert db.stats().readers == 0


def test_a_reader_that_was_closed_goes_without_a_warning(db: limpet.Database) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in ("close", "commit", "abort"):
            reader = db.read()
            getattr(reader, end)()
            del reader
        with db.read() as reader:
            pass
        reader.close()  # twice is fine
        del reader
        gc.collect()
    assert db.stats().readers == 0


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["read", "write"])
def test_every_use_after_the_end_is_a_closed_error(db: limpet.Database, kind: str) -> None:
    with db.write() as txn:
        txn[USERS].update({"a": 1, "b": 2, "c": 3})
    ended: Any = db.read() if kind == "read" else db.write()
    view = ended[USERS]
    unstarted, started, pairs = iter(view), iter(view), view.range(reverse=True)
    next(started)
    next(pairs)
    keys = view.keys()
    ended.abort()
    uses: list[Callable[[], object]] = [
        lambda: ended[USERS],
        lambda: ended.table("users"),
        ended.tables,
        lambda: ended.drop(USERS),
        lambda: ended.rename(USERS, "x"),
        ended.savepoint,
        ended.commit,
        ended.abort,
        ended.__enter__,
        lambda: view["a"],
        lambda: view.get("a"),
        lambda: view.get("missing"),
        lambda: "a" in view,
        lambda: view.__setitem__("a", 1),
        lambda: view.__delitem__("a"),
        lambda: view.pop("a"),
        lambda: len(view),
        lambda: bool(view),
        lambda: list(view),
        lambda: list(keys),
        lambda: list(view.range("a", "b")),
        lambda: list(view.prefix("a")),
        view.first,
        view.last,
        view.pop_first,
        view.pop_last,
        view.popitem,
        view.clear,
        lambda: view.update({"a": 2}),
        lambda: view.setdefault("z", 1),
        view.delete_range,
        lambda: next(unstarted),
        lambda: next(started),
        lambda: next(pairs),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(limpet.ClosedError):
            use()
            pytest.fail(f"use {number} went through")
    assert ended.txid > 0  # a number stays a number


def test_a_savepoint_begun_after_the_end_is_a_closed_error(db: limpet.Database) -> None:
    with db.write() as txn:
        savepoint = txn.savepoint()
    with pytest.raises(limpet.ClosedError), savepoint:
        pass


def test_every_change_through_a_reader_is_a_read_only_error(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["a"] = 1
    with db.read() as reader:
        for table in (USERS, NUMBERS):  # one that exists and one that does not
            view: Any = reader[table]
            key, value = ("a", 1) if table is USERS else (1, b"")
            uses: list[Callable[[], object]] = [
                lambda view=view, key=key, value=value: view.__setitem__(key, value),  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
                lambda view=view, key=key: view.__delitem__(key),  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
                lambda view=view, key=key, value=value: view.update({key: value}),  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
                view.clear,
                view.delete_range,
            ]
            for use in uses:
                with pytest.raises(limpet.ReadOnlyError):
                    use()
        for change in (reader[USERS].pop_first, reader[USERS].pop_last, reader[USERS].popitem, reader.savepoint):
            with pytest.raises(limpet.ReadOnlyError):
                change()
        with pytest.raises(limpet.ReadOnlyError):
            reader[USERS].setdefault("z", 1)
        with pytest.raises(limpet.ReadOnlyError):
            reader[USERS].pop("a")
        with pytest.raises(limpet.ReadOnlyError):
            reader.drop(USERS)
        with pytest.raises(limpet.ReadOnlyError):
            reader.rename(USERS, "x")
        assert dict(reader[USERS]) == {"a": 1}
    assert content(db) == {"users": {b"a": b"1"}}


# -- one writer ----------------------------------------------------------------------------------


def run_in_thread(work: Callable[[], object]) -> None:
    """Run in another thread; an error there is an error here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 handed over to the test's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_a_second_writer_waits_and_its_timeout_raises_busy_error(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        for timeout in (0, 0.02):
            with pytest.raises(limpet.BusyError):
                run_in_thread(lambda timeout=timeout: db.write(timeout=timeout))  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
    run_in_thread(lambda: db.write(timeout=0).abort())


def test_a_waiting_writer_begins_when_the_other_ends_and_sees_its_commit(db: limpet.Database) -> None:
    begun = threading.Event()
    seen: list[object] = []

    def second() -> None:
        begun.set()
        with db.write(timeout=20) as txn:
            seen.append(txn[USERS].get("ada"))
            txn[USERS]["bob"] = 2

    with db.write() as txn:
        thread = threading.Thread(target=second)
        thread.start()
        assert begun.wait(10)
        time.sleep(0.02)
        assert seen == []
        txn[USERS]["ada"] = 1
    thread.join(20)
    assert seen == [1]
    assert content(db) == {"users": {b"ada": b"1", b"bob": b"2"}}


def test_a_second_write_transaction_of_the_same_thread_is_an_error_at_once(db: limpet.Database) -> None:
    with db.write() as txn:
        txn[USERS]["ada"] = 1
        with pytest.raises(limpet.BusyError, match="this thread"):
            db.write()
        with pytest.raises(limpet.BusyError):
            db.write(timeout=0)
        txn[USERS]["bob"] = 2
    with db.read() as reader:
        assert len(reader[USERS]) == 2


def test_an_unknown_durability_is_a_value_error(db: limpet.Database) -> None:
    for wrong in ("SYNC", "", "fsync"):
        with pytest.raises(ValueError, match="durability"):
            db.write(durability=wrong)
    db.write(timeout=0).abort()  # and the writer is free


# -- durability ----------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["sync", "os", "none"])
def test_commits_of_every_durability_are_visible_at_once_and_there_after_close(
    open_db: Callable[..., limpet.Database], place: str | Path, durability: str
) -> None:
    db = open_db(place, durability=durability)
    for number in range(20):
        with db.write() as txn:
            txn[NUMBERS][number] = b"%d" % number
        with db.read() as reader:
            assert len(reader[NUMBERS]) == number + 1
    if place != ":memory:":
        db.close()
        db = open_db(place)
        with db.read() as reader:
            assert dict(reader[NUMBERS]) == {number: b"%d" % number for number in range(20)}


def test_sync_commits_are_synced_os_commits_written_and_none_commits_neither(db: limpet.Database) -> None:
    def commit(durability: str | None) -> tuple[int, int]:
        before = db.stats()
        with db.write(durability=durability) as txn:
            txn[NUMBERS][txn.txid] = b"x"
        after = db.stats()
        assert after.commits == before.commits + 1
        return after.flushes - before.flushes, after.syncs - before.syncs

    with db.write() as txn:
        txn[NUMBERS][0] = b""  # a table that is new: a checkpoint
    assert commit(None) == (1, 1)  # as the database was opened: sync
    assert commit("sync") == (1, 1)
    assert commit("os") == (1, 0)
    assert commit("none") == (0, 0)
    assert commit("none") == (0, 0)
    assert commit("os") == (1, 0)
    assert commit("sync") == (1, 1)


def test_flush_makes_everything_committed_so_far_durable(db: limpet.Database) -> None:
    for durability in ("none", "os", "sync"):
        with db.write(durability=durability) as txn:
            txn[NUMBERS][txn.txid] = durability.encode()
        newest = db.stats().txid
        if durability != "sync":
            assert db.stats().durable_txid < newest
        db.flush()
        assert db.stats().durable_txid == newest
        syncs = db.stats().syncs
        db.flush()  # again: there is nothing to do
        assert db.stats().syncs == syncs


def test_a_stronger_commit_takes_the_weaker_ones_before_it_along(db: limpet.Database) -> None:
    for durability in ("none", "none", "os", "none", "sync"):
        with db.write(durability=durability) as txn:
            txn[NUMBERS][txn.txid] = durability.encode()
    stats = db.stats()
    assert stats.durable_txid == stats.txid
    with db.read() as reader:
        assert sorted(reader[NUMBERS].values()) == [b"none", b"none", b"none", b"os", b"sync"]


def test_concurrent_committers_share_syncs_and_lose_nothing(db: limpet.Database) -> None:
    threads, commits = 8, 30
    start = threading.Barrier(threads)
    errors: list[BaseException] = []

    def work(who: int) -> None:
        try:
            start.wait(20)
            for number in range(commits):
                with db.write() as txn:
                    txn[NUMBERS][who * 1000 + number] = b"%d" % who
                assert db.stats().durable_txid >= txn.txid
                with db.read() as reader:
                    assert who * 1000 + number in reader[NUMBERS]
        except BaseException as error:  # noqa: BLE001 handed over to the test's thread
            errors.append(error)

    before = db.stats()
    workers = [threading.Thread(target=work, args=(who,)) for who in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors
    after = db.stats()
    assert after.commits - before.commits == threads * commits
    # Each alone would need a flush of its own. How many share one is a matter of the disk: test_database.py.
    if db.path != ":memory:":  # there a sync takes no time in which others could queue
        assert after.flushes - before.flushes < threads * commits
    with db.read() as reader:
        assert len(reader[NUMBERS]) == threads * commits


def test_readers_in_threads_see_whole_commits_only(db: limpet.Database) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        newest = 0
        try:
            while not stop.is_set():
                with db.read() as reader:
                    values = set(reader[NUMBERS].values())
                    assert len(values) <= 1
                    value = int(values.pop()) if values else 0
                    assert value >= newest
                    newest = value
        except BaseException as error:  # noqa: BLE001 handed over to the test's thread
            errors.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 60):
        with db.write(durability=("sync", "os", "none")[number % 3]) as txn:
            txn[NUMBERS].update(dict.fromkeys(range(60), b"%d" % number))
    stop.set()
    for reader in readers:
        reader.join(20)
    assert not errors
