"""Cancellation of statements on the server, and cleanup of their connections.

A connection in the middle of a statement is of no use, and trio's cancellation is
level-triggered: in a cancelled scope each await is cancelled, including what psycopg
would do to clean up. So each operation leaves the connection in one of two states:
*usable*, with nothing in flight, or *closed*.

- Cancelled before anything is sent: nothing is sent.
- Cancelled while a statement runs: the server is asked to cancel it. The generator that
  the cancellation has interrupted is resumed, shielded, for `GRACE` seconds at most
  (``_grace.py``), until the answer has come. The statement has failed then, or it won
  the race and has taken effect; the caller cannot know which. The connection is usable.
  A server that does not answer in time costs the connection.
- Cancelled in pipeline mode: the running statement is cancelled and the connection is
  closed, because nothing tells which of the statements were executed, and pipeline mode
  cannot end before that is known. The server rolls back. `TrioConnection.run_together`,
  which knows what it has sent, does leave it.
- Cancelled during COPY: it is ended with an error, as a whole. The connection is
  usable.
- Cancelled in a transaction: see `TrioTransaction`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import psycopg
import trio
from psycopg import generators, pq
from psycopg.abc import RV, PQGen

from tocsin._concurrency.grace import Grace

from . import _connecting as connecting
from . import _waiting as waiting

__all__ = ["call_off", "request_cancel", "resumable"]

_ASK_AGAIN: Final = 0.25
"""Seconds after which the server is asked once more to cancel. A request that overtakes
its statement is lost, which happens on a busy machine."""

_ACTIVE = pq.TransactionStatus.ACTIVE


def resumable(gen: PQGen[RV], *, started: bool = False) -> PQGen[RV]:
    """Drive ``gen`` so that it can be left where it waits, and resumed.

    On resumption nothing is ready, which psycopg writes as 0, not None.
    """
    try:
        want = gen.send(0) if started else next(gen)
        while True:
            want = gen.send((yield want) or 0)
    except StopIteration as end:
        result: RV = end.value
        return result


async def request_cancel(pgconn: pq.abc.PGconn) -> None:
    """Ask the server to cancel what the connection does.

    Raises:
        psycopg.OperationalError: The server cannot be asked.
    """
    request = pgconn.cancel_conn()
    try:
        request.start()
        if await connecting.drive(request, request.poll) != pq.PollingStatus.OK:
            raise psycopg.OperationalError(f"cancellation failed: {request.get_error_message()}")
    finally:
        connecting.finish(request)


async def call_off(
    pgconn: pq.abc.PGconn,
    gen: PQGen[Any],
    turn: waiting.Turn,
    grace: Grace,
    *,
    leaves_pipeline: bool,
) -> None:
    """Bring a connection into order after ``gen`` was interrupted.

    When the grace is over, the connection is closed.

    Args:
        pgconn: The connection.
        gen: The generator, where it was interrupted.
        turn: The turn in which it was driven.
        grace: The deadline of the cleanup.
        leaves_pipeline: Whether ``gen`` ends the pipeline that it has begun.
    """
    pipeline = bool(pgconn.pipeline_status) and not leaves_pipeline
    if not pgconn.pipeline_status and pgconn.transaction_status != _ACTIVE:
        return
    rest = resumable(_rest_of_pipeline(pgconn) if pipeline else _rest(pgconn, gen))
    try:
        with grace.scope():
            over = False
            while not over:
                with suppress(psycopg.Error):
                    await request_cancel(pgconn)
                over = await _proceed(pgconn, rest, turn)
            if pgconn.status == pq.ConnStatus.OK:
                grace.answered()
    finally:
        # psycopg's own record of the pipeline cannot be corrected.
        if pgconn.pipeline_status or pgconn.transaction_status == _ACTIVE:
            connecting.finish(pgconn)
            # A pipeline's generator fetches results when it is closed. That fails, and
            # the garbage collector would report it.
            with suppress(Exception):
                gen.close()


async def _proceed(pgconn: pq.abc.PGconn, rest: PQGen[None], turn: waiting.Turn) -> bool:
    """Run ``rest`` until it ends or the time is up; return whether it has ended."""
    deadline = trio.current_time() + _ASK_AGAIN
    # The statement usually ends with QueryCanceled. It may also end with another error
    # or a lost connection.
    with suppress(Exception):
        try:
            await waiting.wait(rest, pgconn.socket, turn, deadline)
        except psycopg.errors._WaitTimeout:
            return False
    return True


def _rest(pgconn: pq.abc.PGconn, gen: PQGen[Any]) -> PQGen[None]:
    """Receive what is still to come of a statement.

    That is the rest of ``gen``, other results, and the rest of a COPY.
    """
    with suppress(Exception):
        yield from resumable(gen, started=True)
    while (result := (yield from generators.fetch(pgconn))) is not None:
        if result.status == pq.ExecStatus.COPY_IN:
            yield from generators.copy_end(pgconn, b"cancelled")
        elif result.status == pq.ExecStatus.COPY_OUT:
            while isinstance((yield from generators.copy_from(pgconn)), memoryview):
                pass
        elif result.status == pq.ExecStatus.COPY_BOTH:
            # A replication statement has no end to wait for.
            return


def _rest_of_pipeline(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Receive what is still to come of a pipeline, until the server is done with it.

    The pipeline's end commits what was executed since the last one, if the request to
    cancel came too late. So an error is sent first.
    """
    pgconn.send_query_params(
        b"do $$ begin raise exception 'the client has cancelled this pipeline'; end $$", None
    )
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    while pgconn.transaction_status == _ACTIVE:
        yield from generators.fetch(pgconn)
