"""Looking into a file without opening the database: for tools, on damaged files, beside a live writer.

Everything is read with `pread`, nothing is locked, mapped or written, no permission to write is
needed. What the file says of itself is decoded as far as it goes, and where it does not go, the
reason is kept instead of raised:

    header damaged         what is left of it is believed if a meta verifies by it
    header destroyed       the page size is guessed from the pages' own numbers. The seed of the
                           checksums, which is lost with the header, is computed from pages that
                           are still whole (raw.py)
    both metas destroyed   pages can still be looked at one by one
    a page destroyed       the rest of its tree is read all the same, where the caller wants that

Beside a live writer. The commit that was chosen stays whole in the file for as long as one of the
metas names it. When the writer has gone on for two commits, pages of it may be overwritten while
we read. A bad page is therefore believed only if the metas are still the same; else everything is
tried again on the newest commit, a few times.

The modules, from the user inwards; each imports only those below it:

    inspector   `inspect` and `Inspection`: everything there is to ask
    advice      what can be saved of a damaged file, and with which command
    census      all pages at once: the check, and a record of each page
    page        one page, decoded as far as it goes
    tables      tables, their entries, and the way from a meta to an entry
    commit      the metas, which is chosen and why, the log; whether a writer has gone on
    raw         the header or what stands in for it; bytes of pages, and whether they are whole
    results     what is found, as values
"""

from __future__ import annotations

from .inspector import Inspection, inspect
from .results import DecodedPage, Info, MetaInfo, PageInfo, Step, TableSummary, plain, when
from .tables import OnDamage

__all__ = [
    "DecodedPage",
    "Info",
    "Inspection",
    "MetaInfo",
    "OnDamage",
    "PageInfo",
    "Step",
    "TableSummary",
    "inspect",
    "plain",
    "when",
]
