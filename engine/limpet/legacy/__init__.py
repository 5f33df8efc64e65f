"""Readers of formats that this code no longer writes, so that their files stay readable for ever.

    v1   copy-on-write trees and two metas, without a log

The rule: such a module is cut down to reading (find the newest commit, list the tables, give their
entries in order) and is finished then. It imports nothing from the engine but `errors`, `checksum`
and `file`; whatever else it needs it has itself. Damage is a CorruptError here as everywhere, and
nothing in here writes. `upgrade.py` is the only caller: it reads the old file, writes a new one
beside it, compares the two, and puts the new one in place. Opening an old file does none of this: it
raises UpgradeRequiredError. Files that the old code wrote are kept in tests/data, of every page size
and kind of checksum, and every later release has to read them.

Magic and version stand at the same place in every format (engine/FORMAT.md), so that it is known
which module a file needs before anything else of it is read.
"""
