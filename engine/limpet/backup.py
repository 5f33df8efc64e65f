"""Writing a snapshot into a new file: for backups, and for compaction.

The new file is written front to back: each table's entries in key order into full leaves, the
branches over them as they fill. Every page read on the way is verified. The file appears under
its name only when it is whole and synced, so a crash leaves at most a `.new` file behind. Who builds
one holds its lock; so the next one to build at that path, or to open what is there, knows which of
them nobody is building any more, and removes those.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from .codecs import describe_key
from .errors import CorruptError, LimpetError, LockedError
from .file import File, FileSystem, random_bytes
from .format import (
    CATALOGUE_TREE,
    FIRST_NODE_PGNO,
    MAGIC,
    META_PGNOS,
    CatalogueEntry,
    Header,
    Meta,
    Pgno,
    Ref,
    Txid,
    encode_catalogue_entry,
    encode_header,
    encode_meta,
    make_stamp,
    max_inline_entry,
    overflow_page_count,
)
from .node import (
    Overflow,
    branch_entry_size,
    branch_payload,
    encode_branch,
    encode_leaf,
    encode_overflow,
    leaf_entry_size,
    leaf_payload,
    overflow_record,
    separator,
)
from .overlay import SnapshotTree, TableInfo, named
from .pager import Pager

_log = logging.getLogger("limpet")

Progress = Callable[[int, int], None]

_MOMENTS, _MOMENT_S = 20, 0.01
_BUFFERED = 256  # pages gathered before they are written
_TRIES = 10  # to lock a file that was just made under a name that nobody knows
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.new")  # what `_temporary_name` puts behind a path


def _temporary_name(path: str) -> str:
    """Where a file is built before it gets its name: beside it, on the same file system."""
    return f"{path}.{random_bytes(4).hex()}.new"


def create_beside(file_system: FileSystem, path: str, like: File | None = None, *, will_be_used: bool = True) -> File:
    """A new file to be built beside `path`: locked, and for its owner alone, or for those who may read `like`.

    What earlier ones have left there is removed first.

    will_be_used  who builds it goes on to use it under its name, and so has an exclusive lock; else it has a shared
                  one, which is enough against those who look for leftovers
    raises   OSError, which names `path`, here and in whatever is done with the file until it has that name
    """
    remove_leftovers(file_system, path)
    with _said_of(path):
        file = _create_locked(file_system, path, exclusive=will_be_used)
    try:
        if like is not None:
            file.copy_mode(like)
    except BaseException:
        file.close()
        remove_quietly(file_system, file.path)
        raise
    return file


def _create_locked(file_system: FileSystem, path: str, *, exclusive: bool) -> File:
    for _ in range(_TRIES):
        try:
            file = file_system.create(_temporary_name(path), built_for=path)
        except LockedError:
            continue  # as below, in another thread
        try:
            if file.try_lock(exclusive=exclusive) and file.is_at_path():
                return file
        except OSError:  # there are no locks here; then nobody can take it for a leftover either
            return file
        except BaseException:
            file.close()
            remove_quietly(file_system, file.path)
            raise
        file.close()  # somebody came between creation and lock, and has taken it for a leftover
        remove_quietly(file_system, file.path)
    raise LockedError(f"{path}: the new file was locked by another process as soon as it was made")


def remove_leftovers(file_system: FileSystem, path: str, own: File | None = None) -> None:
    """Remove the files that were to get the name `path`, and whose builders have died. If that fails, they stay.

    own      the file at `path`, open: a builder that died between giving it its name and taking the other one away
             has left it with both
    cost     a look at each name in the folder, 0.4 us
    """
    try:
        names = file_system.beside(path)
    except OSError as error:
        _log.debug("%s: could not look for what was left beside it: %s", path, error)
        return
    for name in names:
        if not _TEMPORARY.fullmatch(name, len(path)):
            continue
        try:
            if own is not None and own.is_at(name):
                file_system.remove(name)
            else:
                _remove_leftover(file_system, name)
        except (OSError, LimpetError) as error:  # LockedError: this process is building it
            _log.debug("%s: left behind (%s)", name, error)


def _remove_leftover(file_system: FileSystem, name: str) -> None:
    file = file_system.open(name, writable=True)
    try:
        head = file.read(0, len(MAGIC))
        is_ours = head == MAGIC or not head.strip(b"\0")  # zeros come first
        if is_ours and file.try_lock(exclusive=True) and file.is_at_path():
            file_system.remove(name)
            _log.info("%s: removed; the process that was writing it has died", name)
    finally:
        file.close()


def remove_quietly(file_system: FileSystem, path: str) -> None:
    """Remove a file that nobody needs; if that fails, it stays."""
    try:
        file_system.remove(path)
    except OSError as error:
        _log.debug("%s: left behind (%s)", path, error)


@contextmanager
def _said_of(path: str) -> Iterator[None]:
    """Whatever the system says inside is said of this path: nobody has asked for the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def check_replaceable(file_system: FileSystem, own: File, own_path: str, target: str, *, overwrite: bool) -> None:
    """Whether a backup may appear at `target`. To be asked once more just before it does.

    own      the file of the database, whose path, links followed, is `own_path`
    raises   ValueError: that is what is there, perhaps by another name; LockedError: it is another database that
             somebody has open, and what they commit would be lost with it; FileExistsError
    """
    if target == own_path or own.is_at(target):
        raise ValueError(
            f"a backup cannot replace the database itself ({target} is {own_path}); compact() rewrites it in place"
        )
    if not overwrite:
        if file_system.exists(target):
            raise FileExistsError(
                errno.EEXIST, "the backup would replace a file; choose another name or pass overwrite=True", target
            )
    elif _stays_held(file_system, target):
        raise LockedError(
            f"{target}: the backup would replace a file that is open as a database, and what is committed to that from "
            "then on would be lost; close it first, or choose another name"
        )


