"""scan: every key and value of a table, in order, once warm; the loop over them is Python's for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .measure import MIB, Result, Run, random_rows, take_turns
from .peers import Peer, opened


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    rounds = run.size(25, quick=3)
    cache_size = 64 * MIB
    result = Result(
        "scan",
        f"full scan of {rows:,} rows",
        {"rows": rows, "key bytes": 24, "value bytes": 150, "rounds": rounds, "cache MiB": cache_size // MIB},
    )
    content = random_rows(run.random(), rows)
    cold, warm = "first scan after opening", "scan in the cache"
    folder = run.folder("scan")
    with opened(folder) as peers:
        run.progress(f"loading {rows:,} rows into {', '.join(peers)}")
        for peer in peers.values():
            peer.load(content)
    first: dict[str, list[int]] = {}
    for number in range(run.size(5, quick=2)):
        run.progress(f"first scan, round {number + 1}")
        with opened(folder, cache_size=cache_size) as peers:
            for name, times in take_turns(_scans(peers), [number]).items():
                first.setdefault(name, []).extend(times)
    result.add(cold, first, "ms")
    with opened(folder, cache_size=cache_size) as peers:
        run.progress(warm)
        sizes = {peer.scan() for peer in peers.values()}
        assert sizes == {rows * (24 + 150)}
        samples = take_turns(_scans(peers), range(rounds))
        result.add(warm, samples, "ms")
    result.aim("in the cache, Limpet's median over SQLite's", result.ratio(warm, "sqlite3"), 1.0, "x")
    result.aim("after opening, Limpet's median over SQLite's", result.ratio(cold, "sqlite3"), 1.0, "x")
    result.note(
        "After opening, the pages are in the operating system's cache: Limpet verifies the checksum of each, the "
        "others have none."
    )
    return result


def _scans(peers: Mapping[str, Peer]) -> dict[str, Callable[[int], int]]:
    def scan_of(peer: Peer) -> Callable[[int], int]:
        return lambda _: peer.scan()

    return {name: scan_of(peer) for name, peer in peers.items()}
