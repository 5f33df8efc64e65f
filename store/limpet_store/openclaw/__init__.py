"""Moving in from OpenClaw: its conversations as they lie on disk, and how they become ours.

    from limpet_store.openclaw import import_openclaw

    account = import_openclaw("/home/ada/.openclaw", store)

Modules from the user inwards: `importer` (a whole home), `session` (one session of it), `folder` (which file belongs to
which session), `record` (what has been imported, so that the next import brings what is new), `transcript` (one file),
`account` (what became of every line).
"""

from __future__ import annotations

from .account import Account
from .importer import Progress, import_openclaw

__all__ = ["Account", "Progress", "import_openclaw"]
