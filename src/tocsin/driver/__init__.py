"""PostgreSQL for trio: psycopg 3, driven natively, and a pool of its connections.

`TrioConnection` is a `psycopg.AsyncConnection` that waits, locks, connects and cancels with trio: no threads,
no asyncio underneath. Whatever psycopg documents works: cursors, types, prepared statements, pipelines, COPY,
transactions, notifications. Cancelling a trio scope around a statement cancels it on the server. `open_pool`
lends such connections.

Nothing here knows of queues; it can be used on its own. It was written against psycopg 3.3.
"""

from .connection import TrioConnection
from .pool import Pool, PoolClosed, PoolStatistics, open_pool
from .prepared import Rows

__all__ = ["Pool", "PoolClosed", "PoolStatistics", "Rows", "TrioConnection", "open_pool"]
