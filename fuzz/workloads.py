"""What a program might do with a database, as data: lists of steps that can be stored, cut down and run again.

    ["commit", durability, changes]     durability: "sync", "os", "none"
    ["abort", changes]
    ["read"], ["unread"]                open a snapshot; compare the oldest open one with its state, close it
    ["flush"], ["compact"], ["backup"]
    ["reopen"], ["die"]                 close and open again; lose the process, not the cache, and open again

    changes  ["put", table, key, size, tag]  ["del", table, key]  ["range", table, from, to]
             ["clear", table]  ["drop", table]  ["rename", table, new name]
             ["undo", changes]               made inside a savepoint that is then undone

Keys are numbers, written out; values are `size` bytes that name their tag, so that no two puts agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from limpet import WriteTransaction

Step = list[Any]
Model = dict[str, dict[bytes, bytes]]


def key_bytes(key: int) -> bytes:
    """The key with a number."""
    return b"key-%06d" % key


def value_bytes(size: int, tag: int) -> bytes:
    """The value of a put."""
    mark = b"%d." % tag
    return (mark * (size // len(mark) + 1))[:size]


def apply_to_model(model: Model, changes: list[Step]) -> Model:
    """The model after the changes; the one given stays as it is."""
    after = {name: dict(table) for name, table in model.items()}
    for change in changes:
        kind, *rest = change
        if kind == "put":
            table, key, size, tag = rest
            after.setdefault(table, {})[key_bytes(key)] = value_bytes(size, tag)
        elif kind == "del":
            after.get(rest[0], {}).pop(key_bytes(rest[1]), None)
        elif kind == "range":
            low, high = key_bytes(rest[1]), key_bytes(rest[2])
            for key in [key for key in after.get(rest[0], {}) if low <= key < high]:
                del after[rest[0]][key]
        elif kind == "clear":
            if rest[0] in after:
                after[rest[0]] = {}
        elif kind == "drop":
            after.pop(rest[0], None)
        elif kind == "rename" and rest[0] in after and rest[1] not in after:
            after[rest[1]] = after.pop(rest[0])
    return after


class Undone(Exception):
    """Leaves a savepoint."""


def apply_to_transaction(transaction: WriteTransaction, changes: list[Step]) -> None:
    """The same changes to a database."""
    for change in changes:
        kind, *rest = change
        if kind == "undo":
            try:
                with transaction.savepoint():
                    apply_to_transaction(transaction, rest[0])
                    raise Undone
            except Undone:
                continue
        names = transaction.tables()
        table = transaction.table(rest[0])
        if kind == "put":
            table[key_bytes(rest[1])] = value_bytes(rest[2], rest[3])
        elif rest[0] not in names:
            continue
        elif kind == "del":
            table.pop(key_bytes(rest[1]), None)
        elif kind == "range":
            table.delete_range(key_bytes(rest[1]), key_bytes(rest[2]))
        elif kind == "clear":
            table.clear()
        elif kind == "drop":
            transaction.drop(rest[0])
        elif kind == "rename" and rest[1] not in names:
            transaction.rename(rest[0], rest[1])


# -- the workloads -------------------------------------------------------------------------------


class _Tags:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tag = 0

    def put(self, table: str, keys: int, sizes: tuple[int, int]) -> Step:
        self.tag += 1
        return ["put", table, self.rng.randrange(keys), self.rng.randint(*sizes), self.tag]


def inserts(rng: random.Random, length: int) -> list[Step]:
    """Ascending keys: leaves fill, split, and the tree grows in height."""
    tags, key = _Tags(rng), 0
    steps: list[Step] = []
    for _ in range(length):
        changes = []
        for _ in range(rng.randint(1, 8)):
            tags.tag += 1
            changes.append(["put", "log", key, rng.randint(10, 60), tags.tag])
            key += 1
        steps.append(["commit", "sync", changes])
    return steps


def overwrites(rng: random.Random, length: int) -> list[Step]:
    """The same keys again and again: pages are freed and reused as fast as the rules allow."""
    tags = _Tags(rng)
    return [["commit", "sync", [tags.put("kv", 12, (20, 50)) for _ in range(rng.randint(1, 4))]] for _ in range(length)]


def deletes(rng: random.Random, length: int) -> list[Step]:
    """Fill, then delete until nothing is left: leaves merge, the tree loses its height."""
    tags, half = _Tags(rng), length // 2
    steps: list[Step] = []
    steps += [["commit", "sync", [tags.put("t", 80, (5, 40)) for _ in range(8)]] for _ in range(half)]
    keys = list(range(80))
    rng.shuffle(keys)
    each = -(-len(keys) // max(1, length - half))
    cuts = range(0, len(keys), each)
    return steps + [["commit", "sync", [["del", "t", key] for key in keys[start : start + each]]] for start in cuts]


def overflows(rng: random.Random, length: int) -> list[Step]:
    """Values that grow beyond a page, shrink, and move between leaf and overflow pages."""
    tags = _Tags(rng)
    steps = []
    for _ in range(length):
        sizes = rng.choice(((0, 30), (150, 260), (400, 1800), (480, 500)))
        steps.append(["commit", "sync", [tags.put("blobs", 6, sizes) for _ in range(rng.randint(1, 3))]])
    return steps


def catalogues(rng: random.Random, length: int) -> list[Step]:
    """Tables come, go and change their names."""
    tags = _Tags(rng)
    steps: list[Step] = []
    for _ in range(length):
        table, other = f"table-{rng.randrange(9)}", f"table-{rng.randrange(9)}"
        changes: list[Step] = [tags.put(table, 20, (5, 60)) for _ in range(rng.randint(0, 3))]
        changes.append(
            rng.choice((["drop", other], ["rename", table, other], ["clear", other], tags.put(other, 9, (1, 9))))
        )
        steps.append(["commit", "sync", changes])
    return steps


def growth(rng: random.Random, length: int) -> list[Step]:
    """Each commit needs more pages than there are: the file grows all the time."""
    tags = _Tags(rng)
    return [["commit", "sync", [tags.put("big", 500, (60, 180)) for _ in range(12)]] for _ in range(length)]


def durabilities(rng: random.Random, length: int) -> list[Step]:
    """Commits of all three strengths, and flushes."""
    tags = _Tags(rng)
    steps: list[Step] = []
    for _ in range(length):
        strength = rng.choice(("sync", "os", "os", "none"))
        steps.append(["commit", strength, [tags.put("kv", 25, (10, 90)) for _ in range(rng.randint(1, 5))]])
        if rng.random() < 0.1:
            steps.append(["flush"])
    return steps


def readers(rng: random.Random, length: int) -> list[Step]:
    """Snapshots stay open while the pages below them are freed."""
    tags, is_open = _Tags(rng), 0
    steps: list[Step] = []
    for _ in range(length):
        steps.append(["commit", rng.choice(("sync", "sync", "os")), [tags.put("kv", 15, (20, 60)) for _ in range(3)]])
        if rng.random() < 0.4:
            steps.append(["read"])
            is_open += 1
        elif is_open and rng.random() < 0.6:
            steps.append(["unread"])
            is_open -= 1
    return steps


def upkeep(rng: random.Random, length: int) -> list[Step]:
    """Compaction, backup, closing and dying between commits."""
    tags = _Tags(rng)
    steps: list[Step] = []
    for _ in range(length):
        steps.append(["commit", "sync", [tags.put("kv", 40, (10, 60)) for _ in range(rng.randint(1, 6))]])
        if rng.random() < 0.35:
            steps.append(rng.choice((["compact"], ["backup"], ["reopen"], ["die"])))
    return steps


def mixtures(rng: random.Random, length: int) -> list[Step]:
    """Some of everything, with aborts and undone savepoints."""
    tags = _Tags(rng)
    steps: list[Step] = []
    for _ in range(length):
        changes: list[Step] = []
        for _ in range(rng.randint(1, 6)):
            table = rng.choice("abc")
            low = rng.randrange(60)
            change = rng.choice(
                (
                    tags.put(table, 60, (0, 70)),
                    tags.put(table, 60, (0, 70)),
                    tags.put(table, 60, (100, 900)),
                    ["del", table, low],
                    ["range", table, low, low + rng.randrange(20)],
                    ["undo", [tags.put(table, 60, (0, 300)), ["range", table, low, low + 9]]],
                    ["undo", [[rng.choice(("clear", "drop")), table], tags.put(table, 60, (0, 90))]],
                )
            )
            changes.append(change)
        steps.append(rng.choice((["commit", "sync", changes],) * 6 + (["abort", changes], ["commit", "os", changes])))
        if rng.random() < 0.06:
            steps.append(rng.choice((["reopen"], ["die"], ["compact"], ["flush"])))
    return steps


WORKLOADS: dict[str, Callable[[random.Random, int], list[Step]]] = {
    function.__name__: function
    for function in (
        overwrites,
        upkeep,
        durabilities,
        mixtures,
        growth,
        deletes,
        overflows,
        readers,
        catalogues,
        inserts,
    )
}
