"""Files that were whole once, and probes of what is left of them after damage.

Shared by F8 to F11. The promise to probe: whatever is read is right, or raises CorruptError or FormatError. The one
thing a reader cannot see is a newest meta that does not pass for one: then the commit before it is what is there.
"""

from __future__ import annotations

import base64
import random
import zlib
from dataclasses import dataclass, field

from limpet import CorruptError, Database, FormatError
from limpet.testing import Call, SimDisk, layout_of

from .harness import no_hang
from .oracle import PATH, Run, Wrong, abandon, difference, open_sim, tuned
from .workloads import Model, Step, apply_to_model


@dataclass
class Sample:
    """A file and what it holds.

    image    its bytes
    by_txid  the content of each commit that its metas may name
    newest   the txid of the newest
    history  earlier versions of its pages: page number -> all that were ever there
    """

    image: bytes
    by_txid: dict[int, Model]
    newest: int
    page_size: int
    history: dict[int, list[bytes]] = field(default_factory=dict)
    touched: set[int] | None = None  # kept by F10

    def records(self) -> list[range]:
        """The pages of each log record of the newest state, in order."""
        layout = layout_of(self.image)
        assert layout is not None
        return layout.log(self.image, layout.commits(self.image)[-1])[1]

    def is_in_last_record(self, pgno: int) -> bool:
        """Whether damage to this page cannot be told from a commit that was being written."""
        records = self.records()
        return bool(records) and pgno in records[-1]

    def needed(self) -> set[int]:
        """The pages that the newest commit needs."""
        layout = layout_of(self.image)
        assert layout is not None
        return layout.pages(self.image, layout.commits(self.image)[-1])


def sample(rng: random.Random, *, page_size: int = 512, commits: int = 6, clean: bool = False) -> Sample:
    """A small file with several tables, a branch, overflow pages and free pages."""
    disk = SimDisk()
    run = Run(disk, page_size=page_size, growth=page_size, monitored=False)
    history: dict[int, list[bytes]] = {}

    def remember(call: Call) -> None:
        if call.kind == "write" and not call.path.endswith(".new"):
            for at in range(0, call.size, page_size):
                page = call.data[at : at + page_size]
                if len(page) == page_size:
                    history.setdefault((call.offset + at) // page_size, []).append(page)

    disk.after.append(remember)
    by_txid: dict[int, Model] = {}
    with tuned(page_size):
        run.open()
        for number in range(commits):
            scale = page_size // 512
            changes: list[Step] = [
                ["put", rng.choice("ab"), rng.randrange(8), rng.randint(10, 70 * scale), number * 10 + index]
                for index in range(3)
            ]
            if number < commits - 2:  # the last ones stay in the log: a record, and one that knows it to be safe
                changes.append(["put", "large", 1, rng.randint(500, 900) * scale, number])
            run.step(["commit", "sync", changes])
            assert run.db is not None
            by_txid[run.db.stats().txid] = run.states[-1]
        if clean:
            run.close()
            layout = layout_of(disk.content(PATH))
            assert layout is not None
            by_txid[layout.commits(disk.content(PATH))[-1].txid] = run.states[-1]
        else:
            run.abandon()
    return Sample(disk.content(PATH), by_txid, max(by_txid), page_size, history)


def pack(data: bytes) -> str:
    """Bytes for a JSON case."""
    return base64.b85encode(zlib.compress(data)).decode()


def unpack(text: str) -> bytes:
    """The bytes of a JSON case."""
    return zlib.decompress(base64.b85decode(text))


def probe(whole: Sample, damaged: bytes, *, fallback: bool = False, check: bool = False) -> str:
    """Open a damaged file and read everything in it, each way there is.

    fallback  whether the commit before the newest may be what is there
    check     whether the engine's own check is asked as well
    returns   "error" if anything was noticed, "right" otherwise
    raises    Wrong if anything that was read is wrong
    """
    disk = SimDisk.of({PATH: damaged})
    with no_hang():
        try:
            db = open_sim(disk, create=False, read_only=True)
        except (CorruptError, FormatError):
            return "error"
        try:
            return _read(whole, db, fallback, check)
        finally:
            abandon(db)


def _read(whole: Sample, db: Database, fallback: bool, check: bool) -> str:
    noticed = False
    with db.read() as transaction:
        model = whole.by_txid.get(transaction.txid)
        if model is None or (transaction.txid != whole.newest and not fallback):
            raise Wrong(f"commit {transaction.txid} is shown, the newest is {whole.newest}")
        names = transaction.tables()
        if names != sorted(model):
            raise Wrong(f"the tables are {names}, not {sorted(model)}")
        for name, entries in model.items():
            table = transaction.table(name)
            for key, value in entries.items():
                try:
                    if table.get(key) != value:
                        raise Wrong(f"table {name}: {key!r} has a wrong value")
                except CorruptError:
                    noticed = True
            for backwards in (False, True):
                found: dict[bytes, bytes] = {}
                try:
                    for key, value in table.range(reverse=backwards):
                        found[key] = value  # noqa: PERF403 what came before an error counts
                except CorruptError:
                    noticed = True
                    if not found.items() <= entries.items():
                        raise Wrong(f"table {name}: a scan gives wrong entries before it fails") from None
                else:
                    if found != entries:
                        raise Wrong(difference({name: found}, {name: entries}))
    if check and noticed and db.check().ok:
        raise Wrong("reading finds damage, and the check does not")
    return "error" if noticed else "right"


__all__ = ["Sample", "apply_to_model", "pack", "probe", "sample", "unpack"]
