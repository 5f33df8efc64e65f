"""Which active rows of the old file the archive gets as well, and under which generation.

The archive came to the reference later than the messages. What had been said before is archived when a session is
loaded for the first time: if it has no archive row at all, each of its active rows is copied to generation 1, under the
number that it has. A session that nobody loaded since is not archived, and its rows would be gone with the next fresh
start. A read here never writes, so the import does it:

  no archive row at all                         every active row, to generation 1: what the reference does, so that a
                                                file from before such a load and one from after it give the same store
  none of the session's present generation      every active row, to that generation
  some of the present generation                the active rows with numbers below the first archived one, which are
                                                from before the update in the middle of the conversation. The reference
                                                leaves these out, since it looks for any archive row only
  active rows beyond the first archived one     none: a compaction leaves such rows, a summary of archived ones and the
                                                last of them under new numbers, and they are not archived here either

An active row that is in generation 1 already, under its number and word for word, is what such a load has archived: it
is not archived again in the present generation. Whether a session has archive rows is told by their keys, as
in the reference; so a row that could not be read counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

FIRST_GENERATION: Final = 1


@dataclass(slots=True)
class Backfill:
    """What the archive of the old file holds, as far as it decides which active rows have to be added to it.

    last      session -> the largest generation in its archive
    first     (session, generation) -> the smallest sequence number archived
    current   session -> the generation that its row in the old file says; 1 where there is no row
    done      (session, sequence number) of the active rows that are archived in generation 1 word for word
    """

    last: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[tuple[str, int], int] = field(default_factory=dict)
    current: Mapping[str, int] = field(default_factory=dict)
    done: AbstractSet[tuple[str, int]] = frozenset()

    def generation(self, session: str, seq: int) -> int | None:
        """The generation under which an active row has to be archived; None when it stays active only."""
        if (session, seq) in self.done:
            return None
        last = self.last.get(session, 0)
        if not last:
            return FIRST_GENERATION
        current = self.current.get(session, FIRST_GENERATION)
        first = self.first.get((session, current))
        if first is None:
            return current if current > last else last + 1  # the generation in which the import lets the session go on
        return current if seq < first else None
