"""Which peers may talk to the agent, by channel."""

from __future__ import annotations

from .family import AnyFace, Family, reads, writes
from .records import Approved, PairingState
from .schema import PAIRING, after_text, check_key


class Pairing(Family[AnyFace]):
    """The state of each peer of each channel: Approved, or Pending with a code."""

    __slots__ = ()
    name = "pairing"

    @reads
    def get(self, channel: str, peer_id: str) -> PairingState | None:
        """A peer's state, or None when it was never seen."""
        return self._work.get(PAIRING, (channel, peer_id))

    @writes
    def put(self, channel: str, peer_id: str, state: PairingState) -> None:
        """Write a peer's state; TypeError when it is neither Approved nor Pending."""
        if not isinstance(state, PairingState):
            raise TypeError(f"Approved or Pending is needed, not {type(state).__name__}")
        old = self._work.get(PAIRING, (channel, peer_id))
        if old is None:
            check_key(channel, peer_id)
        self._work.put(PAIRING, (channel, peer_id), state, old)

    @reads
    def approved(self, channel: str) -> list[str]:
        """The ids of a channel's approved peers, in order; reads that channel's rows only."""
        found = self._work.scan(PAIRING, (channel,), (after_text(channel),))
        return [peer_id for (_, peer_id), state in found if isinstance(state, Approved)]

    @writes
    def delete(self, channel: str, peer_id: str) -> bool:
        """Forget a peer; False when there was nothing to forget."""
        state = self._work.get(PAIRING, (channel, peer_id))
        if state is None:
            return False
        self._work.remove(PAIRING, (channel, peer_id), state)
        return True
