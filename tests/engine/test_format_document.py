"""engine/FORMAT.md against the code, both ways.

Every table is compared with the structs and constants of format.py, and a parser that knows nothing but those tables
reads what the engine wrote. The example at the end is made by the engine under fixed clocks and random numbers. When it
has a reason to look different, `python tests/engine/test_format_document.py` writes it anew.
"""

import json
import re
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import limpet
from limpet import codecs, format
from limpet.checksum import KIND_NAMES
from limpet.free_space import load_map
from limpet.node import encode_branch, encode_leaf, overflow_record

DOCUMENT = Path(__file__).resolve().parents[2] / "engine" / "FORMAT.md"
EXAMPLE_US = 1_767_225_600_000_000  # the start of 2026


# -- the document --------------------------------------------------------------------------------


def document() -> str:
    return DOCUMENT.read_text("utf-8")


def tables(section: str) -> list[list[list[str]]]:
    """The tables of a section: rows of cells, the heads first."""
    found = re.search(rf"^(#+) {re.escape(section)}\n(.*?)(?=^#+ |\Z)", document(), re.MULTILINE | re.DOTALL)
    assert found, f"FORMAT.md has no section {section!r}"
    result: list[list[list[str]]] = [[]]
    for line in found[2].splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set(line) - set("|-"):
                result[-1].append(cells)
        elif result[-1]:
            result.append([])
    return [table for table in result if table]


def layout(section: str, which: int = 0) -> dict[str, tuple[str, str]]:
    """Field -> (offset, size) as written, of one of the byte tables of a section."""
    table = [table for table in tables(section) if table[0][0] == "OFFSET"][which]
    assert table[0][:3] == ["OFFSET", "SIZE", "FIELD"]
    return {row[2]: (row[0], row[1]) for row in table[1:]}


def amount(text: str, **variables: int) -> int:
    """The value of an offset or a size: "26+4n+2m" for the n and m given."""
    total = 0
    for sign, factor, variable in re.findall(r"([+-]?)(\d*)([a-z]?)", text):
        if factor or variable:
            term = int(factor or 1) * (variables[variable] if variable else 1)
            total += -term if sign == "-" else term
    return total


class Record:
    """Reads fields by the tables of the document: the parser that has seen nothing else."""

    def __init__(self, data: bytes, section: str, which: int = 0, **variables: int) -> None:
        self.data = data
        self.fields = layout(section, which)
        self.variables = variables

    def raw(self, name: str) -> bytes:
        offset, size = self.fields[name]
        at = amount(offset, **self.variables)
        return self.data[at : at + amount(size, **self.variables)]

    def number(self, name: str) -> int:
        return int.from_bytes(self.raw(name), "little")

    def numbers(self, name: str, size: int) -> list[int]:
        data = self.raw(name)
        return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


# -- the tables against the code -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "which", "fields", "start", "size"),
    [
        ("Header", 0, format.HEADER_FIELDS, 0, format.HEADER_SIZE),
        ("Meta", 0, format.META_FIELDS, 0, format.META_SIZE),
        ("Pages", 0, format.PAGE_FIELDS, 0, format.PAGE_HEADER_SIZE),
        ("Log", 0, format.LOG_RECORD_FIELDS, format.PAGE_HEADER_SIZE, format.LOG_CHANGES_AT),
        ("Log", 1, format.LOG_GROUP_FIELDS, 0, format.LOG_GROUP.size),
        ("Log", 2, format.LOG_CHANGE_FIELDS, 0, format.LOG_CHANGE.size),
        ("Overflow", 1, format.OVERFLOW_RECORD_FIELDS, 0, format.OVERFLOW_RECORD.size),
        ("Catalogue", 0, format.CATALOGUE_ENTRY_FIELDS, 0, format.CATALOGUE_ENTRY.size),
    ],
)
def test_byte_tables_agree_with_the_structs(
    section: str, which: int, fields: tuple[tuple[str, int], ...], start: int, size: int
) -> None:
    expected, offset = {}, start
    for name, field_size in fields:
        expected[name] = (str(offset), str(field_size))
        offset += field_size
    assert offset == size
    found = layout(section, which)
    if section == "Catalogue":
        assert found.pop("key_codecs") == (str(size), "")
    assert found == expected
    assert list(found) == list(expected)


