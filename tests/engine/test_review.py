"""What an outside review of the whole engine found. Each test opens with the fault."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import limpet

ROWS = limpet.Table("rows")


def leave(path: Path) -> None:
    """Let a process make commits and die: what it logged is replayed by the next opening."""
    code = (
        "import limpet, os, sys\n"
        "rows = limpet.Table('rows')\n"
        "db = limpet.open(sys.argv[1])\n"
        "with db.write() as txn: txn.create(rows)\n"
        "with db.write() as txn: txn[rows][b'k'] = b'v'\n"
        "with db.write() as txn: del txn[rows][b'k']\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


def test_an_aborted_rename_after_a_replayed_log_leaves_nothing(tmp_path: Path) -> None:
    """A key that came and went in the log left an empty overlay, and a rename handed the snapshot's own dict on.

    What was written to the renamed table changed every snapshot, and stayed when the transaction was aborted.
    """
    path = tmp_path / "x.limpet"
    leave(path)
    with limpet.open(path) as db:
        old = db.read()
        txn = db.write()
        txn.rename("rows", "others")
        txn["others"][b"x"] = b"never committed"
        txn.abort()
        assert dict(old[ROWS].items()) == {}
        assert old[ROWS].get(b"x") is None
        old.close()
    with limpet.open(path) as db, db.read() as reader:
        assert reader.tables() == ["rows"]
        assert dict(reader[ROWS].items()) == {}


def test_a_renamed_table_without_changes_is_not_the_snapshots(tmp_path: Path) -> None:
    """As above, for an overlay that an undone savepoint leaves empty."""
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn.create(ROWS)
        with db.write() as txn:
            txn[ROWS][b"k"] = b"v"
        with db.write() as txn:
            del txn[ROWS][b"k"]
        before = db.read()
        txn = db.write()
        txn.rename("rows", "others")
        txn["others"][b"x"] = b"y"
        assert before[ROWS].get(b"x") is None
        txn.abort()
        before.close()
        with db.read() as after:
            assert len(after[ROWS]) == 0


def test_compaction_leaves_a_database_alone_that_took_the_old_name(tmp_path: Path) -> None:
    """The file was renamed while it was open, another database came under its name, and compact() replaced that one."""
    path = tmp_path / "x.limpet"
    with limpet.open(path) as db:
        with db.write() as txn:
            txn[ROWS][b"k"] = b"ours"
        path.rename(tmp_path / "moved.limpet")
        with limpet.open(path) as other, other.write() as txn:
            txn[ROWS][b"k"] = b"theirs"
        with pytest.raises(FileNotFoundError, match="moved or replaced"):
            db.compact()
        assert sorted(os.listdir(tmp_path)) == ["moved.limpet", "x.limpet"]
        with db.write() as txn:
            txn[ROWS][b"more"] = b"it goes on"
    for name, rows in (("x", {b"k": b"theirs"}), ("moved", {b"k": b"ours", b"more": b"it goes on"})):
        with limpet.open(tmp_path / f"{name}.limpet") as db, db.read() as txn:
            assert dict(txn[ROWS].items()) == rows


@contextmanager
def uncollected() -> Iterator[list[object]]:
    """What only the collector of cycles would have found inside the block."""
    gc.collect()
    found: list[object] = []
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [each for each in gc.garbage if str(getattr(each, "__module__", "")).startswith("limpet")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_commits_checkpoints_and_reads_leave_no_cycles(tmp_path: Path) -> None:
    """Transactions and checkpoints were cycles, and kept old pages and rows in memory, far beyond the cache's size."""
    with limpet.open(tmp_path / "x.limpet") as db, uncollected() as found:
        for number in range(60):
            with db.write(durability="none") as txn:
                txn[ROWS].update((b"%d %d" % (number, each), bytes(50)) for each in range(100))
                with txn.savepoint():
                    txn[ROWS][b"again"] = bytes(5000)
            with db.read() as reader:
                for _ in range(5):
                    reader[ROWS].get(b"0 0")
                next(iter(reader[ROWS].items()))
        aborted = db.write()
        aborted[ROWS][b"x"] = b"y"
        aborted.abort()
        assert db._committer.books.ledger.base.snapshot.txid > 1, "there were checkpoints, in memory at least"
    assert found == []


def test_rows_of_a_leaf_are_counted_once(tmp_path: Path) -> None:
    """A leaf whose first value is large, or whose first key was new, was taken for one not cached, again and again."""
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as txn:
            txn[ROWS][b"0"] = bytes(5000)
            txn[ROWS].update((b"%d" % number, b"small") for number in range(1, 10))
            txn.create(limpet.Table("makes it a checkpoint"))
        with db.read() as txn:
            for _ in range(2000):
                assert txn[ROWS].get(b"0 not there") is None
                txn[ROWS].get(b"0")
        rows = db._chain.tip.snapshot.tables["rows"].rows
        assert rows is not None
        assert len(rows.rows) == 9
        assert rows.size < 9 * 200