def _stays_held(file_system: FileSystem, path: str) -> bool:
    """Whether somebody has a file open, and not only for the moment in which another backup gets its name."""
    for _ in range(_MOMENTS):
        if not file_system.is_held(path):
            return False
        time.sleep(_MOMENT_S)
    return True


def initialise(file: File, header: Header, meta: Meta) -> None:
    """Write the head of a new file: header, an empty holder page, the meta in both slots as a clean close leaves it."""
    page_size = header.page_size
    pager = Pager(file, header, 0)
    if file.size() < FIRST_NODE_PGNO * page_size:
        file.grow(FIRST_NODE_PGNO * page_size)
    file.write(0, encode_header(header))
    for slot in META_PGNOS:
        file.write(slot * page_size, encode_meta(meta, slot, pager.checksum, pager.seed))


def first_meta() -> Meta:
    """The meta of a database without tables."""
    return Meta(Txid(1), 0, Ref(0), Ref(0), FIRST_NODE_PGNO, 0, 0, 2, now_us(), clean=True)


def new_header(page_size: int, checksum_kind: int) -> Header:
    """The header of a new file, with a file id of its own."""
    return Header(page_size, checksum_kind, random_bytes(16), now_us())


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class TableSource(NamedTuple):
    """A table to be written into a new file. entries: (encoded key, whole encoded value), in key order."""

    name: str
    tree_id: int
    value_codec: int
    key_shape: int
    key_codecs: bytes
    entry_count: int
    entries: Iterator[tuple[bytes, bytes]]


def write_copy(
    source: Pager,
    tables: dict[str, TableInfo],
    txid: Txid,
    next_tree_id: int,
    target: File,
    progress: Progress | None = None,
) -> None:
    """Write the tables of a snapshot into `target`, an empty file, and sync it.

    progress  called now and then with (entries written, entries in all)
    raises    CorruptError if a page of the snapshot is damaged; OSError
    """
    sources = []
    for name, info in tables.items():
        tree = SnapshotTree(name, source, info)
        shape, codecs = describe_key(info.key)
        sources.append(
            TableSource(name, info.tree_id, info.value.number, shape, codecs, tree.entry_count(), _entries(tree))
        )
    write_tables(
        target, new_header(source.page_size, source.header.checksum_kind), sources, txid, next_tree_id, progress
    )


def write_tables(
    target: File,
    header: Header,
    tables: list[TableSource],
    txid: Txid,
    next_tree_id: int,
    progress: Progress | None = None,
) -> None:
    """Write tables into `target`, an empty file, as its first commit, and sync it.

    raises    CorruptError if a table does not have as many entries as it says; OSError
    """
    meta = replace(first_meta(), txid=txid, next_tree_id=next_tree_id)
    initialise(target, header, meta)
    builder = _Builder(Pager(target, header, 0), make_stamp(txid, 0))
    total = sum(table.entry_count for table in tables)
    done = 0
    catalogue: list[tuple[bytes, bytes]] = []
    for table in sorted(tables, key=lambda table: table.name.encode()):
        try:
            root, count = builder.build(table.entries, table.tree_id, partial(_report, progress, done, total))
            if count != table.entry_count:
                raise CorruptError("the table has another number of entries", expected=table.entry_count, found=count)
        except CorruptError as error:
            raise named(error, table.name) from None
        done += count
        entry = CatalogueEntry(root, count, table.tree_id, table.value_codec, table.key_shape, table.key_codecs)
        catalogue.append((table.name.encode(), encode_catalogue_entry(entry)))
    catalogue_root, _ = builder.build(iter(catalogue), CATALOGUE_TREE, partial(_report, None, done, total))
    builder.flush()
    meta = replace(meta, catalogue_root=catalogue_root, high_water=builder.next_pgno, table_count=len(tables))
    initialise(target, header, meta)
    target.sync_all()
    if progress is not None:
        progress(total, total)