def test_a_leaf_is_laid_out_as_the_document_says() -> None:
    keys = [b"", b"ab", b"c" * 30]
    values = [b"1234", overflow_record(5000, format.make_ref(9, 7)), b""]
    body, _, _ = encode_leaf(keys, values, format.Pgno(11), 2, 77, 512)
    page = bytes(4) + body
    head = Record(page, "Pages")
    assert [head.number(name) for name in ("kind", "level", "count", "pgno", "tree_id", "stamp")] == [
        1,
        0,
        3,
        11,
        2,
        77,
    ]
    assert entries(page) == list(zip(keys, values, [False, True, False], strict=True))


def test_a_branch_is_laid_out_as_the_document_says() -> None:
    separators, children = [b"b", b"cde"], [5, 1 << 63, 7]
    page = bytes(4) + encode_branch(2, separators, array("Q", children), format.Pgno(11), 2, 77, 512)
    head = Record(page, "Pages")
    assert [head.number(name) for name in ("kind", "level", "count")] == [2, 2, 3]
    assert branch(page) == (separators, children)


def test_the_tables_of_a_node_end_where_the_next_field_begins() -> None:
    for n in (1, 2, 40):
        for m in (0, 3):
            end = None
            for offset, size in layout("Leaf").values():
                assert end in (None, amount(offset, n=n, m=m))
                end = amount(offset, n=n, m=m) + amount(size or "0", n=n, m=m)
        end = None
        for offset, size in layout("Branch").values():
            assert end in (None, amount(offset, n=n))
            end = amount(offset, n=n) + amount(size or "0", n=n)


def meaning(section: str, field: str, which: int = 0) -> str:
    table = [table for table in tables(section) if table[0][0] == "OFFSET"][which]
    return next(row[3] for row in table if row[2] == field)


def named_numbers(text: str) -> dict[str, int]:
    return {name.strip(): int(number) for number, name in re.findall(r"(\d+): ([^,;]+)", text)}


def test_numbers_with_a_meaning_agree_with_the_constants() -> None:
    kinds = {name.replace("-", " "): kind for kind, name in format.PAGE_KIND_NAMES.items()}
    assert named_numbers(meaning("Pages", "kind")) == kinds
    checksums = named_numbers(meaning("Header", "checksum_kind"))
    assert {name.lower().replace("-", ""): kind for name, kind in checksums.items()} == {
        name: kind for kind, name in KIND_NAMES.items()
    }
    assert meaning("Header", "format_version") == str(format.FORMAT_VERSION)
    magic = re.search(r"`([0-9a-f ]+)`", meaning("Header", "magic"))
    assert magic
    assert bytes.fromhex(magic[1]) == format.MAGIC
    assert f"from {format.MIN_PAGE_SIZE} to {format.MAX_PAGE_SIZE}" in meaning("Header", "page_size")
    assert meaning("Meta", "flags").startswith(f"bit {format.FLAG_CLEAN.bit_length() - 1}:")
    assert format.FLAG_CLEAN.bit_count() == 1
    assert f"at most {format.MAX_LEVEL};" in meaning("Pages", "level")
    assert f"{format.CATALOGUE_TREE}: the catalogue" in meaning("Pages", "tree_id")
    assert f"{format.FREE_SPACE_TREE}: the map" in meaning("Pages", "tree_id")
    assert f"from {format.FIRST_TABLE_TREE}: tables" in meaning("Pages", "tree_id")
    assert f"at least {format.FIRST_NODE_PGNO}" in meaning("Meta", "high_water")
    assert meaning("Meta", "slot").endswith(" or ".join(map(str, format.META_PGNOS)))
    assert format.KNOWN_INCOMPATIBLE == format.KNOWN_READ_ONLY == 0
    assert "Format 2 defines no feature bits." in document()
    assert [row[0] for row in tables("The file")[0]][1:4] == ["0", "1, 2", f"{format.HOLDER_PGNO:d}"]