@pytest.mark.parametrize("durability", ["sync", "none"])
def test_what_is_not_in_the_trees_yet_is_not_given_after_the_end_either(tmp_path: Path, durability: str) -> None:
    """Rows that were only in memory were still answered after close(), and in a forked child."""
    db = limpet.open(tmp_path / "x.limpet", durability=durability)
    with db.write() as txn:
        txn.create(ROWS)
    with db.write() as txn:
        txn[ROWS][b"k"] = b"v"
    reader = db.read()
    table = reader[ROWS]
    assert table.get(b"k") == b"v"
    writer = db.write()
    writer[ROWS][b"new"] = b"v"
    if hasattr(os, "fork"):
        child = os.fork()
        if not child:
            wrong = 0
            for ask in (lambda: table.get(b"k"), lambda: list(table), lambda: writer[ROWS].get(b"new")):
                try:
                    ask()
                    wrong += 1
                except limpet.ClosedError:
                    pass
            os._exit(wrong)
        assert os.waitpid(child, 0)[1] == 0
    writer.abort()
    db.close()
    for ask in (lambda: table.get(b"k"), lambda: table[b"k"], lambda: list(table), lambda: b"k" in table):
        with pytest.raises(limpet.ClosedError):
            ask()
    reader.close()


def test_the_error_does_not_name_somebody_who_cannot_be_in_the_way(tmp_path: Path) -> None:
    """A reader leaves no note, so whoever waited for it was told of the last writer: a dead process, or itself."""
    path = tmp_path / "x.limpet"
    leave(path)
    code = (
        "import limpet, sys\ndb = limpet.open(sys.argv[1], read_only=True)\nprint('open', flush=True)\nsys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(limpet.LockedError, match="perhaps a reader; the last to write to it was pid") as caught:
            limpet.open(path, lock_timeout=0)
        assert caught.value.holder is not None
    finally:
        reader.communicate()


def test_an_ended_transaction_keeps_nothing_alive(tmp_path: Path) -> None:
    """A transaction that had ended and was still referred to kept the file that a compaction had replaced open."""
    with limpet.open(tmp_path / "x.limpet") as db:
        with db.write() as writer:
            writer[ROWS][b"k"] = b"v"
        reader = db.read()
        assert reader[ROWS][b"k"] == b"v"
        old = weakref.ref(db._committer.books.file)
        db.compact()
        assert reader[ROWS][b"k"] == b"v"
        assert old() is not None
        reader.close()
        assert old() is None, "which closed it"
        assert reader.txid == writer.txid


@pytest.mark.parametrize(
    "error",
    [
        limpet.LimitError("too large", size=3, limit=2),
        limpet.CorruptError("bad", pgno=4, offset=5, expected=6, found=7, table="t"),
        limpet.LockedError("held", waited_s=1.5, holder="pid 1"),
        limpet.NoSuchTableError("none"),
        limpet.ClosedError("closed"),
    ],
)
def test_errors_can_be_pickled(error: limpet.LimpetError) -> None:
    """Some could not: their constructors ask for more than the message, and a pool of processes lost them."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, again.__dict__) == (str(error), error.args, error.__dict__)


def test_transactions_and_their_tables_are_not_copied(tmp_path: Path) -> None:
    """A copy that was collected ended the original, and gave the writer away."""
    with limpet.open(tmp_path / "x.limpet") as db, db.read() as reader, db.write() as writer:
        for each in (reader, writer, reader[ROWS], writer[ROWS]):
            with pytest.raises(TypeError, match="copied"):
                copy.copy(each)
            with pytest.raises(TypeError, match="copied"):
                pickle.dumps(each)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_named_pipe_is_refused_at_once(tmp_path: Path, read_only: bool) -> None:
    """Opening one for reading waited for somebody to write into it, for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    outcome: list[BaseException | None] = []

    def ask() -> None:
        for call in (lambda: limpet.open(path, read_only=read_only), lambda: limpet.upgrade(path)):
            try:
                call()
            except limpet.FormatError as error:
                outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert outcome
    assert "nor any regular file" in str(outcome[0])


def test_a_backup_is_never_called_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """backup(":memory:") wrote a file of that name into the current folder."""
    monkeypatch.chdir(tmp_path)
    with limpet.open(tmp_path / "x.limpet") as db, pytest.raises(ValueError, match="is a file"):
        db.backup(":memory:")
    assert os.listdir(tmp_path) == ["x.limpet"]


def test_a_cut_off_header_of_format_1_is_not_ours_to_upgrade(tmp_path: Path) -> None:
    """It was an error, where the docstring says that such a file is left alone."""
    path = tmp_path / "x.limpet"
    path.write_bytes(b"\x89LMPT\r\n\x1a" + (1).to_bytes(4, "little"))
    result = limpet.upgrade(path)
    assert (result.from_version, result.upgraded) == (None, False)
    assert path.stat().st_size == 12
