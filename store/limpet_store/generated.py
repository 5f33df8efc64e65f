"""Straight-line code for records whose values are as annotated, generated once for each class.

Every step of the gateway reads and writes a few rows. Field by field, with a call or two for each, a task's text takes
5.5 us to write, and 4.2 us to read when JSON has been parsed; the functions made here take 1.3 and 1.0 us (CPython
3.11). They are what one would write by hand, if the annotations were not there to say it already:

    def text(record):
        v_code = record.code
        v_expires_at = record.expires_at
        if record.extra or not (type(v_code) is str and type(v_expires_at) in integers and -SAFE < v_expires_at < SAFE):
            return None
        return '{"code":%s,"expires_at":%s}' % (quote(v_code), v_expires_at)

Rule: these functions know what is right, and nothing else. Whatever is not quite as annotated (a wrong type, an unknown
field, a missing one, a list that is not empty, an integer near 64 bits) makes them answer None, and then the checks in
records.py decide, which also know the error to raise. A test compares the two.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Collection, Mapping
from json.encoder import encode_basestring  # what the JSON encoder does to a text with ensure_ascii=False
from typing import Any, NamedTuple

from . import wire


class Generated(NamedTuple):
    """The functions of one class.

    texts  the field that is left out, or None -> (record -> its JSON text, or None); lone surrogates are not noticed
    read   (row, class that is asked for) -> the record, or None
    copy   (record, changes) -> what `dataclasses.replace` gives
    """

    texts: Mapping[str | None, Callable[[Any], str | None]]
    read: Callable[[dict[str, Any], type], Any]
    copy: Callable[[Any, dict[str, Any]], Any]


def generate(cls: type, hints: Mapping[str, Any], integers: Collection[type]) -> Generated:
    """Make the functions of a dataclass with slots and an `extra` for unknown fields.

    hints     the fields of its rows in their order, with their annotations; a record in a field has a `_generated`
    integers  the types that an integer may have
    """
    names: dict[str, Any] = {
        "cls": cls,
        "integers": integers,
        "is_utf8": wire.is_utf8,
        "new": object.__new__,
        "quote": encode_basestring,
        "replace": dataclasses.replace,
    }
    codes = {name: _code(hint, f"v_{name}", names) for name, hint in hints.items()}
    lists = [name for name, hint in hints.items() if typing.get_origin(hint) is list]
    texts = {left_out: _text_function(codes, left_out, names) for left_out in (None, *lists)}
    return Generated(texts, _read_function(cls, codes, names), _copy_function(cls, names))


class _Code(NamedTuple):
    """Expressions about the value of one field, which is in a variable.

    fits    whether the record's value is as annotated
    text    its JSON text, if so
    stored  whether the row's value is as annotated
    value   what the record gets, if so
    """

    fits: str
    text: str
    stored: str
    value: str


def is_optional(hint: Any) -> bool:
    """Whether an annotation is `... | None`."""
    return isinstance(hint, types.UnionType) and type(None) in hint.__args__


def _code(hint: Any, v: str, names: dict[str, Any]) -> _Code:
    """The code for an annotation and the variable `v`; `names` gets what it refers to."""
    if hint is str:
        return _Code(f"type({v}) is str", f"quote({v})", f"type({v}) is str and ({v}.isascii() or is_utf8({v}))", v)
    if hint is int:
        return _Code(
            f"type({v}) in integers and {-wire.SAFE_INT} < {v} < {wire.SAFE_INT}",
            v,
            f"type({v}) is int and {-wire.SAFE_INT} < {v} < {wire.SAFE_INT}",
            v,
        )
    if hint is bool:
        return _Code(f"type({v}) is bool", f"('true' if {v} else 'false')", f"type({v}) is bool", v)
    if is_optional(hint):
        (inner,) = (arg for arg in hint.__args__ if arg is not type(None))
        code = _code(inner, v, names)
        return _Code(
            f"({v} is None or {code.fits})",
            f"('null' if {v} is None else {code.text})",
            f"({v} is None or {code.stored})",
            f"(None if {v} is None else {code.value})",
        )
    if typing.get_origin(hint) is list:  # most are empty; for the others the checks are the smaller part
        return _Code(f"type({v}) is list and not {v}", "'[]'", f"type({v}) is list and not {v}", "[]")
    kind = hint.__name__
    names[kind] = hint
    if issubclass(hint, enum.StrEnum):
        names[f"{kind}_of"] = {member.value: member for member in hint}
        return _Code(f"type({v}) is {kind}", f"quote({v})", f"type({v}) is str and {v} in {kind}_of", f"{kind}_of[{v}]")
    generated: Generated = hint._generated
    names[f"text_of_{kind}"], names[f"read_{kind}"] = generated.texts[None], generated.read
    return _Code(
        f"type({v}) is {kind} and (text_{v} := text_of_{kind}({v})) is not None",
        f"text_{v}",
        f"type({v}) is dict and (read_{v} := read_{kind}({v}, {kind})) is not None",
        f"read_{v}",
    )


def _text_function(
    codes: Mapping[str, _Code], left_out: str | None, names: dict[str, Any]
) -> Callable[[Any], str | None]:
    shown = {name: code for name, code in codes.items() if name != left_out}
    template = "{" + ",".join(f'"{name}":%s' for name in shown) + "}"
    return _function(
        "text(record)",
        [
            *(f"v_{name} = record.{name}" for name in shown),
            f"if record.extra or not ({' and '.join(code.fits for code in shown.values())}):",
            "    return None",
            f"return {template!r} % ({', '.join(code.text for code in shown.values())},)",
        ],
        names,
    )


def _read_function(
    cls: type, codes: Mapping[str, _Code], names: dict[str, Any]
) -> Callable[[dict[str, Any], type], Any]:
    # What a record has beside its row, such as a job's version; whoever reads the row fills it in.
    beside = [entry for entry in dataclasses.fields(cls) if entry.name not in codes and entry.name != "extra"]
    return _function(
        "read(row, wanted)",
        [
            f"if len(row) != {len(codes)} or wanted is not cls:",
            "    return None",
            "try:",
            *(f"    v_{name} = row[{name!r}]" for name in codes),
            "except KeyError:",
            "    return None",
            f"if not ({' and '.join(code.stored for code in codes.values())}):",
            "    return None",
            "record = new(cls)",
            *(f"record.{name} = {code.value}" for name, code in codes.items()),
            *(f"record.{entry.name} = {entry.default!r}" for entry in beside),
            "record.extra = {}",
            *_post_init(cls, "record"),
            "return record",
        ],
        names,
    )


def _copy_function(cls: type, names: dict[str, Any]) -> Callable[[Any, dict[str, Any]], Any]:
    return _function(
        "copy(record, changes)",
        [
            "if type(record) is not cls:",  # somebody's subclass may have more to copy
            "    return replace(record, **changes)",
            "other = new(cls)",
            *(f"other.{entry.name} = record.{entry.name}" for entry in dataclasses.fields(cls)),
            "for name, value in changes.items():",
            "    setattr(other, name, value)",
            *_post_init(cls, "other"),
            "return other",
        ],
        names,
    )


def _post_init(cls: type, variable: str) -> list[str]:
    return [f"{variable}.__post_init__()"] if hasattr(cls, "__post_init__") else []


def _function(head: str, body: list[str], names: dict[str, Any]) -> Callable[..., Any]:
    """Compile `def head: body`; `names` are its globals, shared by the functions of a class."""
    own: dict[str, Any] = {}
    exec(f"def {head}:\n" + "\n".join(f"    {line}" for line in body), names, own)
    function: Callable[..., Any] = own[head.partition("(")[0]]
    return function
