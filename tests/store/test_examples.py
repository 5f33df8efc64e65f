"""The examples run, and what they leave behind is sound."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from limpet_store import ExternalJobStatus, Store, TaskStatus

EXAMPLES = Path(__file__).resolve().parents[2] / "store" / "examples"


@pytest.fixture
def gateway(db_path: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "gateway.py"), "--store", str(db_path), "--seconds"]


def test_the_gateway_goes_on_where_it_was_killed(gateway: list[str], db_path: Path) -> None:
    with subprocess.Popen([*gateway, "60"], stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if "is making" in line or "hears" in line:
                break
        first.kill()
    second = subprocess.run([*gateway, "2.5"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    with Store.open(db_path) as store:
        assert store.check().ok
        for key in store.sessions.list():
            roles = [message["role"] for message in store.messages.load(key)]
            assert "user" in roles
            assert all("assistant" in pair for pair in itertools.pairwise(roles)), "two questions in a row"
        done = store.tasks.list(TaskStatus.DONE)
        assert done
        for task in done:
            assert store.idempotency.is_delivered(f"task:{task.id}:turn:1")
        assert all(job.status is not ExternalJobStatus.FAILED for job in store.jobs.due(2**40))
