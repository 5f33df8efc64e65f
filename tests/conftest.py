"""What every test gets: a path for a database, a seed that is printed, and Hypothesis set up for code that does I/O."""

import importlib.util
import os
import random
from pathlib import Path

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

ROOT = Path(__file__).resolve().parent.parent

# The processes that share the work of one run inherit the environment, hence the seed.
SEED = int(os.environ.setdefault("LIMPET_SEED", str(random.SystemRandom().randrange(2**32))))

# Every run tries new examples, in CI too, where Hypothesis by itself would repeat the same ones (derandomize). It keeps
# those that failed in .hypothesis and prints how to repeat them. There is no deadline: a sync takes as long as the disk
# likes. Hypothesis is not seeded with SEED, because with a forced seed it does not use its database.
hypothesis.settings.register_profile(
    "limpet",
    deadline=None,
    derandomize=False,
    print_blob=True,
    database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples"),
)
hypothesis.settings.load_profile("limpet")


# What Limpet and its tests can use and do without; tests that need one of them are skipped where it is missing.
OPTIONAL = ("cffi", "chatterbot_corpus", "crc32c", "lmdb", "portalocker", "xxhash", "yaml")


def pytest_report_header() -> list[str]:
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    return [
        f"optional packages: {', '.join(missing)} missing" if missing else "optional packages: all there",
        f"limpet: seed {SEED} (repeat with LIMPET_SEED={SEED})",
        f"hypothesis profile: {hypothesis.settings.get_current_profile_name()}",
    ]


@pytest.fixture
def seed() -> int:
    """The seed for a test's own `random.Random`; printed at the head of the run."""
    return SEED


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    """Where the test may create its database; there is no file yet."""
    return tmp_path / "test.limpet"
