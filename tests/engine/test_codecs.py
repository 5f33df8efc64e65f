"""Codecs: encoded keys sort like the values, everything comes back, damage is reported. With Hypothesis."""

import collections
import datetime
import enum
import math
import uuid
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

import limpet
from limpet import codecs
from limpet.codecs import Codec, TupleCodec

TIMES = st.datetimes(timezones=st.just(datetime.UTC))
VALUES: dict[Codec, st.SearchStrategy[Any]] = {
    limpet.BYTES: st.one_of(st.binary(max_size=20), st.lists(st.sampled_from([0, 1, 2, 255]), max_size=8).map(bytes)),
    limpet.STR: st.one_of(st.text(max_size=20), st.text(st.sampled_from("\0\x01\x02a\uffff\U0010ffff"), max_size=6)),
    limpet.INT: st.integers(-(2**63), 2**63 - 1),
    limpet.FLOAT: st.floats(allow_nan=False),
    limpet.BOOL: st.booleans(),
    limpet.UUID: st.uuids(),
    limpet.DATETIME: TIMES,
}
KEYS = st.sampled_from(list(VALUES))


@pytest.mark.parametrize("codec", list(VALUES), ids=repr)
def test_a_key_sorts_as_bytes_as_its_value_does_in_python(codec: Codec) -> None:
    @given(VALUES[codec], VALUES[codec])
    def check(a: Any, b: Any) -> None:
        assert codec.encode_key is not None
        left, right = codec.encode_key(a), codec.encode_key(b)
        assert (left < right) == (a < b)
        assert (left == right) == (a == b)

    check()


@pytest.mark.parametrize("codec", list(VALUES), ids=repr)
def test_a_key_and_a_value_come_back_as_they_were(codec: Codec) -> None:
    @given(VALUES[codec])
    def check(value: Any) -> None:
        assert codec.encode_key is not None
        assert codec.decode_key is not None
        key = codec.encode_key(value)
        assert codec.decode_key(key) == value
        assert type(codec.decode_key(key)) is type(value)
        assert codec.decode_value(codec.encode_value(value)) == value
        assert not codec.size or len(key) == codec.size

    check()


@given(st.data(), st.lists(KEYS, min_size=1, max_size=4))
def test_tuples_sort_element_by_element_and_come_back(data: st.DataObject, shape: list[Codec]) -> None:
    codec = TupleCodec(tuple(shape))
    tuples = st.tuples(*(VALUES[each] for each in shape))
    a, b = data.draw(tuples), data.draw(tuples)
    common = data.draw(st.integers(0, len(shape)))  # a common beginning, so that later elements decide too
    b = a[:common] + b[common:]
    left, right = codec.encode(a), codec.encode(b)
    assert (left < right) == (a < b)
    assert (left == right) == (a == b)
    assert codec.decode(left) == a


ODD = st.one_of(
    st.text(st.sampled_from("\0\x01a\ud800"), max_size=3),
    st.integers(-(2**63) - 1, 2**63),
    st.sampled_from([True, None, b"x", 1.5, -(2**63) - 1, -(2**63), 2**63 - 1, 2**63]),
)


@given(st.data(), st.lists(st.sampled_from([limpet.STR, limpet.INT, limpet.BYTES]), min_size=1, max_size=4))
def test_the_generated_encoders_give_what_the_general_ones_give_and_raise_what_they_raise(
    data: st.DataObject, shape: list[Codec]
) -> None:
    general = TupleCodec(tuple(shape))
    encode, encode_bound, _ = codecs.key_functions(tuple(shape))
    elements = [data.draw(st.one_of(VALUES[each], VALUES[each], ODD)) for each in shape]
    key: Any = tuple(elements[: data.draw(st.integers(0, len(shape)))] if data.draw(st.booleans()) else elements)
    key = data.draw(st.sampled_from([key, key, (*key, 1), list(key), Named(*key[:2], "")]))
    assert outcome(encode, key) == outcome(general.encode, key)
    assert outcome(encode_bound, key) == outcome(general.encode_bound, key)
    assert outcome(encode_bound, key[:1]) == outcome(general.encode_bound, key[:1])


