"""The block for which a pool lends a connection."""

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

__all__ = ["Loan"]


class Loan(Generic[Row]):
    """A loan of a connection, made by `Pool.connection`.

    It is an asynchronous context manager, and a checkpoint, but not twice: only a loan
    in which the borrower's statements have not let the other tasks run makes a
    checkpoint of its own.
    """

    # This is not a generator, for speed: each statement has a loan.

    def __init__(self, pool: Pool[Row], reset: bool) -> None:
        self._pool = pool
        self._reset = reset
        self._member: Member[Row] | None = None
        self._passes = 0

    @enable_ki_protection
    async def __aenter__(self) -> TrioConnection[Row]:
        """Borrow the connection."""
        if self._member is not None:
            raise RuntimeError("a loan is for one block at a time: call connection() for each")
        self._member = await self._pool._take()
        self._passes = self._member.connection._turn.passes
        return self._member.connection

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the connection back."""
        member, self._member = self._member, None
        assert member is not None
        await self._pool._give_back(member, self._reset)
        if error is None and member.connection._turn.passes == self._passes:
            await trio.lowlevel.checkpoint()
