"""get: one random key from a table that is in the cache, in a transaction of its own; and many in one transaction."""

from __future__ import annotations

import contextlib

from .measure import MIB, Result, Run, random_rows, take_turns
from .peers import SQLite, opened

BATCH = 200
EXPLICIT = "sqlite3 BEGIN/COMMIT"


def run(run: Run) -> Result:
    """Measure."""
    rows = run.size(100_000, quick=2_000)
    gets = run.size(60_000, quick=1_000)
    warm_up = gets // 3
    cache_size = 64 * MIB
    result = Result(
        "get",
        f"random get from a table of {rows:,} rows in the cache",
        {"rows": rows, "key bytes": 24, "value bytes": 150, "gets": gets, "cache MiB": cache_size // MIB},
    )
    random = run.random()
    content = random_rows(random, rows)
    keys = [content[random.randrange(rows)][0] for _ in range(gets + warm_up)]
    absent = [random.randbytes(24) for _ in range(gets // 4)]
    own, one, missing = (
        "each in its own transaction",
        "all in one transaction",
        "a key that is not there, own transaction",
    )
    with opened(run.folder("get"), cache_size=cache_size) as peers:
        run.progress(f"loading {rows:,} rows into {', '.join(peers)}")
        for peer in peers.values():
            peer.load(content)
            peer.scan()
        sqlite = peers["sqlite3"]
        assert isinstance(sqlite, SQLite)
        run.progress(own)
        calls = {name: peer.get for name, peer in peers.items()} | {EXPLICIT: sqlite.get_between}
        for key, value in content[:100]:
            assert all(get(key) == value for get in calls.values())
        result.add(own, take_turns(calls, keys, batch=BATCH, warm_up=warm_up))
        run.progress(missing)
        result.add(missing, take_turns(calls, absent, batch=BATCH))
        run.progress(one)
        with contextlib.ExitStack() as stack:
            getters = {name: stack.enter_context(peer.getter()) for name, peer in peers.items()}
            result.add(one, take_turns(getters, keys[:gets], batch=BATCH, warm_up=gets // 5))
    for peer_name, text in (("sqlite3", "a SELECT on its own"), (EXPLICIT, "BEGIN, SELECT, COMMIT")):
        ratio = result.ratio(own, peer_name)
        faster = None if ratio is None else 1 / ratio
        result.aim(f"own transaction, times as fast as SQLite with {text}", faster, 3.0, "x", at_least=True)
    result.note(
        "SQLite is shown twice: a SELECT without BEGIN is the cheapest transaction it has; BEGIN, SELECT, COMMIT is "
        "what the other two do, a transaction that could read more than one thing."
    )
    result.note(
        "The loop and the clock take about 0.1 us of every number, which makes ratios a little smaller than they are."
    )
    return result
