"""What can be saved of a damaged file, and with which command: sentences that have been tried before they are said.

A file is damaged in many ways, and what helps differs: all rows may be there with nothing but the
header gone, the newest commit may be in ruins and the one before it whole, or nothing may be left
that a command could write. So nothing is advised by the kind of damage. The newest commit and the
one before are read until each has given a row, and whether one is whole is what the check of the
pages has found. A test damages files in many ways, takes the commands out of these sentences, runs
them, and compares what they write.
"""

from __future__ import annotations

from ..check import Report
from ..errors import BusyError, CorruptError, FormatError, NoSuchCommitError, command
from .commit import NEWEST, OLDER, ShownCommit
from .raw import RawFile
from .tables import TableReader

_HEAD = ("header", "meta", "size")  # kinds of findings that leave rows alone


def what_can_be_saved(raw: RawFile, report: Report) -> list[str]:
    """What to do about the errors of a check.

    report   of the newest commit
    returns  a sentence for each thing that can be done, best first, most of them with a command; none if all is well
    cost     that of reading the first row that can be read of each commit
    """
    if report.ok:
        return []
    if raw.page_size is None:
        return ["no page is left that could be looked at: restore a backup"]
    newest, older = _shown(raw, NEWEST), _shown(raw, OLDER)
    advice: list[str] = []
    if newest is not None and _is_whole(newest, report):
        what = "all rows" if _has_rows(raw, newest) else "all there is, no rows,"
        return [f"{_dump(raw)} writes {what} of commit {newest.txid}"]
    if older is not None and report.older_ok and not older.undecodable:
        advice.append(f"{_dump(raw, '--commit', OLDER)} writes all rows of commit {older.txid}, the one before")
    if newest is not None:
        if _has_rows(raw, newest):
            advice.append(f"{_dump(raw)} writes what can be read of commit {newest.txid}")
        else:
            advice.append(f"no row of commit {newest.txid} can be read")
    if older is not None and not report.older_ok and _has_rows(raw, older):
        text = f"writes what can be read of commit {older.txid}, the one before, which is damaged too"
        advice.append(f"{_dump(raw, '--commit', OLDER)} {text}")
    if not any("writes" in sentence for sentence in advice):
        if newest is None:
            advice.append("no commit can be found, so there is nothing that `dump` could write")
        advice.append(f"restore a backup. {_call(raw, 'pages')} lists the pages that are left")
    return advice


def older_with_rows(raw: RawFile) -> int | None:
    """The commit before the newest; None if there is none, or no row of it can be read."""
    older = _shown(raw, OLDER)
    return older.txid if older is not None and _has_rows(raw, older) else None


def _shown(raw: RawFile, wanted: str) -> ShownCommit | None:
    """A commit, None if it is not there."""
    try:
        commit = ShownCommit(raw, wanted)
    except NoSuchCommitError:
        return None
    return None if commit.choice is None or commit.choice.meta is None else commit


def _is_whole(newest: ShownCommit, report: Report) -> bool:
    """Whether all rows of the newest commit can be read: only what leads to it is damaged, or what came behind it."""
    problem = newest.problem
    end = None if problem is None or newest.undecodable else problem.message  # where the log breaks off
    return all(error.kind in _HEAD or (error.kind == "log" and error.message == end) for error in report.errors)


def _has_rows(raw: RawFile, commit: ShownCommit) -> bool:
    """Whether any row can be read."""

    def passed_over(_: CorruptError) -> None: ...

    reader = TableReader(raw, commit)
    try:
        tables = reader.tables(passed_over)
    except (CorruptError, FormatError, BusyError):
        return False
    for table in tables:
        try:
            for _ in reader.items(table.name, passed_over):
                return True
        except (CorruptError, BusyError):
            continue
    return False


def _dump(raw: RawFile, *options: str) -> str:
    return _call(raw, "dump", *options)


def _call(raw: RawFile, verb: str, *options: str) -> str:
    size = () if raw.asked is None else ("--page-size", str(raw.asked))
    return command(verb, raw.path, *options, *size)
