"""What sessions, messages and archive have in common: who numbers the messages, and what counts them.

A message gets the next sequence number of its session's current generation and is written twice, as an active row and
as an archive row. Three rules make sure that no archive row is ever overwritten:

  1. The numbers come from inside the transaction that uses them: the largest of what the session's row, the counter of
     the generation and the counter of the active rows say is next.
  2. Every generation that was ever begun has a counter, and the last counter of a session stays for ever: through
     deletion of the session and purging of its archive. It is the tombstone that keeps generation numbers used.
  3. A session that begins again, or whose row was lost, begins with the generation after its last counter.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from .errors import StoreError
from .records import Message, SessionMeta, changed
from .schema import (
    ACTIVE,
    ARCHIVE,
    COUNTERS,
    MESSAGES,
    SESSIONS,
    Archived,
    Counter,
    K,
    R,
    Rows,
    after_text,
    check_key,
)
from .work import Work

T = TypeVar("T")

NO_ROWS = Counter()


def counters(work: Work, key: str) -> Iterator[tuple[int, Counter]]:
    """The generations of a session that were ever begun, ascending, with their counters."""
    for (_, generation), _ in work.view(COUNTERS.table).range((key, ACTIVE + 1), (after_text(key),)):
        yield generation, work.counter(key, generation) or NO_ROWS


def last_generation(work: Work, key: str) -> int:
    """The largest generation number ever used for a session; 0 when there is none."""
    for (_, generation), _ in work.view(COUNTERS.table).prefix((key,), reverse=True):
        return int(generation)
    return 0


def mark_used(work: Work, key: str, generation: int) -> None:
    """Make sure that the generation has a counter, so that its number is not used again."""
    if work.counter(key, generation) is None:
        work.put(COUNTERS, (key, generation), NO_ROWS, None)


def open_session(work: Work, key: str, now: int) -> tuple[SessionMeta, SessionMeta | None]:
    """The session as it is, or as it begins.

    returns  (meta, stored): the row to go on from, and the stored row or None when there is none
    raises   LimitError when a session cannot begin under a key of this size
    """
    stored = work.get(SESSIONS, key)
    if stored is not None:
        return stored, stored
    check_key(key)
    generation = last_generation(work, key) + 1
    return SessionMeta(session_key=key, created_at=now, last_active=now, generation=generation), None


def add(work: Work, key: str, messages: Sequence[Message], *, archive: bool) -> list[int]:
    """Write messages with the next sequence numbers of the session; create the session when there is none.

    archive  whether they are also archived: new messages are, a summary of archived ones is not
    returns  their sequence numbers
    raises   TypeError or ValueError when one of them is no JSON object; nothing has changed then
    """
    texts = [MESSAGES.encode(message) for message in messages]
    now = work.now()
    meta, stored = open_session(work, key, now)
    generation = meta.generation
    active = work.counter(key, ACTIVE)
    history = work.counter(key, generation)
    first = max(meta.message_count, active.next_seq if active else 0, history.next_seq if history else 0)
    seqs = list(range(first, first + len(texts)))

    active_rows, archive_rows = work.view(MESSAGES.table), work.view(ARCHIVE.table)
    active_size = archive_size = 0
    for seq, text in zip(seqs, texts, strict=True):
        raw = text.encode()
        active_rows[key, seq] = raw
        active_size += len(raw)
        if archive:
            raw = archived_row(now, raw)
            archive_rows[key, generation, seq] = raw
            archive_size += len(raw)
    work.put(COUNTERS, (key, ACTIVE), _more(active, seqs, active_size, 0), active)
    if archive:
        work.put(COUNTERS, (key, generation), _more(history, seqs, archive_size, now), history)
    elif history is None:
        mark_used(work, key, generation)
    work.put(SESSIONS, key, changed(meta, message_count=first + len(seqs), last_active=now), stored)
    return seqs


def archive(
    work: Work, key: str, generation: int, messages: Sequence[Message], active: Collection[int] = ()
) -> list[int]:
    """Archive messages of an earlier time after what the generation holds; the session's row is not touched.

    generation  one of the session's, or a new one, which is used from now on
    active      the indexes of those that become active as well; for the session's present generation only
    returns     their sequence numbers; none of them is, or will be, the number of another message of the generation
    raises      TypeError or ValueError when one of them is no JSON object; nothing has changed then
    """
    texts = [MESSAGES.encode(message) for message in messages]
    now = work.now()
    meta = work.get(SESSIONS, key)
    counter = work.counter(key, ACTIVE)
    history = work.counter(key, generation)
    first = history.next_seq if history else 0
    if meta is not None and meta.generation == generation:
        first = max(first, meta.message_count, counter.next_seq if counter else 0)
    seqs = list(range(first, first + len(texts)))
    active_rows, archive_rows = work.view(MESSAGES.table), work.view(ARCHIVE.table)
    active_seqs: list[int] = []
    active_size = size = 0
    for index, (seq, text) in enumerate(zip(seqs, texts, strict=True)):
        raw = text.encode()
        if index in active:
            active_rows[key, seq] = raw
            active_seqs.append(seq)
            active_size += len(raw)
        raw = archived_row(now, raw)
        archive_rows[key, generation, seq] = raw
        size += len(raw)
    if seqs:
        work.put(COUNTERS, (key, generation), _more(history, seqs, size, now), history)
    if active_seqs:
        work.put(COUNTERS, (key, ACTIVE), _more(counter, active_seqs, active_size, 0), counter)
    return seqs


def archived_row(stored_at: int, message: bytes) -> bytes:
    """The value of an archive row, from the value of the active one: saves encoding the message again."""
    return b"[%d,%b]" % (stored_at, message)


def _more(counter: Counter | None, seqs: Sequence[int], size: int, now: int) -> Counter:
    if counter is None or not counter.row_count:
        return Counter(len(seqs), size, seqs[0], seqs[-1] + 1, now)
    row_count, value_size, first_seq, _, oldest_at = counter
    return Counter(row_count + len(seqs), value_size + size, first_seq, seqs[-1] + 1, oldest_at)


def restore(work: Work, rows: Rows[K, R], key: K, record: R) -> bool:
    """Write a row of MESSAGES or ARCHIVE under the number that it had elsewhere.

    returns  False when this row is there already
    raises   StoreError when another row is there
    """
    assert rows.counter is not None
    old = work.get(rows, key)
    if old is not None:
        if old != record:
            raise StoreError(f"{rows.name} has another message under {key!r}")
        return False
    work.put(rows, key, record, None)
    seq: int = key[-1]  # type: ignore[index]  # the keys of both tables are tuples that end so
    session_key, generation = rows.counter(key)
    counter = work.counter(session_key, generation)
    before = counter or Counter(first_seq=seq)
    is_first = not before.row_count or seq < before.first_seq
    stored_at = record.stored_at if isinstance(record, Archived) else 0
    after = Counter(
        row_count=before.row_count + 1,
        value_size=before.value_size + len(work.view(rows.table)[key]),
        first_seq=seq if is_first else before.first_seq,
        next_seq=max(before.next_seq, seq + 1),
        oldest_at=stored_at if is_first else before.oldest_at,
    )
    return work.put(COUNTERS, (session_key, generation), after, counter)


def clear_active(work: Work, key: str) -> int:
    """Delete the active rows of a session and their counter; returns how many rows there were."""
    count = work.remove_range(MESSAGES, (key,), (after_text(key),))
    counter = work.counter(key, ACTIVE)
    if counter is not None:
        work.remove(COUNTERS, (key, ACTIVE), counter)
    return count


def forget_active_from(work: Work, key: str, first_seq: int) -> int:
    """Delete the active rows of a session from a number on; their numbers stay used. Returns how many there were.

    cost  O(rows deleted)
    """
    counter = work.counter(key, ACTIVE)
    gone = [len(raw) for _, raw in work.view(MESSAGES.table).range((key, first_seq), (after_text(key),))]
    if counter is None or not gone:
        return 0
    work.remove_range(MESSAGES, (key, first_seq), (after_text(key),))
    left = counter._replace(row_count=counter.row_count - len(gone), value_size=counter.value_size - sum(gone))
    work.put(COUNTERS, (key, ACTIVE), left if left.row_count else _emptied(left), counter)
    return len(gone)


def delete_session(work: Work, key: str) -> bool:
    """Delete a session's row and its active rows; archive and counters stay. False when there was neither."""
    stored = work.get(SESSIONS, key)
    if stored is not None:
        mark_used(work, key, stored.generation)
        work.remove(SESSIONS, key, stored)
    return clear_active(work, key) > 0 or stored is not None


