"""The conversations: one row each, and the numbers of their generations."""

from __future__ import annotations

import builtins
import enum
from typing import Final

from . import history
from .errors import NotFoundError
from .family import AnyFace, Family, reads, writes
from .records import SessionMeta, TitleSource, changed
from .schema import NUMBER_MAX, SESSIONS, check_key
from .work import Work


class _Unset(enum.Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET  # an argument of `patch` that was not given; None is a value there


class Sessions(Family[AnyFace]):
    """One row for each conversation, by session key.

    Session keys are the caller's text, whatever it contains; nothing is ever matched by a part of one, except by
    `items(prefix)`. A generation is a fresh start of a conversation; its number is never used twice for a key.
    """

    __slots__ = ()
    name = "sessions"

    @reads
    def get(self, key: str) -> SessionMeta | None:
        """A session's row, or None."""
        return self._work.get(SESSIONS, key)

    @writes
    def put(self, key: str, meta: SessionMeta) -> None:
        """Write a session's row as a whole.

        meta    its session_key must be `key`. Numbers that were used stay used: where its generation or message_count
                is lower than what is stored, or was stored before the session was deleted, they are raised
        raises  TypeError, ValueError, LimitError before anything changes
        """
        if self._work.get(SESSIONS, key) is None:
            check_key(key)
        put(self._work, key, meta)

    @reads
    def list(self) -> builtins.list[str]:
        """All session keys in order; reads no values."""
        return list(self._work.view(SESSIONS.table))

    @reads
    def items(self, prefix: str = "") -> builtins.list[tuple[str, SessionMeta]]:
        """The sessions whose key begins with `prefix`, in the order of their keys."""
        found = []
        for key, meta in self._work.scan(SESSIONS, prefix):
            if not key.startswith(prefix):
                break
            found.append((key, meta))
        return found

    @writes
    def delete(self, key: str) -> bool:
        """Delete a session's row and its active messages.

        The archive stays, and the generation stays used: a session that begins again under this key gets the next one.

        returns  False when there was no such session
        cost     O(active messages)
        """
        return history.delete_session(self._work, key)

    @writes
    def new_generation(self, key: str) -> int:
        """Begin the conversation anew: no active messages, numbers from 0, the next generation.

        The archive stays. A title that the program chose is forgotten, one that the user chose stays. A session that
        does not exist is created, as if its first generation had passed without a message.

        returns  the new generation, 2 or more
        cost     O(active messages)
        """
        work = self._work
        now = work.now()
        meta, stored = history.open_session(work, key, now)
        base = stored.generation if stored is not None else 1
        generation = max(base, history.last_generation(work, key)) + 1
        begin_generation(work, meta, stored, generation)
        return generation

    @writes
    def patch(
        self,
        key: str,
        *,
        title: str | _Unset | None = UNSET,
        pinned: bool | _Unset = UNSET,
        archived: bool | _Unset = UNSET,
        peer_name: str | _Unset | None = UNSET,
    ) -> SessionMeta:
        """Change what a user may change, and nothing else.

        title    the user's title; None removes it, so that the program may choose one again
        returns  the row as it is now
        raises   NotFoundError when there is no such session
        """
        work = self._work
        stored = work.get(SESSIONS, key)
        if stored is None:
            raise NotFoundError(self.name, key)
        meta = changed(stored)
        if title is not UNSET:
            meta.title = title
            meta.title_source = None if title is None else TitleSource.USER
        if pinned is not UNSET:
            meta.pinned = pinned
        if archived is not UNSET:
            meta.archived = archived
        if peer_name is not UNSET:
            meta.peer_name = peer_name
        work.put(SESSIONS, key, meta, stored)
        return meta


def begin_generation(work: Work, meta: SessionMeta, stored: SessionMeta | None, generation: int) -> None:
    """Let a session go on in a generation, with no active messages and without the title that the program chose.

    meta, stored  as `history.open_session` gives them
    generation    the session's next one; the caller sees to it that it follows all that have been used
    """
    key, auto_title = meta.session_key, meta.title_source is TitleSource.AUTO
    history.clear_active(work, key)
    history.mark_used(work, key, generation)
    fresh = changed(
        meta,
        generation=generation,
        message_count=0,
        last_active=work.now(),
        title=None if auto_title else meta.title,
        title_source=None if auto_title else meta.title_source,
    )
    work.put(SESSIONS, key, fresh, stored)


def put(work: Work, key: str, meta: SessionMeta) -> bool:
    """What `Sessions.put` does; returns whether it changed something."""
    check(key, meta)
    meta = meta.stamped(work.now())
    stored = work.get(SESSIONS, key)
    if stored is None:
        meta = changed(meta, generation=max(meta.generation, history.last_generation(work, key) + 1))
    elif meta.generation < stored.generation:  # its message_count is that of an older generation
        meta = changed(meta, generation=stored.generation, message_count=stored.message_count)
    elif meta.generation == stored.generation:
        meta = changed(meta, message_count=max(meta.message_count, stored.message_count))
    written = work.put(SESSIONS, key, meta, stored)
    if written:
        history.mark_used(work, key, meta.generation)
    return written


def check(key: str, meta: SessionMeta) -> None:
    """Raise TypeError or ValueError when this is not a row of the session, or its numbers are out of range."""
    if not isinstance(meta, SessionMeta):
        raise TypeError(f"a SessionMeta is needed, not {type(meta).__name__}")
    if meta.session_key != key:
        raise ValueError(f"the row is of session {meta.session_key!r}, not of {key!r}")
    if not 1 <= meta.generation < NUMBER_MAX:
        raise ValueError(f"generation {meta.generation} is outside [1, {NUMBER_MAX})")
    if not 0 <= meta.message_count <= NUMBER_MAX:
        raise ValueError(f"message_count {meta.message_count} is outside [0, {NUMBER_MAX}]")