def test_codecs_agree_with_the_table() -> None:
    table = tables("Codecs")[0]
    assert table[0][:3] == ["CODEC", "NUMBER", "KEY SIZE"]
    found = {row[0]: (int(row[1]), row[2]) for row in table[1:]}
    expected = {
        codec.name: (number, "" if codec.encode_key is None else str(codec.size or "any"))
        for number, codec in codecs.CODECS.items()
    }
    assert found == expected


def test_limits_agree_with_the_table() -> None:
    table = tables("Limits")[0]
    limits: list[Callable[[int], int]] = [
        format.page_capacity,
        format.max_key_size,
        format.max_inline_entry,
        format.bitmap_bits,
        format.map_fanout,
    ]
    assert len(table) == len(limits) + 1
    for row, limit in zip(table[1:], limits, strict=True):
        assert [int(cell) for cell in row[1:]] == [limit(int(size)) for size in table[0][1:]], row[0]
    text = document()
    assert f"A value has at most {format.MAX_VALUE_SIZE} bytes, a file at most {format.MAX_PAGES} pages" in text
    assert format.stamp_txid((1 << 64) - 1) == format.MAX_TXID == (1 << 48) - 1
    assert "the txid 48 bits" in text


# -- a parser made of the document ---------------------------------------------------------------


def split(page: bytes, start: int, ends: list[int]) -> list[bytes]:
    return [page[first:last] for first, last in zip([start, *ends], ends, strict=False)]


def entries(page: bytes) -> list[tuple[bytes, bytes, bool]]:
    """(key, what stands for the value, whether that is an overflow record) of a leaf."""
    n, m = Record(page, "Pages").number("count"), Record(page, "Leaf").number("overflow_count")
    leaf = Record(page, "Leaf", n=n, m=m)
    ends = leaf.numbers("key_ends", 2) + leaf.numbers("value_ends", 2)
    parts = split(page, amount(leaf.fields["keys, then values"][0], n=n, m=m), ends)
    overflow = leaf.numbers("overflow_indexes", 2)
    return [(key, value, index in overflow) for index, (key, value) in enumerate(zip(parts, parts[n:], strict=False))]


def branch(page: bytes) -> tuple[list[bytes], list[int]]:
    """(separators, children) of a branch."""
    n = Record(page, "Pages").number("count")
    record = Record(page, "Branch", n=n)
    start = amount(record.fields["separators"][0], n=n)
    return split(page, start, record.numbers("key_ends", 2)), record.numbers("children", 8)