@pytest.mark.parametrize("text", ["", "a\0b", "a\x01b", "\x01\0", "\u00e9"])
@pytest.mark.parametrize("number", [0, -1, -(2**63) - 1, -(2**63), 2**63 - 1, 2**63, True])
def test_the_generated_encoders_know_what_they_have_to_leave_to_the_general_ones(text: str, number: int) -> None:
    for key in ((text, number), (number, text), (number, number, text, text)):
        shape = tuple(limpet.STR if isinstance(each, str) else limpet.INT for each in key)
        assert outcome(codecs.key_functions(shape)[0], key) == outcome(TupleCodec(shape).encode, key)


class Named(tuple[Any, ...]):
    """A tuple with a class of its own, as named ones have."""

    __slots__ = ()

    def __new__(cls, *elements: Any) -> Self:
        return super().__new__(cls, elements)


def outcome(function: Any, argument: Any) -> Any:
    """What a function gives, or the error that it raises."""
    try:
        return function(argument)
    except (TypeError, ValueError, limpet.LimpetError) as error:
        return type(error), str(error)


@given(st.data(), st.lists(KEYS, min_size=1, max_size=4))
def test_a_shorter_tuple_is_a_prefix_of_its_extensions_and_sorts_before_them(
    data: st.DataObject, shape: list[Codec]
) -> None:
    codec = TupleCodec(tuple(shape))
    whole = data.draw(st.tuples(*(VALUES[each] for each in shape)))
    other = data.draw(st.tuples(*(VALUES[each] for each in shape)))
    size = data.draw(st.integers(0, len(shape)))
    bound = codec.encode_bound(whole[:size])
    assert codec.encode(whole).startswith(bound)
    assert codec.encode(other).startswith(bound) == (other[:size] == whole[:size])
    assert (codec.encode(other) < bound) == (other < whole[:size])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert limpet.JSON.decode_value(limpet.JSON.encode_value(value)) == value


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_are_a_corrupt_error(data: bytes) -> None:
    for codec in codecs.CODECS.values():
        for decode in (codec.decode_key, codec.decode_value):
            if decode is not None:
                try:
                    decode(data)
                except limpet.CorruptError as error:
                    assert str(error)  # noqa: PT017 either outcome is right
    for shape in ((limpet.STR,), (limpet.STR, limpet.INT), (limpet.BOOL, limpet.BYTES, limpet.DATETIME)):
        try:
            TupleCodec(shape).decode(data)
        except limpet.CorruptError as error:
            assert str(error)  # noqa: PT017 either outcome is right


@pytest.mark.parametrize(
    ("codec", "key", "encoded"),
    [
        (limpet.BYTES, b"\0a", "0061"),
        (limpet.STR, "\u00e9", "c3a9"),
        (limpet.INT, 0, "8000000000000000"),
        (limpet.INT, -1, "7fffffffffffffff"),
        (limpet.FLOAT, 1.0, "bff0000000000000"),
        (limpet.FLOAT, -1.0, "400fffffffffffff"),
        (limpet.FLOAT, -0.0, "8000000000000000"),
        (limpet.BOOL, True, "01"),
        (limpet.UUID, uuid.UUID(int=258), "00000000000000000000000000000102"),
        (limpet.DATETIME, datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC), "80000000000f4240"),
    ],
    ids=repr,
)
def test_the_bytes_of_a_key_are_those_of_the_format(codec: Codec, key: Any, encoded: str) -> None:
    """Files keep these bytes for ever: a change here is a new format."""
    assert codec.encode_key is not None
    assert codec.encode_key(key).hex() == encoded


@pytest.mark.parametrize(
    ("shape", "key", "encoded"),
    [
        ((limpet.STR,), ("a",), "6100"),
        ((limpet.BYTES, limpet.BOOL), (b"\0\1\2", True), "01010102020001"),
        ((limpet.INT, limpet.STR), (1, ""), "800000000000000100"),
    ],
)
def test_the_bytes_of_a_tuple_are_those_of_the_format(shape: tuple[Codec, ...], key: Any, encoded: str) -> None:
    assert TupleCodec(shape).encode(key).hex() == encoded


def test_the_numbers_of_the_codecs_are_those_of_the_format() -> None:
    assert {number: codec.name for number, codec in codecs.CODECS.items()} == dict(
        enumerate(["BYTES", "STR", "INT", "FLOAT", "BOOL", "UUID", "DATETIME", "JSON"], 1)
    )
    assert repr(limpet.STR) == "limpet.STR"


