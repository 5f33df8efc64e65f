"""TABLES.md says what schema.py says."""

import asyncio
import re
from pathlib import Path

import pytest

from limpet_store import Store, schema

TEXT = (Path(__file__).resolve().parents[2] / "store" / "TABLES.md").read_text("utf-8")
CODECS = r"\b(STR|INT|BYTES)\b"


def section(title: str) -> dict[str, list[str]]:
    """The rows of a section's table: table name -> the other cells."""
    (body,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def codecs(codec: object) -> list[str]:
    return re.findall(CODECS, repr(codec))


@pytest.mark.parametrize("rows", schema.ROWS, ids=lambda rows: rows.name)
def test_rows(rows: schema.Rows[object, object]) -> None:
    family, key, value, indexes = section("Rows")[rows.name]
    assert family == rows.family
    assert re.findall(CODECS, key) == codecs(rows.table.key)
    assert codecs(rows.table.value) == ["BYTES"], "values of rows are text, which the store encodes itself"
    assert re.findall(r"`(\w+)`", indexes) == [index.table.name for index in rows.indexes]
    assert value


INDEXES = [(rows, index) for rows in schema.ROWS for index in rows.indexes]


@pytest.mark.parametrize(("rows", "index"), INDEXES, ids=[index.table.name for _, index in INDEXES])
def test_indexes(rows: schema.Rows[object, object], index: schema.Index[object, object]) -> None:
    of, key, value, entries = section("Indexes")[index.table.name]
    assert of.strip("`") == rows.name
    assert re.findall(CODECS, key) == codecs(index.table.key)
    assert re.findall(CODECS, value) == codecs(index.table.value)
    assert entries


def test_nothing_else_is_in_the_document_and_no_two_tables_share_a_name() -> None:
    named = [*section("Rows"), *section("Indexes")]
    assert sorted(named) == sorted(table.name for table in schema.TABLES)
    assert len(set(named)) == len(named)


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "store" / "README.md").read_text("utf-8")


def test_the_readmes_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    store = scope["store"]
    assert isinstance(store, Store)
    with store:
        assert store.messages.count("agent:main:telegram:direct:u1") == 2
    asyncio.run(scope["answer"]("s", "hello"))  # type: ignore[operator]  # a coroutine function of the README's
    with Store.open("data.limpet") as again:
        assert [message["content"] for message in again.messages.load("s")] == ["hello", "HELLO"]


def test_the_examples_of_all_readmes_run_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them had a table of one name with different codecs in a file of one name: the second one ended in a
    TableTypeError."""
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(shown) == 2
    first_of_engine = re.search(r"```python\n(.*?)```", (ROOT / "engine" / "README.md").read_text("utf-8"), re.DOTALL)
    assert first_of_engine is not None
    for block in (*shown, first_of_engine[1]):
        exec(compile(block, "README.md", "exec"), {})
