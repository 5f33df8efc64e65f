"""The commits of an open database since the last flush, and whether it may go on. No I/O.

Commits form a chain: each knows the one before. Three places in it matter:

    written  ...  shown  ...  tip

    written  the newest that is in the file, as a log record or in a checkpoint
    shown    the newest that readers see: at least `written`; a `none` commit is shown before it is written
    tip      the newest; the next transaction begins there

A commit is one assignment, `chain.tip = commit`: whatever stops the thread, before that there is no
commit, and after that it is made. What waits to be written, how much of it, and which commits nobody
has seen, follows from the three places, so it cannot disagree with them.

`failure` is the one truth about the life of the database: None while it is open, and then for ever
why it is not. A LimpetError there is what callers get; any other exception was the end of a write or
a sync, and means that the database is poisoned. Whoever sets it takes `published` away in the same
statement; whoever publishes looks at it afterwards (`show`). So it cannot be undone for readers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LimpetError, PoisonedError
from .format import Meta
from .free_space import Pending
from .log import Log, LogEnd
from .snapshot import Snapshot

SYNC, OS, NONE = "sync", "os", "none"
DURABILITIES = (SYNC, OS, NONE)


@dataclass(slots=True, eq=False)
class Advance:
    """What a commit that is a checkpoint did to the books (books.py); what is needed to undo it.

    allocated   pages of its trees
    held        of these, the first page numbers of those that are still to be written
    superseded  pages of earlier unwritten commits that need not be written any more
    pending     what it freed
    stale       references of nodes that only older commits use
    base        the newest checkpoint before it
    """

    allocated: list[int]
    held: set[int]
    superseded: list[int]
    pending: list[Pending]
    stale: list[int]
    base: Commit


Backlog = tuple[bytes, "Backlog | None"]  # changes of a commit, and those that waited before


class Commit:
    """One link of the chain.

    txid        its number
    snapshot    what readers see, once it is shown
    durability  that its committer asked for
    log         the epoch that it belongs to; one that is a checkpoint begins it
    size        bytes of changes since the epoch began, its own included
    count       changes since the epoch began, its own included
    backlog     encoded changes that the log has yet to get, the newest first; those that it has got by now may follow
    before      the commit before; None once readers see this one
    advance     of a commit that is a checkpoint and that readers do not see yet: what it did to the books
    error       why a failed flush undid it
    """

    # No slots: what most commits never have costs nothing as a default of the class.
    advance: Advance | None = None
    error: OSError | None = None

    def __init__(
        self,
        snapshot: Snapshot,
        durability: str,
        log: Log,
        before: Commit | None = None,
        size: int = 0,
        count: int = 0,
        backlog: Backlog | None = None,
    ) -> None:
        self.txid = snapshot.txid
        self.snapshot = snapshot
        self.durability = durability
        self.log = log
        self.before = before
        self.size = size
        self.count = count
        self.backlog = backlog


@dataclass(slots=True, eq=False)
class Record:
    """A record that is to be written.

    tip     the newest commit in it
    log     the epoch; `end` is how far that is when the record is in the file
    offset  where it goes, in bytes
    data    the record; empty if only a sync is missing
    sync    whether it has to be on stable storage
    copy    the meta of the epoch, if the other slot has to get it first
    """

    tip: Commit
    log: Log
    end: LogEnd
    offset: int
    data: bytes
    sync: bool
    copy: Meta | None


class Chain:
    """The commits, and the life of the database.

    last_txid     the highest number that was given out
    written_txid  that of `written`, durable_txid that of the newest commit on stable storage. They are set
                  last, because who waits for them looks without a lock, and then expects to see the commit
    published     the snapshot that readers begin with; None when the database is not open any more

    pending is the record that is being written, or that an interrupt has left half-way.
    Changed under the lock of the books, but for `failure` and `published`, which any thread may set: each
    looks at the other afterwards.
    """

    __slots__ = (
        "durable_txid",
        "failure",
        "last_txid",
        "pending",
        "published",
        "shown",
        "tip",
        "written",
        "written_txid",
    )

    def __init__(self, commit: Commit, last_txid: int) -> None:
        """Stand at a commit that was found in a file."""
        self.failure: BaseException | None = None
        self.last_txid = last_txid
        self.pending: Record | None = None
        self.published: Snapshot | None = commit.snapshot
        self.tip = self.shown = self.written = commit
        self.written_txid = self.durable_txid = commit.txid

    def since(self, commit: Commit) -> list[Commit]:
        """The commits after this one, in order."""
        found: list[Commit] = []
        each: Commit | None = self.tip
        while each is not None and each is not commit:
            found.append(each)
            each = each.before
        found.reverse()
        return found

    def waiting(self) -> bytes:
        """The changes that the log has yet to get, in order."""
        tip, written = self.tip, self.written
        if tip is written or tip.backlog is None:
            return b""
        changes, each = tip.backlog
        if each is None:
            return changes
        end = written.backlog if written.log is tip.log else None
        found = [changes]
        while each is not None and each is not end:
            changes, each = each
            found.append(changes)
        found.reverse()
        return b"".join(found)

    def is_unseen(self, commit: Commit) -> bool:
        """Whether readers cannot see a commit of the chain yet."""
        return commit.txid > self.shown.txid

    def show(self, commit: Commit, written: int = 0, *, sync: bool = False) -> None:
        """Let readers that begin now see it, unless the database has come to its end meanwhile.

        written  the newest commit that is in the file now, if that is news; sync: on stable storage
        """
        self.published = commit.snapshot
        if self.failure is not None:
            self.published = None
        if sync and written > self.durable_txid:
            self.durable_txid = written
        self.written_txid = max(self.written_txid, written)

    def error(self, path: str) -> LimpetError:
        """What callers get once there is a failure; a new exception for each."""
        failure = self.failure
        if isinstance(failure, LimpetError):
            return type(failure)(*failure.args)
        return PoisonedError(
            f"{path}: an earlier write or sync failed ({type(failure).__name__}: {failure}), so memory may not "
            "agree with the disk. Close the database and open it again; every acknowledged `sync` commit is there"
        )