def _report(progress: Progress | None, before: int, total: int, count: int) -> None:
    if progress is not None:
        progress(before + count, total)


def put_in_place(file_system: FileSystem, file: File, path: str, *, overwrite: bool) -> None:
    """Give a finished, synced file its name and make the name durable."""
    file.sync_all()  # some file systems (ext4 with data=journal) report a failed sync with the next one
    with _said_of(path):
        if overwrite:
            file_system.replace(file.path, path)
        else:
            file_system.link(file.path, path)
    file.path, file.built_for = path, None
    file_system.sync_directory(path)


def _entries(tree: SnapshotTree) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table, large values loaded."""
    for keys, values in tree.scan(None, None):
        for key, value in zip(keys, values, strict=True):
            yield key, tree.load(value)


class _Level:
    """The branch that is being filled at one level."""

    __slots__ = ("children", "first_key", "keys", "size")

    def __init__(self, first_key: bytes, child: int) -> None:
        self.first_key = first_key  # divides this branch from the one before
        self.keys: list[bytes] = []
        self.children = [child]
        self.size = branch_entry_size(b"")


class _Builder:
    """Builds trees from entries in key order, writing pages front to back."""

    def __init__(self, pager: Pager, stamp: int) -> None:
        self._pager = pager
        self._page_size = pager.page_size
        self._stamp = stamp
        self.next_pgno = int(FIRST_NODE_PGNO)
        self._pages: dict[int, bytes] = {}

    def build(
        self, entries: Iterator[tuple[bytes, bytes]], tree_id: int, progress: Callable[[int], None]
    ) -> tuple[Ref, int]:
        """Build one tree; returns (root, number of entries)."""
        payload = leaf_payload(self._page_size)
        limit = max_inline_entry(self._page_size)
        levels: list[_Level] = []
        keys: list[bytes] = []
        values: list[bytes] = []
        size = count = 0
        boundary = b""
        for key, value in entries:
            stored = value if len(key) + len(value) <= limit else self._overflow(value, tree_id)
            entry_size = leaf_entry_size(key, stored)
            if size + entry_size > payload:
                self._add(levels, 0, boundary, self._leaf(keys, values, tree_id), tree_id)
                boundary = separator(keys[-1], key)
                keys, values, size = [], [], 0
                progress(count)
            keys.append(key)
            values.append(stored)
            size += entry_size
            count += 1
        if not keys:
            return Ref(0), 0
        self._add(levels, 0, boundary, self._leaf(keys, values, tree_id), tree_id)
        at = 0
        while at < len(levels) - 1 or len(levels[at].children) > 1:
            self._add(levels, at + 1, levels[at].first_key, self._branch(at + 1, levels[at], tree_id), tree_id)
            at += 1
        return Ref(levels[at].children[0]), count

    def flush(self) -> None:
        """Write the pages gathered so far."""
        self._pager.write(self._pages)
        self._pages = {}

    def _add(self, levels: list[_Level], at: int, key: bytes, child: Ref, tree_id: int) -> None:
        """Add a child, which `key` divides from the one before, to the branch that is open at a level."""
        if at == len(levels):
            levels.append(_Level(key, child))
            return
        level = levels[at]
        if level.size + branch_entry_size(key) > branch_payload(self._page_size):
            self._add(levels, at + 1, level.first_key, self._branch(at + 1, level, tree_id), tree_id)
            levels[at] = _Level(key, child)
            return
        level.keys.append(key)
        level.children.append(child)
        level.size += branch_entry_size(key)

    def _leaf(self, keys: list[bytes], values: list[bytes], tree_id: int) -> Ref:
        pgno = self._take(1)
        body, _, _ = encode_leaf(keys, values, pgno, tree_id, self._stamp, self._page_size)
        return self._keep(body, pgno)

    def _branch(self, number: int, level: _Level, tree_id: int) -> Ref:
        pgno = self._take(1)
        body = encode_branch(
            number, level.keys, array("Q", level.children), pgno, tree_id, self._stamp, self._page_size
        )
        return self._keep(body, pgno)

    def _overflow(self, value: bytes, tree_id: int) -> Overflow:
        pgno = self._take(overflow_page_count(len(value), self._page_size))
        ref = self._keep(encode_overflow(value, pgno, tree_id, self._stamp, self._page_size), pgno)
        return overflow_record(len(value), ref)

    def _take(self, count: int) -> Pgno:
        pgno = self.next_pgno
        self.next_pgno += count
        return Pgno(pgno)

    def _keep(self, body: bytes, pgno: Pgno) -> Ref:
        ref, page = self._pager.seal(body, pgno)
        self._pages[pgno] = page
        if len(self._pages) >= _BUFFERED or len(page) > self._page_size:
            self.flush()
        return ref
