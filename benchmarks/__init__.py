"""Benchmarks of Limpet, one file for each workload; `make bench` runs them beside sqlite3 and LMDB."""

# In the order in which they run: the engine's, then the store's.
WORKLOADS = (
    "media",
    "commit",
    "get",
    "scan",
    "bulk",
    "memory",
    "opening",
    "space",
    "turn",
    "history",
    "queue",
    "idle",
    "restart",
)
