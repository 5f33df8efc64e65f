"""Snapshots: one commit, as readers see it."""

from __future__ import annotations

from .overlay import SnapshotTree, TableInfo
from .pager import Pager
from .table import Table

_REMEMBERED_TABLES = 256  # look-ups that a snapshot keeps; definitions made anew each time would pile up


class Snapshot:
    """The tables of one commit and where they are. Immutable, but for a memory of look-ups."""

    __slots__ = ("next_tree_id", "pager", "tables", "trees", "txid")

    def __init__(self, txid: int, tables: dict[str, TableInfo], next_tree_id: int, pager: Pager) -> None:
        self.txid = txid
        self.tables = tables
        self.next_tree_id = next_tree_id
        self.pager = pager
        self.trees: dict[Table | str, tuple[Table, SnapshotTree]] = {}

    def tree(self, table: Table | str) -> tuple[Table, SnapshotTree]:
        """The definition and the tree of a table. TableTypeError if the file records other codecs."""
        found = self.trees.get(table)
        if found is None:
            definition = table if isinstance(table, Table) else Table(table, raw=True)
            tree = SnapshotTree(definition.name, self.pager, self.tables.get(definition.name))
            definition.check(tree.codecs)
            if len(self.trees) >= _REMEMBERED_TABLES:
                self.trees.clear()
            found = self.trees[table] = definition, tree
        return found
