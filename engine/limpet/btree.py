"""The functional core: a B+tree is a reference, and a commit is a function of it.

    get(root, key)                    one value
    scan(root, low, high)             entries, a leaf at a time, in either direction
    apply(root, changes)              -> drafts of the new nodes, pages freed, change of the count
    seal(drafts)                      -> new root and pages, once page numbers are known

Nothing here writes, and nothing on disk is changed: `apply` reads the nodes that the changes
touch, each once, and drafts new ones; what it replaced is freed. `seal` encodes the drafts from
the leaves up, because a parent carries its children's checksums.

Theory. A B+tree with prefix-truncated separators (Bayer and McCreight 1972; Bayer and Unterauer
1977), changed by path copying (Driscoll et al. 1989). Nodes split by bytes, evenly, except:
- after the last key of a leaf the old leaf stays as full as it is: ascending keys fill pages;
- an insert that continues a run of keys splits just behind itself, so that each of many runs
  that grow side by side (every session's messages are one) fills its own pages.
A node that shrank below a quarter is joined with a neighbour, or evened out with it.

Throughout, `read(ref)` gives the decoded node behind a reference.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

from .errors import CorruptError
from .format import END_SIZE, REF_SIZE, Pgno, Ref, ref_pgno
from .node import (
    Branch,
    Leaf,
    Node,
    Overflow,
    Splice,
    branch_payload,
    encode_branch,
    finish_leaf,
    leaf_content,
    leaf_entry_size,
    leaf_payload,
    patch_branch,
    separator,
)
from .pager import Pager
from .row_cache import RowCache

if TYPE_CHECKING:
    from .node import Ends

Changes = dict[bytes, bytes | None]  # None: delete

_THIN = 4  # a node that shrank below 1/4 of its page is joined with a neighbour
_CACHED_SCAN = 8  # leaves of one scan that may push others out of the cache; the rest only fill its free room
_KEPT_AFTER = 2  # look-ups in a leaf; one that is repeated will be again
_CACHED_SEAL = 2500  # nodes of one tree in one commit that enter the cache: nearly every checkpoint's, no bulk load's
_BATCH = 500  # entries of a bulk load that are made into leaves at a time
_RUN_TAIL = 2  # bytes at the end of a key that may differ within a run


# -- reading -------------------------------------------------------------------------------------


def get(pager: Pager, root: int, tree_id: int, rows: RowCache | None, key: bytes) -> bytes | None:
    """The stored value of `key` (an Overflow if it lives elsewhere), or None.

    root     0: an empty tree
    rows     those of this root that were asked for again; the leaf's join them when it is asked often
    cost     a look-up in a dict; otherwise depth times a binary search: about 1 us when cached
    """
    if rows is not None:
        known = rows.rows.get(key)
        if known is not None:
            return known
    return find(pager, root, tree_id, rows, key)


def find(pager: Pager, root: int, tree_id: int, rows: RowCache | None, key: bytes) -> bytes | None:
    """As `get`, for who has looked among the rows already."""
    if not root:
        return None
    hot = pager.hot
    ref = root
    node: Any = hot.get(ref) or pager.node(ref, tree_id)  # Any: asserting the class would take a tenth of the time
    level = node.level
    while level:
        ref = node.children[bisect_right(node.keys, key)]
        node = hot.get(ref) or pager.node(ref, tree_id)
        level -= 1
        if node.level != level:
            raise wrong_level(ref, level, node.level)
    node.hits += 1
    if node.hits > _KEPT_AFTER and rows is not None:
        pager.keep_rows(rows, node)
    stored: bytes | None = node.get(key)
    return stored


def scan(
    pager: Pager, root: int, tree_id: int, low: bytes | None, high: bytes | None, *, reverse: bool = False
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The entries with low <= key < high, as (keys, stored values) of one leaf at a time.

    low, high  None: no bound
    reverse    leaves come from the last to the first; within each the order is still ascending
    """
    path: list[tuple[Branch, int]] = []
    node: Node = pager.node(root, tree_id)
    bound = high if reverse else low  # where the first descent goes; later ones start at the edge
    edge: bytes | None = None  # the last key seen; without it, branches that share children would not end
    leaf_count = 0
    while True:
        fetch = pager.node if leaf_count < _CACHED_SCAN else pager.passing_node
        while isinstance(node, Branch):
            if bound is not None:
                index = bisect_left(node.keys, bound) if reverse else bisect_right(node.keys, bound)
            else:
                index = len(node.children) - 1 if reverse else 0
            path.append((node, index))
            node = _child(fetch, node, index, tree_id)
        keys = node.keys()
        if not keys or (edge is not None and (keys[-1] >= edge if reverse else keys[0] <= edge)):
            ref = path[-1][0].children[path[-1][1]] if path else root
            raise CorruptError("the keys of the leaf do not follow those before it", pgno=ref_pgno(ref))
        edge = keys[0 if reverse else -1]
        start = bisect_left(keys, low) if low is not None else 0
        stop = bisect_left(keys, high) if high is not None else len(keys)
        if stop - start == len(keys):
            yield keys, node.values()
        elif start < stop:
            yield keys[start:stop], [node.value(index) for index in range(start, stop)]
        if (start > 0) if reverse else (stop < len(keys)):
            return
        bound = None
        leaf_count += 1
        while path:
            branch, index = path.pop()
            index += -1 if reverse else 1
            if 0 <= index < len(branch.children):
                path.append((branch, index))
                node = _child(fetch, branch, index, tree_id)
                break
        else:
            return


