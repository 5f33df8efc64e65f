"""media: what the disk asks for a durable write, without any database: the numbers that the design stands on.

Places of a file that exist already are overwritten, in blocks of 4 KiB, and synced. A commit of one row, which Limpet
and sqlite3 make in the same turns, is there for scale.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from .measure import MIB, OURS, Result, Run, random_rows, take_turns
from .peers import Peer, Row, opened

BLOCK = 4096
AREA = 4 * MIB
DISK = "disk alone"
BATCH = 5


def run(run: Run) -> Result:
    """Measure."""
    count = run.size(600, quick=10)
    result = Result(
        "media",
        "durable writes into a file, without a database",
        {"block bytes": BLOCK, "area bytes": AREA, "writes": count, "writes in a row": BATCH},
    )
    random = run.random()
    names = {OURS, "sqlite3"}
    folder = run.folder("area")
    with (
        _area(folder / "area") as file,
        _area(folder / "at-once") as at_once,
        _area(folder / "in-blocks", BLOCK) as in_blocks,
        _area(folder / "past"),
        _direct(folder / "past") as direct,
        opened(run.folder("peers"), only=names) as peers,
    ):
        writes = _operations(file, at_once, in_blocks, direct, random)
        rows = random_rows(random, count)
        commits = {name: partial(_put, peer) for name, peer in peers.items()}
        samples = take_turns({**writes, **commits}, rows, batch=BATCH, warm_up=count // 10)
    for name in writes:
        result.add(name, {DISK: samples[name]})
    result.add("a commit of one row", {name: samples[name] for name in commits})
    one, sixteen = result.median("1 block", DISK), result.median("16 blocks", DISK)
    result.aim("16 blocks in one place over 1 block", sixteen / one if one and sixteen else None, 2.0, "x")
    result.note(
        "'n blocks' are contiguous, 'n places' lie apart; both with pwrite and fdatasync. 'one call' is pwritev with "
        "RWF_DSYNC, one block behind the other, as in a log. 'two syncs' is a block and a sync, twice: what a commit "
        "with pages and a meta takes at least. 'appended' grows the file by a block each time."
    )
    result.note(
        "The areas were written at once, except for 'cached in blocks': newer Linux keeps what was written at once in "
        "units of up to 2 MiB in its cache, and looks through a whole unit to write one block of it. 'past the cache' "
        "is O_DIRECT, as the engine writes its log; the copy into an aligned buffer is included."
    )
    result.note(
        "A place more costs more than many blocks more in one place, and a second sync costs as much as the first: "
        "hence one contiguous write and one sync for a commit, over blocks that exist."
    )
    return result


def _put(peer: Peer, row: Row) -> None:
    peer.put(*row)


def _operations(
    file: int, at_once: int, in_blocks: int, direct: int | None, random: Random
) -> dict[str, Callable[[Row], None]]:
    sync = getattr(os, "fdatasync", os.fsync)
    data = random.randbytes(16 * BLOCK)
    places = AREA // BLOCK - 16
    end = AREA

    def blocks(count: int) -> Callable[[Row], None]:
        def write(_: Row) -> None:
            os.pwrite(file, data[: count * BLOCK], random.randrange(places) * BLOCK)
            sync(file)

        return write

    def apart(count: int) -> Callable[[Row], None]:
        def write(_: Row) -> None:
            for _place in range(count):
                os.pwrite(file, data[:BLOCK], random.randrange(places) * BLOCK)
            sync(file)

        return write

    def logged(descriptor: int) -> Callable[[Row], None]:
        following = itertools.cycle(range(0, AREA, BLOCK))
        aligned = mmap.mmap(-1, BLOCK)

        def write(_: Row) -> None:
            aligned[:] = data[:BLOCK]
            os.pwritev(descriptor, [aligned], next(following), os.RWF_DSYNC)

        return write

    def two_syncs(_: Row) -> None:
        for _time in range(2):
            os.pwrite(file, data[:BLOCK], random.randrange(places) * BLOCK)
            sync(file)

    def appended(_: Row) -> None:
        nonlocal end
        os.pwrite(file, data[:BLOCK], end)
        sync(file)
        end += BLOCK

    found = {"1 block": blocks(1)}
    if hasattr(os, "RWF_DSYNC"):
        found["the next block, one call"] = logged(at_once)
        found["the next block, one call, cached in blocks"] = logged(in_blocks)
        if direct is not None:
            found["the next block, one call, past the cache"] = logged(direct)
    found |= {f"{count} blocks": blocks(count) for count in (2, 4, 8, 16)}
    found |= {f"{count} places": apart(count) for count in (3, 6)}
    found |= {"1 block, appended": appended, "two syncs": two_syncs}
    return found


@contextlib.contextmanager
def _area(path: Path, piece: int = AREA) -> Iterator[int]:
    """A descriptor of a file whose blocks have all been written, so many bytes at a time."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for offset in range(0, AREA, piece):
            os.pwrite(file, bytes(piece), offset)
        os.fsync(file)
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def _direct(path: Path) -> Iterator[int | None]:
    """A descriptor of a file that passes the system's cache by; None where there is no such thing."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)
