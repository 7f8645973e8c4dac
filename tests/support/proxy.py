"""A TCP proxy in front of the tests' server, for what the server itself cannot do: TLS,
other settings, dying.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import psycopg
import trio
from psycopg.conninfo import make_conninfo

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
STARTUP_VERSIONS = range(3 << 16, 4 << 16)


@attrs.define
class Proxy:
    """Listens on 127.0.0.1 and passes on what it gets."""

    target: str
    """Connection string of the server's database."""
    port: int
    settings: dict[str, str]
    """Settings added to every session."""
    tls: ssl.SSLContext | None
    """With it, clients have to ask for TLS."""
    accepted: int = 0
    """Connections accepted so far."""
    refusing: bool = False
    """While it is, new connections are closed at once."""
    silent: bool = False
    """While it is, nothing is passed on."""
    silenced: set[int] = attrs.Factory(set)
    """Connections of which nothing is passed on, by their number: the first one
    accepted is 1."""
    scopes: set[trio.CancelScope] = attrs.Factory(set)
    """One for each connection that is passed on."""

    def dsn(self, **parameters: str | int) -> str:
        """Connection string by way of the proxy."""
        return make_conninfo(self.target, **{"host": "127.0.0.1", "port": self.port, **parameters})

    def refuse(self) -> None:
        """Close all connections, and new ones while `refusing` stays true."""
        self.refusing = True
        for scope in self.scopes:
            scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on, in both directions, until either side is done."""
        self.accepted += 1
        number = self.accepted
        stream: trio.abc.Stream = client
        if self.refusing:
            await client.aclose()
            return
        async with client, await self._connect() as server, trio.open_nursery() as nursery:
            self.scopes.add(nursery.cancel_scope)
            try:
                first = await _receive_message(client)
                if self.tls is not None:
                    assert first == SSL_REQUEST
                    await client.send_all(b"S")
                    stream = trio.SSLStream(
                        client, self.tls, server_side=True, https_compatible=True
                    )
                    first = await _receive_message(stream)
                elif first == SSL_REQUEST:
                    await client.send_all(b"N")
                    first = await _receive_message(client)
                if not self.silent:
                    await server.send_all(self._with_settings(first))
                nursery.start_soon(self._pass_on, number, stream, server, nursery.cancel_scope)
                await self._pass_on(number, server, stream, nursery.cancel_scope)
            except trio.BrokenResourceError:
                # The client has seen enough, a certificate that it does not like for
                # instance.
                nursery.cancel_scope.cancel()
            finally:
                self.scopes.discard(nursery.cancel_scope)

    def _with_settings(self, message: bytes) -> bytes:
        (version,) = struct.unpack("!i", message[4:8])
        if version not in STARTUP_VERSIONS:
            return message
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in self.settings.items())
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
                if not (self.silent or number in self.silenced):
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        finally:
            if number in self.silenced:  # the other end is not told either
                await trio.sleep_forever()
            scope.cancel()

    async def _connect(self) -> trio.SocketStream:
        with psycopg.connect(self.target) as connection:
            info = connection.info
            if not info.host.startswith("/"):
                return await trio.open_tcp_stream(info.host, info.port)
            return await trio.open_unix_socket(f"{info.host}/.s.PGSQL.{info.port}")


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
    target: str, *, settings: dict[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    """Run a proxy for the length of the block."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(target, listener.socket.getsockname()[1], settings or {}, tls)
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


def unused_port() -> int:
    """A TCP port on which no server listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
