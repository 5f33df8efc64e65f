"""Checksums: the published check values, every size, and the pure-Python CRC-32C against the package."""

import random
import sys
import warnings
import zlib

import pytest

from limpet import checksum

CHECK = b"123456789"


def by_definition(data: bytes, value: int = 0) -> int:
    """CRC-32C bit by bit, as RFC 3720 defines it."""
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


# RFC 3720, B.4; the last is the check value of the catalogue of CRCs.
VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (CHECK, 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_the_published_check_values_come_out(data: bytes, expected: int) -> None:
    assert checksum.crc32c_in_python(data) == expected
    assert by_definition(data) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert checksum.checksum_function(checksum.CRC32C)(data, 0) == expected


def test_every_size_up_to_600_many_up_to_two_pages_and_those_of_chunks_agree_with_the_definition(seed: int) -> None:
    data = random.Random(seed).randbytes(8200)
    value = 0xFFFFFFFF  # the definition once, byte by byte, keeping all intermediate results
    for size, byte in enumerate(data):
        if size < 600 or size % 16 < 2:
            assert checksum.crc32c_in_python(data[:size]) == value ^ 0xFFFFFFFF, size
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    for size in (65535, 65536, 65537, 131072, 200_003):
        large = random.Random(size).randbytes(size)
        half = size // 3
        assert checksum.crc32c_in_python(large) == checksum.crc32c_in_python(
            large[half:], checksum.crc32c_in_python(large[:half])
        )


def test_the_fallback_agrees_with_the_package_for_random_data_and_seeds(seed: int) -> None:
    package = pytest.importorskip("crc32c")
    rng = random.Random(seed)
    for size in [*range(200), 508, 4092, 65532, 65536, 70_001, 262_144]:
        data, start = rng.randbytes(size), rng.getrandbits(32)
        assert checksum.crc32c_in_python(data, start) == package.crc32c(data, start), (size, start)


def test_the_seed_continues_an_earlier_checksum() -> None:
    for kind in (checksum.CRC32C, checksum.CRC32):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            function = checksum.checksum_function(kind)
        assert function(CHECK[4:], function(CHECK[:4], 0)) == function(CHECK, 0)
        assert function(memoryview(CHECK), 7) == function(bytearray(CHECK), 7) == function(CHECK, 7)
        assert function(CHECK, 1) != function(CHECK, 2)


def test_crc32_is_the_one_of_zlib() -> None:
    assert checksum.checksum_function(checksum.CRC32) is zlib.crc32
    assert zlib.crc32(CHECK) == 0xCBF43926


def test_an_unknown_kind_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        checksum.checksum_function(3)


def test_the_slow_fallback_warns_and_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "_accelerated", None)
    assert checksum.default_kind() == checksum.CRC32
    with pytest.warns(RuntimeWarning, match="crc32c") as caught:
        function = checksum.checksum_function(checksum.CRC32C)
    assert len(caught) == 1
    assert function is checksum.crc32c_in_python
    monkeypatch.setattr(checksum, "_accelerated", function)
    assert checksum.default_kind() == checksum.CRC32C


def test_the_fallback_does_not_need_a_large_number_for_a_large_value() -> None:
    data = bytes(2 << 20)
    assert checksum.crc32c_in_python(data) != 0
    assert sys.getsizeof(int.from_bytes(data[: checksum._CHUNK], "little")) < 100_000
