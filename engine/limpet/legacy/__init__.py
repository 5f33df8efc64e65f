"""Readers of formats that this code no longer writes. Format 1 is the first, so there are none yet.

The rule for the day that a format gets a successor, so that its files stay readable for ever:

- Its modules are copied into a sub-package of its own (`v1`), cut down to reading: find the newest
  commit, list the tables, give their entries in order. They are finished then, and import nothing
  from the engine but `errors`, `checksum` and `file`; whatever else they need is copied with them.
- Damage is a CorruptError there as everywhere, and nothing in here ever writes to a file.
- `upgrade.py` is the only caller. It reads the old file through the sub-package, writes a new one
  beside it, compares the two, and puts the new one in place. Opening an old file does none of this:
  it raises UpgradeRequiredError.
- Files that the last release of the old format wrote are kept in tests/data, of every page size and
  kind of checksum, and every later release has to read them.

Magic and version stand at the same place in every format (engine/FORMAT.md), so that `upgrade` knows
which sub-package a file needs before it reads anything else.
"""
