"""What has been imported into a session, so that the next import brings exactly what is new.

It is kept in the family `kv`, in the same commit as the messages that it speaks of:

  import-openclaw:session:HASH          {"key": session key, "live": generation or null, "transcript": stem or null,
                                         "active": [[first, last], ...] or null, "files": [stem, ...], "chunks": n}
  import-openclaw:entries:HASH:NUMBER   {"generation": n, "entries": [[id or null, mark, seq or null], ...]}

HASH is of the session key, which may be too long for a name. An entry is known by its id and its mark within its
session and generation, never by its place in a file. `live` is the generation whose messages an import made the active
ones, `active` the numbers that it left there: as long as these are the active rows, nobody else has had a hand in them.

Version 0.1 kept a count instead, under `import-openclaw:AGENT/SESSION ID`. What it brought is found by what it says:
its messages are in the archive, with "source": "openclaw". The count only helps where the archive's beginning is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from .. import history, wire
from ..errors import UndecodableError
from ..schema import KV, MESSAGES, after_text
from ..work import Work
from .transcript import SOURCE, Entry, mark_of

COUNTS: Final = "import-openclaw:"  # of version 0.1; its names go on with AGENT/SESSION ID
SESSIONS: Final = "import-openclaw:session:"
ENTRIES: Final = "import-openclaw:entries:"
HASH_BYTES: Final = 16
ENTRIES_PER_CHUNK: Final = 500


class Known(NamedTuple):
    """One message that has been imported.

    id    OpenClaw's id; None where there was none, and for what version 0.1 brought
    mark  the hash of what it says
    seq   its number in the archive; None when it has left the archive
    """

    id: str | None
    mark: str
    seq: int | None


class Place(NamedTuple):
    """Where a message is in the archive; seq is None when it has left it."""

    generation: int
    seq: int | None


class Match(NamedTuple):
    """What is known of an entry.

    place  where it is
    by     "id": by its id and what it says; "mark": by what it says, without an id; "changed": by its id, and it says
           something else now; "count": by the count of version 0.1
    """

    place: Place
    by: Literal["id", "mark", "changed", "count"]


@dataclass(slots=True)
class Record:
    """What has been imported into one session.

    key         the session's key
    live        the generation whose messages an import made the active ones; None: there is none
    transcript  the stem of the file that these came from
    active      the numbers of the active rows as the last import left them; None: they are not only an import's
    files       the stems of all files that were ever the session's transcript
    chunks      how many rows of entries there are
    known       generation -> what it got
    unsaved     rows of entries to be written
    """

    key: str
    live: int | None = None
    transcript: str | None = None
    active: list[int] | None = None
    files: list[str] = field(default_factory=list)
    chunks: int = 0
    known: dict[int, list[Known]] = field(default_factory=dict)
    unsaved: list[dict[str, Any]] = field(default_factory=list)

    def save(self, work: Work) -> None:
        """Write the record; nothing when it is as it was."""
        for row in self.unsaved:
            self.chunks += 1
            _set(work, _chunk_name(self.key, self.chunks), row)
        self.unsaved.clear()
        row = {
            "key": self.key,
            "live": self.live,
            "transcript": self.transcript,
            "active": None if self.active is None else list(_runs(self.active)),
            "files": self.files,
            "chunks": self.chunks,
        }
        _set(work, SESSIONS + _hash(self.key), row)

    def add(self, generation: int, entries: list[Known]) -> None:
        """Note what has been imported, to be written by `save`."""
        self.known.setdefault(generation, []).extend(entries)
        for at in range(0, len(entries), ENTRIES_PER_CHUNK):
            self.unsaved.append({"generation": generation, "entries": entries[at : at + ENTRIES_PER_CHUNK]})


class Finder:
    """Finds what a record knows of a transcript's entries. A message without an id answers for one entry only."""

    def __init__(self, record: Record) -> None:
        self._exact: dict[tuple[str, str], Place] = {}
        self._by_id: dict[str, Place] = {}
        self._nameless: dict[str, list[Place]] = {}
        self._claimed: Counter[str] = Counter()  # mark -> how many of the nameless have answered
        for generation, entries in record.known.items():
            self.learn(generation, entries)

    def learn(self, generation: int, entries: Iterable[Known]) -> None:
        """Know these as well."""
        for known in entries:
            place = Place(generation, known.seq)
            if known.id is None:
                self._nameless.setdefault(known.mark, []).append(place)
            else:
                self._exact.setdefault((known.id, known.mark), place)
                self._by_id.setdefault(known.id, place)

    def find(self, entries: list[Entry]) -> dict[int, Match]:
        """What is known of the entries of one transcript, in order: index of an entry -> its match."""
        found: dict[int, Match] = {}
        claimed = self._claimed.copy()
        times = Counter(entry.id for entry in entries)
        for index, entry in enumerate(entries):
            nameless = self._nameless.get(entry.mark, ())
            if entry.id is not None and (entry.id, entry.mark) in self._exact:
                found[index] = Match(self._exact[entry.id, entry.mark], "id")
            elif claimed[entry.mark] < len(nameless):
                # OpenClaw gives ids to the entries of an old file when it opens it, hence not only for those without.
                found[index] = Match(nameless[claimed[entry.mark]], "mark")
                claimed[entry.mark] += 1
            elif entry.id is not None and entry.id in self._by_id and times[entry.id] == 1:
                found[index] = Match(self._by_id[entry.id], "changed")
        return found

    def claim(self, marks: Iterable[str]) -> None:
        """Let as many of the nameless with these marks answer for nobody else."""
        self._claimed.update(marks)