def _child(fetch: Callable[[int, int], Node], branch: Branch, index: int, tree_id: int) -> Node:
    ref = branch.children[index]
    node = fetch(ref, tree_id)
    if node.level != branch.level - 1:
        raise wrong_level(ref, branch.level - 1, node.level)
    return node


def wrong_level(ref: int, expected: int, found: int) -> CorruptError:
    """The error for a child that is not one level below its parent; without the check a cycle would not end."""
    return CorruptError(
        "the page has the wrong level for its place", pgno=ref_pgno(ref), expected=expected, found=found
    )


def page_refs(pager: Pager, root: int, tree_id: int) -> Iterator[Pgno | Overflow]:
    """All pages of a tree: the page numbers of its nodes, and the records of its overflow runs.

    cost     reads every node, but no overflow page
    """
    waiting = [root] if root else []
    seen: set[int] = set()
    while waiting:
        ref = waiting.pop()
        if ref in seen:
            raise CorruptError("the page has two places in its tree", pgno=ref_pgno(ref))
        seen.add(ref)
        node = pager.passing_node(ref, tree_id)
        yield ref_pgno(ref)
        if isinstance(node, Branch):
            for index in range(len(node.children)):
                _child(pager.passing_node, node, index, tree_id)
            waiting.extend(node.children)
        else:
            for index in node.overflow:
                record = node.value(index)
                assert type(record) is Overflow
                yield record


# -- drafts --------------------------------------------------------------------------------------


@dataclass(slots=True)
class DraftLeaf:
    """A leaf to be written."""

    keys: list[bytes]
    values: list[bytes]
    thin: bool = False  # shrank, and is small enough to be joined with a neighbour
    level = 0


@dataclass(slots=True)
class FreshLeaf:
    """A leaf of a tree that was empty, encoded but for its header while its entries were at hand.

    content  empty as soon as the page is made of it, so that a bulk load is not in memory twice: at the end of one of
             18 MB, 23 MB instead of 40
    """

    content: bytes
    count: int
    ends: Ends
    overflow: frozenset[int]
    level = 0
    thin = False


@dataclass(slots=True)
class SplicedLeaf:
    """A leaf in which some entries differ from one that is there: to be patched, not taken apart.

    Most leaves that a checkpoint changes are of this kind. Seven records behind 100 others take 24 us with all that
    belongs to it, where decoding, merging and encoding take 64.
    """

    leaf: Leaf
    changes: list[Splice]
    level = 0
    thin = False


@dataclass(slots=True)
class DraftBranch:
    """A branch to be written: its children are references, or drafts themselves.

    patched  the branch that this one equals but for the children in `patches`; then `children` is
             empty. None: encode it anew
    """

    level: int
    keys: list[bytes]
    children: list[Child]
    patched: Branch | None = None
    patches: dict[int, Child] = field(default_factory=dict)
    thin: bool = False


Draft = DraftLeaf | DraftBranch
Child = int | DraftLeaf | FreshLeaf | SplicedLeaf | DraftBranch


@dataclass(slots=True)
class Edit:
    """What `apply` found out.

    root     a draft, or a reference (0: the tree is empty)
    freed    references of the nodes that the new tree does not use any more
    dropped  overflow records that it does not use any more
    delta    change of the number of entries
    drafts   number of drafts, each of which needs a page
    """

    root: Child
    freed: list[int] = field(default_factory=list)
    dropped: list[Overflow] = field(default_factory=list)
    delta: int = 0
    drafts: int = 0


