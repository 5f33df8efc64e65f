"""Limpet with nothing else installed: the engine copied into a bare interpreter under another name, and the store.

The bare interpreter is a real virtual environment without crc32c, portalocker and cffi. What it writes the full one
reads, what the full one writes it reads, each respects the other's lock, and the contract suites pass there too.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

import limpet

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("crc32c", "portalocker", "cffi")
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)
MISSING = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
needs_the_packages = pytest.mark.skipif(
    bool(MISSING), reason=f"compares with an interpreter that has the optional packages; missing: {', '.join(MISSING)}"
)

# The suites that have to pass without the three packages too: tests of behaviour, through the public API only.
CONTRACT_SUITES = sorted((ROOT / "tests" / "engine").glob("test_contract*.py"))
# What pytest itself needs, by distribution; linked into the second bare environment file by file.
TEST_TOOLS = (
    "pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "pytest-timeout",
    "hypothesis",
    "sortedcontainers",
)


def make_bare_environment(folder: Path) -> tuple[Path, Path]:
    """A virtual environment with nothing in it: its interpreter and the folder for its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = run(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    return python, Path(packages)


def copy_package(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def command(python: Path, script: str, *arguments: str | Path) -> list[str]:
    # -I: neither PYTHON* variables nor the current folder can lend a package. -W error: no warning goes unseen.
    return [str(python), "-I", "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]


def run(python: Path, script: str, *arguments: str | Path) -> str:
    done = subprocess.run(command(python, script, *arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def holding(python: Path, script: str, *arguments: str | Path) -> Iterator[None]:
    """Run a script that prints a line once it holds the file and lets go when its input ends."""
    with subprocess.Popen(
        command(python, script, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with `vendored_engine`, a copy of the engine, and nothing else."""
    python, packages = make_bare_environment(tmp_path_factory.mktemp("bare") / "venv")
    copy_package(ROOT / "engine" / "limpet", packages / "vendored_engine")
    return python


@needs_the_packages
def test_the_two_interpreters_differ_in_the_optional_packages(bare: Path) -> None:
    script = """
        import importlib.util, sys
        print([name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None])
    """
    assert run(bare, script, "limpet", *OPTIONAL).strip() == "[]"


def test_a_vendored_engine_writes_reads_and_checks_a_database(bare: Path, db_path: Path) -> None:
    run(bare, WRITE_READ_AND_CHECK, db_path)
    with limpet.open(db_path, create=False) as db, db.read() as txn:  # the full engine reads what the bare one wrote
        assert dict(txn[EVENTS]) == {("ada", number): b"x" * number for number in range(200)}
        assert db.check().ok


WRITE_READ_AND_CHECK = """
    import datetime, sys, uuid
    import vendored_engine as engine

    path = sys.argv[1]
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    samples = {
        "bytes": (engine.BYTES, b"key", engine.BYTES, b"value"),
        "str": (engine.STR, "key", engine.STR, "value"),
        "int": (engine.INT, -5, engine.INT, 2**62),
        "float": (engine.FLOAT, -0.5, engine.FLOAT, 1e300),
        "bool": (engine.BOOL, True, engine.BOOL, False),
        "uuid": (engine.UUID, uuid.UUID(int=7), engine.UUID, uuid.UUID(int=8)),
        "datetime": (engine.DATETIME, moment, engine.DATETIME, moment),
        "json": (engine.STR, "key", engine.JSON, {"a": [1, None, "x"]}),
        "large": (engine.INT, 1, engine.BYTES, b"overflow" * 10_000),
    }
    tables = {name: engine.Table(name, key=key, value=value) for name, (key, _, value, _) in samples.items()}
    events = engine.Table("events", key=(engine.STR, engine.INT), value=engine.BYTES)

    with engine.open(path) as db:
        with db.write() as txn:
            for name, (_, key, _, value) in samples.items():
                txn[tables[name]][key] = value
            for number in range(200):
                txn[events]["ada", number] = b"x" * number
    with engine.open(path, create=False) as db:
        with db.read() as txn:
            for name, (_, key, _, value) in samples.items():
                assert txn[tables[name]][key] == value, name
            assert [key for key, _ in txn[events].range(("ada", 198))] == [("ada", 198), ("ada", 199)]
        report = db.check()
        assert report.ok, report.errors
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & {"limpet", "crc32c", "portalocker", "cffi"}, loaded
"""


def test_a_file_made_without_the_packages_opens_without_a_warning(bare: Path, db_path: Path) -> None:
    run(bare, "import sys, vendored_engine as engine; engine.open(sys.argv[1]).close()", db_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limpet.open(db_path, create=False).close()  # CRC-32 is fast in both, so neither warns


@needs_the_packages
def test_a_crc32c_file_works_without_the_package_with_one_warning(bare: Path, db_path: Path) -> None:
    with limpet.open(db_path, checksum="crc32c") as db, db.write() as txn:
        txn[EVENTS].update({("ada", number): bytes(number) for number in range(300)})
    run(bare, READ_AND_WRITE_CRC32C, db_path)
    with limpet.open(db_path, create=False) as db, db.read() as txn:
        assert txn[EVENTS]["bare", 1] == b"written without the package"
        assert len(txn[EVENTS]) == 301
        assert db.check().ok


READ_AND_WRITE_CRC32C = """
    import sys, warnings
    import vendored_engine as engine

    events = engine.Table("events", key=(engine.STR, engine.INT), value=engine.BYTES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with engine.open(sys.argv[1], create=False) as db:
            with db.write() as txn:
                txn[events]["bare", 1] = b"written without the package"
            with db.read() as txn:
                assert dict(txn[events].prefix(("ada",))) == {("ada", number): bytes(number) for number in range(300)}
            report = db.check()
            assert report.ok, report.errors
    assert [warning.category for warning in caught] == [RuntimeWarning], [str(warning.message) for warning in caught]
    assert "crc32c" in str(caught[0].message)
"""

HOLD = """
    import importlib, sys

    engine = importlib.import_module(sys.argv[1])
    with engine.open(sys.argv[2]):
        print("holding", flush=True)
        sys.stdin.read()
"""

FIND_LOCKED = """
    import sys
    import vendored_engine as engine

    try:
        engine.open(sys.argv[1], lock_timeout=0.2).close()
    except engine.LockedError as error:
        assert sys.argv[2] in str(error), error
    else:
        sys.exit("the file was not locked")
"""


@needs_the_packages
def test_a_lock_taken_through_portalocker_keeps_the_bare_engine_out(bare: Path, db_path: Path) -> None:
    with limpet.open(db_path, checksum="crc32"):  # which neither warns about
        run(bare, FIND_LOCKED, db_path, str(os.getpid()))
    run(bare, "import sys, vendored_engine as engine; engine.open(sys.argv[1], lock_timeout=0.2).close()", db_path)


@needs_the_packages
def test_a_lock_taken_without_portalocker_keeps_the_full_engine_out(bare: Path, db_path: Path) -> None:
    with holding(bare, HOLD, "vendored_engine", db_path), pytest.raises(limpet.LockedError):
        limpet.open(db_path, lock_timeout=0.2)
    limpet.open(db_path, lock_timeout=0.2).close()


def test_two_bare_engines_exclude_each_other(bare: Path, db_path: Path) -> None:
    with holding(bare, HOLD, "vendored_engine", db_path):
        run(bare, FIND_LOCKED, db_path, "")


@pytest.fixture(scope="module")
def bare_with_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with limpet, limpet_store and what pytest needs, but none of the optional packages."""
    python, packages = make_bare_environment(tmp_path_factory.mktemp("bare") / "venv-with-tools")
    copy_package(ROOT / "engine" / "limpet", packages / "limpet")
    copy_package(ROOT / "store" / "limpet_store", packages / "limpet_store")
    for name in TEST_TOOLS:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in {"..", "__pycache__"}}:
            target = packages / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return python


@needs_the_packages  # without them, the suites themselves have run in this very environment
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_contract_suites_pass_without_the_optional_packages(bare_with_tools: Path, tmp_path: Path) -> None:
    assert CONTRACT_SUITES, "no tests/engine/test_contract*.py"
    script = """
        import importlib.util, sys
        import pytest

        assert not [name for name in ("crc32c", "portalocker", "cffi") if importlib.util.find_spec(name)]
        sys.exit(pytest.main(sys.argv[1:]))
    """
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--basetemp={tmp_path / 'inner'}"]
    configuration = ["-c", str(ROOT / "pyproject.toml")]
    arguments = [*options, *configuration, *map(str, CONTRACT_SUITES)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [str(bare_with_tools), "-I", "-c", textwrap.dedent(script), *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=230,
    )  # fmt: skip  # one line for the command, one for how it runs
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr}"


def test_the_store_works_without_the_optional_packages(bare_with_tools: Path, tmp_path: Path) -> None:
    script = """
        import sys
        from limpet_store import Store

        with Store.open(sys.argv[1]) as store:
            for number in range(3):
                assert store.messages.append("agent:a", {"role": "user", "content": str(number)}) == number
        with Store.open(sys.argv[1]) as store:
            assert [message["content"] for message in store.messages.load("agent:a")] == ["0", "1", "2"]
            assert store.check().ok
        assert not {name.split(".")[0] for name in sys.modules} & {"crc32c", "portalocker", "cffi"}
    """
    run(bare_with_tools, script, tmp_path / "store.limpet")
