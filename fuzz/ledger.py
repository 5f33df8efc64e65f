"""What must be in a database, when some commits are acknowledged, some refused, and of some nobody knows.

An Effect is one commit. What it may mean to a reader, after the death of the process, and after a power cut follows
from what its caller was told, and from what was made durable since:

    made is True     it was acknowledged: it is there for readers; on disk if it was strong enough, or hardened since
    made is False    it was refused or taken back: it is nowhere
    made is None     it is under way, or ended with an error that leaves it open: all of it is there or none

Effects of one ledger touch keys of their own, so their order does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from .workloads import Model, Step, apply_to_model

Choices = list[list[Sequence[Step]]]

SEEN, KILLED, CUT = "seen", "killed", "cut"  # by readers; after the process died; after a power cut


@dataclass(slots=True, eq=False)
class Effect:
    """One commit.

    made       what is known of it
    partial    the caller ended it before it was complete: any beginning of its changes may be there
    begun      when its commit was called, in ticks of the ledger
    told       when it was acknowledged
    survives   whether it outlives the process; durable: a power cut
    """

    changes: Sequence[Step]
    durability: str
    made: bool | None = None
    partial: bool = False
    begun: int = 0
    told: int = 0
    survives: bool = False
    durable: bool = False

    def outcomes(self, view: str) -> list[Sequence[Step]]:
        """The changes that may be there."""
        if self.made is False:
            return [()]
        if self.partial:
            found: list[Sequence[Step]] = []
            for count in range(len(self.changes), -1, -1):
                found.append(self.changes[:count])
                if count < len(self.changes) and self.changes[count][0] == "put" and self.changes[count][1] != "t":
                    _, table, key, *_ = self.changes[count]  # a new table comes before its first row
                    found.append([*self.changes[: count + 1], ["del", table, key]])
            return found
        sure = self.made and (view == SEEN or (self.survives if view == KILLED else self.durable))
        return [self.changes] if sure else [self.changes, ()]


@dataclass(slots=True)
class Ledger:
    """The commits since a known state."""

    base: Model
    effects: list[Effect] = field(default_factory=list)
    now: int = 0

    def tick(self) -> int:
        """A moment."""
        self.now += 1
        return self.now

    def begin(self, changes: Sequence[Step], durability: str) -> Effect:
        """A commit is about to be tried."""
        effect = Effect(changes, durability, begun=self.tick())
        self.effects.append(effect)
        return effect

    def acknowledge(self, effect: Effect) -> None:
        """The caller was told that it is made."""
        effect.made = True
        effect.told = self.tick()
        if effect.durability != "none" and not effect.partial:  # what changed nothing so far commits nothing
            self.harden(effect.begun, durable=effect.durability == "sync")
            effect.survives = True
            effect.durable = effect.durability == "sync"

    def harden(self, begun: int, *, durable: bool = True) -> None:
        """Something that began then has succeeded, and with it all that was acknowledged before is on disk."""
        for effect in self.effects:
            if effect.made and effect.told <= begun:
                effect.survives = True
                effect.durable = effect.durable or durable

    def choices(self, view: str) -> Choices:
        """What may have become of each effect."""
        return [effect.outcomes(view) for effect in self.effects]

    def allowed(self, view: str) -> list[Model]:
        """The contents that may be there."""
        return contents(self.base, self.choices(view))


def contents(base: Model, choices: Choices) -> list[Model]:
    """What may be there, the fullest first."""
    found = []
    for choice in itertools.product(*choices):
        model = base
        for changes in choice:
            if changes:
                model = apply_to_model(model, list(changes))
        found.append(model)
    return found
