"""`archive.grep`: literal text, and regular expressions whose time is bounded whatever they are.

A model's pattern was run by `re` in our own process: `(a+)+$` on 27 letters took 12 s and stopped the event loop, since
`re` does not let go of the interpreter.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet_store import ArchiveRow, AsyncStore, PatternError, SearchLimitError, Store, regex, regex_child

KEY = "agent:main:telegram:direct:u1"
EVIL = [
    r"(a+)+$",
    r"(?:a|a)+$",
    r"(.*)\1{20}$",
    r"(?=(a+))*b",
    "a*" * 200 + "$",
    "[\0-\U0010ffff]" * 190,  # `re` goes through each range, one character after the other, to compile it
]


def say(n: int) -> dict[str, Any]:
    return {"role": "user", "content": f"Message {n}"}


@pytest.fixture
def archived(store: Store) -> Store:
    for generation in range(3):
        store.messages.append_many(KEY, [say(10 * generation + n) for n in range(300)])
        store.sessions.new_generation(KEY)
    return store


def numbers(rows: list[ArchiveRow]) -> list[int]:
    return [int(row.message["content"].split()[1]) for row in rows]


def children() -> set[str]:
    """The processes that this one started and has not waited for."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text("utf-8").split())


@pytest.fixture
def no_process_left() -> Iterator[None]:
    linux = sys.platform == "linux"
    before = children() if linux else set()
    yield
    assert not linux or children() <= before


def test_literal_text_is_found_whatever_its_case(archived: Store) -> None:
    assert numbers(archived.archive.grep(KEY, "MESSAGE 299")) == [299, 299, 299]
    assert len(archived.archive.grep(KEY, "message", limit=5)) == 5
    assert len(archived.archive.grep(KEY, "message")) == 50
    assert archived.archive.grep(KEY, "message", limit=0) == []
    assert archived.archive.grep(KEY, '"role"') == [], "only the text is searched"
    archived.messages.append("parts", {"content": [{"type": "text", "text": "first\nsecond"}, {"content": "third"}]})
    archived.messages.append("parts", {"content": None, "odd": "fourth"})
    for text in ("t\nsecond", "third", '"odd":"fourth"'):
        assert len(archived.archive.grep("parts", text)) == 1
    archived.messages.append("odd", {"content": "1 + 1 (a+)+$ [x]. STRASSE \u0130"})
    for text in ("1 + 1", "(a+)+$", "[x].", "stra\u00dfe", "", "i\u0307"):
        assert len(archived.archive.grep("odd", text)) == 1, text
    archived.messages.append("sharp", {"content": "stra\u00dfe"})
    assert len(archived.archive.grep("sharp", "STRASSE")) == 1
    for text in (".*", "1 . 1", "^1"):
        assert archived.archive.grep("odd", text) == [], text
    with pytest.raises(ValueError, match="limit"):
        archived.archive.grep(KEY, "x", limit=-1)
    with pytest.raises(TypeError):
        archived.archive.grep(KEY, b"x")  # type: ignore[arg-type]  # that is what is tested


def test_literal_text_takes_no_longer_than_the_text_is_long(store: Store) -> None:
    store.messages.append(KEY, {"content": "a" * 200_000})
    start = time.perf_counter()
    assert store.archive.grep(KEY, "a" * 100_000 + "b") == []
    assert time.perf_counter() - start < 1, "letter by letter it would be 10^10 steps"


@pytest.mark.usefixtures("no_process_left")
def test_regular_expressions_when_they_are_asked_for(archived: Store) -> None:
    assert numbers(archived.archive.grep(KEY, r"MESSAGE 29\d$", limit=11, regex=True)) == [*range(290, 300), 290]
    assert len(archived.archive.grep(KEY, "message", limit=10_000, regex=True)) == 900
    assert archived.archive.grep(KEY, "nothing", regex=True) == []
    assert archived.archive.grep("nobody", "x", regex=True) == []
    assert archived.archive.grep(KEY, "x", limit=0, regex=True) == []
    archived.messages.append("parts", {"content": "first\nsecond \U0001f980\0 \u00e9"})
    for pattern in ("(?m)^second", "\U0001f980\\0", "\u00c9", "(?s)^first.second"):
        assert len(archived.archive.grep("parts", pattern, regex=True)) == 1, pattern
    with archived.read() as tx:
        assert len(tx.archive.grep(KEY, "^message 0$", regex=True)) == 1


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize(
    "pattern", ["(", "[", "a{2,1}", "(?P<x>a)(?P<x>b)", "*", "\\", "(?z)", "(?<=a*)b", "a{99999999999}"]
)
def test_what_is_no_regular_expression_is_a_pattern_error_that_says_why(archived: Store, pattern: str) -> None:
    with pytest.raises(PatternError, match=r"not a regular expression: \w") as caught:
        archived.archive.grep(KEY, pattern, regex=True)
    assert isinstance(caught.value, ValueError)


