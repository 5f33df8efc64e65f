"""Every error that the store raises on purpose, beside those of the engine.

    limpet.LimpetError
      StoreError
        NotFoundError     an update of a row that does not exist (also a KeyError)
        ExistsError       a new row under an id that is taken
        ConflictError     an update made from an older version of the row than the stored one
        SchemaError       the file has no store in it, or one that a newer release wrote
        UndecodableError  a row's text is not what the table holds (also a ValueError)
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


class UnstorableError(ValueError, TypeError):
    """JSON cannot hold the value: NaN, an infinity, a lone surrogate, an integer beyond 64 bits, a foreign type.

    It is a ValueError, since the store cannot hold the value, and a TypeError too, because that is what the `json`
    module raises for a type it does not know.
    """
