"""Checksums of pages: CRC-32C where the hardware helps, CRC-32 where it does not.

A file names its kind in the header. All kinds share one signature, `checksum(data, seed)`:
the seed is an earlier checksum, so that seeding with the checksum of the file id makes a page
of another file fail.

The `crc32c` package uses the processor's instruction (0.4 us for 4 KiB). Without it, a CRC-32C
file is still readable: the fallback below folds the data as one big integer over GF(2), with
about a dozen shifts and XORs of the whole number a step, instead of a table look-up a byte
(40 us instead of 500 us for 4 KiB).

Sources: RFC 3720 B.4 (the check values); V. Gopal et al., "Fast CRC Computation for Generic
Polynomials Using PCLMULQDQ" (Intel, 2009), whose folding step is the one used here, with
shifts in place of the carry-less multiplication.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache

_accelerated: Callable[[bytes | bytearray | memoryview, int], int] | None
try:
    from crc32c import crc32c as _accelerated
except ImportError:  # optional: DESIGN.md, "Zero-dependency embedding"
    _accelerated = None

Buffer = bytes | bytearray | memoryview
ChecksumFunction = Callable[[Buffer, int], int]

CRC32C = 1  # Castagnoli polynomial 0x1EDC6F41
CRC32 = 2  # the polynomial of zlib, 0x04C11DB7
KIND_NAMES = {CRC32C: "crc32c", CRC32: "crc32"}
KIND_NUMBERS = {name: kind for kind, name in KIND_NAMES.items()}


def default_kind() -> int:
    """The kind for new files: CRC-32C where it is fast, else CRC-32."""
    return CRC32 if _accelerated is None else CRC32C


def checksum_function(kind: int, *, warn: bool = True) -> ChecksumFunction:
    """Return `checksum(data, seed) -> 32-bit int` for a kind of checksum.

    kind     CRC32C or CRC32
    warn     False where it is not known yet which kind a file uses
    raises   KeyError for another kind; callers check it against KIND_NAMES first
    warns    RuntimeWarning when CRC-32C has to be computed in Python
    """
    if kind == CRC32:
        return zlib.crc32
    if kind != CRC32C:
        raise KeyError(kind)
    if _accelerated is not None:
        return _accelerated
    if warn:
        warnings.warn(
            "this file uses CRC-32C and the package 'crc32c' is not installed: "
            "pages are verified in Python, about a hundred times slower; pip install crc32c",
            RuntimeWarning,
            stacklevel=2,
        )
    return crc32c_in_python


_POLYNOMIAL = 0x1EDC6F41  # x^32 is implied; bit i is the coefficient of x^i
_CHUNK = 1 << 16  # bytes folded at once; keeps the big integers of a large value small


def _byte_table() -> tuple[int, ...]:
    reflected = int(f"{_POLYNOMIAL:032b}"[::-1], 2)
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (reflected if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _byte_table()


def _power_of_x(exponent: int) -> int:
    """x**exponent modulo the polynomial, by squaring."""
    result, base = 1, 2
    while exponent:
        if exponent & 1:
            result = _multiply(result, base)
        base = _multiply(base, base)
        exponent >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        b >>= 1
        a <<= 1
        if a >> 32:
            a ^= 1 << 32 | _POLYNOMIAL
    return product


@lru_cache(maxsize=256)
def _folding_plan(size: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """The steps that shorten `size` bytes to at most 16: (bits cut off, their mask, shifts).

    Bits are reflected: bit 0 of the number is the highest coefficient. With `head` leading bytes
    H and `tail` following bytes T, the message is H * x^(8*tail) + T, and x^(8*tail) is congruent
    to a polynomial c of degree < 32. So H * c + T has the same remainder and is `head` shorter.
    """
    steps = []
    while size > 16:
        head = (size - 4) // 2
        tail = size - head
        factor = _power_of_x(8 * tail)
        shifts = tuple(8 * (tail - head) - exponent for exponent in range(32) if factor >> exponent & 1)
        steps.append((8 * head, (1 << 8 * head) - 1, shifts))
        size = tail
    return tuple(steps)


def crc32c_in_python(data: Buffer, value: int = 0) -> int:
    """CRC-32C without the package. Same result as `crc32c.crc32c(data, value)`.

    cost     about 40 us for 4 KiB
    """
    state = value ^ 0xFFFFFFFF
    for start in range(0, len(data), _CHUNK):
        state = _fold(data[start : start + _CHUNK], state)
    return state ^ 0xFFFFFFFF


def _fold(data: Buffer, state: int) -> int:
    size = len(data)
    if size > 16:
        number = int.from_bytes(data, "little") ^ state
        for bits, mask, shifts in _folding_plan(size):
            head = number & mask
            number >>= bits
            for shift in shifts:
                number ^= head << shift
            size -= bits // 8
        data = number.to_bytes(size, "little")
        state = 0
    for byte in data:
        state = state >> 8 ^ _TABLE[(state ^ byte) & 0xFF]
    return state
