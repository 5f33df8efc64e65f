"""The store's errors: whole after a copy, and after a way to another process and back."""

import copy
import functools
import pickle
from collections.abc import Callable

import pytest

from limpet_store import ConflictError, ExistsError, NotFoundError, SchemaError, StoreError, UndecodableError, errors

ERRORS = [
    StoreError("a message"),
    NotFoundError("tasks", "t"),
    ExistsError("jobs", "j"),
    ConflictError("jobs", "j", expected=1, found=2),
    SchemaError("a message", found=None, supported=1),
    UndecodableError("a message"),
    errors.PatternError("a message"),
    errors.SearchLimitError("a message", timeout=2.0, searched=3),
    errors.ClockError("a message", now=2, recorded=1),
    errors.LoopError("a message"),
    errors.UnstorableError("a message"),
]


def pickled(error: Exception, protocol: int) -> Exception:
    other: Exception = pickle.loads(pickle.dumps(error, protocol))
    return other


WAYS: dict[str, Callable[[Exception], Exception]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": functools.partial(pickled, protocol=protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def test_every_error_is_tried_here() -> None:
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__}
    assert {type(error) for error in ERRORS} == known


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_keeps_its_attributes_when_it_is_copied_or_pickled(error: Exception, way: str) -> None:
    """Those that are not made from their message alone could not be unpickled: a TypeError about missing arguments took
    the place of what had happened in the other process."""
    error.add_note("on the way")
    other = WAYS[way](error)
    assert type(other) is type(error)
    assert other is not error
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
