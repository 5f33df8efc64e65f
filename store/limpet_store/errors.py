"""Every error that the store raises on purpose, beside those of the engine.

    limpet.LimpetError
      StoreError
        NotFoundError     an update of a row that does not exist (also a KeyError)
        ExistsError       a new row under an id that is taken
        ConflictError     an update made from an older version of the row than the stored one
        SchemaError       the file has no store in it, or one that a newer release wrote
        UndecodableError  a row's text is not what the table holds (also a ValueError)
        PatternError      a text is no regular expression, or too long for one (also a ValueError)
        SearchLimitError  a search with a regular expression was ended at its bound
        ClockError        the clock is far ahead of all times that the store has recorded: nothing is deleted by it
        LoopError         an AsyncStore is used from an event loop that is not its own (also a RuntimeError)
    UnstorableError       a value that JSON cannot hold (a ValueError and a TypeError)

A row that is missing is no error when it is asked for: `get` gives None. Wrong Python types
are `TypeError`, wrong values `ValueError`; both are raised before anything changes. What the
engine raises (locked, corrupt, poisoned, too large) passes through unchanged.
"""

from __future__ import annotations

from limpet import LimpetError


class StoreError(LimpetError):
    """The root of the store's own errors."""


class NotFoundError(StoreError, KeyError):
    """There is no such row to update.

    family  the family that was asked, such as "tasks"
    id      the id or key that it does not have
    """

    def __init__(self, family: str, id: str) -> None:  # noqa: A002  # the contract names the attribute `id`
        super().__init__(f"{family}: no row with id {id!r}")
        self.family = family
        self.id = id

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr


class ExistsError(StoreError):
    """A new row was to be added under an id that another row has.

    family  the family that was asked
    id      the id that is taken
    """

    def __init__(self, family: str, id: str) -> None:  # noqa: A002  # the contract names the attribute `id`
        super().__init__(f"{family}: there is already a row with id {id!r}")
        self.family = family
        self.id = id


class ConflictError(StoreError):
    """The row was changed by somebody else since it was read; read it again and decide anew.

    family    the family that was asked
    id        the row
    expected  the version that the caller read
    found     the version that is stored
    """

    def __init__(self, family: str, id: str, *, expected: int, found: int) -> None:  # noqa: A002  # as above
        super().__init__(f"{family}: row {id!r} is at version {found}, the update was made from version {expected}")
        self.family = family
        self.id = id
        self.expected = expected
        self.found = found


class SchemaError(StoreError):
    """The tables in the file are not ones that this release can use.

    found      the schema version in the file, or None when there is none
    supported  the newest schema version that this release knows
    """

    def __init__(self, message: str, *, found: int | None, supported: int) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class UndecodableError(StoreError, ValueError):
    """A row's text cannot be read as the record that its table holds."""


class PatternError(StoreError, ValueError):
    """The text cannot be searched for as a regular expression."""


class SearchLimitError(StoreError):
    """A search with a regular expression took more time, or more memory, than it may; what it found is forgotten.

    timeout   seconds that it had
    searched  messages that it had searched by then
    """

    def __init__(self, message: str, *, timeout: float, searched: int) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.searched = searched


class ClockError(StoreError):
    """Nothing was deleted for its age, because the clock can hardly be right.

    now       what the clock says, Unix seconds
    recorded  the newest time that the store has recorded, Unix seconds
    """

    def __init__(self, message: str, *, now: int, recorded: int) -> None:
        super().__init__(message)
        self.now = now
        self.recorded = recorded


class LoopError(StoreError, RuntimeError):
    """An AsyncStore is used from another event loop than the one it was opened in; nothing was done."""


class UnstorableError(ValueError, TypeError):
    """JSON cannot hold the value: NaN, an infinity, a lone surrogate, an integer beyond 64 bits, a foreign type.

    It is a ValueError, since the store cannot hold the value, and a TypeError too, because that is what the `json`
    module raises for a type it does not know.
    """
