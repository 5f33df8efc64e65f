"""Codecs: Python values as bytes, and for keys, as bytes that sort like the values.

How each codec writes a key and a value, and its number in the file, is described in FORMAT.md
("Codecs"); the instances below are the code of that table. Elements of varying size end with 00 in
a tuple, so a shorter tuple's bytes are a prefix of its extensions' bytes and sort before them, and
an element never runs into the next one.

An encoder raises TypeError for a value of another type and ValueError for one that the codec
cannot hold; a decoder raises CorruptError.

Source: the escaping follows the idea of the FoundationDB tuple layer, with a terminator of one
byte instead of two meanings for it.
"""

from __future__ import annotations

import datetime
import json
import math
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .errors import CorruptError, LimitError, TableTypeError

_INT_KEY = struct.Struct(">Q")
_FLOAT_KEY = struct.Struct(">d")
_FLOAT_VALUE = struct.Struct("<d")
_SIGN = 1 << 63
_INT_MIN, _INT_MAX = -_SIGN, _SIGN - 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_FIRST_US = (datetime.datetime.min.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime.datetime.max.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND

Encoder = Callable[[Any], bytes]
Decoder = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Codec:
    """How one type of value is stored. Use the ready ones: limpet.STR, limpet.INT and so on.

    size     bytes of the encoded key; 0 where it varies
    """

    name: str
    number: int
    size: int
    encode_key: Encoder | None
    decode_key: Decoder | None
    encode_value: Encoder
    decode_value: Decoder

    def __repr__(self) -> str:
        return f"limpet.{self.name}"


def _wrong_type(name: str, value: object) -> TypeError:
    return TypeError(f"{name} takes {_TAKES[name]}, not {type(value).__name__}")


_TAKES = {
    "BYTES": "bytes",
    "STR": "str",
    "INT": "int (and not bool)",
    "FLOAT": "float",
    "BOOL": "bool",
    "UUID": "uuid.UUID",
    "DATETIME": "an aware datetime.datetime",
}


def _encode_bytes(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _wrong_type("BYTES", value)


def _decode_bytes(data: bytes) -> bytes:
    return data


def _encode_str(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _wrong_type("STR", value)
    return value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError


def _decode_str(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"not UTF-8: {error}") from error


def _encode_int(value: Any) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type("INT", value)
    if not _INT_MIN <= value <= _INT_MAX:
        raise LimitError(
            f"INT takes 64-bit signed integers, {value} is outside [{_INT_MIN}, {_INT_MAX}]",
            size=value,
            limit=_INT_MAX if value > 0 else _INT_MIN,
        )
    return _INT_KEY.pack(value + _SIGN)


def _decode_int(data: bytes) -> int:
    if len(data) != _INT_KEY.size:
        raise CorruptError("an INT has to have 8 bytes", expected=8, found=len(data))
    return int(_INT_KEY.unpack(data)[0]) - _SIGN


def _encode_float_key(value: Any) -> bytes:
    if not isinstance(value, float):
        raise _wrong_type("FLOAT", value)
    if math.isnan(value):
        raise ValueError("NaN has no place in an order and cannot be a key")
    bits: int = _INT_KEY.unpack(_FLOAT_KEY.pack(value + 0.0))[0]  # -0.0 + 0.0 is 0.0: equal keys, equal bytes
    return _INT_KEY.pack(bits ^ ((1 << 64) - 1 if bits & _SIGN else _SIGN))


def _decode_float_key(data: bytes) -> float:
    if len(data) != _FLOAT_KEY.size:
        raise CorruptError("a FLOAT has to have 8 bytes", expected=8, found=len(data))
    bits: int = _INT_KEY.unpack(data)[0]
    bits ^= _SIGN if bits & _SIGN else (1 << 64) - 1
    return float(_FLOAT_KEY.unpack(_INT_KEY.pack(bits))[0])


def _encode_float_value(value: Any) -> bytes:
    if not isinstance(value, float):
        raise _wrong_type("FLOAT", value)
    return _FLOAT_VALUE.pack(value)


def _decode_float_value(data: bytes) -> float:
    if len(data) != _FLOAT_VALUE.size:
        raise CorruptError("a FLOAT has to have 8 bytes", expected=8, found=len(data))
    return float(_FLOAT_VALUE.unpack(data)[0])


def _encode_bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise _wrong_type("BOOL", value)
    return b"\1" if value else b"\0"


def _decode_bool(data: bytes) -> bool:
    if data not in (b"\0", b"\1"):
        raise CorruptError("a BOOL has to be 00 or 01", found=data)
    return data == b"\1"


def _encode_uuid(value: Any) -> bytes:
    if not isinstance(value, uuid.UUID):
        raise _wrong_type("UUID", value)
    return value.bytes


def _decode_uuid(data: bytes) -> uuid.UUID:
    if len(data) != 16:
        raise CorruptError("a UUID has to have 16 bytes", expected=16, found=len(data))
    return uuid.UUID(bytes=data)


def _encode_datetime(value: Any) -> bytes:
    if not isinstance(value, datetime.datetime):
        raise _wrong_type("DATETIME", value)
    if value.utcoffset() is None:
        raise ValueError(f"DATETIME takes aware datetimes, {value!r} has no time zone; use .astimezone() or tzinfo=")
    microseconds = (value - _EPOCH) // _MICROSECOND
    if not _FIRST_US <= microseconds <= _LAST_US:
        raise ValueError(f"{value!r} lies outside the years 1 to 9999 in UTC")
    return _INT_KEY.pack(microseconds + _SIGN)


def _decode_datetime(data: bytes) -> datetime.datetime:
    microseconds = _decode_int(data)
    if not _FIRST_US <= microseconds <= _LAST_US:
        raise CorruptError("a DATETIME outside the years 1 to 9999", found=microseconds)
    return _EPOCH + microseconds * _MICROSECOND


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_TEXT = frozenset({str})
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})


def _encode_json(value: Any) -> bytes:
    """Encode None, bool, int, float, str, list, tuple or dict with text keys, nested freely, as JSON text.

    A tuple comes back as a list, and an instance of a subclass (an OrderedDict, a StrEnum) as one of the class that
    JSON knows. What would come back as something else is refused.

    raises   TypeError for a type that JSON does not know, and for a key that is not text: {5: "a", "5": "b"} would
             come back as {"5": "b"}; ValueError for NaN, an infinity, a lone surrogate, a value that contains itself
             or is nested too deeply, an integer of more digits than sys.get_int_max_str_digits()
    cost     one pass of the C encoder, and one over the dicts and lists in Python for their keys
    """
    try:
        text = _to_json(value)
    except RecursionError as error:
        raise ValueError("the value is nested too deeply for JSON, or contains itself") from error
    if type(value) not in _JSON_SCALARS:
        _check_json_keys(value)
    return text.encode()


def _check_json_keys(value: Any) -> None:
    """TypeError for a key that is not text: the encoder makes text of numbers, booleans and None without a word.

    Not recursive: the encoder has shown that the value has an end, but not that the stack has room for a second pass.
    """
    waiting = [value]
    while waiting:
        container = waiting.pop()
        children = container
        if isinstance(container, dict):
            if not _TEXT.issuperset(map(type, container)):
                _check_unusual_keys(container)
            children = container.values()
        elif not isinstance(container, list | tuple):
            continue
        if not _JSON_SCALARS.issuperset(map(type, children)):
            waiting += [child for child in children if type(child) not in _JSON_SCALARS]


def _check_unusual_keys(container: dict[Any, Any]) -> None:
    texts = set()
    for key in container:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a JSON object are text, and {key!r} is {type(key).__name__}; use str(key)")
        texts.add(str.__str__(key))
    if len(texts) < len(container):  # a subclass of str may have its own idea of what is equal
        raise TypeError(f"two of the keys {list(container)!r} are the same text")


def _decode_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"not JSON: {error}") from error


