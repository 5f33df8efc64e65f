"""Work that providers do for us: what has to be polled when, and what still has to be delivered.

A job that is of interest has an entry in `job_polls`, at the time when somebody should look at it again; one that is
over and done with has one in `job_ends`. Every write counts up the job's version, and an update made from an older
version is refused: of two pollers, the later one does not win with older data.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .errors import ConflictError, ExistsError, NotFoundError
from .family import AnyFace, Family, reads, writes
from .records import ExternalJob, changed
from .schema import JOB_ENDS, JOB_POLLS, JOBS, check_key, key_int
from .work import Work

LEASE_S = 600  # how long a claimed job is left alone by the others; longer than any poll and download should take
CLAIM_LIMIT = 8  # how many jobs one claim takes: what the gateway polls at a time


class Jobs(Family[AnyFace]):
    """The external jobs, by id."""

    __slots__ = ()
    name = "jobs"

    @writes
    def enqueue(self, job: ExternalJob) -> str:
        """Add a job.

        job      its id must be new; times that were left out become the store's, its version 1, also in this record
        returns  its id
        raises   ExistsError, TypeError, ValueError; nothing has changed then
        """
        work = self._work
        _check(job)
        check_key(job.id)
        if job.id in work.view(JOBS.table):
            raise ExistsError(self.name, job.id)
        stamped = job.stamped(work.now())
        stamped.version = 1
        work.put(JOBS, job.id, stamped, None)
        _give_back(work, job, stamped)
        return job.id

    @writes
    def update(self, job: ExternalJob) -> int:
        """Write a job that was read before, unless somebody else has written it since.

        job      its `version` says what was read; it is the new one afterwards, so that the same record can be
                 changed and written again
        returns  the new version; the old one when nothing was different, and then nothing is written
        raises   NotFoundError when there is no such job, ConflictError when it has another version
        """
        work = self._work
        _check(job)
        stored = work.get(JOBS, job.id)
        if stored is None:
            raise NotFoundError(self.name, job.id)
        if stored.version != job.version:
            raise ConflictError(self.name, job.id, expected=job.version, found=stored.version)
        written = changed(job.stamped(work.now()), version=stored.version + 1)
        if written == stored:  # versions are not compared
            return stored.version
        work.put(JOBS, job.id, written, stored)
        _give_back(work, job, written)
        return written.version

    @reads
    def get(self, id: str) -> ExternalJob | None:  # noqa: A002  # the contract names the parameter `id`
        """A job, or None."""
        return self._work.get(JOBS, id)

    @reads
    def due(self, now: int) -> list[ExternalJob]:
        """The jobs that somebody should look at, the longest due first.

        These are: Pending or Polling, or ended and not yet delivered; next_poll_at <= now; fewer than 60 delivery
        attempts. Two callers get the same jobs: to work on them, use `claim_due`.

        now   Unix seconds
        cost  O(jobs returned)
        """
        return list(_due(self._work, int(now)))

    @writes
    def claim_due(self, now: int, limit: int = CLAIM_LIMIT, lease: int = LEASE_S) -> list[ExternalJob]:
        """Take jobs that are due, so that nobody else gets them for a while.

        now      Unix seconds
        limit    at most so many, 0 or more
        lease    seconds until they are due again if the caller does not come back; 1 or more
        returns  the jobs, with next_poll_at = now + lease and the version to update from. With AsyncStore, jobs whose
                 caller was cancelled before it got them are due again as they were
        cost     O(jobs returned)
        """
        if limit < 0:
            raise ValueError(f"a limit is 0 or more, not {limit}")
        if lease < 1:
            raise ValueError(f"a lease is 1 second or more, not {lease}")
        work, now = self._work, int(now)
        claimed: list[ExternalJob] = []
        for job in _due(work, now):
            if len(claimed) == limit:
                break
            taken = changed(job, next_poll_at=now + lease, version=job.version + 1)
            work.put(JOBS, job.id, taken, job)
            claimed.append(taken)
            work.on_unclaimed(functools.partial(_unclaim, job))
        return claimed

    @writes
    def delete(self, id: str) -> bool:  # noqa: A002  # as above
        """Delete a job; False when there was none."""
        job = self._work.get(JOBS, id)
        if job is None:
            return False
        self._work.remove(JOBS, id, job)
        return True

    @writes
    def cleanup_finished(self, retention_secs: int, *, force: bool = False) -> int:
        """Delete jobs that are over: ended, and delivered or out of attempts, and submitted longer ago than that.

        force    believe the clock, however far it is ahead; see `Store.retention`
        returns  how many
        raises   ClockError
        cost     O(jobs deleted)
        """
        return forget(self._work, self._work.check_clock(force=force) - retention_secs)


def forget(work: Work, cutoff: int, limit: int | None = None, *, dry_run: bool = False) -> int:
    """Delete jobs that are over and were submitted before a time, the oldest first; returns how many.

    dry_run  only count them
    """
    count = 0
    for (_, job_id), _ in work.view(JOB_ENDS.table).range(None, (key_int(cutoff),)):
        if limit is not None and count >= limit:
            break
        job = work.get(JOBS, job_id)
        if job is not None:
            if not dry_run:
                work.remove(JOBS, job_id, job)
            count += 1
    return count


def _unclaim(due: ExternalJob, work: Work) -> None:
    """Undo a claim of a job that nobody got, unless somebody has written the job since."""
    stored = work.get(JOBS, due.id)
    if stored is not None and stored.version == due.version + 1:
        work.put(JOBS, due.id, changed(due, version=stored.version + 1), stored)


def _due(work: Work, now: int) -> Iterator[ExternalJob]:
    for (_, job_id), _ in work.view(JOB_POLLS.table).range(None, (key_int(now) + 1,)):
        job = work.get(JOBS, job_id)
        if job is not None:
            yield job


def _check(job: object) -> None:
    if not isinstance(job, ExternalJob):
        raise TypeError(f"an ExternalJob is needed, not {type(job).__name__}")


def _give_back(work: Work, job: ExternalJob, stored: ExternalJob) -> None:
    """Tell the caller's record its version and its times; take them back if the transaction does not come to pass."""
    names = ("version", "submitted_at", "next_poll_at", "timeout_at")
    before = [getattr(job, name) for name in names]

    def restore() -> None:
        for name, value in zip(names, before, strict=True):
            setattr(job, name, value)

    work.on_undo(restore)
    for name in names:
        setattr(job, name, getattr(stored, name))
