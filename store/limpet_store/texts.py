"""Families whose value is opaque text: kv, session aliases, permissions, cron."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from . import schema
from .errors import NotFoundError
from .family import AnyFace, Family, reads, writes
from .schema import ALIASES, CRON, PERMISSIONS, K, Rows, check_key, encode_text
from .work import Work


def _put(work: Work, rows: Rows[K, str], key: K, text: str) -> bool:
    old = work.get(rows, key)
    if old is None:
        check_key(*key) if isinstance(key, tuple) else check_key(key)  # type: ignore[arg-type]  # keys here are text
    return work.put(rows, key, encode_text(text), old)


def _delete(work: Work, rows: Rows[K, str], key: K) -> bool:
    old = work.get(rows, key)
    if old is None:
        return False
    work.remove(rows, key, old)
    return True


class KV(Family[AnyFace]):
    """Small facts under names: text by text."""

    __slots__ = ()
    name = "kv"

    @reads
    def get(self, key: str) -> str | None:
        """The value, or None."""
        return self._work.get(schema.KV, key)

    @writes
    def set(self, key: str, value: str) -> None:
        """Write a value; TypeError when it is no text, ValueError when UTF-8 cannot hold it."""
        _put(self._work, schema.KV, key, value)

    @writes
    def delete(self, key: str) -> bool:
        """Delete a value; False when there was none."""
        return _delete(self._work, schema.KV, key)

    @reads
    def items(self, prefix: str = "") -> list[tuple[str, str]]:
        """The names that begin with `prefix`, in order, each with its value."""
        found = []
        for key, value in self._work.scan(schema.KV, prefix):
            if not key.startswith(prefix):
                break
            found.append((key, value))
        return found


class Aliases(Family[AnyFace]):
    """Other names for sessions: alias to session key, one step deep."""

    __slots__ = ()
    name = "aliases"

    @reads
    def resolve(self, alias: str) -> str | None:
        """The session key that an alias stands for, or None."""
        return self._work.get(ALIASES, alias)

    @writes
    def put(self, alias: str, key: str) -> None:
        """Let an alias stand for a session key; TypeError or ValueError as `kv.set`."""
        _put(self._work, ALIASES, alias, key)

    @writes
    def put_many(self, mapping: Mapping[str, str]) -> None:
        """Put several aliases in one step."""
        for alias, key in mapping.items():
            _put(self._work, ALIASES, alias, key)

    @reads
    def all(self) -> dict[str, str]:
        """Every alias in order, with its session key."""
        return dict(self._work.scan(ALIASES))


class Permissions(Family[AnyFace]):
    """What each agent may do with each application, as text that only the caller understands."""

    __slots__ = ()
    name = "permissions"

    @reads
    def get(self, agent_id: str, app: str) -> str | None:
        """The permission, or None."""
        return self._work.get(PERMISSIONS, (agent_id, app))

    @writes
    def put(self, agent_id: str, app: str, value: str) -> None:
        """Write a permission; TypeError or ValueError as `kv.set`."""
        _put(self._work, PERMISSIONS, (agent_id, app), value)

    @writes
    def delete(self, agent_id: str, app: str) -> bool:
        """Delete a permission; False when there was none."""
        return _delete(self._work, PERMISSIONS, (agent_id, app))

    @reads
    def items(self) -> list[tuple[tuple[str, str], str]]:
        """Every ((agent_id, app), value) in the order of the keys."""
        return list(self._work.scan(PERMISSIONS))


class Cron(Family[AnyFace]):
    """The scheduled jobs, as text that only the caller understands."""

    __slots__ = ()
    name = "cron"

    @reads
    def get(self, id: str) -> str | None:  # noqa: A002  # the contract names the parameter `id`
        """A job's text, or None."""
        return self._work.get(CRON, id)

    @writes
    def put(self, id: str, text: str) -> None:  # noqa: A002  # as above
        """Write a job, whether it exists or not; use `update` for one that may have been deleted meanwhile."""
        _put(self._work, CRON, id, text)

    @writes
    def delete(self, id: str) -> bool:  # noqa: A002  # as above
        """Delete a job; False when there was none."""
        return _delete(self._work, CRON, id)

    @reads
    def items(self) -> list[tuple[str, str]]:
        """Every (id, text) in the order of the ids."""
        return list(self._work.scan(CRON))

    @writes
    def replace_all(self, entries: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        """Make these the only jobs, in one step. Jobs that stay as they are are not written.

        entries  a mapping or pairs of id and text
        raises   TypeError or ValueError before anything changes
        cost     O(jobs before and after)
        """
        work = self._work
        wanted = {name: encode_text(text) for name, text in dict(entries).items()}
        stored = dict(work.scan(CRON))
        for name, text in stored.items():
            if name not in wanted:
                work.remove(CRON, name, text)
        for name, text in wanted.items():
            if name not in stored:
                check_key(name)
            work.put(CRON, name, text, stored.get(name))

    @writes
    def update(self, id: str, function: Callable[[str], str]) -> str:  # noqa: A002  # as above
        """Change a job in one step, if it still exists: a job that was deleted meanwhile does not come back.

        function  old text -> new text; it runs inside the transaction, so it should be short and not use the store
        returns   the new text
        raises    NotFoundError when there is no such job, and whatever `function` raises; nothing has changed then
        """
        old = self._work.get(CRON, id)
        if old is None:
            raise NotFoundError(self.name, id)
        text = encode_text(function(old))
        self._work.put(CRON, id, text, old)
        return text