def test_a_pattern_of_any_length_is_refused_beyond_its_bound(archived: Store) -> None:
    with pytest.raises(PatternError, match="1,000"):
        archived.archive.grep(KEY, "a" * 1001, regex=True)
    assert archived.archive.grep(KEY, "a" * 1000, regex=True) == []
    assert archived.archive.grep(KEY, "a" * 100_000) == []
    for timeout in (0, -1, 4000, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            archived.archive.grep(KEY, "a", regex=True, timeout=timeout)


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize("pattern", EVIL, ids=lambda pattern: pattern[:12].encode("ascii", "replace").decode())
def test_no_pattern_takes_longer_than_its_time(store: Store, pattern: str) -> None:
    store.messages.append_many(KEY, [{"content": "short"}, {"content": "a" * 64_000 + "!"}])
    start = time.perf_counter()
    with pytest.raises(SearchLimitError, match="simpler pattern") as caught:
        store.archive.grep(KEY, pattern, regex=True, timeout=0.3)
    assert time.perf_counter() - start < 5, "0.3 s and what a busy machine adds"
    assert (caught.value.timeout, caught.value.searched) == (0.3, 0)
    assert len(store.archive.grep(KEY, "!$", regex=True)) == 1, "the next one works"


@pytest.mark.skipif(sys.platform != "linux", reason="not every system limits the memory of a process")
def test_a_pattern_that_takes_too_much_memory_ends_in_the_same_error(store: Store) -> None:
    store.messages.append(KEY, {"content": "ab" * 4_000_000})
    with pytest.raises(SearchLimitError, match="memory"):
        store.archive.grep(KEY, r"^(?:(a)|(b))*c", regex=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_process_that_is_killed_from_outside_is_an_error_and_no_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.messages.append(KEY, {"content": "a" * 64_000 + "!"})
    started: list[int] = []
    real = regex._start

    def start(seconds: int) -> Any:
        process = real(seconds)
        started.append(process.pid)
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        return process

    monkeypatch.setattr(regex, "_start", start)
    with pytest.raises(SearchLimitError, match="somebody"):
        store.archive.grep(KEY, "(a+)+$", regex=True, timeout=60)
    assert len(started) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_ends_by_itself_when_nobody_is_left_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own limit of processor time, for the case that the gateway is killed in the middle of a search."""
    process = regex._start(1)
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.closing(process.stdin), contextlib.closing(process.stdout):
        text = regex_child.frame("(a+)+$") + regex_child.frame("a" * 64_000 + "!")
        process.stdin.write(text)
        process.stdin.flush()
        assert process.wait(60) in (-signal.SIGXCPU, -signal.SIGKILL)


def test_without_an_interpreter_literal_text_still_works(archived: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(PatternError, match="literal"):
        archived.archive.grep(KEY, "a", regex=True)
    assert len(archived.archive.grep(KEY, "message 299")) == 3


def test_the_event_loop_and_the_other_reads_go_on_during_a_search(db_path: Path) -> None:
    async def main() -> None:
        async with AsyncStore.open(db_path, durability="os") as store:
            await store.messages.append(KEY, {"content": "a" * 64_000 + "!"})
            searches = [
                asyncio.create_task(store.archive.grep(KEY, "(a+)+$", regex=True, timeout=0.4)) for _ in range(8)
            ]
            reads = 0
            while not any(search.done() for search in searches):
                await asyncio.sleep(0)
                assert await store.messages.count(KEY) == 1
                reads += 1
            assert reads > 20, "there are four threads for reads, and more searches"
            outcomes = await asyncio.gather(*searches, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {SearchLimitError}
            async with store.read() as tx:
                with pytest.raises(SearchLimitError):
                    await tx.archive.grep(KEY, "(a+)+$", regex=True, timeout=0.1)
                assert await tx.messages.count(KEY) == 1

    asyncio.run(main())
