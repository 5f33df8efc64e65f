"""bulk: many new rows in one durable transaction, and how large the file is afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from .measure import Result, Run, random_rows, timed
from .peers import LMDB, Row, opened

ONE_BY_ONE = "lmdb put"


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    rounds = run.size(5, quick=2)
    result = Result(
        "bulk",
        f"{rows:,} rows in one transaction into an empty database",
        {"rows": rows, "key bytes": 24, "value bytes": 150, "rounds": rounds},
    )
    random = run.random()
    for order in ("random", "ascending"):
        times: dict[str, list[int]] = {}
        sizes: dict[str, list[float]] = {}
        for number in range(rounds):
            run.progress(f"{order} keys, round {number + 1} of {rounds}")
            content = random_rows(random, rows)
            if order == "ascending":
                content.sort()
            loads: list[tuple[str, Callable[[Iterable[Row]], None]]] = []
            with opened(run.folder(order)) as peers:
                loads = [(name, peer.load) for name, peer in peers.items()]
                loads = loads[number % len(loads) :] + loads[: number % len(loads)]
                for name, load in loads:
                    times.setdefault(name, []).append(timed(partial(load, content)))
            for name, peer in peers.items():
                sizes.setdefault(name, []).append(peer.file_size() / 1e6)
            if "lmdb" in peers:
                with opened(run.folder(order), only={"lmdb"}) as again:
                    lmdb = again["lmdb"]
                    assert isinstance(lmdb, LMDB)
                    times.setdefault(ONE_BY_ONE, []).append(timed(partial(lmdb.load_one_by_one, content)))
        result.add(f"{order} keys", times, "ms")
        result.add_numbers(f"{order} keys, size of the file", sizes, "MB")
    faster = max((found for peer in ("lmdb", ONE_BY_ONE) if (found := result.ratio("random keys", peer))), default=None)
    result.aim("random keys, Limpet's median over LMDB's faster one", faster, 2.0, "x")
    result.aim(
        "random keys, size of Limpet's file over LMDB's",
        result.ratio("random keys, size of the file", "lmdb"),
        1.0,
        "x",
    )
    result.note(
        "The time includes the sync at the end. lmdb loads with putmulti, a loop in C; 'lmdb put' is a Python loop, as "
        "Limpet's is. sqlite3 loads with executemany."
    )
    result.note(f"The rows alone are {rows * 174 / 1e6:.1f} MB. Files are measured after closing.")
    return result
