"""Importing what cannot be imported: newer releases, other encodings, streams that break off.

Lines of a newer release were errors one by one, and those that happened to look alike were imported: half of a store,
read with the rules of an older one.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet_store import SchemaError, Store, UndecodableError
from limpet_store import store as store_module
from limpet_store.schema import SCHEMA_VERSION

NEWER = json.dumps({"table": "store", "key": "schema", "row": {"version": SCHEMA_VERSION + 1}}) + "\n"
OURS = json.dumps({"table": "store", "key": "schema", "row": {"version": SCHEMA_VERSION}}) + "\n"


def kv(name: str) -> str:
    return json.dumps({"table": "kv", "key": name, "row": "\u00e9\U0001f980"}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("binary", [False, True])
def test_lines_of_a_newer_release_are_refused_at_the_first(store: Store, binary: bool) -> None:
    text = NEWER + kv("a") + '{"table":"unheard of","key":1,"row":2}\n'
    with pytest.raises(SchemaError, match=r"line 1: a newer release .*upgrade limpet") as caught:
        store.import_jsonl(io.BytesIO(text.encode()) if binary else io.StringIO(text))
    assert (caught.value.found, caught.value.supported) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)
    assert store.kv.items() == []


def test_lines_of_a_newer_release_behind_others_end_the_import_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LINES_PER_COMMIT", 3)
    with pytest.raises(SchemaError, match="line 5"):
        store.import_jsonl([OURS, kv("a"), kv("b"), kv("c"), NEWER, kv("d")])
    assert [name for name, _ in store.kv.items()] == ["a", "b"], "whole commits of lines"


@pytest.mark.parametrize("binary", [False, True])
def test_a_byte_order_mark_is_skipped(store: Store, binary: bool) -> None:
    text = "\ufeff" + OURS + kv("a") + "\ufeff" + OURS.replace("\n", "\r\n") + kv("b")  # two exports in one file
    report = store.import_jsonl(io.BytesIO(text.encode()) if binary else io.StringIO(text))
    assert (report.errors, report.lines) == ([], 4)
    assert store.kv.items() == [("a", "\u00e9\U0001f980"), ("b", "\u00e9\U0001f980")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_is_one_clear_error_and_imports_nothing(store: Store, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text(OURS + kv("a"), encoding=encoding)
    with path.open("rb") as stream, pytest.raises(UndecodableError, match="iconv"):
        store.import_jsonl(stream)
    assert store.kv.items() == []
    with path.open("r", encoding=encoding) as text:
        assert store.import_jsonl(text).errors == []
    assert [name for name, _ in store.kv.items()] == ["a"]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1500])
def test_a_stream_that_breaks_off_leaves_the_lines_before(store: Store, count: int) -> None:
    """The lines since the last thousand had been read, and were dropped."""

    def lines() -> Iterator[str]:
        for number in range(count):
            yield kv(f"{number:04}")
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        store.import_jsonl(lines())
    assert [name for name, _ in store.kv.items()] == [f"{number:04}" for number in range(count)]


def test_a_key_that_is_there_twice_is_an_error_of_its_line(store: Store) -> None:
    """JSON leaves open what that means; the last value won, and the others were lost without a word."""
    lines = [
        '{"table":"messages","key":["s",0],"row":{"content":"a","content":"b"}}',
        '{"table":"messages","key":["s",1],"row":{"content":[{"text":"a","text":"b"}]}}',
        '{"table":"kv","key":"a","key":"b","row":"c"}',
        '{"table":"messages","key":["s",2],"row":{"content":{"a":1},"a":{"content":1}}}',
    ]
    report = store.import_jsonl(lines)
    assert [number for number, _ in report.errors] == [1, 2, 3]
    assert ["'content'" in report.errors[0][1], "'text'" in report.errors[1][1], "'key'" in report.errors[2][1]] == [
        True
    ] * 3
    assert report.changed == 1
