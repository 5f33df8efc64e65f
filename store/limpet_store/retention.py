"""What may be forgotten after a while, a small step at a time."""

from __future__ import annotations

import contextlib
import errno

from . import history, idempotency, jobs
from .schema import ARCHIVE_HOURS, HOUR_S, IDEMPOTENCY_TIMES, JOB_ENDS, SESSION_HOURS, SESSIONS, hour
from .work import Work

_SMALLER = 8  # a step that the disk has no room for is tried again with so many times fewer rows
_DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
MESSAGES_PER_SESSION = 10  # a step stops early when it has deleted so many times its limit in active messages


def apply(
    work: Work,
    *,
    sessions_s: int | None,
    archive_s: int | None,
    idempotency_s: int | None,
    jobs_s: int | None,
    limit: int,
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Delete what is older; see `Store.retention`, which says what everything means."""
    if limit < 1:
        raise ValueError(f"a limit is 1 or more, not {limit}")
    now = work.check_clock(force=force)
    removed = {"sessions": 0, "archive": 0, "idempotency": 0, "jobs": 0}
    with contextlib.nullcontext() if dry_run else work.setting_aside(*removed):
        if idempotency_s is not None:
            removed["idempotency"] = idempotency.forget(work, now - _age(idempotency_s), limit, dry_run=dry_run)
        if jobs_s is not None:
            removed["jobs"] = jobs.forget(work, now - _age(jobs_s), limit - sum(removed.values()), dry_run=dry_run)
        if archive_s is not None:
            removed["archive"] = _forget_archive(
                work, now - _age(archive_s), limit - sum(removed.values()), dry_run=dry_run
            )
        if sessions_s is not None:
            removed["sessions"] = _forget_sessions(
                work, now - _age(sessions_s), limit - sum(removed.values()), dry_run=dry_run
            )
    return removed


def newest_time(work: Work) -> int | None:
    """The newest time that the store has recorded, as its indexes know it, which may be to the hour; None: no time yet.

    cost  a look at the end of four tables
    """
    ends = (work.view(index.table).last() for index in (SESSION_HOURS, ARCHIVE_HOURS, IDEMPOTENCY_TIMES, JOB_ENDS))
    units = (HOUR_S, HOUR_S, 1, 1)
    return max((end[0][0] * unit for end, unit in zip(ends, units, strict=True) if end is not None), default=None)


def smaller_step(limit: int, error: OSError) -> int:
    """How much to delete at once when so much does not go; raises the error if that would not help.

    On a full disk a commit has to do with the pages that the file keeps for deletes, so a large one may fail where
    several small ones succeed.
    """
    if limit == 1 or error.errno not in _DISK_FULL:
        raise error
    return max(1, limit // _SMALLER)


def _age(seconds: float) -> int:
    if seconds < 0:
        raise ValueError(f"an age is 0 seconds or more, not {seconds}")
    return int(seconds)


def _forget_archive(work: Work, cutoff: int, limit: int, *, dry_run: bool) -> int:
    removed = 0
    for (_, key, generation), _ in work.view(ARCHIVE_HOURS.table).range(None, (hour(cutoff) + 1,)):
        if removed >= limit:
            break
        removed += history.drop_oldest(work, key, generation, cutoff, limit - removed, dry_run=dry_run)
    return removed


def _forget_sessions(work: Work, cutoff: int, limit: int, *, dry_run: bool) -> int:
    """Whole sessions only: a session without its first messages would be a conversation that makes no sense."""
    removed = messages = 0
    for (_, key), _ in work.view(SESSION_HOURS.table).range(None, (hour(cutoff) + 1,)):
        if removed >= limit or messages >= limit * MESSAGES_PER_SESSION:
            break
        meta = work.get(SESSIONS, key)
        if meta is not None and meta.last_active < cutoff and not meta.pinned:
            messages += history.active_count(work, key)
            if not dry_run:
                history.delete_session(work, key)
            removed += 1
    return removed