def apply(read: Callable[[int], Node], page_size: int, root: int, changes: Changes, *, join_thin: bool = True) -> Edit:
    """Draft the tree that `changes` make of the tree at `root`.

    changes    key -> stored value, or None to delete; values must fit into a leaf (Overflow if not)
    join_thin  False: thin nodes stay, which takes no pages for their neighbours
    returns  the drafts and what they replace; nothing is written
    raises   what `read` raises
    cost     each affected node is read, merged and drafted once
    """
    edit = Edit(root)
    if not changes:
        return edit
    editor = _Editor(read, page_size, changes, edit, join_thin)
    children, keys = editor.edit(root, 0, len(editor.keys)) if root else editor.fresh()
    while len(children) > 1:
        children, keys = editor.cut_branch(_level(children[0]) + 1, keys, children, append=not root)
    top = children[0] if children else 0
    while isinstance(top, DraftBranch) and top.patched is None and len(top.children) == 1:
        top = top.children[0]  # a branch over a single child adds nothing
    edit.root = top
    edit.drafts = _count(top)
    return edit


def _level(child: Child) -> int:
    assert not isinstance(child, int), "siblings of a split are drafts"
    return child.level


def _count(child: Child) -> int:
    if isinstance(child, int):
        return 0
    if not isinstance(child, DraftBranch):
        return 1
    below = child.children if child.patched is None else child.patches.values()
    return 1 + sum([_count(grandchild) for grandchild in below if type(grandchild) is not int])


