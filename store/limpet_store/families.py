"""The families side by side: the one list of them, for the store, its transactions, and both for asyncio."""

from __future__ import annotations

from typing import Generic

from .archive import Archive
from .family import AnyFace, Scope
from .idempotency import Idempotency
from .jobs import Jobs
from .messages import Messages
from .pairing import Pairing
from .sessions import Sessions
from .tasks import Tasks
from .texts import KV, Aliases, Cron, Permissions


class Families(Generic[AnyFace]):
    """Every family as an attribute under its name, bound to one scope (see family.py)."""

    def __init__(self, scope: Scope) -> None:
        self.sessions: Sessions[AnyFace] = Sessions(scope)
        self.messages: Messages[AnyFace] = Messages(scope)
        self.archive: Archive[AnyFace] = Archive(scope)
        self.pairing: Pairing[AnyFace] = Pairing(scope)
        self.kv: KV[AnyFace] = KV(scope)
        self.aliases: Aliases[AnyFace] = Aliases(scope)
        self.tasks: Tasks[AnyFace] = Tasks(scope)
        self.jobs: Jobs[AnyFace] = Jobs(scope)
        self.idempotency: Idempotency[AnyFace] = Idempotency(scope)
        self.permissions: Permissions[AnyFace] = Permissions(scope)
        self.cron: Cron[AnyFace] = Cron(scope)
