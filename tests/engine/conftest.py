"""What the engine's tests get: databases that are checked, page by page, when the test is over."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import limpet

PLACES = ("file", "memory")


@pytest.fixture
def open_db() -> Iterator[Callable[..., limpet.Database]]:
    """`limpet.open`, but every database opened with it is checked and closed at the end, and its file checked again.

    A test that damages a file on purpose, or poisons a database, opens it with `limpet.open`.
    """
    opened: list[limpet.Database] = []

    def open_and_remember(*arguments: object, **options: object) -> limpet.Database:
        opened.append(limpet.open(*arguments, **options))  # type: ignore[arg-type]  # passes on what the test gave
        return opened[-1]

    yield open_and_remember
    try:
        for db in opened:
            try:
                db.flush()
            except limpet.ClosedError:
                continue
            _assert_sound(db)
    finally:
        for db in opened:
            db.close()
    for path in {db.path for db in opened} - {":memory:"}:
        if Path(path).exists():
            with limpet.open(path, read_only=True) as db:
                _assert_sound(db)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, db_path: Path) -> str | Path:
    """Where a contract test opens its database: a file, and ":memory:"."""
    return ":memory:" if request.param == "memory" else db_path


@pytest.fixture
def db(open_db: Callable[..., limpet.Database], place: str | Path) -> limpet.Database:
    """An open database without tables, in a file and in memory."""
    return open_db(place)


@pytest.fixture
def crc32c_warns() -> Iterator[None]:
    """For a test that opens files with CRC-32C: that has to warn where the package `crc32c` is missing."""
    if importlib.util.find_spec("crc32c") is not None:
        yield  # a warning is an error, as everywhere
        return
    with pytest.warns(RuntimeWarning, match="the package 'crc32c' is not installed"):
        yield


@pytest.fixture(params=["crc32c", "crc32"])
def checksum(request: pytest.FixtureRequest) -> str:
    """Each kind of checksum in turn, for a test that makes a file with it."""
    if request.param == "crc32c":
        request.getfixturevalue("crc32c_warns")
    return str(request.param)


def _assert_sound(db: limpet.Database) -> None:
    report = db.check()
    assert report.ok, "\n".join(map(str, report.errors))
