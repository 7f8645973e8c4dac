"""The block for which a connection of a pool is checked out."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic

import trio
from psycopg.rows import Row
from trio.lowlevel import enable_ki_protection

from ._connection import TrioConnection
from ._member import Member

if TYPE_CHECKING:
    from ._pool import Pool

__all__ = ["Checkout"]


class Checkout(Generic[Row]):
    """A block with a connection of a pool, made by `Pool.connection`.

    It is an asynchronous context manager, and a checkpoint, but not twice: only a block
    whose statements have not let the other tasks run makes a checkpoint of its own.
    """

    # This is not a generator, for speed: each statement has a checkout.

    def __init__(self, pool: Pool[Row], reset: bool) -> None:
        self._pool = pool
        self._reset = reset
        self._member: Member[Row] | None = None
        self._passes = 0

    @enable_ki_protection
    async def __aenter__(self) -> TrioConnection[Row]:
        """Check out a connection."""
        if self._member is not None:
            raise RuntimeError("a checkout is for one block at a time: call connection() for each")
        self._member = await self._pool._check_out()
        self._passes = self._member.connection._turn.passes
        return self._member.connection

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Return the connection."""
        member, self._member = self._member, None
        assert member is not None
        await self._pool._return(member, self._reset)
        if error is None and member.connection._turn.passes == self._passes:
            await trio.lowlevel.checkpoint()
