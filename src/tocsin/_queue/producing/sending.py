"""The ways to send messages to a queue.

They are the batcher, a connection of the store, and the caller's connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import psycopg

from tocsin._database.blocking_connection import run_blocking
from tocsin._database.caller_connection import AnyConnection, check_driven_by_trio
from tocsin._database.client import Database
from tocsin.errors import SchemaMissing
from tocsin.telemetry.events import Enqueued
from tocsin.telemetry.instruments import Telemetry

from . import transactional
from .batcher import EnqueueBatcher
from .enqueue_request import (
    Batch,
    BatchOptions,
    BatchStatements,
    EnqueueRequest,
    MessageOptions,
    build_request,
)
from .rate_limit import Limiter


class QueueSender:
    """The sending of messages to one queue, with its rate limit and its events."""

    def __init__(
        self, database: Database, batcher: EnqueueBatcher, queue: str, telemetry: Telemetry
    ) -> None:
        self._database = database
        self._batcher = batcher
        self._telemetry = telemetry
        self.queue = queue
        """Name of its queue."""

        self._limiter: Limiter | None = None

    @property
    def _producer_id(self) -> int | None:
        return None

    async def _enqueue(
        self, payload: object, options: MessageOptions, connection: AnyConnection | None
    ) -> int:
        return await self._send_request(
            build_request(payload, worker_id=self._producer_id, **options), connection
        )

    async def _send_request(self, request: EnqueueRequest, connection: AnyConnection | None) -> int:
        if self._limiter is not None:
            await self._limiter.admit(1)
        if connection is None:
            message_id = await self._batcher.enqueue(self.queue, request)
        else:
            await self._database.contract.check()
            try:
                message_id = await self._enqueue_on(connection, request)
            except SchemaMissing as missing:
                raise await self._database.contract.explain_missing(missing) from missing.__cause__
        if self._telemetry.events.wants(Enqueued):
            self._note_enqueued([message_id], connection)
        return message_id

    async def _enqueue_many(
        self, payloads: Iterable[object], options: BatchOptions, connection: AnyConnection | None
    ) -> list[int]:
        batch = Batch(self.queue, payloads, worker_id=self._producer_id, **options)
        if self._limiter is None:
            ids = await self._send(batch, connection)
        else:
            admitted = batch.count
            await self._limiter.admit(admitted)
            try:
                ids = await self._send(batch, connection)
            finally:
                self._limiter.borrow(batch.count - admitted)
        if ids and self._telemetry.events.wants(Enqueued):
            self._note_enqueued(ids, connection)
        return ids

    def _note_enqueued(self, ids: list[int], connection: AnyConnection | None) -> None:
        self._telemetry.events.emit(
            Enqueued(
                queue=self.queue,
                ids=tuple(ids),
                worker_id=self._producer_id,
                in_transaction=connection is not None,
            )
        )

    async def _enqueue_on(self, connection: AnyConnection, request: EnqueueRequest) -> int:
        schema = self._database.schema
        if isinstance(connection, psycopg.Connection):
            return await run_blocking(
                connection, partial(transactional.send, connection, schema, self.queue, request)
            )
        return await transactional.send_async(
            check_driven_by_trio(connection), schema, self.queue, request
        )

    async def _send(self, batch: BatchStatements, connection: AnyConnection | None) -> list[int]:
        await self._database.contract.check()
        try:
            return await self._send_batch(batch, connection)
        except SchemaMissing as missing:
            raise await self._database.contract.explain_missing(missing) from missing.__cause__

    async def _send_batch(
        self, batch: BatchStatements, connection: AnyConnection | None
    ) -> list[int]:
        schema = self._database.schema
        if isinstance(connection, psycopg.Connection):
            return await run_blocking(
                connection, partial(transactional.send_batch, connection, schema, batch)
            )
        if connection is not None:
            return await transactional.send_batch_async(
                check_driven_by_trio(connection), schema, batch
            )
        async with self._database.connection() as own:
            return await transactional.send_batch_async(own, schema, batch)
