"""XXH3, 128 bits, seed 0: the one checksum of a redb file.

The PyPI package `xxhash` computes it in C. Without it the same function in Python, below, so that a file can always be
verified, only slower (`engine()` says which one is at work, and reports repeat it). A digest is 16 bytes as redb stores
them: the low half first, that is, the usual hexadecimal form backwards.

How the Python one gets its speed: inside a block of 1,024 bytes each of the eight accumulators only ever grows by
sums, and sums do not mind their order. So a block is mixed with the secret by one big-integer XOR, taken apart by one
`struct.unpack`, and each accumulator is two calls of `sum`. That gives 26 MB/s on CPython 3.11 where the loop of the
specification gives 8 MB/s; the C package gives 10,000 MB/s.

Source: the xxHash specification, "XXH3" (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import mul
from typing import Final

_c_digest: Callable[[bytes | memoryview, int], bytes] | None = None
try:
    from xxhash import xxh3_128_digest
except ImportError:  # the extra `redb` is not installed
    pass
else:
    _c_digest = xxh3_128_digest

DIGEST_SIZE: Final = 16

_SECRET: Final = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_M64: Final = (1 << 64) - 1
_M32: Final = (1 << 32) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_Q1, _Q2, _Q3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_X1, _X2 = 0x165667919E3779F9, 0x9FB21C651E98DF25

_STRIPE: Final = 64
_BLOCK: Final = 1024  # 16 stripes; each uses the secret 8 bytes further on
_BLOCK_SECRET: Final = b"".join(_SECRET[8 * i : 8 * i + _STRIPE] for i in range(_BLOCK // _STRIPE))
_BLOCK_SECRET_INT: Final = int.from_bytes(_BLOCK_SECRET, "little")
_LAST_SECRET: Final = _SECRET[121 : 121 + _STRIPE]
_SCRAMBLE: Final = struct.unpack_from("<8Q", _SECRET, 128)
_BLOCK_U64: Final = struct.Struct("<128Q")
_BLOCK_U32: Final = struct.Struct("<256I")


def engine() -> str:
    """What computes the checksums: "xxhash" (the C package) or "python"."""
    return "python" if _c_digest is None else "xxhash"


def checksum(data: bytes | memoryview) -> bytes:
    """XXH3-128 of `data` in the byte order of a redb file."""
    if _c_digest is None:
        return checksum_in_python(data)
    return _c_digest(data, 0)[::-1]


def checksum_in_python(data: bytes | memoryview) -> bytes:
    """The same without the C package; at least 4 bytes, because a redb file never hashes fewer."""
    size = len(data)
    if size < 4:
        raise ValueError(f"XXH3 of {size} bytes is not needed by redb files and not written here")
    data = bytes(data)
    if size <= 8:
        low, high = _of_4_to_8(data)
    elif size <= 16:
        low, high = _of_9_to_16(data)
    elif size <= 240:
        low, high = _of_17_to_240(data)
    else:
        low, high = _of_long(data)
    return (high << 64 | low).to_bytes(DIGEST_SIZE, "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def _s64(offset: int) -> int:
    return int.from_bytes(_SECRET[offset : offset + 8], "little")


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & _M64) ^ (product >> 64)


def _avalanche(h: int) -> int:
    h ^= h >> 37
    h = h * _X1 & _M64
    return h ^ (h >> 32)


def _of_4_to_8(data: bytes) -> tuple[int, int]:
    size = len(data)
    key = int.from_bytes(data[:4], "little") + (int.from_bytes(data[-4:], "little") << 32)
    product = (key ^ _s64(16) ^ _s64(24)) * (_P1 + 4 * size & _M64)
    low, high = product & _M64, product >> 64
    high = (high + (low << 1)) & _M64
    low ^= high >> 3
    low ^= low >> 35
    low = low * _X2 & _M64
    low ^= low >> 28
    return low, _avalanche(high)


def _of_9_to_16(data: bytes) -> tuple[int, int]:
    size = len(data)
    tail = _u64(data, size - 8)
    product = (_u64(data, 0) ^ tail ^ _s64(32) ^ _s64(40)) * _P1
    low = ((product & _M64) + ((size - 1) << 54)) & _M64
    tail ^= _s64(48) ^ _s64(56)
    high = ((product >> 64) + tail + (tail & _M32) * (_Q2 - 1)) & _M64
    low ^= int.from_bytes(high.to_bytes(8, "little"), "big")
    product = low * _P2
    return _avalanche(product & _M64), _avalanche((product >> 64) + high * _P2 & _M64)


def _of_17_to_240(data: bytes) -> tuple[int, int]:
    size = len(data)
    low, high = size * _P1 & _M64, 0

    def mix32(low: int, high: int, a: int, b: int, k: int) -> tuple[int, int]:
        low = (low + _fold(_u64(data, a) ^ _s64(k), _u64(data, a + 8) ^ _s64(k + 8))) & _M64
        low ^= (_u64(data, b) + _u64(data, b + 8)) & _M64
        high = (high + _fold(_u64(data, b) ^ _s64(k + 16), _u64(data, b + 8) ^ _s64(k + 24))) & _M64
        high ^= (_u64(data, a) + _u64(data, a + 8)) & _M64
        return low, high

    if size <= 128:
        for i in (3, 2, 1):
            if size > 32 * i:
                low, high = mix32(low, high, 16 * i, size - 16 * (i + 1), 32 * i)
        low, high = mix32(low, high, 0, size - 16, 0)
    else:
        for i in range(4):
            low, high = mix32(low, high, 32 * i, 32 * i + 16, 32 * i)
        low, high = _avalanche(low), _avalanche(high)
        for i in range(4, size // 32):
            low, high = mix32(low, high, 32 * i, 32 * i + 16, 3 + 32 * (i - 4))
        low, high = mix32(low, high, size - 16, size - 32, 103)
    return _avalanche(low + high & _M64), -_avalanche(low * _P1 + high * _P4 + size * _P2 & _M64) & _M64


def _of_long(data: bytes) -> tuple[int, int]:
    size = len(data)
    accumulators = [_Q3, _P1, _P2, _P3, _P4, _Q2, _P5, _Q1]
    block_count = (size - 1) // _BLOCK
    for at in range(0, block_count * _BLOCK, _BLOCK):
        block = data[at : at + _BLOCK]
        words = _BLOCK_U64.unpack(block)
        mixed = _BLOCK_U32.unpack((int.from_bytes(block, "little") ^ _BLOCK_SECRET_INT).to_bytes(_BLOCK, "little"))
        for j in range(8):
            total = accumulators[j] + sum(words[j ^ 1 :: 8]) + sum(map(mul, mixed[2 * j :: 16], mixed[2 * j + 1 :: 16]))
            total &= _M64
            accumulators[j] = (total ^ total >> 47 ^ _SCRAMBLE[j]) * _Q1 & _M64
    at = block_count * _BLOCK
    stripes = (size - 1 - at) // _STRIPE * _STRIPE
    # The last stripe ends with the data and may overlap the ones before it.
    block = data[at : at + stripes] + data[-_STRIPE:]
    secret = _BLOCK_SECRET[:stripes] + _LAST_SECRET
    words = struct.unpack(f"<{len(block) // 8}Q", block)
    mixed_bytes = (int.from_bytes(block, "little") ^ int.from_bytes(secret, "little")).to_bytes(len(block), "little")
    mixed = struct.unpack(f"<{len(block) // 4}I", mixed_bytes)
    for j in range(8):
        total = accumulators[j] + sum(words[j ^ 1 :: 8]) + sum(map(mul, mixed[2 * j :: 16], mixed[2 * j + 1 :: 16]))
        accumulators[j] = total & _M64

    def merge(k: int, result: int) -> int:
        for i in range(4):
            result += _fold(accumulators[2 * i] ^ _s64(k + 16 * i), accumulators[2 * i + 1] ^ _s64(k + 16 * i + 8))
        return _avalanche(result & _M64)

    return merge(11, size * _P1 & _M64), merge(117, ~(size * _P2) & _M64)