BYTES = Codec("BYTES", 1, 0, _encode_bytes, _decode_bytes, _encode_bytes, _decode_bytes)
STR = Codec("STR", 2, 0, _encode_str, _decode_str, _encode_str, _decode_str)
INT = Codec("INT", 3, 8, _encode_int, _decode_int, _encode_int, _decode_int)
FLOAT = Codec("FLOAT", 4, 8, _encode_float_key, _decode_float_key, _encode_float_value, _decode_float_value)
BOOL = Codec("BOOL", 5, 1, _encode_bool, _decode_bool, _encode_bool, _decode_bool)
UUID = Codec("UUID", 6, 16, _encode_uuid, _decode_uuid, _encode_uuid, _decode_uuid)
DATETIME = Codec("DATETIME", 7, 8, _encode_datetime, _decode_datetime, _encode_datetime, _decode_datetime)
JSON = Codec("JSON", 8, 0, None, None, _encode_json, _decode_json)

CODECS = {codec.number: codec for codec in (BYTES, STR, INT, FLOAT, BOOL, UUID, DATETIME, JSON)}

KeyCodec = Codec | tuple[Codec, ...]


# -- tuples --------------------------------------------------------------------------------------


class TupleCodec:
    """The keys of a table whose key is a tuple."""

    __slots__ = ("_encoders", "codecs")

    def __init__(self, codecs: tuple[Codec, ...]) -> None:
        self.codecs = codecs
        self._encoders = tuple((codec.encode_key, not codec.size) for codec in codecs)

    def encode(self, key: Any) -> bytes:
        """Encode a whole key. TypeError unless it is a tuple of the right length."""
        if not isinstance(key, tuple) or len(key) != len(self.codecs):
            raise TypeError(f"the key has to be a tuple of {self._shape()}, not {_brief(key)}")
        return self.encode_bound(key)

    def encode_bound(self, key: Any) -> bytes:
        """Encode a key or the beginning of one: what its extensions' encodings begin with."""
        if not isinstance(key, tuple) or len(key) > len(self.codecs):
            raise TypeError(f"expected a tuple of up to {self._shape()}, not {_brief(key)}")
        parts = []
        for element, (encode, varies) in zip(key, self._encoders, strict=False):
            assert encode is not None
            part = encode(element)
            if varies:
                if b"\0" in part or b"\1" in part:
                    part = part.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
                part += b"\0"
            parts.append(part)
        return b"".join(parts)

    def decode(self, data: bytes) -> tuple[Any, ...]:
        """Decode a key."""
        elements = []
        at = 0
        for codec in self.codecs:
            assert codec.decode_key is not None
            if codec.size:
                end = at + codec.size
                elements.append(codec.decode_key(data[at:end]))
                at = end
            else:
                end = data.find(b"\0", at)
                if end < 0:
                    raise CorruptError("an element of the key does not end", found=data)
                part = data[at:end]
                if b"\1" in part:
                    part = part.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1")
                elements.append(codec.decode_key(part))
                at = end + 1
        if at != len(data):
            raise CorruptError("bytes are left over behind the last element of the key", expected=at, found=len(data))
        return tuple(elements)

    def _shape(self) -> str:
        return f"{len(self.codecs)} element(s) ({', '.join(codec.name for codec in self.codecs)})"


