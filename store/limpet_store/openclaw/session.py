"""Brings one session of OpenClaw over: its files one after the other, the present transcript last.

- Each file is a generation of its own: the earlier ones come first, in order, and are archived only. What the present
  transcript holds is archived in the last generation, and the messages on its chain are the active ones.
- What has been imported is known by the record of the session (record.py), and never by its place in a file. New
  messages are archived in the generation of those around them, after what is there.
- The active rows follow the transcript (another branch, messages that compaction took out) as long as nobody but an
  import has had a hand in them. Once the session has gone on in the store, they only get what is new; once it has
  begun afresh there, or was deleted, not even that: then what is new is archived. The store's own conversation is
  never touched.
- A commit holds a few hundred messages and the part of the record that speaks of them: an import that was interrupted
  is finished by the next one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from .. import history, sessions, wire
from ..records import Message, SessionMeta, changed
from ..schema import ACTIVE, MESSAGES, SESSIONS
from ..store import Store
from ..work import Work
from . import record as records
from .account import ARCHIVED, CHANGED, IMPORTED, THERE, TWICE
from .folder import Session, stem_of, text_of
from .record import Finder, Known, Match, Place, Record
from .transcript import SOURCE, Entry, Transcript

MESSAGES_PER_COMMIT: Final = 500


class _Wanted(NamedTuple):
    """A message that should be active; seq is its number in the archive of the live generation, None elsewhere."""

    seq: int | None
    message: Message


class SessionImport:
    """The import of one session.

    added      messages that were added, or would be
    activated  whether messages that were active are so no longer
    """

    def __init__(self, store: Store | None, session: Session, *, dry_run: bool) -> None:
        """Read what the store knows of the session.

        store    None: an empty one
        dry_run  write nothing
        raises   UndecodableError when the record of an earlier import cannot be read
        """
        self.added = 0
        self.activated = False
        self._store = None if dry_run else store
        self._session = session
        self._key = session.key
        self._record = Record(session.key)
        self._meta: SessionMeta | None = None
        self._last = 0  # the largest generation ever used
        self._active: list[tuple[int, Message]] = []
        self._is_fresh = False  # the session's generation has never had a message
        self._counts: dict[str, int] = {}  # what version 0.1 knew of the files
        self._is_thinned = False  # some of what it brought may have left the archive
        self._claimed: set[int] = set()  # the generations that earlier files turned out to be
        self._begins = False  # the next commit begins the live generation
        if store is not None:
            with store.reading() as work:
                self._read(work)
        self._finder = Finder(self._record)

    def _read(self, work: Work) -> None:
        key = self._key
        self._meta = meta = work.get(SESSIONS, key)
        self._last = max(history.last_generation(work, key), 0 if meta is None else meta.generation)
        self._active = records.active_rows(work, key)
        self._record = record = records.load(work, key)
        if meta is not None:
            counter = work.counter(key, meta.generation)
            self._is_fresh = not meta.message_count and (counter is None or not counter.next_seq)
        if record.known or record.live is not None:
            return
        records.adopt(work, record)
        for name in {self._session.session_id, *map(stem_of, self._session.files)}:
            count = records.count_of_version_01(work, self._session.agent, name)
            if count is not None:
                self._counts[name] = count
        thinned = records.thinned(work, key) if self._counts else []
        self._is_thinned = bool(thinned)
        if record.known or thinned:
            record.live = max([*record.known, *thinned])
            if self._active and all(message.get("source") == SOURCE for _, message in self._active):
                record.active = [seq for seq, _ in self._active]

    # --- deciding ----------------------------------------------------------------------------------------------------

    def add(self, path: Path, transcript: Transcript) -> list[str]:
        """Bring one file over, the present transcript after all others.

        returns  what became of each of its messages
        raises   what a commit raises; what is committed by then is recorded
        """
        is_present = path == self._session.transcript
        entries = transcript.entries
        repeated = _repeated(entries)
        matches = self._matches(path, entries, repeated)
        votes = _votes(entries, matches)
        if votes is None:  # what looked known is another conversation's
            matches = {}
        gone = [entries[index] for index, match in matches.items() if match.by == "count"]
        if gone:
            self._record.add(self._last, [Known(entry.id, entry.mark, None) for entry in gone])
        self._finder.claim(entries[index].mark for index, match in matches.items() if match.by == "mark")
        new = [index for index in range(len(entries)) if index not in matches and index not in repeated]
        live, generation = (False, votes)
        if is_present:
            if entries:
                live, generation = self._present(stem_of(path), votes)
            self._note_file(stem_of(path), live=live)
        elif votes is not None:
            self._claimed.add(votes)
        if generation is None and new:
            generation = self._last = self._last + 1
        follows = live and self._is_untouched()
        outcomes = [_outcome(index, matches, repeated) for index in range(len(entries))]
        for index in new:
            outcomes[index] = IMPORTED if live and entries[index].on_chain else ARCHIVED
        self.added += len(new)
        wanted = [index for index, entry in enumerate(entries) if entry.on_chain and index not in repeated]
        kept = self._agreeing([entries[index].message for index in wanted]) if follows else 0
        # As a rule the chain has only grown, and each message becomes active in the commit that archives it.
        appends = follows and kept == len(self._active) and not matches.keys() & set(wanted[kept:])
        seqs = self._archive(
            generation or 0,
            [(index, entries[index]) for index in new],
            activate=live and (appends or not follows),
            follows=follows,
        )
        if follows and not appends:
            for index, match in matches.items():
                if match.by != "changed" and match.place.generation == generation:
                    seqs[index] = match.place.seq
            self._follow([_Wanted(seqs.get(index), entries[index].message) for index in wanted], kept)
        self._save()
        return outcomes

    def _agreeing(self, wanted: list[Message]) -> int:
        """How many of the messages that should be active are so already, counted from the beginning."""
        kept = 0
        while kept < min(len(self._active), len(wanted)) and self._active[kept][1] == wanted[kept]:
            kept += 1
        return kept

    def _matches(self, path: Path, entries: list[Entry], repeated: set[int]) -> dict[int, Match]:
        """What is known of the entries; where the archive's beginning is gone, by the count of version 0.1 as well."""
        matches = {index: match for index, match in self._finder.find(entries).items() if index not in repeated}
        name = self._session.session_id if path == self._session.transcript else stem_of(path)
        count = self._counts.get(stem_of(path), self._counts.get(name))
        if count is None or not self._is_thinned:
            return matches
        limit = min([count, *(entries[index].ordinal for index in matches)])
        gone = [
            index
            for index, entry in enumerate(entries)
            if index not in matches and index not in repeated and entry.ordinal < limit
        ]
        return matches | {index: Match(Place(self._last, None), "count") for index in gone}

    def _present(self, stem: str, votes: int | None) -> tuple[bool, int | None]:
        """Whether the present transcript is what the session goes on with, and its generation; None is a new one.

        votes  the generation that most of its messages are in already
        """
        record, meta = self._record, self._meta
        if record.live is None:
            if meta is not None and self._active:
                return False, votes  # a conversation that began in the store
            return True, self._begin(votes)
        if record.transcript is None:
            same = bool(self._counts)  # version 0.1 knew the file, and kept one generation for all
        else:
            same = record.transcript == stem
        if votes is None and record.live in self._claimed:
            same = False  # what was live has become an earlier file; this one has its name
        if same or votes == record.live:
            return meta is not None and meta.generation == record.live, record.live
        if meta is None or self._is_untouched():
            return True, self._begin(votes)
        return False, votes

    def _begin(self, votes: int | None) -> int:
        """Let the next commit begin a live generation; returns its number."""
        generation = 0 if self._meta is None else self._meta.generation
        if votes is not None and votes == self._last:
            generation = votes
        elif self._meta is None or not self._is_fresh or generation < self._last:
            generation = self._last + 1
        self.activated = self.activated or bool(self._active)
        self._last = self._record.live = generation
        self._active = []
        self._record.active = []
        self._begins = True
        return generation

    def _is_untouched(self) -> bool:
        """Whether the active rows are as an import left them."""
        record, meta = self._record, self._meta
        if self._begins:
            return True
        is_live = meta is not None and meta.generation == record.live
        return is_live and record.active == [seq for seq, _ in self._active]

    def _note_file(self, stem: str, *, live: bool) -> None:
        if stem not in self._record.files:
            self._record.files.append(stem)
        if live:
            self._record.transcript = stem

    # --- writing -----------------------------------------------------------------------------------------------------

    def _archive(
        self, generation: int, new: list[tuple[int, Entry]], *, activate: bool, follows: bool
    ) -> dict[int, int | None]:
        """Archive messages and record them; returns the number that each of them got, by its index.

        activate  append those on the chain to the active rows as well
        follows   the active rows are those of the transcript, and nothing else
        """
        seqs: dict[int, int | None] = {}
        for at in range(0, len(new), MESSAGES_PER_COMMIT):
            batch = new[at : at + MESSAGES_PER_COMMIT]
            if self._store is None:
                known = [Known(entry.id, entry.mark, None) for _, entry in batch]
            else:
                with self._store.writing() as work:
                    self._begin_in(work)
                    messages = [entry.message for _, entry in batch]
                    active = {at for at, (_, entry) in enumerate(batch) if activate and entry.on_chain}
                    numbers = history.archive(work, self._key, generation, messages, active)
                    known = [Known(entry.id, entry.mark, seq) for (_, entry), seq in zip(batch, numbers, strict=True)]
                    seqs |= {index: seq for (index, _), seq in zip(batch, numbers, strict=True)}
                    if activate:
                        self._count_on(work)
                    if activate and follows:
                        self._record.active = [*(self._record.active or ()), *(numbers[at] for at in sorted(active))]
                        self._date(work)
                    self._record.add(generation, known)
                    self._record.save(work)
            self._finder.learn(generation, known)
            self._finder.claim(one.mark for one in known if one.id is None)
        return seqs

    def _follow(self, wanted: list[_Wanted], kept: int) -> None:
        """Make these the active messages; so many of them are already."""
        self.activated = self.activated or kept < len(self._active)
        if self._store is None or (kept == len(self._active) == len(wanted)):
            return
        active = [seq for seq, _ in self._active[:kept]]
        self._record.active = active
        for at in range(kept, max(len(wanted), kept + 1), MESSAGES_PER_COMMIT):
            with self._store.writing() as work:
                self._begin_in(work)
                if at == kept:
                    history.forget_active_from(work, self._key, active[-1] + 1 if active else 0)
                for seq, message in wanted[at : at + MESSAGES_PER_COMMIT]:
                    if seq is None or (active and seq <= active[-1]):
                        seq = self._next_number(work)
                    history.restore(work, MESSAGES, (self._key, seq), message)
                    active.append(seq)
                self._count_on(work)
                self._date(work)
                self._record.save(work)

    def _save(self) -> None:
        """Write what has not been written with messages."""
        if self._store is not None:
            with self._store.writing() as work:
                self._begin_in(work)
                self._record.save(work)

    def _begin_in(self, work: Work) -> None:
        """Begin the live generation, once."""
        if not self._begins:
            return
        generation = self._record.live
        assert generation is not None
        meta, stored = history.open_session(work, self._key, work.now())
        sessions.begin_generation(work, meta, stored, generation)
        self._count_on(work)
        self._begins = False
        self._meta = work.get(SESSIONS, self._key)

    def _next_number(self, work: Work) -> int:
        """The next number of the live generation, as for a message that is appended."""
        meta = work.get(SESSIONS, self._key)
        counters = (work.counter(self._key, ACTIVE), work.counter(self._key, self._record.live or 0))
        return max(meta.message_count if meta else 0, *(counter.next_seq if counter else 0 for counter in counters))

    def _count_on(self, work: Work) -> None:
        """Let the session's row say the number that comes next."""
        meta = work.get(SESSIONS, self._key)
        if meta is not None:
            work.put(SESSIONS, self._key, changed(meta, message_count=self._next_number(work)), meta)

    def _date(self, work: Work) -> None:
        """Give the session the times and the name that it had."""
        meta, entry = work.get(SESSIONS, self._key), self._session.entry
        if meta is None:
            return
        origin = entry.get("origin")
        label = text_of(origin.get("label")) if isinstance(origin, dict) else ""
        updated = _seconds(entry.get("updatedAt"), meta.last_active)
        dated = changed(
            meta,
            last_active=updated,
            created_at=min(_seconds(entry.get("sessionStartedAt"), meta.created_at), updated),
            peer_name=label if label and meta.peer_name is None else meta.peer_name,
        )
        work.put(SESSIONS, self._key, dated, meta)


