"""A TCP proxy for a PostgreSQL server, which simulates faults of the network.

The proxy can fall silent, like a network whose host vanishes: it forwards no data and
closes no connection. It can forward connections to another server, add settings to each
session, and use TLS. The benchmark of outages and the tests share it.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psycopg
import trio
from psycopg.conninfo import make_conninfo

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
STARTUP_VERSIONS = range(3 << 16, 4 << 16)


class Proxy:
    """A proxy that listens on 127.0.0.1 and forwards data; created by `running`."""

    def __init__(
        self,
        dsn: str,
        address: tuple[str, int],
        port: int,
        settings: Mapping[str, str],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.address = address
        """The address to which the proxy forwards new connections: a host, or a
        directory of sockets, and a port."""
        self.port = port
        """The port on which the proxy listens."""
        self.accepted = 0
        """Number of accepted connections. The first one has the number 1."""
        self._dsn = dsn
        self._settings = settings
        self._tls = tls
        self._scopes = set[trio.CancelScope]()
        self._refusing = False
        self._silenced = set[int]()
        self._all_silenced = False
        self._restored = trio.Event()

    def dsn(self, **parameters: str | int) -> str:
        """Return the connection string for connections through the proxy."""
        return make_conninfo(self._dsn, **{"host": "127.0.0.1", "port": self.port, **parameters})

    def refuse(self) -> None:
        """Close all connections, and close new connections immediately."""
        self._refusing = True
        for scope in self._scopes:
            scope.cancel()

    def silence(self, *numbers: int) -> None:
        """Stop forwarding data on some connections.

        Args:
            *numbers: Numbers of the connections, also of future ones. Without a number,
                all existing connections.
        """
        self._silenced.update(numbers or range(1, self.accepted + 1))

    def silence_all(self) -> None:
        """Stop forwarding data on all connections, and open no new one."""
        self._all_silenced = True

    def restore(self) -> None:
        """Accept connections and forward data again, first the data held back."""
        self._refusing = self._all_silenced = False
        self._silenced.clear()
        self._restored.set()
        self._restored = trio.Event()

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection in both directions until either side ends it."""
        self.accepted += 1
        number = self.accepted
        scope = trio.CancelScope()
        self._scopes.add(scope)
        if self._refusing:
            scope.cancel()
        try:
            with scope:
                await self._serve(client, number)
        except* (OSError, trio.BrokenResourceError):
            # The server cannot be reached, or the client has ended the connection, for
            # example because of the certificate.
            pass
        finally:
            self._scopes.discard(scope)

    async def _serve(self, client: trio.SocketStream, number: int) -> None:
        async with client:
            await self._until_speaking(number)
            async with await self._connect() as server, trio.open_nursery() as nursery:
                stream, first = await self._receive_startup(client)
                await self._until_speaking(number)
                await server.send_all(self._with_settings(first))
                nursery.start_soon(self._pass_on, number, stream, server, nursery.cancel_scope)
                await self._pass_on(number, server, stream, nursery.cancel_scope)

    async def _until_speaking(self, number: int) -> None:
        while self._all_silenced or number in self._silenced:
            await self._restored.wait()

    async def _connect(self) -> trio.SocketStream:
        host, port = self.address
        if host.startswith("/"):
            return await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
        return await trio.open_tcp_stream(host, port)

    async def _receive_startup(self, client: trio.SocketStream) -> tuple[trio.abc.Stream, bytes]:
        """Answer the requests before the startup message, and receive the message."""
        first = await _receive_message(client)
        if self._tls is not None:
            assert first == SSL_REQUEST
            await client.send_all(b"S")
            stream = trio.SSLStream(client, self._tls, server_side=True, https_compatible=True)
            return stream, await _receive_message(stream)
        if first == SSL_REQUEST:
            await client.send_all(b"N")
            first = await _receive_message(client)
        return client, first

    def _with_settings(self, message: bytes) -> bytes:
        (version,) = struct.unpack("!i", message[4:8])
        if version not in STARTUP_VERSIONS:
            return message
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in self._settings.items())
        body = message[4:-1] + pairs + b"\0"
        return struct.pack("!i", len(body) + 4) + body

    async def _pass_on(
        self,
        number: int,
        source: trio.abc.ReceiveStream,
        sink: trio.abc.SendStream,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some():
                await self._until_speaking(number)
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        await self._until_speaking(number)  # the other end does not learn of the end either
        scope.cancel()


async def _receive_message(stream: trio.abc.Stream) -> bytes:
    """Receive a message without a type byte, as before authentication."""
    message = b""
    while len(message) < 4 or len(message) < struct.unpack("!i", message[:4])[0]:
        data = await stream.receive_some()
        if not data:
            raise trio.BrokenResourceError
        message += data
    return message


@asynccontextmanager
async def running(
    dsn: str,
    address: tuple[str, int] | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy for the block.

    Args:
        dsn: Connection string of a database.
        address: The server's address, if it is not the one of ``dsn``.
        settings: Settings that the proxy adds to each session.
        tls: TLS context; with it, clients must use TLS.
    """
    if address is None:
        with psycopg.connect(dsn) as connection:
            address = connection.info.host, connection.info.port
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        proxy = Proxy(dsn, address, port, settings or {}, tls)
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