def _brief(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


# -- as the catalogue records them ---------------------------------------------------------------


def describe_key(key: KeyCodec) -> tuple[int, bytes]:
    """(shape, codec numbers): shape 0 is a single codec, n a tuple of n."""
    if isinstance(key, Codec):
        return 0, bytes([key.number])
    return len(key), bytes(codec.number for codec in key)


def key_codec(shape: int, numbers: bytes, table: str) -> KeyCodec:
    """The inverse of `describe_key`. CorruptError for a number that is not a key codec."""
    codecs = tuple(value_codec(number, table) for number in numbers)
    if any(codec.encode_key is None for codec in codecs):
        raise CorruptError("the catalogue names a codec that cannot be a key's", table=table, found=list(numbers))
    return codecs if shape else codecs[0]


def value_codec(number: int, table: str) -> Codec:
    """The codec of a number. CorruptError for an unknown one."""
    codec = CODECS.get(number)
    if codec is None:
        raise CorruptError("the catalogue names an unknown codec", table=table, found=number)
    return codec


def check_key_codec(key: object) -> KeyCodec:
    """Verify what a caller gave as key codec. TypeError if it cannot be one."""
    codecs = key if isinstance(key, tuple) else (key,)
    if not codecs or len(codecs) > 255:
        raise TypeError("the key of a table is one codec or a tuple of 1 to 255 codecs")
    for codec in codecs:
        if not isinstance(codec, Codec) or codec.encode_key is None:
            raise TypeError(f"{codec!r} cannot be the codec of a key")
    return key  # type: ignore[return-value]  # each element has been checked above


def key_functions(key: KeyCodec) -> tuple[Encoder, Encoder, Decoder]:
    """(encode a key, encode a bound or prefix, decode a key)."""
    if isinstance(key, Codec):
        assert key.encode_key is not None
        assert key.decode_key is not None
        return key.encode_key, key.encode_key, key.decode_key
    codec = TupleCodec(key)
    return (
        _plain_encoder(key, codec.encode),
        _plain_encoder(key[:1], codec.encode_bound),  # most bounds have one element
        codec.decode,
    )


def _plain_encoder(codecs: tuple[Codec, ...], general: Encoder) -> Encoder:
    """A function for tuples of plain text and numbers, generated for their order; all else goes to the `general` one.

    It has no cases to tell apart and next to no errors to raise: 0.6 us for (STR, INT), where the general one takes 1.7
    (CPython 3.11). This is what it makes:

        def encode(key):
            if type(key) is tuple and len(key) == 2:
                e0, e1 = key
                if type(e0) is str and type(e1) is int and LOW <= e1 <= HIGH:
                    e0 = e0.encode()
                    if not (b"\0" in e0 or b"\1" in e0):
                        return e0 + b"\0" + pack_1(e1 + SIGN)
            return general(key)
    """
    if not {STR, INT}.issuperset(codecs):
        return general
    names = [f"e{index}" for index in range(len(codecs))]
    texts = [name for name, codec in zip(names, codecs, strict=True) if codec is STR]
    tests = [
        f"type({name}) is str" if codec is STR else f"type({name}) is int and {_INT_MIN} <= {name} <= {_INT_MAX}"
        for name, codec in zip(names, codecs, strict=True)
    ]
    parts: list[str] = []
    scope: dict[str, Any] = {"general": general}
    for codec, run in groupby(zip(codecs, names, strict=True), key=lambda pair: pair[0]):
        some = [name for _, name in run]
        if codec is STR:
            parts += [f'{name} + b"\\0"' for name in some]
        else:
            parts.append(f"pack_{len(some)}({', '.join(f'{name} + {_SIGN}' for name in some)})")
            scope[f"pack_{len(some)}"] = struct.Struct(f">{len(some)}Q").pack
    escaped = " or ".join(f'b"\\0" in {name} or b"\\1" in {name}' for name in texts) or "False"
    lines = [
        "def encode(key):",
        f"    if type(key) is tuple and len(key) == {len(codecs)}:",
        f"        {', '.join(names)}, = key",
        f"        if {' and '.join(tests)}:",
        *(f"            {name} = {name}.encode()" for name in texts),
        f"            if not ({escaped}):",
        f"                return {' + '.join(parts)}",
        "    return general(key)",
    ]
    exec("\n".join(lines), scope)  # made of the numbers and names above, of nothing that is given
    encode: Encoder = scope["encode"]
    return encode


def describe(key: KeyCodec) -> str:
    """A key codec as a reader would write it."""
    if isinstance(key, Codec):
        return key.name
    return "(" + ", ".join(codec.name for codec in key) + ("," if len(key) == 1 else "") + ")"


def mismatch(name: str, recorded: tuple[KeyCodec, Codec], asked: tuple[KeyCodec, Codec]) -> TableTypeError:
    """The error for a table that is opened with other codecs than it was created with."""
    return TableTypeError(
        f"table {name!r} holds {describe(recorded[0])} -> {recorded[1].name}, "
        f"it was opened as {describe(asked[0])} -> {asked[1].name}"
    )
