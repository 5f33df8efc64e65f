"""memory: how much anonymous memory random reads of a large file take, in a process that does nothing else.

Anonymous memory is what the process itself has allocated (RssAnon). Pages of a mapped file are not part of it: the
system takes those back whenever it likes. Each peer runs in a fresh process, which measures itself:

    python -m benchmarks.memory PEER FOLDER ROWS READS SEED
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from .measure import MIB, OURS, Result, Run, anonymous_memory, answer_of, child, memory_status
from .peers import Row, opened

CACHE_SIZE = 16 * MIB
VALUE = bytes(range(150))


def run(run: Run) -> Result:
    """Measure."""
    megabytes = run.size(200, quick=4)
    rows = megabytes * 1_000_000 // 186  # of 174 bytes, with what Limpet adds
    reads = run.size(100_000, quick=1_000)
    result = Result(
        "memory",
        f"anonymous memory of random reads of a {megabytes} MB file with a cache of {CACHE_SIZE // MIB} MiB",
        {"rows": rows, "key bytes": 24, "value bytes": 150, "reads": reads, "cache MiB": CACHE_SIZE // MIB},
    )
    folder = run.folder("memory")
    with opened(folder) as peers:
        for name, peer in peers.items():
            run.progress(f"{name}: loading {rows:,} rows")
            peer.load(_rows(rows))
    growth: dict[str, list[float]] = {name: [] for name in peers}
    mapped: dict[str, list[float]] = {name: [] for name in peers}
    times: dict[str, list[float]] = {name: [] for name in peers}
    sizes: dict[str, list[float]] = {name: [] for name in peers}
    for name, peer in peers.items():
        sizes[name].append(peer.file_size() / 1e6)
    for number in range(run.size(3, quick=1)):
        for name in peers:
            run.progress(f"{name}: reading, process {number + 1}")
            found = json.loads(answer_of(child("memory", name, folder / name, rows, reads, run.seed + number)))
            times[name].append(found["us"])
            if found["growth"] is not None:
                growth[name].append(found["growth"] / MIB)
                mapped[name].append(found["mapped"] / MIB)
    result.add_numbers("size of the file", sizes, "MB")
    result.add_numbers("one read from outside the cache, own transaction, mean", times, "us")
    grown = "growth of anonymous memory"
    if growth[OURS]:
        result.add_numbers(grown, growth, "MiB")
        result.add_numbers("mapped file in memory at the end", mapped, "MiB")
    largest = max(growth[OURS], default=None)
    result.aim("largest growth of anonymous memory", largest, 20.0, "MiB")
    result.note(
        "Growth is counted from after the imports to the largest value seen while opening and reading. SQLite gets a "
        "cache of the same size. LMDB has none of its own and reads from the mapped file, where everybody's memory may "
        "go back to the system at any time."
    )
    result.note("Keys of the file are ascending, so that it can be loaded quickly; reads are random.")
    return result


def _key(number: int) -> bytes:
    text = number.to_bytes(8, "big")
    return text + hashlib.blake2b(text, digest_size=16).digest()


def _rows(count: int) -> Iterator[Row]:
    for number in range(count):
        yield _key(number), VALUE


def _measure(name: str, folder: Path, rows: int, reads: int, seed: int) -> dict[str, float | None]:
    random = Random(seed)
    before = anonymous_memory()
    largest = before or 0
    with opened(folder.parent, only={name}, cache_size=CACHE_SIZE) as peers:
        get = peers[name].get
        began = time.perf_counter()
        for number in range(reads):
            if get(_key(random.randrange(rows))) != VALUE:
                raise AssertionError("a wrong value")
            if number % 1000 == 0:
                largest = max(largest, anonymous_memory() or 0)
        elapsed = time.perf_counter() - began
        largest = max(largest, anonymous_memory() or 0)
        mapped = memory_status().get("RssFile")
    return {
        "us": elapsed / reads * 1e6,
        "growth": None if before is None else largest - before,
        "mapped": mapped,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))))
