"""The active messages of each conversation: what the agent sees when it goes on."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from . import history
from .family import AnyFace, Family, reads, writes
from .records import Message
from .schema import MESSAGES, after_text


class Messages(Family[AnyFace]):
    """The active messages, by session key and sequence number.

    A message is any JSON object; the order of its keys is kept. Sequence numbers begin at 0 with each generation and
    are never used twice in one; what `append` writes is archived in the same commit.
    """

    __slots__ = ()
    name = "messages"

    @writes
    def append(self, key: str, message: Message) -> int:
        """Add a message to a session, which is created when there is none.

        returns  its sequence number
        raises   TypeError when it is no dict, ValueError when JSON cannot hold it; nothing has changed then
        cost     one row each in four tables, whatever the session holds
        """
        return history.add(self._work, key, [message], archive=True)[0]

    @writes
    def append_many(self, key: str, messages: Iterable[Message]) -> builtins.list[int]:
        """Add messages in one step: all of them or none. Returns their sequence numbers; otherwise like `append`."""
        batch = builtins.list(messages)
        return history.add(self._work, key, batch, archive=True) if batch else []

    @reads
    def load(self, key: str) -> builtins.list[Message]:
        """All active messages in order."""
        return [message for _, message in self._work.scan(MESSAGES, (key,), (after_text(key),))]

    @reads
    def load_recent(self, key: str, limit: int) -> builtins.list[Message]:
        """The last active messages, oldest first.

        limit  at most so many, 0 or more
        cost   O(limit), whatever the session holds
        """
        newest = self._work.scan(MESSAGES, (key,), (after_text(key),), reverse=True)
        return [message for _, message in reversed(history.take(limit, newest))]

    @reads
    def count(self, key: str) -> int:
        """How many active messages there are; one look-up."""
        return history.active_count(self._work, key)

    @writes
    def replace(self, key: str, messages: Iterable[Message]) -> builtins.list[int]:
        """Put other messages in the place of the active ones, as compaction does; the archive is not touched.

        The new rows get new sequence numbers, so that they are never mistaken for archived ones.

        returns  their sequence numbers
        raises   TypeError or ValueError as `append` does; nothing has changed then
        cost     O(old and new messages)
        """
        work = self._work
        batch = builtins.list(messages)
        texts = [MESSAGES.encode(message).encode() for message in batch]
        stored = builtins.list(work.view(MESSAGES.table).prefix((key,)))
        if [raw for _, raw in stored] == texts:
            return [seq for (_, seq), _ in stored]
        history.clear_active(work, key)
        return history.add(work, key, batch, archive=False) if batch else []
