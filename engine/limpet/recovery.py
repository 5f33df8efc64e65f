"""Which state a file holds. Reads and verifies, writes nothing, gives the same answer every time.

A state is a checkpoint and the log on top of it:

    a meta that fails its checksum   is a torn checkpoint, or damage: the other one is taken
    a valid meta                     was written after all it needs had been synced, so it is
                                     trusted; if a page below it turns out bad, that is damage,
                                     and is reported
    a log record                     is believed if it is whole and continues the one before it
    the first that is not            is the end of the log: it was being written when the program
                                     or the machine died; unless a later record proves that it
                                     was safe by then. That is damage, and nothing is opened

A clean close leaves its mark in the newest meta, and no record. Without that the file may have been
left by a failed sync, after which Linux can show bytes in its cache that are not on disk: the
caller syncs, drops the cache and looks again before it believes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import btree
from .codecs import key_codec, value_codec
from .errors import CorruptError, command
from .format import CATALOGUE_TREE, META_PGNOS, META_SIZE, Meta, decode_catalogue_entry, decode_meta
from .log import Replay, replay
from .overlay import TableInfo
from .pager import Pager


@dataclass(slots=True)
class Choice:
    """The outcome.

    found     both metas, or what is wrong with them
    slot      index into META_PGNOS of the chosen meta, None if there is none
    meta      the checkpoint
    older     the other meta, where it is valid and older (or equal): its pages must stay
    log       the records on top of the checkpoint
    reasons   what was decided and why, one sentence each
    problem   why the state cannot be opened, or that there is none
    """

    found: list[Meta | CorruptError]
    slot: int | None = None
    meta: Meta | None = None
    older: Meta | None = None
    log: Replay | None = None
    reasons: list[str] = field(default_factory=list)
    problem: CorruptError | None = None

    @property
    def clean(self) -> bool:
        """Whether the file was closed cleanly, and nothing was committed since."""
        return (
            self.meta is not None
            and self.meta.clean
            and self.older is not None
            and self.log is not None
            and not self.log.records
        )


def refusal(choice: Choice, path: str) -> CorruptError:
    """Why a state is not opened, for who wanted to open it: with the way to what can be saved."""
    error = choice.problem or CorruptError("no commit can be read")
    advice = f"{error.message}; {command('check', path)} says what can be saved, and how"
    return CorruptError(
        advice, pgno=error.pgno, offset=error.offset, expected=error.expected, found=error.found, table=error.table
    )


def recover(pager: Pager, *, glance: bool = False) -> Choice:
    """Read the metas and the log, and choose.

    glance    leave out the log of a file that was not closed cleanly: the caller will look again anyway
    returns   the choice; `problem` is set where the file cannot be opened
    cost      two metas and one look at each page of the log, at most 2 MiB, whatever the size of the file
    """
    size = pager.file.size()
    choice = choose(read_metas(pager), size, pager.page_size)
    meta = choice.meta
    if meta is None or (glance and (not meta.clean or read_log(pager, meta, _GLANCE_PAGES).records)):
        return choice
    choice.log = read_log(pager, meta)
    if choice.log.records:
        choice.reasons.append(
            f"the log goes on from there to commit {choice.log.last_txid} in {len(choice.log.records)} records"
        )
    choice.problem = choice.problem or choice.log.problem
    return choice


def read_metas(pager: Pager) -> list[Meta | CorruptError]:
    """Both metas from disk, each decoded or with its error."""
    found: list[Meta | CorruptError] = []
    for slot in META_PGNOS:
        data = pager.file.read(slot * pager.page_size, META_SIZE)
        try:
            found.append(decode_meta(data, slot, pager.page_size, pager.checksum, pager.seed))
        except CorruptError as error:
            found.append(error)
    return found


_GLANCE_PAGES = 16  # a first record that is longer is found a moment later


def read_log(pager: Pager, meta: Meta, pages: int | None = None) -> Replay:
    """The log on top of a checkpoint, from disk: all of it, or its first pages."""
    size = pager.page_size
    count = meta.log_size if pages is None else min(pages, meta.log_size)
    region = pager.file.read(meta.log_start * size, count * size)
    return replay(region, meta.log_start, meta.epoch, size, pager.checksum, pager.seed)


def choose(found: list[Meta | CorruptError], file_size: int, page_size: int) -> Choice:
    """Choose the checkpoint to open.

    found     both metas, as `read_metas` gives them
    returns   the choice, without the log
    """
    choice = Choice(found)
    for slot, meta in enumerate(found):
        if isinstance(meta, CorruptError):
            choice.reasons.append(f"page {META_PGNOS[slot]}: {meta.message}; not used")
    valid = [(meta.txid, meta.clean, slot) for slot, meta in enumerate(found) if isinstance(meta, Meta)]
    if not valid:
        choice.problem = CorruptError(
            f"no commit can be read: {'; '.join(choice.reasons)}", offset=META_PGNOS[0] * page_size
        )
        return choice
    choice.slot = max(valid)[2]
    meta, other = found[choice.slot], found[1 - choice.slot]
    assert isinstance(meta, Meta)
    choice.meta = meta
    choice.reasons.append(f"page {META_PGNOS[choice.slot]}: checkpoint {meta.txid} is the newest; chosen")
    needed = meta.high_water * page_size
    if file_size < needed:
        choice.problem = CorruptError(
            f"the file was cut short: checkpoint {meta.txid} needs {needed} bytes",
            offset=file_size,
            expected=f"{needed} bytes",
            found=f"{file_size} bytes",
        )
    if isinstance(other, Meta):
        if file_size >= other.high_water * page_size:
            choice.older = other
        else:
            choice.reasons.append(
                f"page {META_PGNOS[1 - choice.slot]}: checkpoint {other.txid} reaches beyond the file; not used"
            )
    return choice


def load_tables(pager: Pager, meta: Meta) -> dict[str, TableInfo]:
    """The tables of a checkpoint, from its catalogue, without the log.

    raises   CorruptError
    """
    tables: dict[str, TableInfo] = {}
    if meta.catalogue_root:
        for keys, values in btree.scan(pager, meta.catalogue_root, CATALOGUE_TREE, None, None):
            for key, value in zip(keys, values, strict=True):
                try:
                    name = key.decode()
                except UnicodeDecodeError as error:
                    raise CorruptError(f"the catalogue holds a name that is not UTF-8: {error}") from None
                entry = decode_catalogue_entry(value, name)
                tables[name] = TableInfo(
                    entry.tree_id,
                    entry.root,
                    entry.entry_count,
                    (key_codec(entry.key_shape, entry.key_codecs, name), value_codec(entry.value_codec, name)),
                    rows=pager.row_cache(),
                )
    if len(tables) != meta.table_count:
        raise CorruptError("the catalogue is incomplete", expected=meta.table_count, found=len(tables))
    return tables
