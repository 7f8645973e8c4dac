"""Opening the connections of a store, and setting their sessions up."""

from __future__ import annotations

import psycopg
import trio

from tocsin._concurrency.grace import Grace
from tocsin.driver import Hosts, TrioConnection
from tocsin.driver._watch import Watch

from . import network, session
from .client import Connection
from .error_mapping import translate


async def open_watched(
    dsn: str, hosts: Hosts, address: str, grace: Grace, watch: Watch
) -> Connection:
    """Open a connection that a store is to use, and have the watch know of it.

    Raises:
        ConnectionLost: The server cannot be reached, or refuses the connection.
        ConfigError: The pooler in between cannot be used.

    Cancellation:
        Nothing is left open.
    """
    try:
        connection = await open_unwatched(dsn, hosts)
        watch.add(connection)  # the connection may fall silent in the next statement
        try:
            await watch.terminate_abandoned(connection)
        except BaseException:
            connection.finish()
            raise
    except psycopg.Error as error:
        translated = translate(error, address)
        if translated is error:
            raise
        raise translated from error
    connection.share_grace(grace)
    return connection


async def open_unwatched(dsn: str, hosts: Hosts) -> Connection:
    """Connect, and set the session up.

    Raises:
        psycopg.Error: There is no connection, or its session cannot be set up.
        ConfigError: The pooler in between cannot be used.

    Cancellation:
        Nothing is left open. The connection is closed at once.
    """
    connection: Connection = await TrioConnection.connect(
        network.complete(dsn),
        autocommit=True,
        fallback_application_name="tocsin",
        client_encoding=session.ENCODING,
        hosts=hosts,
    )
    connection.share_grace(Grace(0))
    try:
        with trio.move_on_after(network.CONNECT_TIMEOUT):
            await session.set_up(connection)
            return connection
        raise psycopg.errors.ConnectionTimeout("the server did not answer the first statement")
    except BaseException:
        connection.finish()
        raise