class Parser:
    """Reads a whole file by the document; `lines` tells what it saw."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.lines: list[str] = []
        self.seen: set[int] = set()
        header = Record(data, "Header")
        assert zlib.crc32(data[: int(header.fields["checksum"][0])]) == header.number("checksum")
        assert header.number("checksum_kind") == 2  # the kind that every Python can compute
        self.size = header.number("page_size")
        self.seed = zlib.crc32(header.raw("file_id"))
        self.say(0, f"header, page size {self.size}, checksum kind 2, file id {header.raw('file_id').hex()}")
        metas = []
        for pgno in (1, 2):
            meta = Record(self.page(pgno), "Meta")
            assert zlib.crc32(meta.data[4:96], self.seed) == meta.number("checksum")
            assert meta.number("slot") == pgno
            commit = meta.number("stamp") & (1 << 48) - 1
            self.say(
                pgno,
                f"meta of commit {commit}, {'clean' if meta.number('flags') & 1 else 'not clean'}, "
                f"catalogue {self.shown(meta.number('catalogue_root'))}, "
                f"free space {self.shown(meta.number('free_space_root'))}, high water {meta.number('high_water')}, "
                f"log {meta.number('log_start')} (+{meta.number('log_size')})",
            )
            metas.append((commit, meta))
        note = json.loads(self.page(3)[:256].rstrip(b"\0"))
        self.say(3, f"holder, pid {note['pid']} on {note['host']}")
        _, self.meta = max(metas, key=lambda found: found[0])
        self.tables = dict(self.catalogue())
        self.free = self.free_pages(self.meta.number("free_space_root"))
        for pgno in sorted(self.free):
            self.say(pgno, "free")
        self.changes = list(self.log(self.meta.number("log_start"), self.meta.number("log_size")))
        assert self.seen == set(range(self.meta.number("high_water")))
        assert len(self.free) == self.meta.number("free_count")
        assert len(self.tables) == self.meta.number("table_count")

    def log(self, start: int, size: int) -> Iterator[tuple[int, bytes, bytes | None]]:
        """(tree, key, value) of each change in the log."""
        at, previous, last = start, 0, self.meta.number("stamp") & (1 << 48) - 1
        while at < start + size:
            head = Record(self.page(at), "Pages")
            pages = head.number("count")
            run = self.page(at, max(1, pages))
            record = Record(run, "Log")
            commit = head.number("stamp") & (1 << 48) - 1
            if (
                head.number("kind") != 5
                or head.number("pgno") != at
                or head.number("checksum") != zlib.crc32(run[4:], self.seed)
                or record.number("epoch") != self.meta.number("stamp")
                or record.number("previous") != previous
                or commit <= last
            ):
                break
            changes = list(self.groups(run[56 : 56 + record.number("size")]))
            yield from changes
            self.say(at, f"log record of commit {commit}: {len(changes)} changes in {pages} page{'s' * (pages > 1)}")
            for rest in range(at + 1, at + pages):
                self.say(rest, "the same record")
            at, previous, last = at + pages, head.number("checksum"), commit
        for unused in range(at, start + size):
            self.say(unused, "log, unused")

    def groups(self, data: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
        while data:
            group = Record(data, "Log", 1)
            data = data[8:]
            for _ in range(group.number("change_count")):
                change = Record(data, "Log", 2)
                key_size, value_size = change.number("key_size"), change.number("value_size")
                key, data = data[6 : 6 + key_size], data[6 + key_size :]
                value = None
                if value_size != 4294967295:
                    value, data = data[:value_size], data[value_size:]
                yield group.number("tree_id"), key, value

    def say(self, pgno: int, text: str) -> None:
        assert pgno not in self.seen, f"page {pgno} is reached twice"
        self.seen.add(pgno)
        self.lines.append(f"page {pgno:>2}  {text}")

    @staticmethod
    def shown(ref: int) -> str:
        return f"{ref & 0xFFFFFFFF}:{ref >> 32:08x}" if ref else "none"

    def page(self, pgno: int, pages: int = 1) -> bytes:
        return self.data[pgno * self.size : (pgno + pages) * self.size]

    def follow(self, ref: int, pages: int = 1) -> tuple[bytes, Record]:
        """(page, its header) behind a reference, verified."""
        pgno, checksum = ref & 0xFFFFFFFF, ref >> 32
        page = self.page(pgno, pages)
        head = Record(page, "Pages")
        assert head.number("checksum") == checksum == zlib.crc32(page[4:], self.seed)
        assert head.number("pgno") == pgno
        return page, head

    def tree(self, ref: int, tree_id: int) -> Iterator[tuple[bytes, bytes]]:
        page, head = self.follow(ref)
        assert head.number("tree_id") == tree_id
        pgno, commit = head.number("pgno"), head.number("stamp") & (1 << 48) - 1
        if head.number("kind") == 2:
            separators, children = branch(page)
            self.say(
                pgno,
                f"branch of tree {tree_id}, commit {commit}: {', '.join(map(self.shown, children))}; "
                f"separators {', '.join(key.hex(' ') for key in separators)}",
            )
            for child in children:
                yield from self.tree(child, tree_id)
            return
        assert head.number("kind") == 1
        found = entries(page)
        self.say(
            pgno,
            f"leaf of tree {tree_id}, commit {commit}: {'1 entry' if len(found) == 1 else f'{len(found)} entries'}",
        )
        for key, value, is_overflow in found:
            yield key, self.overflow(value, tree_id) if is_overflow else value

    def overflow(self, stored: bytes, tree_id: int) -> bytes:
        record = Record(stored, "Overflow", 1)
        size = record.number("value_size")
        pages = -(-(24 + size) // self.size)
        run, head = self.follow(record.number("reference"), pages)
        assert (head.number("kind"), head.number("tree_id")) == (3, tree_id)
        pgno = head.number("pgno")
        self.say(pgno, f"overflow run of tree {tree_id}: {size} bytes in {pages} pages")
        for rest in range(pgno + 1, pgno + pages):
            self.say(rest, "the same run")
        return Record(run, "Overflow", 0, s=size).raw("value")

    def catalogue(self) -> Iterator[tuple[str, tuple[int, list[int], list[tuple[bytes, bytes]]]]]:
        root = self.meta.number("catalogue_root")
        for key, value in list(self.tree(root, 0)) if root else []:
            entry = Record(value, "Catalogue")
            at = int(entry.fields["key_codecs"][0])
            shape = entry.number("key_shape")
            assert len(value) == at + max(1, shape)
            table = entry.number("root"), entry.number("tree_id")
            content = list(self.tree(*table)) if table[0] else []
            assert len(content) == entry.number("entry_count")
            yield key.decode(), (entry.number("value_codec"), list(value[at:]), content)

    def free_pages(self, root: int) -> set[int]:
        bits, fanout = 8 * (self.size - 24), (self.size - 24) // 8
        height = 0
        while bits * fanout**height < self.meta.number("high_water"):
            height += 1
        waiting, free = [(root, height, 0)] if root else [], set()
        while waiting:
            ref, level, index = waiting.pop()
            page, head = self.follow(ref)
            assert [head.number(name) for name in ("kind", "level", "tree_id")] == [4, level, 1]
            if level:
                n = head.number("count")
                children = Record(page, "Free space", n=n).numbers("children", 8)
                waiting += [(child, level - 1, index * fanout + at) for at, child in enumerate(children) if child]
                self.say(
                    head.number("pgno"), f"map of free space, level {level}, commit {head.number('stamp') & 0xFFFF}"
                )
                continue
            marked = {index * bits + bit for bit in range(bits) if page[24 + bit // 8] >> bit % 8 & 1}
            self.say(
                head.number("pgno"),
                f"map of free space, bitmap {index}, commit {head.number('stamp') & (1 << 48) - 1}: "
                f"{', '.join(map(str, sorted(marked)))}",
            )
            free |= marked
        return free


# -- the example ---------------------------------------------------------------------------------

USERS = limpet.Table("users", key=limpet.STR, value=limpet.JSON)
EVENTS = limpet.Table("events", key=(limpet.STR, limpet.INT), value=limpet.BYTES)


def example(folder: Path) -> bytes:
    """The file of the example, as the engine writes it on a machine without clocks and chance."""

    def not_random(size: int) -> bytes:
        return bytes(range(size))

    holder = {"pid": 4711, "host": "shore", "since": EXAMPLE_US // 1_000_000, "program": "app.py"}
    with (
        mock.patch("limpet.backup.now_us", return_value=EXAMPLE_US),
        mock.patch("limpet.backup.random_bytes", not_random),
        mock.patch("limpet.checkpoint.now_us", return_value=EXAMPLE_US),
        mock.patch("limpet.record_writer.now_us", return_value=EXAMPLE_US),
        mock.patch("limpet.committer.random_bytes", not_random),
        mock.patch("limpet.opening.describe_process", return_value=holder),
        limpet.open(folder / "example.limpet", page_size=512, checksum="crc32") as database,
    ):
        with database.write() as txn:
            txn[USERS]["ada"] = {"age": 36}
            txn[USERS]["bob"] = None
        with database.write() as txn:
            del txn[USERS]["bob"]
            for number in (-1, 0, 1):
                txn[EVENTS]["tide", number] = bytes(200)
            txn[EVENTS]["wave", 2] = bytes(600)
        with database.write() as txn:
            txn[USERS]["eve"] = [1]
            del txn[EVENTS]["tide", -1]
        return (folder / "example.limpet").read_bytes()


def hex_dump(data: bytes) -> str:
    """The bytes as 16 a line, lines of zeros as one star; the size at the end."""
    lines = []
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        if any(row):
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            lines.append(f"{offset:06x}  {row.hex(' ')}  {text}")
        elif not lines or lines[-1] != "*":
            lines.append("*")
    return "\n".join([*lines, f"{len(data):06x}"]) + "\n"


def undump(text: str) -> bytes:
    """The inverse of `hex_dump`."""
    lines = text.split("\n")[:-1]
    data = bytearray(int(lines.pop(), 16))
    for line in lines:
        if line != "*":
            offset = int(line[:6], 16)
            data[offset : offset + 16] = bytes.fromhex(line[8:55])
    return bytes(data)


def block(name: str) -> str:
    found = re.search(rf"^```{name}\n(.*?)^```$", document(), re.MULTILINE | re.DOTALL)
    assert found, f"FORMAT.md has no block {name!r}"
    return found[1]


def decoded(data: bytes) -> str:
    return "\n".join(sorted(Parser(data).lines)) + "\n"


def test_the_example_is_what_the_engine_writes(tmp_path: Path) -> None:
    data = example(tmp_path)
    assert undump(block("hexdump")) == data, f"if it has a reason to differ, run python {Path(__file__).name}"
    assert block("hexdump") == hex_dump(data)
    assert block("decoded") == decoded(data), f"if it has a reason to differ, run python {Path(__file__).name}"


def test_the_example_can_be_read_by_the_tables_alone() -> None:
    parser = Parser(undump(block("hexdump")))
    tables = parser.tables
    assert parser.changes == [(2, b"eve", b"[1]"), (3, b"tide\0" + (2**63 - 1).to_bytes(8, "big"), None)]
    assert sorted(tables) == ["events", "users"]
    assert tables["users"] == (limpet.JSON.number, [limpet.STR.number], [(b"ada", b'{"age":36}')])
    value_codec, key_codecs, found = tables["events"]
    assert (value_codec, key_codecs) == (limpet.BYTES.number, [limpet.STR.number, limpet.INT.number])
    tide = [(b"tide\0" + (2**63 + number).to_bytes(8, "big"), bytes(200)) for number in (-1, 0, 1)]
    assert found == [*tide, (b"wave\0" + (2**63 + 2).to_bytes(8, "big"), bytes(600))]


def test_the_engine_opens_the_example(db_path: Path) -> None:
    db_path.write_bytes(undump(block("hexdump")))
    with limpet.open(db_path, read_only=True) as database, database.read() as txn:
        assert dict(txn[USERS]) == {"ada": {"age": 36}, "eve": [1]}
        assert list(txn[EVENTS]) == [("tide", 0), ("tide", 1), ("wave", 2)]
        assert txn[EVENTS]["wave", 2] == bytes(600)
        assert database.check().ok


def test_a_map_of_several_levels_reads_as_the_document_says(db_path: Path) -> None:
    big = limpet.Table("big", key=limpet.INT)
    with limpet.open(db_path, page_size=512, checksum="crc32") as database:
        with database.write() as txn:
            txn[big][1] = bytes(4500 * 512)  # more pages than one bitmap covers
            txn[big][2] = b"stays"
        with database.write() as txn:
            del txn[big][1]
    parser = Parser(db_path.read_bytes())
    meta = parser.meta
    bits, _ = load_map(
        meta.number("free_space_root"), meta.number("high_water"), 512, lambda ref: parser.page(ref & 0xFFFFFFFF)
    )
    assert {pgno for pgno in range(len(bits) * 8) if bits[pgno >> 3] >> (pgno & 7) & 1} == parser.free
    assert any("level 1" in line for line in parser.lines)


def write_example() -> None:
    """Put the example as it is now into the document."""
    with tempfile.TemporaryDirectory() as folder:
        data = example(Path(folder))
    text = document().replace(block("hexdump"), hex_dump(data)).replace(block("decoded"), decoded(data))
    DOCUMENT.write_text(text, "utf-8")


if __name__ == "__main__":
    write_example()
