"""Queues: creating, changing, finding and deleting them."""

from __future__ import annotations

from typing import Unpack

from tocsin._arguments import check_text
from tocsin.errors import QueueNotFound

from .queue_operations import QueueOperations
from .queue_settings import QueueSettings, check_settings
from .queue_values import COLUMNS, DeleteResult, Queue, read_queue


class Queues(QueueOperations):
    """The queues of a store: `Store.queues`."""

    async def create(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue with these `QueueSettings`.

        Raises:
            QueueAlreadyExists: There is a queue of this name.
            ValueError: A setting is out of its range.

        Cancellation:
            Atomic.
        """
        return await self._set("create_queue", _check_name(name), settings)

    async def ensure(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Create a queue or, when it exists, change the `QueueSettings` that are given.

        Raises:
            ValueError: A setting is out of its range.

        Cancellation:
            Atomic.
        """
        return await self._set("ensure_queue", _check_name(name), settings)

    async def update(self, name: str, **settings: Unpack[QueueSettings]) -> Queue:
        """Change the `QueueSettings` that are given.

        They apply from then on, in every process.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: A setting is out of its range.

        Cancellation:
            Atomic.
        """
        return await self._set("update_queue", name, settings)

    async def delete(
        self, name: str, *, force: bool = False, dry_run: bool = False
    ) -> DeleteResult:
        """Delete a queue, with its archive, its dead letters and its stopped workers.

        It waits up to ten seconds for transactions that have put messages into the
        queue, or have some of its messages locked.

        Args:
            force: Delete unfinished messages, leased ones too, and all workers; runs on
                the queue end with `Suspended`.
            dry_run: Delete nothing, and return the counts.

        Raises:
            QueueNotEmpty: The queue has other workers or unfinished messages, and
                ``force`` is not given.
            QueueBusy: A transaction that uses the queue has not ended.
            QueueNotFound: The queue does not exist.

        Cancellation:
            Atomic.
        """
        return DeleteResult(*await self._call("delete_queue", name, force, dry_run))

    async def get(self, name: str) -> Queue:
        """Return a queue.

        Raises:
            QueueNotFound: The queue does not exist.

        Cancellation:
            Changes nothing.
        """
        return await self._fetch("find_queue", name)

    async def exists(self, name: str) -> bool:
        """Return whether there is a queue of this name.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        try:
            await self.get(name)
        except QueueNotFound:
            return False
        return True

    async def list(self) -> list[Queue]:
        """Return all queues, by name.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        return [
            read_queue(row)
            for row in await self._database.fetch(f"select {COLUMNS} from tocsin.list_queues()")
        ]

    async def count(self) -> int:
        """Return how many queues there are.

        Raises:
            SchemaMissing: Tocsin is not installed.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        (number,) = await self._database.fetch_one("select count(*) from tocsin.list_queues()")
        return int(number)

    async def _set(self, function: str, name: str, settings: QueueSettings) -> Queue:
        checked = check_settings(settings)
        arguments = "".join(f", {setting} => %s" for setting in checked)
        return await self._fetch(function, name, arguments, checked.values())


def _check_name(name: str) -> str:
    if not 0 < len(check_text(name, "name").encode()) <= 255:
        raise ValueError("name must be 1 to 255 bytes of text")
    return name
