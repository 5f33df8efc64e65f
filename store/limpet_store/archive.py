"""Every message as it was when it came, whatever became of the conversation since."""

from __future__ import annotations

import contextlib

from . import history
from .family import AnyFace, Family, reads, writes
from .records import ArchiveRow, ArchiveStat, message_text
from .regex import TIMEOUT_S, matching
from .schema import KEY_INT_MAX


class Archive(Family[AnyFace]):
    """The archived messages, by session key, generation and sequence number: that is their chronological order.

    Rows come here with `messages.append`, are never changed, and leave by `purge` and by the store's retention only.
    """

    __slots__ = ()
    name = "archive"

    @reads
    def load(self, key: str, generation: int | None = None) -> list[ArchiveRow]:
        """All rows of a session, or of one of its generations, in chronological order."""
        start, stop = _bounds(generation)
        return [ArchiveRow(seq, gen, row.message) for gen, seq, row in history.archived(self._work, key, start, stop)]

    @reads
    def stat(self, key: str) -> ArchiveStat:
        """What a session's archive holds; costs one look-up for each generation and reads no message."""
        found = [
            (generation, counter) for generation, counter in history.counters(self._work, key) if counter.row_count
        ]
        return ArchiveStat(
            total_messages=sum(counter.row_count for _, counter in found),
            oldest_seq=min((counter.first_seq for _, counter in found), default=None),
            newest_seq=max((counter.next_seq - 1 for _, counter in found), default=None),
            generations=[generation for generation, _ in found],
        )

    @reads
    def head(self, key: str, n: int) -> list[ArchiveRow]:
        """The first `n` rows in chronological order; costs what it returns."""
        rows = history.take(n, history.archived(self._work, key, (), None))
        return [ArchiveRow(seq, generation, row.message) for generation, seq, row in rows]

    @reads
    def tail(self, key: str, n: int) -> list[ArchiveRow]:
        """The last `n` rows in chronological order; costs what it returns."""
        rows = history.take(n, history.archived(self._work, key, (), None, reverse=True))
        return [ArchiveRow(seq, generation, row.message) for generation, seq, row in reversed(rows)]

    @reads
    def slice(self, key: str, first_seq: int, last_seq: int, generation: int | None = None) -> list[ArchiveRow]:
        """The rows with first_seq <= seq <= last_seq, of every generation unless one is given, in chronological order.

        cost  what it returns, and one look-up for each generation
        """
        work = self._work
        first, stop = max(first_seq, 0), min(last_seq, KEY_INT_MAX - 1) + 1
        found: list[ArchiveRow] = []
        for gen, counter in history.counters(work, key):
            if (generation is None or gen == generation) and first < stop and counter.row_count:
                rows = history.archived(work, key, (gen, first), (gen, stop))
                found += [ArchiveRow(seq, gen, row.message) for _, seq, row in rows]
        return found

    @reads
    def grep(
        self, key: str, pattern: str, limit: int = 50, *, regex: bool = False, timeout: float = TIMEOUT_S
    ) -> list[ArchiveRow]:
        """The rows whose text has the pattern in it, whatever the case, in chronological order.

        pattern  literal text; with `regex` a regular expression (module `re`) of at most 1,000 characters
        limit    stop after so many, 0 or more
        regex    search in a process of its own, which is ended when its time is over: 0.02 s more than literal text
        timeout  seconds for a search with `regex`, rows included; not looked at for literal text
        raises   TypeError; ValueError for a negative limit; PatternError (a ValueError) when the pattern is none or too
                 long; SearchLimitError when the search took longer, or too much memory
        cost     O(rows up to the last one returned), and for literal text no more than O(their size)
        """
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is text, not {type(pattern).__name__}")
        rows = (ArchiveRow(seq, gen, row.message) for gen, seq, row in history.archived(self._work, key, (), None))
        texts = ((message_text(row.message), row) for row in rows)
        if not regex:
            wanted = pattern.casefold()
            return history.take(limit, (row for text, row in texts if wanted in text.casefold()))
        with contextlib.closing(matching(pattern, texts, timeout=timeout)) as found:
            return history.take(limit, found)

    @writes
    def purge(self, key: str, before_generation: int | None = None) -> int:
        """Delete a session's archive, or the part before a generation. Generation numbers stay used.

        returns  how many rows there were
        cost     O(rows deleted)
        """
        found = [
            (generation, counter)
            for generation, counter in history.counters(self._work, key)
            if counter.row_count and (before_generation is None or generation < before_generation)
        ]
        return history.purge(self._work, key, found)


def _bounds(generation: int | None) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    return ((), None) if generation is None else ((generation,), (generation + 1,))