class _Editor:
    """One run of `apply`. Methods give siblings: (children, separators between them)."""

    def __init__(
        self, read: Callable[[int], Node], page_size: int, changes: Changes, edit: Edit, join_thin: bool
    ) -> None:
        self.read = read
        self.changes = changes
        self.keys = sorted(changes)
        self.result = edit
        self.join_thin = join_thin
        self.leaf_payload = leaf_payload(page_size)
        self.branch_payload = branch_payload(page_size)

    def fresh(self) -> tuple[list[Child], list[bytes]]:
        """The leaves of a tree that was empty, each filled before the next is begun.

        Some entries at a time: in a bulk load they lie all over the memory, and measuring and copying each while it is
        in the processor's cache saves a fifth of the load.
        """
        leaves: list[Child] = []
        separators: list[bytes] = []
        keys: list[bytes] = []
        values: list[bytes] = []
        last = b""
        for start in range(0, len(self.keys), _BATCH):
            some, present = _present(self.keys[start : start + _BATCH], self.changes)
            self.result.delta += len(some)
            keys += some
            values += present
            ends = list(accumulate(_entry_sizes(keys, values)))
            cuts = _cut(ends, self.leaf_payload, full=True) if keys else [0, 0]
            if start + _BATCH < len(self.keys):
                cuts.pop()  # the last one may become fuller
            for a, b in pairwise(cuts):
                if a == b:
                    continue
                if leaves:
                    separators.append(separator(last, keys[a]))
                last = keys[b - 1]
                content, ends_of, overflow = leaf_content(keys[a:b], values[a:b])
                leaves.append(FreshLeaf(content, b - a, ends_of, overflow))
            del keys[: cuts[-1]], values[: cuts[-1]]
        return leaves, separators

    def edit(self, ref: int, low: int, high: int, level: int | None = None) -> tuple[list[Child], list[bytes]]:
        """Apply changes [low, high) to the node behind `ref`, which should have `level`."""
        node = self.read(ref)
        if level is not None and node.level != level:
            raise wrong_level(ref, level, node.level)
        if isinstance(node, Branch):
            return self.edit_branch(ref, node, low, high)
        return self.edit_leaf(ref, node, low, high)

    # Leaves.

    def edit_leaf(self, ref: int, leaf: Leaf, low: int, high: int) -> tuple[list[Child], list[bytes]]:
        old_keys = leaf.keys()
        if (high - low) * 3 <= leaf.count:  # 8 of 20 entries take a fifth less merged
            spliced = self._splice(ref, leaf, old_keys, low, high)
            if spliced is not None:
                return [spliced], []
        self.result.freed.append(ref)
        append = not old_keys or self.keys[low] > old_keys[-1]
        if high - low == 1:
            keys, values, at = self._change_one(leaf, old_keys, self.keys[low])
        else:
            keys, values = self._change_many(leaf, old_keys, self.keys[low:high])
            at = -1
        self.result.delta += len(keys) - leaf.count
        if not append and len(keys) > leaf.count and at > 0 and _continues_run(keys[at - 1], keys[at]):
            return self.cut_leaf(keys, values, split_at=at + 1)
        return self.cut_leaf(keys, values, append=append, shrank=len(keys) <= leaf.count)

    def _splice(self, ref: int, leaf: Leaf, keys: list[bytes], low: int, high: int) -> Child | None:
        """The leaf with its entries changed, if nothing splits or is joined by it; `keys` are those it has."""
        used = leaf.used
        size, delta, at = used, 0, 0
        changes: list[Splice] = []
        dropped: list[int] = []
        for key in self.keys[low:high]:
            value = self.changes[key]
            at = bisect_left(keys, key, at)
            there = at < len(keys) and keys[at] == key
            if there:
                size -= leaf.entry_size(at)
                delta -= 1
                if at in leaf.overflow:
                    dropped.append(at)
            elif value is None:
                continue
            if value is not None:
                size += leaf_entry_size(key, value)
                delta += 1
            changes.append(Splice(at, key, value, there))
        if not changes:
            return ref
        if size > self.leaf_payload or (size < used and size * _THIN < self.leaf_payload):
            return None
        self.result.freed.append(ref)
        self.result.delta += delta
        self.result.dropped += [cast("Overflow", leaf.value(index)) for index in dropped]
        return SplicedLeaf(leaf, changes)

    def _change_one(self, leaf: Leaf, keys: list[bytes], key: bytes) -> tuple[list[bytes], list[bytes], int]:
        values = leaf.values()
        at = bisect_left(keys, key)
        new = self.changes[key]
        if at < len(keys) and keys[at] == key:
            old = values[at]
            if type(old) is Overflow:
                self.result.dropped.append(old)
            if new is None:
                return keys[:at] + keys[at + 1 :], values[:at] + values[at + 1 :], at
            values[at] = new
        elif new is not None:
            keys.insert(at, key)
            values.insert(at, new)
        return keys, values, at

    def _change_many(self, leaf: Leaf, old_keys: list[bytes], changed: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        entries: dict[bytes, bytes | None] = dict(zip(old_keys, leaf.values(), strict=True))
        if leaf.overflow:
            for key in changed:
                old = entries.get(key)
                if type(old) is Overflow:
                    self.result.dropped.append(old)
        entries.update(zip(changed, map(self.changes.__getitem__, changed), strict=True))
        return _present(sorted(entries), entries)

    def cut_leaf(
        self, keys: list[bytes], values: list[bytes], *, append: bool = False, split_at: int = 0, shrank: bool = False
    ) -> tuple[list[Child], list[bytes]]:
        """Leaves that hold these entries.

        append    fill each leaf before the next is begun
        split_at  if they do not fit into one leaf, begin the second with this entry
        shrank    a leaf that is now small may be joined with a neighbour
        """
        if not keys:
            return [], []
        sizes = _entry_sizes(keys, values)
        ends = list(accumulate(sizes))
        if ends[-1] <= self.leaf_payload:
            thin = shrank and self.join_thin and ends[-1] * _THIN < self.leaf_payload
            return [DraftLeaf(keys, values, thin)], []
        if 0 < split_at < len(keys) and max(ends[split_at - 1], ends[-1] - ends[split_at - 1]) <= self.leaf_payload:
            cuts = [0, split_at, len(keys)]
        else:
            cuts = _cut(ends, self.leaf_payload, full=append)
        leaves: list[Child] = [DraftLeaf(keys[a:b], values[a:b]) for a, b in pairwise(cuts)]
        return leaves, [separator(keys[cut - 1], keys[cut]) for cut in cuts[1:-1]]

    # Branches.

    def edit_branch(self, ref: int, branch: Branch, low: int, high: int) -> tuple[list[Child], list[bytes]]:
        self.result.freed.append(ref)
        changed, separators = self.keys, branch.keys
        edits: list[tuple[int, list[Child], list[bytes]]] = []
        while low < high:
            index = bisect_right(separators, changed[low])
            end = bisect_left(changed, separators[index], low, high) if index < len(separators) else high
            siblings, between = self.edit(branch.children[index], low, end, branch.level - 1)
            edits.append((index, siblings, between))
            low = end
        if all(len(siblings) == 1 and not _is_thin(siblings[0]) for _, siblings, _ in edits):
            patches = {index: siblings[0] for index, siblings, _ in edits}
            return [DraftBranch(branch.level, separators, [], branch, patches)], []
        children: list[Child] = list(branch.children)
        keys = separators.copy()
        for index, siblings, between in reversed(edits):
            children[index : index + 1] = siblings
            if siblings:
                keys[index:index] = between
            elif keys:
                del keys[min(index, len(keys) - 1)]
        if any(_is_thin(child) for _, siblings, _ in edits for child in siblings):  # to look at all takes 10 us more
            self._join_thin(branch.level, keys, children)
        append = edits[-1][0] == len(branch.children) - 1 and len(edits) == 1
        return self.cut_branch(branch.level, keys, children, append=append, shrank=len(children) < len(branch.children))

    def _join_thin(self, level: int, keys: list[bytes], children: list[Child]) -> None:
        """Join children that became thin with a neighbour each, in place."""
        index = 0
        while index < len(children):
            if not _is_thin(children[index]) or len(children) == 1:
                index += 1
                continue
            left = index - 1 if index else 0
            pair = self._draft(level - 1, children[left]), self._draft(level - 1, children[left + 1])
            if isinstance(pair[0], DraftLeaf) and isinstance(pair[1], DraftLeaf):
                joined, between = self.cut_leaf(pair[0].keys + pair[1].keys, pair[0].values + pair[1].values)
            else:
                assert isinstance(pair[0], DraftBranch)
                assert isinstance(pair[1], DraftBranch)
                joined, between = self.cut_branch(
                    level - 1, [*pair[0].keys, keys[left], *pair[1].keys], pair[0].children + pair[1].children
                )
            children[left : left + 2] = joined
            keys[left : left + 1] = between
            index = left + len(joined)

    def _draft(self, level: int, child: Child) -> Draft:
        """A child as a draft; one that was not touched so far is taken in hand now."""
        if isinstance(child, DraftBranch) and child.patched is not None:
            children: list[Child] = list(child.patched.children)
            for index, patch in child.patches.items():
                children[index] = patch
            return DraftBranch(child.level, child.keys, children)
        if isinstance(child, SplicedLeaf):
            keys, values = child.leaf.keys(), child.leaf.values()
            for index, key, value, replace in reversed(child.changes):
                keys[index : index + replace] = [] if value is None else [key]
                values[index : index + replace] = [] if value is None else [value]
            return DraftLeaf(keys, values)
        if not isinstance(child, int):
            assert not isinstance(child, FreshLeaf), "a tree that was empty has no neighbours to join"
            return child
        node = self.read(child)
        if node.level != level:
            raise wrong_level(child, level, node.level)
        self.result.freed.append(child)
        if isinstance(node, Branch):
            return DraftBranch(level, node.keys, list(node.children))
        return DraftLeaf(node.keys(), node.values())

    def cut_branch(
        self, level: int, keys: list[bytes], children: list[Child], *, append: bool = False, shrank: bool = False
    ) -> tuple[list[Child], list[bytes]]:
        """Branches over these children; the separators at the cuts move up."""
        if not children:
            return [], []
        fixed = END_SIZE + REF_SIZE
        ends = list(accumulate([len(key) + fixed for key in keys], initial=fixed))
        if ends[-1] <= self.branch_payload:
            thin = shrank and self.join_thin and ends[-1] * _THIN < self.branch_payload
            return [DraftBranch(level, keys, children, thin=thin)], []
        cuts = _cut(ends, self.branch_payload, full=append)
        branches: list[Child] = [DraftBranch(level, keys[a : b - 1], children[a:b]) for a, b in pairwise(cuts)]
        return branches, [keys[cut - 1] for cut in cuts[1:-1]]


def _entry_sizes(keys: list[bytes], values: list[bytes]) -> list[int]:
    """What each entry takes in a leaf."""
    fixed = 2 * END_SIZE
    sizes = [len(key) + len(value) + fixed for key, value in zip(keys, values, strict=True)]  # half the time of `map`
    if Overflow in set(map(type, values)):
        sizes = [size + END_SIZE * (type(value) is Overflow) for size, value in zip(sizes, values, strict=True)]
    return sizes


def _present(keys: list[bytes], entries: Mapping[bytes, bytes | None]) -> tuple[list[bytes], list[bytes]]:
    """Those of the keys that are not deleted, and their values."""
    values = list(map(entries.__getitem__, keys))
    if None in values:
        keys = [key for key, value in zip(keys, values, strict=True) if value is not None]
        return keys, [value for value in values if value is not None]
    return keys, cast("list[bytes]", values)


def _is_thin(child: Child) -> bool:
    return not isinstance(child, int) and child.thin


def _continues_run(previous: bytes, key: bytes) -> bool:
    """Whether a key looks like the next of a run: as long as the one before, and equal but for the tail."""
    return len(previous) == len(key) > _RUN_TAIL and previous[:-_RUN_TAIL] == key[:-_RUN_TAIL]


def _cut(ends: list[int], payload: int, *, full: bool) -> list[int]:
    """Where to cut a row of entries into pages.

    ends     running total of the sizes; no single entry is larger than half of `payload`
    full     fill every page but the last; otherwise spread the entries evenly
    returns  indexes of the first entry of each page, and the number of entries
    """
    cuts = [0]
    done = 0
    while ends[-1] - done > payload:
        if full:
            room = payload
        else:
            remaining = ends[-1] - done
            room = remaining // -(-remaining // payload)
        cut = bisect_right(ends, done + room, cuts[-1])
        if not full and cut < len(ends) and ends[cut] - done <= payload and cut < len(ends) - 1:
            previous = ends[cut - 1] if cut > cuts[-1] else done
            if abs(ends[cut] - done - room) < abs(previous - done - room):
                cut += 1
        cut = max(cut, cuts[-1] + 1)
        cuts.append(cut)
        done = ends[cut - 1]
    cuts.append(len(ends))
    return cuts


# -- sealing -------------------------------------------------------------------------------------


def seal(pager: Pager, edit: Edit, tree_id: int, stamp: int, pgnos: list[int]) -> tuple[Ref, dict[int, bytes]]:
    """Encode the drafts of an edit.

    pgnos    as many page numbers as there are drafts; children get lower ones than their parents
    returns  (the root's reference, page number -> page)
    """
    sealer = _Sealer(pager, tree_id, stamp, pgnos)
    root = sealer.place(edit.root)
    pager.renew(sealer.written)
    return root, sealer.pages


class _Sealer:
    """One run of `seal`. A function in there that calls itself would be a cycle, and keep all pages until it is found.

    pages    page number -> page
    written  reference -> node; None: not to be cached
    """

    def __init__(self, pager: Pager, tree_id: int, stamp: int, pgnos: list[int]) -> None:
        self.pages: dict[int, bytes] = {}
        self.written: dict[int, Node | None] = {}
        self._pager = pager
        self._tree_id = tree_id
        self._stamp = stamp
        self._places = iter(pgnos)
        self._cached = len(pgnos) <= _CACHED_SEAL

    def place(self, child: Child) -> Ref:
        """Encode a draft and what is below it; returns its reference."""
        if isinstance(child, int):
            return Ref(child)
        pager, place = self._pager, self.place
        node: Node | None
        if not isinstance(child, DraftBranch):
            pgno = Pgno(next(self._places))
            if isinstance(child, FreshLeaf):
                content, count, ends, overflow = child.content, child.count, child.ends, child.overflow
                child.content = b""
            elif isinstance(child, SplicedLeaf):
                content, count, ends, overflow = child.leaf.splice(child.changes)
            else:
                count = len(child.keys)
                content, ends, overflow = leaf_content(child.keys, child.values)
            body = finish_leaf(content, count, pgno, self._tree_id, self._stamp, pager.page_size)
            ref, page = pager.seal(body, pgno)
            node = Leaf(page, count, ends, overflow) if self._cached else None
        elif child.patched is not None:
            patches: dict[int, int] = {index: place(grandchild) for index, grandchild in child.patches.items()}
            children = child.patched.children[:]
            for index, new in patches.items():
                children[index] = new
            pgno = Pgno(next(self._places))
            ref, page = pager.seal(patch_branch(child.patched, patches, pgno, self._tree_id, self._stamp), pgno)
            node = Branch(page, child.level, child.keys, children)
        else:
            # Most children of a branch that is encoded anew stay where they are: to call for each would take 15 us.
            children = array(
                "Q", [grandchild if type(grandchild) is int else place(grandchild) for grandchild in child.children]
            )
            pgno = Pgno(next(self._places))
            body = encode_branch(child.level, child.keys, children, pgno, self._tree_id, self._stamp, pager.page_size)
            ref, page = pager.seal(body, pgno)
            node = Branch(page, child.level, child.keys, children)
        self.pages[pgno] = page
        self.written[ref] = node if self._cached else None
        return ref
