"""The engine against a model of dicts: random transactions, snapshots held open, reopening, compaction, backup.

Every snapshot is compared with the model's state at its txid, and the whole file is checked after every step.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import limpet

TABLES = {
    "bytes": limpet.Table("bytes"),
    "numbers": limpet.Table("numbers", key=limpet.INT, value=limpet.STR),
    "pairs": limpet.Table("pairs", key=(limpet.STR, limpet.INT), value=limpet.JSON),
    "runs": limpet.Table("runs", key=(limpet.BYTES, limpet.BOOL), value=limpet.BYTES),
}
NAMES = st.sampled_from(sorted(TABLES))
SPARE = st.sampled_from(["spare", "another"])  # names that tables are moved to
DURABILITIES = st.sampled_from(["sync", "os", "none"])
SMALL = st.integers(0, 60)
Model = dict[str, dict[Any, Any]]
Step = tuple[Any, ...]


def key_of(name: str, number: int) -> Any:
    """The key number `number` of a table; the order of the numbers is not that of the keys."""
    if name == "bytes":
        return bytes([number * 7 % 61]) * (1 + number * 13 % 100)  # some are long: few fit into a branch
    if name == "numbers":
        return (number - 30) * 2**40
    if name == "pairs":
        return f"{'user' * (number % 3)}\0{number % 5}", number
    return bytes(number % 4), bool(number % 2)


def value_of(name: str, number: int) -> Any:
    size = (0, 3, 40, 180, 700, 3000)[number % 6]
    if name == "numbers":
        return "\u00e9" * size
    if name == "pairs":
        return {"n": [number] * (size // 20), "\u00e9": None}
    return bytes([number]) * size


CHANGES = st.one_of(
    st.tuples(st.just("set"), NAMES, SMALL, SMALL),
    st.tuples(st.just("set"), NAMES, SMALL, SMALL),
    st.tuples(st.just("fill"), NAMES, SMALL, SMALL),
    st.tuples(st.just("delete"), NAMES, SMALL),
    st.tuples(st.just("delete_range"), NAMES, SMALL, SMALL),
    st.tuples(st.just("pop"), NAMES, st.booleans()),
    st.tuples(st.just("clear"), NAMES),
    st.tuples(st.just("drop"), NAMES),
    st.tuples(st.just("swap"), NAMES, SPARE),
    st.tuples(st.just("look"), NAMES, SMALL, SMALL, st.booleans()),
    st.tuples(st.just("delete_while_iterating"), NAMES, SMALL),
)
STEPS = st.recursive(
    st.lists(CHANGES, max_size=8),
    lambda inner: st.lists(st.one_of(CHANGES, st.tuples(st.just("savepoint"), inner, st.booleans())), max_size=8),
    max_leaves=4,
)


class Undo(Exception):
    """Leaves a savepoint or a transaction."""


class Machine(RuleBasedStateMachine):
    """One database and its model."""

    page_size = 512
    cache_size = 0
    overlay_limit = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="limpet-model-"))
        self.model: Model = {}
        self.snapshots: list[tuple[limpet.ReadTransaction, Model]] = []
        self.db: limpet.Database | None = None

    def opened(self) -> limpet.Database:
        if self.db is None:
            self.db = limpet.open(self.folder / "db", page_size=self.page_size, cache_size=self.cache_size)
            self.db._committer.overlay_limit = self.overlay_limit  # small: changes are applied early all the time
        return self.db

    @initialize(durability=DURABILITIES, changes=STEPS)
    def begin(self, durability: str, changes: list[Step]) -> None:
        self.transaction(durability, changes, False)

    @rule(durability=DURABILITIES, changes=STEPS, aborted=st.sampled_from([False, False, False, True]))
    def transaction(self, durability: str, changes: list[Step], aborted: bool) -> None:
        model = copy.deepcopy(self.model)
        try:
            with self.opened().write(durability=durability) as txn:
                views = {name: txn[table] for name, table in TABLES.items()}  # given out before anything happens
                self.run(txn, views, model, changes)
                self.compare(txn, model)
                if aborted:
                    raise Undo
        except Undo:
            return
        self.model = model

    def run(
        self, txn: limpet.WriteTransaction, views: dict[str, limpet.TableView], model: Model, changes: list[Step]
    ) -> None:
        for change in changes:
            if change[0] == "savepoint":
                before = copy.deepcopy(model)
                try:
                    with txn.savepoint():
                        self.run(txn, views, model, change[1])
                        if change[2]:
                            raise Undo
                except Undo:
                    model.clear()
                    model.update(before)
                    self.compare(txn, model)
            else:
                getattr(self, change[0])(txn, views[change[1]], model, *change[1:])

    def set(
        self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, key: int, value: int
    ) -> None:
        view[key_of(name, key)] = value_of(name, value)
        model.setdefault(name, {})[key_of(name, key)] = value_of(name, value)

    def fill(
        self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, first: int, count: int
    ) -> None:
        for number in range(first, first + count):
            self.set(txn, view, model, name, number % 61, number)

    def delete(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, key: int) -> None:
        expected = model.get(name, {}).pop(key_of(name, key), None)
        assert view.pop(key_of(name, key), None) == expected

    def delete_range(
        self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, start: int, stop: int
    ) -> None:
        low, high = key_of(name, start), key_of(name, stop)
        doomed = [key for key in model.get(name, {}) if low <= key < high]
        assert view.delete_range(low, high) == len(doomed)
        for key in doomed:
            del model[name][key]

    def pop(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, last: bool) -> None:
        content = model.get(name, {})
        pair = view.pop_last() if last else view.pop_first()
        if not content:
            assert pair is None
        else:
            key = max(content) if last else min(content)
            assert pair == (key, content.pop(key))

    def clear(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str) -> None:
        view.clear()
        if name in model:
            model[name] = {}

    def drop(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str) -> None:
        if name in model:
            txn.drop(TABLES[name])
            del model[name]
        else:
            with pytest.raises(limpet.NoSuchTableError):
                txn.drop(name)

    def swap(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, spare: str) -> None:
        """Move a table out of the way, or back if it is its own that lies there."""
        mark = f"{spare} of {name}"
        if name in model and mark not in model:
            txn.rename(name, mark)
            model[mark] = model.pop(name)
        elif mark in model and name not in model:
            txn.rename(mark, name)
            model[name] = model.pop(mark)

    def look(self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, *how: int) -> None:
        start, stop, reverse = key_of(name, how[0]), key_of(name, how[1]), bool(how[2])
        content = model.get(name, {})
        assert view.get(start) == content.get(start)
        assert (stop in view) == (stop in content)
        assert len(view) == len(content)
        inside = sorted(((key, content[key]) for key in content if start <= key < stop), reverse=reverse)
        assert list(view.range(start, stop, reverse=reverse)) == inside
        assert view.first() == min(content.items(), default=None, key=lambda pair: pair[0])

    def delete_while_iterating(
        self, txn: limpet.WriteTransaction, view: limpet.TableView, model: Model, name: str, start: int
    ) -> None:
        content = model.get(name, {})
        expected = sorted(key for key in content if key >= key_of(name, start))
        visited = []
        for number, key in enumerate(view.key_range(key_of(name, start))):
            visited.append(key)
            if number % 2:
                del view[key]
                del content[key]
        assert visited == expected

    def compare(self, txn: limpet.ReadTransaction | limpet.WriteTransaction, model: Model) -> None:
        assert txn.tables() == sorted(model)
        for name, content in model.items():
            table = TABLES[name.split(" of ")[-1]]
            view = txn[limpet.Table(name, key=table.key, value=table.value)]
            assert list(view.items()) == sorted(content.items(), key=lambda pair: pair[0])
            assert list(reversed(view)) == sorted(content, reverse=True)
            assert len(view) == len(content)

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def take_snapshot(self) -> None:
        self.snapshots.append((self.opened().read(), copy.deepcopy(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(which=SMALL, released=st.booleans())
    def compare_snapshot(self, which: int, released: bool) -> None:
        at = which % len(self.snapshots)
        txn, model = self.snapshots[at]
        self.compare(txn, model)
        if released:
            txn.close()
            del self.snapshots[at]

    @rule(durability=DURABILITIES, first=SMALL)
    def churn(self, durability: str, first: int) -> None:
        """Several commits that rewrite the same leaves: pages are freed, wait, and are used again."""
        for turn in range(6):
            self.transaction(durability, [("fill", "bytes", first, 20), ("fill", "numbers", first + turn, 20)], False)

    @rule()
    def flush(self) -> None:
        self.opened().flush()

    @rule()
    def reopen(self) -> None:
        self.release_snapshots()
        self.opened().close()
        self.db = None

    @rule()
    def compact(self) -> None:
        self.opened().compact()

    @rule()
    def backup(self) -> None:
        target = self.folder / "backup"
        self.opened().backup(target, overwrite=True)
        with limpet.open(target) as copied, copied.read() as txn:
            self.compare(txn, self.model)
            assert copied.check().ok

    @invariant()
    def the_newest_commit_is_the_model(self) -> None:
        with self.opened().read() as txn:
            self.compare(txn, self.model)

    @invariant()
    def the_file_is_sound(self) -> None:
        report = self.opened().check()
        assert report.ok, "\n".join(map(str, report.errors))

    def release_snapshots(self) -> None:
        for txn, model in self.snapshots:
            self.compare(txn, model)
            txn.close()
        self.snapshots.clear()

    def teardown(self) -> None:
        try:
            self.release_snapshots()
            self.opened().close()
        finally:
            for txn, _ in self.snapshots:
                txn.close()
            if self.db is not None:
                self.db.close()
            shutil.rmtree(self.folder)


@contextmanager
def configured(**attributes: int) -> Iterator[type[Machine]]:
    yield type("Machine", (Machine,), attributes)


@pytest.mark.parametrize(
    ("page_size", "cache_size", "overlay_limit"),
    [(512, 0, 1 << 20), (512, 32 << 20, 3000), (1024, 20_000, 6000), (4096, 0, 20_000), (4096, 32 << 20, 1 << 20)],
)
def test_random_histories_agree_with_the_model(page_size: int, cache_size: int, overlay_limit: int) -> None:
    with configured(page_size=page_size, cache_size=cache_size, overlay_limit=overlay_limit) as machine:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
