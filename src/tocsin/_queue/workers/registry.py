"""The registry of workers: finding and measuring them, and deleting stopped ones."""

from __future__ import annotations

from tocsin._arguments import check_id, check_queue
from tocsin._database.client import Database
from tocsin._durations import Duration, to_timedelta
from tocsin.errors import QueueNotFound

from .health import MAX_AGE, QueueHealth, WorkerStats, read_health
from .worker_handle import WorkerHandle, WorkerInfo, WorkerStatus, read_info


class Workers:
    """The registry: `Store.workers`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, worker_id: int) -> WorkerHandle:
        """Return a handle to a worker.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Changes nothing.
        """
        handle = WorkerHandle(self._database, check_id(worker_id, "worker_id"))
        await handle.info()
        return handle

    async def stats(self, queue: str | None = None) -> WorkerStats:
        """Return the registry, or one queue's part of it, in figures.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Changes nothing.
        """
        total, by_status, by_kind, held, age = await self._database.fetch_one(
            "select * from tocsin.worker_stats(%s)", [_check_queue(queue)]
        )
        return WorkerStats(
            total, {status: by_status[status] for status in WorkerStatus}, by_kind, held, age
        )

    async def health(
        self,
        queue: str | None = None,
        max_age: Duration = MAX_AGE,
        *,
        max_running: Duration | None = None,
    ) -> list[QueueHealth]:
        """Return the health of the queues, or of one, by name of the queue.

        There are three problems. A worker that is not stopped has been silent for more
        than ``max_age`` seconds. A message has waited for longer than that while no
        consumer works, and the queue is not paused. A worker has been at one message
        for more than ``max_running`` seconds, so that its handler may hang; by default
        ten times the queue's visibility timeout, but at least five minutes and at most
        an hour.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: An argument is not a duration.

        Cancellation:
            Changes nothing.
        """
        limit = to_timedelta(max_age, "max_age", zero=True)
        longest = to_timedelta(max_running, "max_running")
        rows = await self._database.fetch(
            "select * from tocsin.queue_health(%s, %s, %s)", [_check_queue(queue), limit, longest]
        )
        return [read_health(row) for row in rows]

    async def release_messages(self, worker_id: int) -> int:
        """Release what a worker holds, uncounted, and return how many messages.

        Their handlers are cancelled. A worker that is ready or polling may claim them
        again.

        Raises:
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        (released,) = await self._database.fetch_one(
            "select tocsin.release_messages(%s)", [check_id(worker_id, "worker_id")]
        )
        return int(released)

    async def delete(self, worker_id: int) -> None:
        """Delete a stopped worker.

        The messages that it enqueued and handled keep its id.

        Raises:
            StateTransitionError: The worker is not stopped.
            WorkerNotFound: The worker does not exist, or has been purged.

        Cancellation:
            Atomic.
        """
        await self._database.fetch(
            "select tocsin.delete_worker(%s)", [check_id(worker_id, "worker_id")]
        )

    async def purge(
        self, older_than: Duration, *, queue: str | None = None, dry_run: bool = False
    ) -> list[WorkerInfo]:
        """Delete workers that were stopped some time ago, and return them.

        The messages that they enqueued and handled keep the ids of the workers.

        Args:
            older_than: Delete workers that have been stopped for at least this many
                seconds.
            queue: The queue whose workers are meant; None: all queues.
            dry_run: Delete nothing, and return the workers.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: ``older_than`` is not a duration.

        Cancellation:
            Atomic.
        """
        age = to_timedelta(older_than, "older_than", zero=True)
        rows = await self._database.fetch(
            "select * from tocsin.purge_workers(%s, %s, %s)", [age, _check_queue(queue), dry_run]
        )
        return [read_info(row) for row in rows]

    async def list(self, queue: str | None = None) -> list[WorkerInfo]:
        """Return the workers, or those of one queue, by id.

        For a queue that does not exist it returns none.

        Raises:
            SchemaMissing: Tocsin is not installed in this database.
            ConnectionLost: The database is not available.

        Cancellation:
            Changes nothing.
        """
        try:
            rows = await self._database.fetch(
                "select * from tocsin.list_workers(%s)", [_check_queue(queue)]
            )
        except QueueNotFound:
            return []
        return [read_info(row) for row in rows]


def _check_queue(queue: str | None) -> str | None:
    return None if queue is None else check_queue(queue)
