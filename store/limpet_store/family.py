"""How one class serves as `store.messages`, as `tx.messages` and as `await async_store.messages`.

A family's methods are written once, against one open transaction (`self._work`). What decides when a body runs is the
*scope* that the family is bound to:

  Work         an open transaction: the body runs at once, in a savepoint when it writes, so that a method that raises
               leaves no trace in a transaction that goes on
  Store        the body runs in a transaction of its own, which is committed if something changed and aborted if not
  AsyncStore   the body is handed to the writer's or a reader's thread; the call gives a coroutine

`@reads` and `@writes` put that decision in front of a body. At run time what they return is an ordinary function with
the body's name, signature and docstring, so that `help()` and `inspect` see nothing unusual. For type checkers it is
an `Operation`: on a family of the `Direct` face a call gives the result, on one of the `Awaited` face a coroutine. The
face is only a type parameter; it has no instances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from .work import Work

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Direct:
    """The face of a family whose methods give their result."""


class Awaited:
    """The face of a family whose methods give a coroutine of their result."""


AnyFace = TypeVar("AnyFace")  # Direct or Awaited


class Scope(Protocol):
    """Where the methods of a family run."""

    def run(
        self, family: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool
    ) -> Any:
        """Call `body` with a family that is bound to an open transaction, and with these arguments."""


class Family(Generic[AnyFace]):
    """What every family is: a name, and a scope in which its methods run."""

    __slots__ = ("_scope",)

    name: ClassVar[str]

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def _work(self) -> Work:
        """The open transaction; only the bodies of methods may ask for it."""
        assert isinstance(self._scope, Work)
        return self._scope


class Operation(Protocol[P, R_co]):
    """What a method of a family is to a type checker."""

    @overload
    def __get__(self, instance: None, owner: Any) -> Callable[..., Any]: ...
    @overload
    def __get__(self, instance: Family[Direct], owner: Any) -> Callable[P, R_co]: ...
    @overload
    def __get__(self, instance: Family[Awaited], owner: Any) -> Callable[P, Coroutine[Any, Any, R_co]]: ...


def reads(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R]:
    """Make a method of a body that only reads."""
    return _operation(body, writes=False)


def writes(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R]:
    """Make a method of a body that may write."""
    return _operation(body, writes=True)


def _operation(body: Callable[Concatenate[Any, P], R], *, writes: bool) -> Operation[P, R]:
    @functools.wraps(body)
    def call(self: Family[Any], *args: Any, **kwargs: Any) -> Any:
        return self._scope.run(self, body, args, kwargs, writes)

    return cast(Operation[P, R], call)
