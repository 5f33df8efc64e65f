"""The store for asyncio: the same families with `await`, and commits that never block the event loop.

Everything that writes is done by one thread. It takes what is waiting, runs each piece in a savepoint of one
transaction, and commits once; whoever awaits gets the result when the commit is durable. Under load the pieces that
arrive during one sync share the next one. Rules:

  - Each piece keeps its own outcome. One that raises is undone by itself; a commit that fails fails all of its pieces.
  - Cancelling an await that has not been started takes it out; one that has been started is carried out whole, only
    nobody waits for it. There is nothing in between.
  - What a piece took for its caller (`tasks.dequeue`, `jobs.claim_due`) and the caller did not get, because its await
    was cancelled or its loop ended, is given back in the next commit.
  - At most `max_pending` pieces wait; the next caller waits for room.
  - Reads run in a few threads of their own, each on its own snapshot, beside the writer.
  - A store belongs to the event loop in which it was opened. From another one every call is refused before anything
    is handed to a thread; closing works when that loop runs no longer.

A group (`async with store.write() as tx`) has a transaction of its own, and the other writers wait for its end: keep
slow things out of it. Waiting inside a group for a write outside of it would be waiting for oneself, and is refused:
to the task that opened the group, to the tasks that it makes inside, as `gather` does, and to plain code in the event
loop that writes to the store beneath (`AsyncStore.store`).

  writer   the thread, the pieces that it runs, and what becomes of an outcome that nobody takes
  groups   `async with store.write()` and `async with store.read()`
  store    AsyncStore
"""

from .groups import AsyncTransaction
from .store import MAX_PENDING, READERS, SEARCHERS, SWITCH_INTERVAL_S, AsyncStore
from .writer import MAX_STEPS

__all__ = ["MAX_PENDING", "MAX_STEPS", "READERS", "SEARCHERS", "SWITCH_INTERVAL_S", "AsyncStore", "AsyncTransaction"]
