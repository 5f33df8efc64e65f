"""`__all__` is the promise of each package: complete, sorted, documented."""

import enum
import inspect
from types import ModuleType

import pytest

import limpet
import limpet_store

PACKAGES = pytest.mark.parametrize("package", [limpet, limpet_store], ids=["limpet", "limpet_store"])

# Names that are bound in a package without being promised, each with its reason.
NOT_PROMISED = {"annotations": "`from __future__ import annotations` leaves it behind"}


def public_names(package: ModuleType) -> set[str]:
    """What a user sees in the package, except the sub-modules that importing leaves behind."""
    return {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and name not in NOT_PROMISED
        and not (inspect.ismodule(value) and value.__name__.startswith(f"{package.__name__}."))
    }


@PACKAGES
def test_all_is_sorted_and_names_everything_public(package: ModuleType) -> None:
    promised: list[str] = list(package.__all__)
    assert promised == sorted(set(promised)), f"write it as {sorted(set(promised))}"
    seen = public_names(package)
    dunders = {name for name in promised if name.startswith("__")}
    assert sorted(seen - set(promised)) == [], "public, but not in __all__"
    assert sorted(set(promised) - seen - dunders) == [], "in __all__, but not there"


@PACKAGES
def test_every_public_object_says_what_it_is(package: ModuleType) -> None:
    assert inspect.getdoc(package), f"{package.__name__} has no docstring"
    silent = []
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, type):
            silent += silent_class(name, value)
        elif inspect.isroutine(value):
            silent += [] if inspect.getdoc(value) else [name]
        elif type(value).__module__.split(".")[0] == package.__name__:
            silent += [] if inspect.getdoc(value) else [name]  # an instance, such as a codec: its class speaks for it
    assert not silent, f"no docstring: {', '.join(silent)}"


def silent_class(name: str, cls: type) -> list[str]:
    """What a class leaves unsaid: itself, and each public method that neither it nor a base explains."""
    own = vars(cls).get("__doc__")
    # A dataclass and, in Python 3.11, an enum make up a docstring of their own.
    made_up = own is not None and (
        own.startswith(f"{cls.__name__}(") or (issubclass(cls, enum.Enum) and own == enum.Enum.__doc__)
    )
    silent = [] if own and not made_up else [name]
    for attribute, value in vars(cls).items():
        if attribute.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        if not inspect.getdoc(getattr(cls, attribute)):
            silent.append(f"{name}.{attribute}")
    return silent
