"""Overlays: few keys, changed again and again in all ways at once, against a dict; and what the log says of it."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import limpet

Opener = Callable[..., limpet.Database]
Content = dict[str, dict[str, str]]  # of each table that there is

NAMES = ("a", "b")
KEYS = "klmno"


def table(name: str) -> limpet.Table:
    return limpet.Table(name, key=limpet.STR, value=limpet.STR)


class Undone(Exception):
    """Leaves a savepoint or a transaction."""


def content_of(transaction: limpet.ReadTransaction | limpet.WriteTransaction, *, scanned: bool = True) -> Content:
    """All there is, which has to look the same from every side; or only what look-ups find, which merge nothing."""
    found: Content = {}
    for name in transaction.tables():
        view = transaction[table(name)]
        found[name] = {key: view[key] for key in KEYS if key in view}
        if not scanned:
            continue
        if len(view) % 2 or name == "a":  # not always: counting changes what is known
            assert len(view) == len(found[name])
        assert list(view.items()) == sorted(found[name].items())
        assert list(view.range(reverse=True)) == sorted(found[name].items(), reverse=True)
    return found


@contextmanager
def crashed(path: Path) -> Iterator[limpet.Database]:
    """The database as a process leaves it that is killed now."""
    copy = path.with_name("crashed.limpet")
    copy.unlink(missing_ok=True)
    shutil.copy(path, copy)
    with limpet.open(copy) as db:
        yield db


def change(rng: random.Random, txn: limpet.WriteTransaction, content: Content, depth: int = 0) -> None:
    """Some changes, made to the model as well."""
    for _ in range(rng.randint(1, 5)):
        name, key = rng.choice(NAMES), rng.choice(KEYS)
        view = txn[table(name)]
        what = rng.randrange(20)
        if what < 8:
            view[key] = content.setdefault(name, {})[key] = str(rng.random())
        elif what < 13:
            if name in content:
                assert view.pop(key, None) == content[name].pop(key, None)
        elif what == 13:
            some = {each: str(rng.random()) for each in rng.sample(KEYS, 3)}
            view.update(some)
            content.setdefault(name, {}).update(some)
        elif what == 14 and name in content:
            view.clear()
            content[name].clear()
        elif what == 15 and name in content:
            assert view.delete_range("l", "n") == sum(content[name].pop(each, None) is not None for each in "lm")
        elif what == 16 and name in content:
            other = NAMES[1 - NAMES.index(name)]
            if other not in content:
                txn.rename(name, other)
                content[other] = content.pop(name)
        elif what == 17 and name in content and not depth:
            txn.drop(name)
            del content[name]
        elif what == 18:
            assert content_of(txn) == content
        elif depth < 3:
            before = {each: dict(entries) for each, entries in content.items()}
            try:
                with txn.savepoint():
                    change(rng, txn, content, depth + 1)
                    if rng.random() < 0.5:
                        raise Undone
            except Undone:
                content.clear()
                content.update(before)


@pytest.mark.parametrize("number", range(12))
def test_changes_of_all_kinds_are_seen_and_are_there_after_a_crash(
    open_db: Opener, db_path: Path, seed: int, number: int
) -> None:
    rng = random.Random(f"{seed} {number}")
    scanned = number % 2 == 0
    db = open_db(db_path, page_size=512, cache_size=rng.choice([0, 1 << 20]))
    content: Content = {}
    with db.write() as txn:
        for name in NAMES[: rng.randint(1, 2)]:
            txn.create(table(name))
            content[name] = {}
    held: list[tuple[limpet.ReadTransaction, Content]] = []
    for _ in range(60):
        after = {each: dict(entries) for each, entries in content.items()}
        try:
            with db.write() as txn:
                change(rng, txn, after)
                assert content_of(txn, scanned=scanned) == after
                if rng.random() < 0.2:
                    raise Undone
            content = after
        except Undone:
            pass
        with db.read() as reader:
            assert content_of(reader, scanned=scanned) == content
        if rng.random() < 0.2:
            held.append((db.read(), content))
        for reader, seen in held:
            assert content_of(reader, scanned=scanned) == seen
        with crashed(db_path) as copy, copy.read() as reader:
            assert content_of(reader) == content
    for reader, _ in held:
        reader.close()


def with_a_logged_row(open_db: Opener, db_path: Path) -> tuple[limpet.Database, limpet.Table]:
    """A database with a table of one row, which is in the log and in no tree."""
    db, rows = open_db(db_path), table("rows")
    with db.write() as txn:
        txn.create(rows)
    with db.write() as txn:
        txn[rows]["k"] = "in the log only"
    return db, rows


def test_a_delete_is_logged_although_a_savepoint_that_set_the_key_anew_was_undone(
    open_db: Opener, db_path: Path
) -> None:
    db, rows = with_a_logged_row(open_db, db_path)
    with db.write() as txn:
        del txn[rows]["k"]
        with suppress(Undone), txn.savepoint():
            txn[rows]["k"] = "new"
            raise Undone
    with crashed(db_path) as copy, copy.read() as reader:
        assert list(reader[rows]) == []


def test_a_delete_is_there_although_the_table_was_renamed_and_got_its_name_back(open_db: Opener, db_path: Path) -> None:
    db, rows = with_a_logged_row(open_db, db_path)
    with db.write() as txn:
        del txn[rows]["k"]
        txn.rename("rows", "others")
        txn.rename("others", "rows")
    with crashed(db_path) as copy, copy.read() as reader:
        assert list(reader[rows]) == []


@pytest.mark.parametrize("where", ["in the transaction", "in the log"])
def test_clearing_what_is_not_in_a_tree_yet_takes_no_pages(open_db: Opener, db_path: Path, where: str) -> None:
    """Deleting key by key could grow past the limit of memory, and leave pages behind that nobody has."""
    db = open_db(db_path, cache_size=0)
    rows, others = table("rows"), limpet.Table("others", key=limpet.INT, value=limpet.BYTES)
    entries = {str(number): "v" * 10 for number in range(2500)}
    with db.write() as txn:
        txn.create(rows)
    if where == "in the log":
        for first in range(0, 2500, 250):
            with db.write() as txn:
                txn[rows].update(list(entries.items())[first : first + 250])
    with db.write() as txn:
        if where == "in the log":
            txn[others].update({number: bytes(100) for number in range(1500)})
        else:
            txn[rows].update(entries)
        txn.drop(rows)
    assert db.check().ok
    assert not db.check().warnings
    with crashed(db_path) as copy:
        assert "rows" not in copy.tables()


def test_a_name_that_is_too_long_is_refused_whoever_has_asked_for_it_before(open_db: Opener, db_path: Path) -> None:
    db = open_db(db_path, page_size=512)
    wide = limpet.Table("x", key=(limpet.INT,) * 255)
    with db.write() as txn:
        assert len(txn[limpet.Table("x", key=limpet.INT)]) == 0
        with pytest.raises(limpet.NoSuchTableError):
            txn.drop("x")
        with pytest.raises(limpet.LimitError):
            txn.create(wide)
