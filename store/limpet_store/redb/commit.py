"""Which of the two commit slots of a redb file to read, and why.

  recovery flag  two-phase flag  read
  clear          any             the primary slot; it must be valid, and is the newest
  set            set             the primary slot and nothing else: its pages were on disk before the flag byte named
                                 it, while the other slot may hold a newer, unfinished commit
  set            clear           the valid slots, higher transaction id first (the primary first where they are equal);
                                 the first whose trees verify completely, redb's own trees included

A slot is valid if its checksum fits. In the last case a commit wrote its pages, its slot and the flag byte with a
single sync, in any order, so each may be missing after a power cut: the flag byte alone, then the ids tell; a slot
without all of its pages, then a page fails its checksum and the other slot was complete before. In the first two there
is nothing to choose, and what does not fit is damage, not a crash.
"""

from __future__ import annotations

from dataclasses import dataclass

from limpet import CorruptError

from .format import Header


@dataclass(frozen=True, slots=True)
class Plan:
    """The slots to try in this order; with `verify` the first whose trees verify, without it there is just one."""

    candidates: tuple[int, ...]
    verify: bool
    why: str
    rejected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan(header: Header, wanted: int | None = None) -> Plan:
    """Decide what to read.

    wanted   a slot to read whatever the rules say (salvage), None to follow them
    raises   CorruptError: no slot can be read by the rules; the message says whether the other one could be salvaged
    """
    primary, secondary = header.slots[header.primary], header.slots[1 - header.primary]
    if wanted is not None:
        if wanted not in (0, 1):
            raise ValueError(f"slot={wanted}: a redb file has slots 0 and 1")
        if not header.slots[wanted].checksum_ok:
            raise CorruptError(f"slot {wanted} fails its checksum and cannot be salvaged")
        return Plan((wanted,), False, f"slot {wanted} was asked for, whatever the rules say")
    salvage = (
        f"; slot {secondary.index} (transaction {secondary.transaction_id}) can be read as salvage with "
        f"slot={secondary.index}"
        if secondary.checksum_ok
        else "; the other slot fails its checksum as well"
    )
    if not header.recovery_required:
        if not primary.checksum_ok:
            raise CorruptError(f"closed cleanly, but the primary slot {primary.index} fails its checksum{salvage}")
        if secondary.checksum_ok and secondary.transaction_id > primary.transaction_id:
            # The bit that names the primary has no checksum; the transaction ids have one.
            raise CorruptError(
                f"closed cleanly, but the primary slot {primary.index} (transaction {primary.transaction_id}) is older "
                f"than slot {secondary.index}: the flag byte is damaged{salvage}"
            )
        return Plan((primary.index,), False, "closed cleanly: the primary slot is the newest commit")
    if header.two_phase:
        if not primary.checksum_ok:
            raise CorruptError(
                f"not closed cleanly; two-phase, so only the primary slot {primary.index} counts, and it fails its "
                f"checksum{salvage}"
            )
        warnings: tuple[str, ...] = ()
        if secondary.checksum_ok and secondary.transaction_id > primary.transaction_id:
            warnings = (
                f"slot {secondary.index} holds transaction {secondary.transaction_id}, a commit that was not finished",
            )
        return Plan(
            (primary.index,),
            False,
            "not closed cleanly, committed in two phases: the primary slot alone",
            warnings=warnings,
        )
    valid = [slot for slot in (primary, secondary) if slot.checksum_ok]  # the primary first, and sorting is stable
    valid.sort(key=lambda slot: -slot.transaction_id)
    if not valid:
        raise CorruptError("not closed cleanly, and both commit slots fail their checksums")
    return Plan(
        tuple(slot.index for slot in valid),
        True,
        "not closed cleanly: the newest slot whose trees verify completely",
        rejected=tuple(
            f"slot {slot.index} fails its checksum: a commit that was not finished, or damage"
            for slot in header.slots
            if not slot.checksum_ok
        ),
    )