def test_key_codecs_are_described_and_read_back() -> None:
    for key in (limpet.STR, (limpet.STR,), (limpet.INT, limpet.BYTES, limpet.UUID)):
        assert codecs.key_codec(*codecs.describe_key(key), "t") == key
    with pytest.raises(limpet.CorruptError):
        codecs.key_codec(0, b"\x08", "t")  # JSON is no key
    with pytest.raises(limpet.CorruptError):
        codecs.key_codec(1, b"\x63", "t")
    with pytest.raises(limpet.CorruptError):
        codecs.value_codec(0, "t")


def test_json_is_compact_and_readable_bytes() -> None:
    assert limpet.JSON.encode_value({"\u00e9": [1, 2.5, None]}) == '{"\u00e9":[1,2.5,null]}'.encode()
    with pytest.raises(limpet.CorruptError):
        limpet.JSON.decode_value(b"{")
    with pytest.raises(limpet.CorruptError):
        limpet.JSON.decode_value(b"\xff")


def test_subclasses_of_the_types_are_taken_for_what_they_are() -> None:
    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    assert limpet.INT.encode_value(Number(5)) == limpet.INT.encode_value(5)
    assert limpet.STR.encode_value(Text("a")) == b"a"
    assert limpet.BYTES.encode_value(bytearray(b"a")) == limpet.BYTES.encode_value(memoryview(b"a")) == b"a"


def test_infinities_are_the_ends_of_the_order_of_floats() -> None:
    assert limpet.FLOAT.encode_key is not None
    lowest, highest = limpet.FLOAT.encode_key(-math.inf), limpet.FLOAT.encode_key(math.inf)
    for value in (-1.7976931348623157e308, 0.0, 5e-324, 1.7976931348623157e308):
        assert lowest < limpet.FLOAT.encode_key(value) < highest


class Colour(enum.StrEnum):
    RED = "red"


class Narrow(str):
    """Text that is equal to nothing but itself."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@pytest.mark.parametrize(
    "value",
    [
        {5: "a", "5": "b"},
        {True: 1, "true": 2},
        {None: 1},
        {1.5: 1},
        [{"a": [({"b": {2: 3}},)]}],
        {"a": 1, 2: 3},
        {Narrow("a"): 1, "a": 2},
        collections.OrderedDict({7: 8}),
    ],
)
def test_json_with_a_key_that_is_not_text_is_refused_before_anything_changes(value: Any) -> None:
    """The encoder makes text of a number, a boolean or None that is a key. {5: "a", "5": "b"} came back as
    {"5": "b"}, without a word."""
    table = limpet.Table("t", key=limpet.STR, value=limpet.JSON)
    with limpet.open(":memory:") as db, db.write() as txn:
        with pytest.raises(TypeError, match="text"):
            txn[table]["x"] = value
        with pytest.raises(TypeError, match="text"):
            txn[table].update({"x": value})
        assert txn.tables() == []


def test_json_gives_back_the_plain_classes_and_loses_nothing_of_what_is_in_them() -> None:
    def back(value: Any) -> Any:
        return limpet.JSON.decode_value(limpet.JSON.encode_value(value))

    assert back((1, (2, "a"))) == [1, [2, "a"]], "tuples come back as lists; the docstring says so"
    assert back({Colour.RED: Colour.RED}) == {"red": "red"}
    assert back(collections.OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}
    assert back(10**4000) == 10**4000
    assert back([-0.0, 5e-324, 1.7976931348623157e308]) == [-0.0, 5e-324, 1.7976931348623157e308]
    shared = {"a": [1]}
    assert back([shared, shared]) == [shared, shared]
    with pytest.raises(ValueError, match="digits"):
        limpet.JSON.encode_value({"a": 10**5000})


def test_keys_of_deep_json_are_checked_with_no_more_stack_than_the_encoder_takes() -> None:
    depth, value = 900, {"a": 1}
    for _ in range(depth // 2):
        value = {"a": [value]}  # type: ignore[dict-item]  # it grows
    assert limpet.JSON.decode_value(limpet.JSON.encode_value(value)) == value
