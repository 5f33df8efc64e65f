"""engine/limpet/format.h, the file format in C, against format.py: sizes, offsets and numbers."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest

import limpet
from limpet import checksum, format

HEADER = Path(limpet.__file__).with_name("format.h")  # beside the code, so that a wheel brings it along

RECORDS = {
    "limpet_header": (format.HEADER, format.HEADER_FIELDS),
    "limpet_meta": (format.META, format.META_FIELDS),
    "limpet_page": (format.PAGE, format.PAGE_FIELDS),
    "limpet_log_record": (format.LOG_RECORD, format.LOG_RECORD_FIELDS),
    "limpet_log_group": (format.LOG_GROUP, format.LOG_GROUP_FIELDS),
    "limpet_log_change": (format.LOG_CHANGE, format.LOG_CHANGE_FIELDS),
    "limpet_overflow_record": (format.OVERFLOW_RECORD, format.OVERFLOW_RECORD_FIELDS),
    "limpet_catalogue_entry": (format.CATALOGUE_ENTRY, format.CATALOGUE_ENTRY_FIELDS),
}


def ffi() -> Any:
    cffi = pytest.importorskip("cffi", reason="cffi is what parses the C declarations")
    interface = cffi.FFI()
    # The parser knows no preprocessor: packing is told to it in words.
    declarations = re.sub(r"^#.*$", "", HEADER.read_text("utf-8"), flags=re.MULTILINE)
    interface.cdef(declarations, packed=True)
    return interface


def test_every_struct_agrees_with_its_record() -> None:
    interface = ffi()
    declared = re.findall(r"^struct (\w+)", HEADER.read_text("utf-8"), re.MULTILINE)
    assert sorted(declared) == sorted(RECORDS)
    for name, (record, fields) in RECORDS.items():
        assert interface.sizeof(f"struct {name}") == record.size, name
        members = interface.typeof(f"struct {name}").fields
        found = [(member, at.offset, interface.sizeof(at.type)) for member, at in members]
        expected, offset = [], 0
        for field, size in fields:
            expected.append((field, offset, size))
            offset += size
        assert found == expected, name


def test_a_struct_reads_what_the_engine_packs() -> None:
    interface = ffi()
    packed = format.PAGE.pack(1, 2, 3, 4, 5, 6, 7)
    page = interface.cast("struct limpet_page *", interface.from_buffer(packed))
    found = [page.checksum, page.kind, page.level, page.count, page.pgno, page.tree_id, page.stamp]
    assert found == list(struct.unpack("=IBBHIIQ", packed))


def test_every_number_agrees_with_its_constant() -> None:
    defined = re.findall(r"^#define LIMPET_(\w+) (\d+)$", HEADER.read_text("utf-8"), re.MULTILINE)
    assert len(defined) > 10
    for name, number in defined:
        assert int(number) == getattr(checksum if name.startswith("CRC") else format, name), name
