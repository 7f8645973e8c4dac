"""A TCP proxy before a PostgreSQL server, for what the server itself cannot do.

It can fall silent, as a network does when a host vanishes: nothing is passed on, and no
connection ends. It can lead to another server, add settings to each session, and speak
TLS. The benchmark of outages and the tests share it.
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
    """Listens on 127.0.0.1 and passes on what it gets; made by `running`."""

    def __init__(
        self,
        dsn: str,
        address: tuple[str, int],
        port: int,
        settings: Mapping[str, str],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.address = address
        """Where connections to come lead: a host, or a directory of sockets, and a
        port."""
        self.port = port
        """Where it listens."""
        self.accepted = 0
        """How many connections it has accepted; the first one has the number 1."""
        self._dsn = dsn
        self._settings = settings
        self._tls = tls
        self._scopes = set[trio.CancelScope]()
        self._refusing = False
        self._silenced = set[int]()
        self._all_silenced = False
        self._restored = trio.Event()

    def dsn(self, **parameters: str | int) -> str:
        """Return the connection string that leads through the proxy."""
        return make_conninfo(self._dsn, **{"host": "127.0.0.1", "port": self.port, **parameters})

    def refuse(self) -> None:
        """Close all connections, and those to come at once."""
        self._refusing = True
        for scope in self._scopes:
            scope.cancel()

    def silence(self, *numbers: int) -> None:
        """Pass nothing on any more on some connections.

        Args:
            *numbers: which connections, some of which may be still to come; without
                any, all that there are.
        """
        self._silenced.update(numbers or range(1, self.accepted + 1))

    def silence_all(self) -> None:
        """Pass nothing on any more on any connection, and make none."""
        self._all_silenced = True

    def restore(self) -> None:
        """Accept connections and pass on again, first what was held back."""
        self._refusing = self._all_silenced = False
        self._silenced.clear()
        self._restored.set()
        self._restored = trio.Event()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on, in both directions, until either side ends it."""
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
            # The server is not there, or the client has seen enough: a certificate that
            # it does not like, say.
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
        """Answer what comes before the startup message, and receive that."""
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
        await self._until_speaking(number)  # the other end is not told of the end either
        scope.cancel()


async def _receive_message(stream: trio.abc.Stream) -> bytes:
    """Receive a message without type byte, as they are before authentication."""
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
    """Run a proxy for the length of the block.

    Args:
        dsn: connection string of a database.
        address: where its server listens, if ``dsn`` does not lead there.
        settings: settings added to each session.
        tls: with it, clients have to ask for TLS.
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
