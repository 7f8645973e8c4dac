"""PostgreSQL for trio: psycopg 3, driven natively, and a pool of its connections.

`TrioConnection` is a `psycopg.AsyncConnection` that waits, locks, connects and cancels
with trio: no threads, no asyncio underneath. Whatever psycopg documents works: cursors,
types, prepared statements, pipelines, COPY, transactions, notifications. Cancelling a
trio scope around a statement cancels it on the server. `open_pool` makes a
pool of such connections.

The package knows nothing of queues, and works on its own. It needs psycopg 3.3.7 or a
later 3.3, and libpq 17 or newer, which ``psycopg[binary]`` brings.
"""

from ._checkout import Checkout
from ._connection import TrioConnection
from ._hosts import Hosts
from ._open_pool import open_pool
from ._pool import Pool, PoolClosed, PoolTimeout
from ._prepared import Rows, Statement
from ._statistics import PoolStatistics

__all__ = [
    "Checkout",
    "Hosts",
    "Pool",
    "PoolClosed",
    "PoolStatistics",
    "PoolTimeout",
    "Rows",
    "Statement",
    "TrioConnection",
    "open_pool",
]
