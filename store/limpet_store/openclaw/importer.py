"""Brings an OpenClaw home into a store, session by session, and gives the account."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import limpet

from ..errors import UndecodableError
from ..store import Store
from . import record as records
from .account import LEFT_OUT, Account, Lines, count_lines
from .folder import Session, find, spellings
from .session import SessionImport
from .transcript import read

Progress = Callable[[int, int], None]


def import_openclaw(
    directory: str | os.PathLike[str],
    store: Store | None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Account:
    """Bring the sessions under a directory into a store.

    directory  OpenClaw's home, one agent's directory in it, or a folder with an index; it is only read
    store      the store; None for a dry run against an empty one. Nobody else writes into it meanwhile
    dry_run    write nothing and say what would come over
    progress   called now and then with (sessions done, sessions in all)
    returns    the account
    raises     FileNotFoundError when there is no index, UndecodableError when one cannot be read; OSError; and what a
               commit raises
    cost       one pass over the files, and over the active rows of the sessions; a commit for 500 messages
    """
    return _Import(store, Account(dry_run or store is None), progress).run(directory)


class _Import:
    def __init__(self, store: Store | None, account: Account, progress: Progress | None) -> None:
        self._store = store
        self._account = account
        self._progress = progress
        self._lines = Lines()

    def run(self, directory: str | os.PathLike[str]) -> Account:
        account, store = self._account, self._store
        aliases: dict[str, str] = {} if store is None else store.aliases.all()
        met: dict[str, set[str]] = {}
        if store is not None:
            with store.reading() as work:
                met = records.files(work)
        home = find(directory, met)
        for number, session in enumerate(home.sessions, 1):
            if session.transcript is None:
                account.without += 1
            if session.transcript is not None or session.earlier:
                self._session(session)
                new = {alias: session.key for alias in spellings(session.key) if alias not in aliases}
                aliases |= new
                account.aliases += len(new)
                if new and store is not None and not account.dry_run:
                    self._put_aliases(store, new)
            if self._progress is not None:
                self._progress(number, len(home.sessions))
        account.lines = self._lines.total()
        account.line_count = self._lines.count()
        for path, reason in home.others.items():
            if path not in self._lines:  # a file of one agent may be another's transcript
                count = count_lines(path)
                account.lines[reason] += count
                account.line_count += count
        account.lines = +account.lines
        return account

    def _put_aliases(self, store: Store, aliases: dict[str, str]) -> None:
        try:
            store.aliases.put_many(aliases)
        except limpet.LimitError as error:
            self._account.errors.append(f"aliases of {next(iter(aliases.values()))!r}: {error}")

    def _session(self, session: Session) -> None:
        account = self._account
        try:
            one = SessionImport(self._store, session, dry_run=account.dry_run)
            for path in session.files:
                self._file(one, path)
        except (limpet.LimitError, UndecodableError) as error:
            account.errors.append(f"session {session.key!r}: {error}")
            for path in session.files:
                transcript = read(path)
                self._lines.add(path, [reason or LEFT_OUT for reason in transcript.reasons], transcript.size)
            return
        account.messages += one.added
        account.sessions += one.added > 0
        account.activated += one.activated

    def _file(self, one: SessionImport, path: Path) -> None:
        transcript = read(path)
        if path not in self._lines:
            self._account.errors += [f"{path}:{line}: {what}" for line, what in transcript.errors]
            self._account.mended += [f"{path}:{line}" for line in transcript.mended]
        outcomes = one.add(path, transcript)
        reasons = list(transcript.reasons)
        for entry, outcome in zip(transcript.entries, outcomes, strict=True):
            reasons[entry.line] = outcome
        self._lines.add(path, reasons, transcript.size)
