"""Whether the installed contract serves this package."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tocsin.errors import (
    PermissionDenied,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    TocsinError,
)

from .install import refuse_unserved
from .schema import READ_CONTRACT, Contract, Schema


class ContractCheck:
    """The check whether the installed contract serves this package."""

    def __init__(
        self, fetch: Callable[[str], Awaitable[list[tuple[Any, ...]]]], schema: Schema
    ) -> None:
        self._fetch = fetch
        self._schema = schema
        self._is_served = False

    async def check(self) -> None:
        """Check that the schema serves this package.

        Only the first call asks the database. A role that may not read the contract
        goes on, and meets a missing function if there is one.

        Raises:
            SchemaNewer: The schema serves later versions of Tocsin only.
            SchemaOutdated: The schema is of an older version.

        Cancellation:
            Changes nothing.
        """
        if self._is_served:
            return
        try:
            rows = await self._fetch(READ_CONTRACT)
        except PermissionDenied:
            rows = []
        for row in rows:
            refuse_unserved(self._schema, Contract(*row))
        self.note_served()

    async def explain_missing(self, missing: SchemaMissing) -> TocsinError:
        """Return what a function that is missing on a caller's connection means.

        That transaction has failed, so a connection of the pool is asked.

        Raises:
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        self._is_served = False
        try:
            await self.check()
        except (SchemaMissing, SchemaNewer, SchemaOutdated) as explained:
            return explained
        return missing

    def note_served(self) -> None:
        """Record that the schema serves this package, which a statement has found."""
        self._is_served = True
