"""External jobs: when to look at them, who looks at them, and whose update counts."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from limpet_store import ConflictError, ExistsError, ExternalJob, ExternalJobStatus, NotFoundError, Store

MakeJob = Callable[..., ExternalJob]


def test_a_job_comes_back_as_it_was_stored(store: Store, make_job: MakeJob, clock: Any) -> None:
    job = make_job(extra={"progress": 0.5})
    assert store.jobs.enqueue(job) == job.id
    assert store.jobs.get(job.id) == job
    assert (job.submitted_at, job.next_poll_at, job.timeout_at) == (clock.now, clock.now + 10, clock.now + 1800)
    assert store.jobs.get("nobody") is None
    with pytest.raises(ExistsError):
        store.jobs.enqueue(job)
    with pytest.raises(TypeError):
        store.jobs.enqueue("job")  # type: ignore[arg-type]  # that is the point


def test_times_that_were_chosen_are_kept(store: Store, make_job: MakeJob) -> None:
    store.jobs.enqueue(make_job(id="j", submitted_at=5, timeout_at=7))
    job = store.jobs.get("j")
    assert job is not None
    assert (job.submitted_at, job.next_poll_at, job.timeout_at) == (5, 15, 7)


def test_due_gives_what_has_to_be_looked_at_the_longest_due_first(store: Store, make_job: MakeJob, clock: Any) -> None:
    now = clock.now
    for id_, fields in {
        "late": {"next_poll_at": now - 5},
        "polling": {"next_poll_at": now, "status": "Polling"},
        "early": {"next_poll_at": now + 1},
        "undelivered": {"next_poll_at": now - 9, "status": "Done"},
        "delivered": {"next_poll_at": now - 9, "status": "Done", "delivered_at": now},
        "given up": {"next_poll_at": now - 9, "status": "Failed", "delivery_attempts": 60},
        "last try": {"next_poll_at": now - 8, "status": "TimedOut", "delivery_attempts": 59},
    }.items():
        store.jobs.enqueue(make_job(id=id_, **fields))
    assert [job.id for job in store.jobs.due(now)] == ["undelivered", "last try", "late", "polling"]
    assert [job.id for job in store.jobs.due(now + 0.5)] == ["undelivered", "last try", "late", "polling"]
    assert store.jobs.due(now - 10) == []


def test_claim_due_moves_the_next_poll_in_the_same_commit(
    store: Store, make_job: MakeJob, clock: Any, commits: Callable[..., int]
) -> None:
    for number in range(3):
        store.jobs.enqueue(make_job(id=str(number), next_poll_at=clock.now - 3 + number))
    claimed: list[ExternalJob] = []
    assert commits(lambda: claimed.extend(store.jobs.claim_due(clock.now, limit=2, lease=60))) == 1
    assert [(job.id, job.version, job.next_poll_at) for job in claimed] == [
        ("0", 2, clock.now + 60),
        ("1", 2, clock.now + 60),
    ]
    assert [job.id for job in store.jobs.claim_due(clock.now, 9, 60)] == ["2"]
    assert commits(lambda: store.jobs.claim_due(clock.now, 9, 60)) == 0
    assert [job.id for job in store.jobs.due(clock.now + 60)] == ["0", "1", "2"]
    assert store.jobs.claim_due(clock.now + 60, limit=0) == []
    for limit, lease in ((-1, 60), (1, 0)):
        with pytest.raises(ValueError):
            store.jobs.claim_due(clock.now, limit, lease)


def test_update_counts_the_version_up_and_takes_the_record_along(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    store.jobs.enqueue(job)
    for poll in range(1, 4):
        job.poll_count = poll
        assert store.jobs.update(job) == poll + 1 == job.version
    stored = store.jobs.get(job.id)
    assert stored == job
    assert stored is not None
    assert stored.version == 4
    assert '"version"' not in stored.to_json()


def test_an_update_from_an_older_version_is_refused_with_both(store: Store, make_job: MakeJob) -> None:
    store.jobs.enqueue(make_job(id="j"))
    ours, theirs = store.jobs.get("j"), store.jobs.get("j")
    assert ours is not None
    assert theirs is not None
    ours.status = ExternalJobStatus.DONE
    store.jobs.update(ours)
    theirs.status = ExternalJobStatus.POLLING
    with pytest.raises(ConflictError) as caught:
        store.jobs.update(theirs)
    assert (caught.value.family, caught.value.id, caught.value.expected, caught.value.found) == ("jobs", "j", 1, 2)
    assert theirs.version == 1
    stored = store.jobs.get("j")
    assert stored is not None
    assert stored.status is ExternalJobStatus.DONE


def test_an_update_that_does_not_come_to_pass_leaves_the_record_as_it_was(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    store.jobs.enqueue(job)

    def fail() -> None:
        with store.write() as tx:
            job.poll_count += 1
            tx.jobs.update(job)
            assert job.version == 2
            raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError):
        fail()
    assert job.version == 1
    with store.write() as tx:
        with contextlib.suppress(RuntimeError), tx.savepoint():
            tx.jobs.update(job)
            raise RuntimeError
        assert job.version == 1
        tx.jobs.update(job)
    assert job.version == 2


def test_update_of_a_missing_job_names_its_id_and_update_with_nothing_new_commits_nothing(
    store: Store, make_job: MakeJob, commits: Callable[..., int]
) -> None:
    job = make_job(id="j")
    with pytest.raises(NotFoundError) as caught:
        store.jobs.update(job)
    assert (caught.value.family, caught.value.id) == ("jobs", "j")
    store.jobs.enqueue(job)
    assert commits(lambda: store.jobs.update(job)) == 0
    assert job.version == 1


def test_delete(store: Store, make_job: MakeJob, commits: Callable[..., int]) -> None:
    store.jobs.enqueue(make_job(id="j"))
    assert store.jobs.delete("j") is True
    assert store.jobs.delete("j") is False
    assert commits(lambda: store.jobs.delete("j")) == 0
    assert store.jobs.due(2**62) == []


def test_cleanup_removes_what_is_over_and_was_submitted_long_ago(
    store: Store, make_job: MakeJob, clock: Any, commits: Callable[..., int]
) -> None:
    old, new = clock.now - 101, clock.now - 100
    for id_, fields in {
        "delivered": {"status": "Done", "delivered_at": 1, "submitted_at": old},
        "out of attempts": {"status": "Failed", "delivery_attempts": 60, "submitted_at": old},
        "recent": {"status": "Done", "delivered_at": 1, "submitted_at": new},
        "undelivered": {"status": "Done", "submitted_at": old},
        "polling": {"status": "Polling", "submitted_at": old},
    }.items():
        store.jobs.enqueue(make_job(id=id_, **fields))
    assert store.jobs.cleanup_finished(100) == 2
    assert commits(lambda: store.jobs.cleanup_finished(100)) == 0
    assert store.jobs.get("delivered") is None
    assert store.jobs.get("recent") is not None
    assert [job.id for job in store.jobs.due(2**62)] == ["polling", "undelivered"]


def test_numbers_at_the_edge_of_64_bits_are_no_problem(store: Store, make_job: MakeJob) -> None:
    for number in (-(2**63), 2**64 - 1):
        job = make_job(id=str(number), submitted_at=number, next_poll_at=number, timeout_at=number, status="Done")
        store.jobs.enqueue(job)
        assert store.jobs.get(str(number)) == job
        store.jobs.update(dataclasses.replace(job, delivered_at=number))
    assert store.jobs.cleanup_finished(10**9) == 1
