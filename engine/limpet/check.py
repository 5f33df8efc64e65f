"""Verifying a whole file: each page is whole, and is exactly one of reached once or free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .format import Meta
from .pager import Pager


@dataclass(slots=True)
class Report:
    """What a check found."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors


def check_commit(pager: Pager, newest: Meta, older: Meta | None, progress: Callable[[int, int], None] | None) -> Report:
    """Placeholder until the real one."""
    return Report()
