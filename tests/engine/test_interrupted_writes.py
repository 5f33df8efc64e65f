"""An interrupt between two calls of the disk: what was under way is done again, and breaks no rule of writing.

A checkpoint that was interrupted after its meta had been written wrote its pages once more. A power cut in the middle
of that would have damaged pages which the newest meta names. The search of the protocol found it; the monitors see it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest

import limpet
from limpet.database import open_on
from limpet.testing import GARBAGE, OLD, Monitor, SimDisk, SimFile, SimFileSystem

PATH = "/sim/x.limpet"
ROWS = limpet.Table("rows")
PAGE = 512


def opened(disk: SimDisk) -> limpet.Database:
    return open_on(SimFileSystem(disk), PATH, page_size=PAGE)


def rows(db: limpet.Database) -> dict[bytes, bytes]:
    with db.read() as txn:
        return dict(txn[ROWS].items())


@contextmanager
def interrupted(at: int, *, before: bool) -> Iterator[list[str]]:
    """A KeyboardInterrupt at the write or sync of that number, before or after it; gives the calls there were."""
    seen: list[str] = []

    def stopping(name: str) -> Callable[..., None]:
        call = getattr(SimFile, name)

        def stop(*arguments: object) -> None:
            seen.append(name)
            is_last = len(seen) == at + 1
            if is_last and before:
                raise KeyboardInterrupt
            call(*arguments)
            if is_last:
                raise KeyboardInterrupt

        return stop

    with ExitStack() as patches:
        for name in ("write", "write_synced", "sync", "sync_all", "grow"):
            patches.enter_context(mock.patch.object(SimFile, name, stopping(name)))
        yield seen


def one_row(db: limpet.Database, durability: str) -> None:
    with db.write(durability=durability) as txn:
        txn[ROWS][b"new"] = b"1"


def many_rows(db: limpet.Database, durability: str) -> None:
    with db.write(durability=durability) as txn:
        txn[ROWS].update((b"%05d" % number, b"x" * 60) for number in range(400))


@pytest.mark.parametrize("records", [0, 1], ids=["young-log", "log"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("durability", ["sync", "os", "none"])
@pytest.mark.parametrize("commit", [one_row, many_rows])
def test_what_an_interrupt_stops_is_done_again(
    commit: Callable[[limpet.Database, str], None], durability: str, before: bool, records: int
) -> None:
    """The first record of a log brings a copy of the meta; a later one is a single synced write."""
    at = count = 0
    while at <= count:
        disk = SimDisk()
        monitor = Monitor(disk)
        db = opened(disk)
        with db.write() as txn:
            txn[ROWS][b"old"] = b"0"
        for _ in range(records):
            with db.write() as txn:
                txn[ROWS][b"old"] = b"0"
        raised = False
        with interrupted(at, before=before) as seen:
            try:
                commit(db, durability)
                db.flush()
            except KeyboardInterrupt:
                raised = True
        count = len(seen)
        assert raised == (at < count)
        with db.write() as txn:
            txn[ROWS][b"after"] = b"2"
        found = rows(db)
        assert (found[b"old"], found[b"after"]) == (b"0", b"2")
        if not raised:
            assert len(found) == (3 if commit is one_row else 402)
        assert db.check().ok
        units = disk.units()
        killed = SimDisk.of({PATH: disk.content(PATH)})
        for copy in (killed, disk.crash(units, [OLD] * len(units)), disk.crash(units, [GARBAGE] * len(units))):
            with opened(copy) as again:
                assert rows(again) == found, f"after an interrupt at call {at} of {count}, and a crash"
                assert again.check().ok
        db.close()
        monitor.detach()
        assert not monitor.violations, f"call {at} of {count}: {monitor.violations}"
        with opened(disk) as again:
            assert rows(again) == found
        at += 1
    assert count >= (1 if commit is one_row else 4)
