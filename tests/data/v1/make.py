"""How the files in this folder came about: written by the format 1 code as it first landed.

They are opened by tests for ever, and are never written anew: a file that today's code writes
proves nothing about files that are out there. This script is here to show what is in them, and
to add further shapes while format 1 is the current one. It does not touch a file that exists.

    python tests/data/v1/make.py

Each NAME.limpet.xz has a NAME.jsonl.xz beside it: one line an entry, [table, key, value], the
bytes in hexadecimal, tables and keys in order.
"""

from __future__ import annotations

import datetime
import json
import lzma
import random
import shutil
import tempfile
import uuid
from pathlib import Path

import limpet

HERE = Path(__file__).parent
WORDS = limpet.Table("words", key=limpet.STR, value=limpet.JSON)
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)
KINDS = limpet.Table("kinds", key=(limpet.UUID, limpet.DATETIME, limpet.BOOL, limpet.FLOAT), value=limpet.FLOAT)
RAW = limpet.Table("raw")
NUMBERS = limpet.Table("numbers", key=limpet.INT, value=limpet.DATETIME)


def fill(db: limpet.Database, seed: int, commits: int) -> None:
    """Commits of several tables: splits, merges, overflow values, dropped and renamed tables."""
    rng = random.Random(seed)
    with db.write() as txn:
        txn[RAW][b""] = b"the empty key"
        txn[WORDS]["\u5e8f"] = {"text": "\u6587\u5b57 \U0001f980", "n": [1, 2.5, None, True]}
        txn[limpet.Table("old name")][b"k"] = b"v"
        txn[limpet.Table("dropped")][b"k"] = b"v"
    for number in range(commits):
        with db.write() as txn:
            for _ in range(rng.randrange(1, 12)):
                name = f"agent:{rng.randrange(8)}"
                txn[EVENTS][name, number] = rng.randbytes(1) * rng.choice([0, 10, 120, 900])
                txn[WORDS][f"{name}:{rng.randrange(60)}"] = {"seq": number, "text": "x" * rng.randrange(80)}
            when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=number)
            txn[NUMBERS][rng.randrange(-(2**63), 2**63)] = when
            identity = uuid.UUID(int=rng.getrandbits(128))
            txn[KINDS][identity, when, bool(number % 2), rng.uniform(-1e9, 1e9)] = rng.random()
            if number % 7 == 3:
                txn[RAW][rng.randbytes(9)] = rng.randbytes(3) * rng.choice([1, 300, 2500])
            if number % 9 == 5:
                txn[EVENTS].delete_range(("agent:2",), ("agent:4",))
    with db.write() as txn:
        txn.rename("old name", "new name")
        txn.drop("dropped")


def entries(db: limpet.Database) -> list[list[str]]:
    """Everything in the database, as raw bytes."""
    with db.read() as txn:
        return [[name, key.hex(), value.hex()] for name in txn.tables() for key, value in txn.table(name).items()]


def keep(name: str, path: Path, content: list[list[str]]) -> None:
    """Store a file and what it holds."""
    (HERE / f"{name}.limpet.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    lines = "".join(json.dumps(entry) + "\n" for entry in content)
    (HERE / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines.encode(), preset=9))


def main() -> None:
    """Write the files that are missing."""
    with tempfile.TemporaryDirectory() as folder:
        for page_size in (512, 1024, 4096, 65536):
            for checksum in ("crc32c", "crc32"):
                for state in ("closed", "left open", "unsynced", "compacted"):
                    name = f"{page_size}-{checksum}-{state.replace(' ', '-')}"
                    if (HERE / f"{name}.limpet.xz").exists():
                        continue
                    path = Path(folder) / f"{name}.limpet"
                    with limpet.open(path, page_size=page_size, checksum=checksum) as db:
                        fill(db, seed=page_size, commits=12)
                        if state == "compacted":
                            db.compact()
                        if state == "unsynced":
                            with db.write(durability="os") as txn:
                                txn[WORDS]["unsynced"] = ["this commit has an `os` meta"]
                        content = entries(db)
                        copy = Path(folder) / "copy.limpet"
                        if state in ("left open", "unsynced"):
                            shutil.copy(path, copy)
                    keep(name, copy if state in ("left open", "unsynced") else path, content)


if __name__ == "__main__":
    main()
