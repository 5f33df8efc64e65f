"""A reader sees one commit, whole, for as long as it likes, whatever the writer does meanwhile.

F14: threads read snapshots in a tiny file, whose pages are reused as fast as the rules allow, while another thread
commits, compacts and backs up; each snapshot must equal the model of its txid, twice. Other processes that try to read
are told who holds the file, at once; when the writer was killed, they read.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import limpet

from .harness import Budget, Case, FaultClass, told_as
from .oracle import Wrong, content_of, difference, tuned
from .workloads import Model, apply_to_model, apply_to_transaction, mixtures, overwrites

_READERS = 3


def run(budget: Budget) -> None:
    """Rounds of a second or so."""
    while budget.more():
        case: Case = {"seed": budget.rng.randrange(1 << 30)}
        with told_as(case):
            _threads(case["seed"], budget)
            _processes(case["seed"], budget)


def _threads(seed: int, budget: Budget) -> None:
    rng = random.Random(seed)
    make = rng.choice((overwrites, mixtures))
    steps = make(rng, 60)
    models: dict[int, Model] = {}
    wrong: list[BaseException] = []
    reads = [0]
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder, tuned(512):
        path = Path(folder) / "shared.limpet"
        with limpet.open(path, page_size=512, cache_size=rng.choice((0, 1 << 14)), durability="os") as db:
            models[db.stats().txid] = {}

            def read(number: int) -> None:
                luck = random.Random(seed + number)
                try:
                    while not over.is_set():
                        with db.read() as snapshot:
                            first = content_of(snapshot)
                            time.sleep(luck.random() * 0.003)
                            again = content_of(snapshot)
                            model = models.get(snapshot.txid)
                        reads[0] += 1
                        if first != again:
                            raise Wrong(f"a snapshot changed: {difference(again, first)}")
                        if model is not None and first != model:
                            raise Wrong(f"snapshot {snapshot.txid}: {difference(first, model)}")
                except BaseException as error:  # noqa: BLE001 raised again by the test's own thread
                    wrong.append(error)

            threads = [threading.Thread(target=read, args=(number,)) for number in range(_READERS)]
            for thread in threads:
                thread.start()
            try:
                model: Model = {}
                for index, (kind, *rest) in enumerate(steps):
                    if kind == "commit":
                        with db.write(durability=rest[0]) as transaction:
                            apply_to_transaction(transaction, rest[1])
                            model = apply_to_model(model, rest[1])
                            models[transaction.txid] = model  # before anybody can see it
                    if index % 20 == 19:
                        db.compact()
                    if index % 25 == 24:
                        db.backup(path.with_suffix(".backup"), overwrite=True)
                    if wrong:
                        break
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            if wrong:
                raise wrong[0]
            report = db.check()
            if not report.ok:
                raise Wrong(f"after concurrent reading: {report.errors[:2]}")
        with limpet.open(path) as db, db.read() as snapshot:
            if content_of(snapshot) != model:
                raise Wrong(f"after concurrent reading: {difference(content_of(snapshot), model)}")
    for _ in range(reads[0]):
        budget.count("snapshot")


def _processes(seed: int, budget: Budget) -> None:
    """A writer in another process: we are refused while it lives, and read when it was killed."""
    steps = overwrites(random.Random(seed), 40)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "held.limpet"
        receiver, sender = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                db = limpet.open(path, page_size=512, durability="os")
                os.write(sender, b"opened\n")
                for _, _, changes in steps:
                    with db.write() as transaction:
                        apply_to_transaction(transaction, changes)
                    os.write(sender, b"committed\n")
                signal.pause()
            finally:
                os._exit(1)
        os.close(sender)
        try:
            with os.fdopen(receiver) as lines:
                lines.readline()
                started = time.monotonic()
                try:
                    limpet.open(path, read_only=True, lock_timeout=0)
                except limpet.LockedError as error:
                    if error.holder is None or str(child) not in error.holder:
                        raise Wrong(f"the holder is pid {child}, and the error says {error.holder}") from None
                else:
                    raise Wrong("two processes have the file open, one of them for writing")
                if time.monotonic() - started > 2:
                    raise Wrong("a reader that does not want to wait had to")
                budget.count("refused")
                time.sleep(random.Random(seed).random() * 0.02)
                os.kill(child, signal.SIGKILL)
                acknowledged = sum(1 for line in lines if line == "committed\n")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        states: list[Model] = [{}]
        for _, _, changes in steps:
            states.append(apply_to_model(states[-1], changes))
        for _ in range(2):
            with limpet.open(path, read_only=True, lock_timeout=1.0) as db, db.read() as snapshot:
                if content_of(snapshot) not in states[acknowledged : acknowledged + 2]:
                    raise Wrong(
                        f"after {acknowledged} commits: {difference(content_of(snapshot), states[acknowledged])}"
                    )
        budget.count("after the writer's death")


def _replay(case: Case) -> None:
    budget = Budget(60.0, 0)
    with told_as(case):
        _threads(case["seed"], budget)
        _processes(case["seed"], budget)


CLASS: FaultClass = FaultClass("F14", "concurrent readers, in threads and processes", run, _replay)
