"""JSON text as the rows have it: compact, UTF-8 unescaped, keys in the order of the value.

The text is what serde_json writes for the same value, so that files can be compared byte for byte with those of the
reference store (floats excepted: an exponent is `1e+16` here and `1e16` there). What serde could not hold is refused
on the way in: NaN and infinities, lone surrogates, integers outside [-2^63, 2^64), keys that are not text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from .errors import UndecodableError, UnstorableError

INT_MIN = -(2**63)  # the smallest i64
INT_MAX = 2**64 - 1  # the largest u64
SAFE_INT = 2**62  # integers nearer to zero than this are neither, and a small number that is compared quickly

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dumps(value: object) -> str:
    """Write a value as compact JSON text.

    value    None, bool, int, float, str, list, tuple (read back as a list) or dict with text keys, nested freely
    returns  the text
    raises   UnstorableError (a ValueError) when JSON, or serde, cannot hold it
    cost     one pass of the C encoder, one over the containers for their keys
    """
    text = encode(value)
    if not text.isascii():
        check_text(text)
    _check_tree(value)
    return text


def encode(value: object) -> str:
    """Write a value as `dumps` does, trusting that text, integers and keys have been checked."""
    try:
        return _encode(value)
    except (ValueError, TypeError) as error:
        raise UnstorableError(str(error)) from error
    except RecursionError as error:
        raise UnstorableError("nested too deeply for JSON") from error


def check(value: object) -> None:
    """Raise UnstorableError when `dumps` would."""
    dumps(value)


def check_text(text: str) -> str:
    """Return the text unless UTF-8 cannot hold it: a lone surrogate is an UnstorableError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnstorableError(f"lone surrogate {text[error.start]!r} at {error.start}: UTF-8 cannot hold it") from error
    return text


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold the text: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_int(value: int) -> int:
    """Return the integer unless it needs more than 64 bits: then UnstorableError."""
    if not INT_MIN <= value <= INT_MAX:
        raise UnstorableError(f"integer {value} is outside [{INT_MIN}, {INT_MAX}]")
    return value


def _check_tree(value: object) -> None:
    """Refuse what the C encoder lets through: keys that are not text, and integers that are too large."""
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise UnstorableError(f"key {key!r} is {type(key).__name__}, JSON keys are text")
        children: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        children = (value,)
    for child in children:
        kind = type(child)
        if kind is str:
            continue
        if kind is int:
            check_int(child)  # type: ignore[arg-type]  # mypy does not narrow by `is`
        elif isinstance(child, (dict, list, tuple)):
            _check_tree(child)
        elif isinstance(child, int):
            check_int(child)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (double, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {double!r} is there twice in one object")
    return value


_strict_decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_decode, _decode_beginning = _decoder.decode, _decoder.raw_decode


def loads(text: str | bytes) -> Any:
    """Read JSON text, or its UTF-8 bytes.

    returns  the value, with its keys in the order of the text
    raises   UndecodableError when it is not JSON
    """
    try:
        if not isinstance(text, str):
            text = text.decode()
        try:
            value, end = _decode_beginning(text)
        except ValueError:
            return _decode(text)  # knows white space, and what to complain about
        # What we write has no white space around it, and not to look for it saves 0.5 us of 0.8.
        return value if end == len(text) else _decode(text)
    except (ValueError, RecursionError) as error:
        raise UndecodableError(f"not JSON: {error}") from error


def loads_strictly(text: str | bytes) -> Any:
    """As `loads`, for text that others may have written: a key that is there twice in one object is an error as well.

    JSON leaves open what such an object means; `loads` would keep the last value and lose the others without a word.
    """
    try:
        return _strict_decoder.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise UndecodableError(f"not JSON: {error}") from error


def decode_text(raw: bytes) -> str:
    """Read UTF-8 bytes as text; UndecodableError when they are not."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UndecodableError(f"not UTF-8: {error}") from error
