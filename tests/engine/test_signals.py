"""Real signals, in real processes, on real files: handlers that commit, and handlers that close the database.

A handler that committed while its thread was in a commit broke the file within a second, and the usual handler of
SIGTERM, which closes the database and exits, lost acknowledged rows. See fuzz/signals.py and fuzz/shutdowns.py, which
try the same for as long as one likes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the fuzzers are not installed; they lie beside the tests

from fuzz import shutdowns, signals  # noqa: E402 the path comes first
from fuzz.harness import quiet  # noqa: E402 the path comes first

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes by what /proc says")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


@pytest.mark.parametrize("durability", ["sync", "os", "none", "mixed"])
def test_a_handler_that_commits_loses_nothing(durability: str, tmp_path: Path) -> None:
    """250 signals a second, four threads, checkpoints; copies of the file as a dying process would leave it."""
    counts = signals.run(1.5, durability, 4.0, tmp_path)
    print(counts)
    assert counts["copies"] >= 3
    assert counts["handled"] + counts["busy"] >= 20
    assert counts["handled"] > 0


def test_a_handler_that_closes_loses_nothing(tmp_path: Path, seed: int) -> None:
    """SIGTERM at some lines and calls of a commit and of a checkpoint, and at random times."""
    counts = shutdowns.run_all(tmp_path, every=37, first=seed % 37, at_random=12)
    print(counts, f"seed {seed}")
    assert counts["children"] > 60