def load(work: Work | None, key: str) -> Record:
    """The record of a session; an empty one when nothing has been imported.

    raises  UndecodableError when it is not as this module writes it
    """
    record = Record(key)
    name = SESSIONS + _hash(key)
    try:
        row = _get(work, name)
        if row is None:
            return record
        record.live, record.transcript = row["live"], row["transcript"]
        record.active = None if row["active"] is None else [n for a, b in row["active"] for n in range(a, b + 1)]
        record.files, record.chunks = list(row["files"]), row["chunks"]
        for number in range(1, record.chunks + 1):
            chunk = _get(work, _chunk_name(key, number))
            if chunk is not None:
                record.known.setdefault(chunk["generation"], []).extend(Known(*entry) for entry in chunk["entries"])
    except (LookupError, TypeError, ValueError) as error:
        raise UndecodableError(
            f"what was imported cannot be read from kv[{name!r}] ({error}); without that row the next import looks for "
            "its messages in the archive"
        ) from error
    return record


def files(work: Work | None) -> dict[str, set[str]]:
    """Stem of a file -> the sessions whose transcript it was when an import looked."""
    found: dict[str, set[str]] = {}
    if work is not None:
        for name, text in work.scan(KV, SESSIONS):
            if not name.startswith(SESSIONS):
                break
            with contextlib.suppress(LookupError, TypeError, ValueError):  # `load` says what is wrong with it
                row = wire.loads(text)
                for stem in row["files"]:
                    found.setdefault(stem, set()).add(row["key"])
    return found


def adopt(work: Work | None, record: Record) -> bool:
    """Take what version 0.1, or the reference's own import, brought into the record of a session that has none.

    returns  whether there was something
    cost     O(archive of the session), once in the life of a session
    """
    if work is None or record.known:
        return False
    found: dict[int, list[Known]] = {}
    for generation, seq, row in history.archived(work, record.key, (), None):
        if row.message.get("source") == SOURCE:
            found.setdefault(generation, []).append(Known(None, mark_of(row.message), seq))
    for generation, entries in found.items():
        record.add(generation, entries)
    return bool(found)


def count_of_version_01(work: Work | None, agent: str, session_id: str) -> int | None:
    """How many messages version 0.1 brought from a transcript; None when it did not meet it."""
    text = None if work is None else work.get(KV, f"{COUNTS}{agent}/{session_id}")
    return int(text) if text is not None and text.isdecimal() else None


def thinned(work: Work, key: str) -> list[int]:
    """The generations of a session whose oldest rows have been deleted from the archive."""
    return [
        generation
        for generation, counter in history.counters(work, key)
        if (counter.first_seq if counter.row_count else counter.next_seq) > 0
    ]


def active_rows(work: Work | None, key: str) -> list[tuple[int, Any]]:
    """(number, message) of the active rows of a session."""
    if work is None:
        return []
    return [(at[1], message) for at, message in work.scan(MESSAGES, (key,), (after_text(key),))]


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, last) of those that follow each other."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last


def _hash(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=HASH_BYTES).hexdigest()


def _chunk_name(key: str, number: int) -> str:
    return f"{ENTRIES}{_hash(key)}:{number:08}"


def _get(work: Work | None, name: str) -> Any:
    text = None if work is None else work.get(KV, name)
    return None if text is None else wire.loads(text)


def _set(work: Work, name: str, row: dict[str, Any]) -> None:
    work.put(KV, name, wire.dumps(row), work.get(KV, name))