def archived(
    work: Work, key: str, start: tuple[int, ...], stop: tuple[int, ...] | None, *, reverse: bool = False
) -> Iterator[tuple[int, int, Archived]]:
    """The archive rows of a session from `start` to before `stop`, each a (generation, seq); stop None is the end."""
    end = (after_text(key),) if stop is None else (key, *stop)
    for (_, generation, seq), row in work.scan(ARCHIVE, (key, *start), end, reverse=reverse):
        yield generation, seq, row


def purge(work: Work, key: str, generations: Iterable[tuple[int, Counter]]) -> int:
    """Delete whole generations of a session's archive; their numbers stay used. Returns how many rows there were."""
    last = last_generation(work, key)
    removed = 0
    for generation, counter in list(generations):
        removed += work.remove_range(ARCHIVE, (key, generation), (key, generation + 1))
        if generation == last:
            work.put(COUNTERS, (key, generation), _emptied(counter), counter)
        else:
            work.remove(COUNTERS, (key, generation), counter)
    return removed


def drop_oldest(work: Work, key: str, generation: int, cutoff: int, limit: int, *, dry_run: bool = False) -> int:
    """Delete archive rows of a generation from its beginning while they are older than a time.

    cutoff   Unix seconds; the first row that came then or later stays, and all after it
    limit    at most so many rows
    dry_run  only count them
    returns  how many
    """
    counter = work.counter(key, generation)
    if counter is None or not counter.row_count:
        return 0
    rows = work.view(ARCHIVE.table)
    size = removed = 0
    first_seq, oldest_at = counter.next_seq, 0
    for _, seq, row in archived(work, key, (generation,), (generation + 1,)):
        if removed >= limit or row.stored_at >= cutoff:
            first_seq, oldest_at = seq, row.stored_at
            break
        size += len(rows[key, generation, seq])
        removed += 1
    if dry_run:
        return removed
    # Rows on the way that could not be decoded have been set aside and counted anew.
    counter = work.counter(key, generation) or counter
    if removed:
        work.remove_range(ARCHIVE, (key, generation), (key, generation, first_seq))
    left = counter._replace(row_count=counter.row_count - removed, value_size=counter.value_size - size)
    if not left.row_count:
        left = _emptied(left)
    else:
        left = left._replace(first_seq=first_seq, oldest_at=oldest_at)
    if not left.row_count and generation != last_generation(work, key):
        work.remove(COUNTERS, (key, generation), counter)
    else:
        work.put(COUNTERS, (key, generation), left, counter)
    return removed


def take(limit: int, rows: Iterable[T]) -> list[T]:
    """The first `limit` of these rows; ValueError when the limit is negative."""
    if limit < 0:
        raise ValueError(f"a limit is 0 or more, not {limit}")
    return list(itertools.islice(rows, limit))


def _emptied(counter: Counter) -> Counter:
    return Counter(first_seq=counter.next_seq, next_seq=counter.next_seq)


def active_count(work: Work, key: str) -> int:
    """How many active messages a session has; one look-up."""
    counter = work.counter(key, ACTIVE)
    return 0 if counter is None else counter.row_count