def _outcome(index: int, matches: dict[int, Match], repeated: set[int]) -> str:
    if index in repeated:
        return TWICE
    return CHANGED if index in matches and matches[index].by == "changed" else THERE


def _repeated(entries: list[Entry]) -> set[int]:
    """The indexes of entries that stand in the file before: with the same id, and saying the same."""
    seen: set[tuple[str, str]] = set()
    repeated: set[int] = set()
    for index, entry in enumerate(entries):
        if entry.id is not None:
            if (entry.id, entry.mark) in seen:
                repeated.add(index)
            seen.add((entry.id, entry.mark))
    return repeated


def _votes(entries: list[Entry], matches: dict[int, Match]) -> int | None:
    """The generation that these messages are in already; None when they are another conversation's.

    An id and the same text prove it. A text alone does when its time is the same, too; without times half of the file
    has to agree: "ok" is said in every conversation.
    """
    named = [match for match in matches.values() if match.by == "id"]
    if not named:
        dated = any(
            entries[index].message["timestamp"] is not None for index, match in matches.items() if match.by != "changed"
        )
        if not dated and 2 * len(matches) < max(len(entries), 1):
            return None
    found = Counter(match.place.generation for match in (named or matches.values()))
    return max(found, key=lambda generation: (found[generation], generation)) if found else None


def _seconds(milliseconds: Any, default: int) -> int:
    known = type(milliseconds) is int and 0 < milliseconds <= wire.INT_MAX
    return milliseconds // 1000 if known else default
