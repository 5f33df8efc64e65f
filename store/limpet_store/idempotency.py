"""What has been delivered already, so that it is not delivered again after a crash."""

from __future__ import annotations

from .family import AnyFace, Family, reads, writes
from .schema import IDEMPOTENCY, IDEMPOTENCY_TIMES, check_key, key_int
from .work import Work


def turn_key(task_id: str, turn: int) -> str:
    """The key that stands for the reply of one turn of one task."""
    return f"task:{task_id}:turn:{turn}"


def mark(work: Work, key: str) -> None:
    """Record that something was delivered now; refreshes the time when it was marked before."""
    work.put(IDEMPOTENCY, key, work.now(), work.get(IDEMPOTENCY, key))


def forget(work: Work, cutoff: int, limit: int | None = None, *, dry_run: bool = False) -> int:
    """Delete the keys that were marked before a time, the oldest first; returns how many.

    dry_run  only count them
    """
    count = 0
    for (_, key), _ in work.view(IDEMPOTENCY_TIMES.table).range(None, (key_int(cutoff),)):
        if limit is not None and count >= limit:
            break
        seconds = work.get(IDEMPOTENCY, key)
        if seconds is not None:
            if not dry_run:
                work.remove(IDEMPOTENCY, key, seconds)
            count += 1
    return count


class Idempotency(Family[AnyFace]):
    """Keys of what was delivered, with the time."""

    __slots__ = ()
    name = "idempotency"

    @reads
    def is_delivered(self, key: str) -> bool:
        """Whether the key has been marked."""
        return self._work.get(IDEMPOTENCY, key) is not None

    @writes
    def mark_delivered(self, key: str) -> None:
        """Mark a key; marking it again refreshes its time."""
        check_key(key)
        mark(self._work, key)

    @writes
    def cleanup(self, retention_secs: int, *, force: bool = False) -> int:
        """Delete the keys that were marked longer ago than so many seconds.

        force    believe the clock, however far it is ahead; see `Store.retention`
        returns  how many
        raises   ClockError
        cost     O(keys deleted)
        """
        return forget(self._work, self._work.check_clock(force=force) - retention_secs)
