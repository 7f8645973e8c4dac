"""A TCP proxy that can fall silent, as a network does when a host vanishes.

Nothing is passed on then, and no connection ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from psycopg.conninfo import make_conninfo


class Proxy:
    """A proxy that passes connections on to one server, made by `running`."""

    def __init__(self, dsn: str, port: int, target: int) -> None:
        self._dsn = dsn
        self._live: dict[int, trio.Event] = {}
        self._deaf = False
        self.port = port
        """Where it listens, on 127.0.0.1."""
        self.target = target
        """Where connections to come lead to, on 127.0.0.1."""
        self.accepted = 0
        """How many connections it has accepted."""

    def dsn(self) -> str:
        """Return the connection string that leads through it."""
        return make_conninfo(self._dsn, host="127.0.0.1", port=self.port)

    def silence(self, chosen: Callable[[int], bool] = lambda _: True, *, new: bool = False) -> None:
        """Pass nothing on any more on some connections.

        Args:
            chosen: Chooses the connections by their number, counted from 0.
            new: Whether connections to come are silent, too.
        """
        for number in [n for n in self._live if chosen(n)]:
            self._live[number] = trio.Event()
        self._deaf = self._deaf or new

    def speak(self) -> None:
        """Pass on again, what was held back first."""
        self._deaf = False
        for event in self._live.values():
            event.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on, until either side ends it."""
        number = self.accepted
        self.accepted += 1
        self._live[number] = trio.Event()
        if not self._deaf:
            self._live[number].set()
        try:
            await self._live[number].wait()
            async with (
                client,
                await trio.open_tcp_stream("127.0.0.1", self.target) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._pass_on, number, client, server, nursery.cancel_scope)
                await self._pass_on(number, server, client, nursery.cancel_scope)
        except (OSError, trio.BrokenResourceError):
            await trio.aclose_forcefully(client)
        finally:
            del self._live[number]

    async def _pass_on(
        self,
        number: int,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some():
                await self._live[number].wait()
                await sink.send_all(data)
            await self._live[number].wait()
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def running(dsn: str, port: int) -> AsyncIterator[Proxy]:
    """Run a proxy before the server of this connection string, for the block.

    It listens on this port of 127.0.0.1.
    """
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(dsn, listener.socket.getsockname()[1], port)
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
