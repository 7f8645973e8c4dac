"""Errors of the database: its connections, its roles and the schema in it."""

from __future__ import annotations

from ._base import TocsinError

__all__ = [
    "ConnectionLost",
    "DependentObjects",
    "PermissionDenied",
    "RoleNotFound",
    "SchemaBusy",
    "SchemaMissing",
    "SchemaNewer",
    "SchemaOutdated",
]


class ConnectionLost(TocsinError):
    """A database that cannot be reached, cannot work at present, or went away.

    It cannot work while it is read-only, full, or without connections to give, and when
    it ends a statement or a session by a timeout or a command. A statement that was
    under way may or may not have taken effect. Try again: Tocsin has dropped what is of
    no use.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"PostgreSQL at {address} is not available: {reason}")
        self.address = address
        """Host and port, or socket, that was tried."""
        self.reason = reason
        """What the server or the system said, in one line, without secrets."""


class PermissionDenied(TocsinError):
    """A call that the current role is not permitted to make.

    Nothing was changed. Have the role made a member of one of Tocsin's roles, or
    have it granted the queue (``store.queues.grant``).
    """

    def __init__(self, problem: str, advice: str = "", *, role: str | None) -> None:
        super().__init__(problem, advice)
        self.role = role
        """The role; None when PostgreSQL itself refused, without naming it."""


class RoleNotFound(TocsinError):
    """A database role that does not exist."""

    def __init__(self, problem: str, advice: str = "", *, role: str) -> None:
        super().__init__(problem, advice)
        self.role = role
        """The name asked for."""


class SchemaMissing(TocsinError):
    """A schema of the database in which Tocsin is not installed."""

    def __init__(self, schema: str) -> None:
        super().__init__(
            f"Tocsin is not installed in schema {schema!r} of this database",
            "run `tocsin admin install` or await store.install()",
        )
        self.schema = schema
        """Name of the schema."""


class SchemaOutdated(TocsinError):
    """A schema that is older than this version of Tocsin needs."""

    def __init__(self, schema: str, found: int, needed: int) -> None:
        lag = f"has version {found} of the SQL contract, this package needs {needed}"
        if found == needed:
            lag = f"has another state of version {found} of the SQL contract than this package"
        super().__init__(
            f"schema {schema!r} {lag}", "run `tocsin admin install` or await store.install()"
        )
        self.schema = schema
        """Name of the schema."""
        self.found = found
        """Version of the SQL contract that is installed."""
        self.needed = needed
        """Version that this package brings."""


class SchemaNewer(TocsinError):
    """A schema that is newer than this version of Tocsin.

    It does not serve this version, or was to be changed by it. `Store.install`,
    `Store.verify` and the registration of producers and consumers raise this error.
    """

    def __init__(self, schema: str, found: int, known: int, serves: int) -> None:
        super().__init__(
            f"schema {schema!r} has version {found} of the SQL contract; this package is older and"
            f" has version {known}, and the schema serves packages from version {serves} on",
            "upgrade the package tocsin here; the schema is left as it is",
        )
        self.schema = schema
        """Name of the schema."""
        self.found = found
        """Version of the SQL contract that is installed."""
        self.known = known
        """Version that this package brings."""
        self.serves = serves
        """Oldest version of packages that the schema serves."""


class SchemaBusy(TocsinError):
    """A schema whose tables were locked by transactions for half a minute.

    It was to be installed, upgraded, verified or removed. Nothing was changed.
    """

    def __init__(self, schema: str) -> None:
        super().__init__(
            f"schema {schema!r} is in use by transactions that do not end",
            "try again when they have ended; pg_stat_activity shows which sessions have been in a"
            " transaction for long",
        )
        self.schema = schema
        """Name of the schema."""


class DependentObjects(TocsinError):
    """Objects outside of the schema that depend on what an upgrade changes.

    These are functions or types of the schema. It is not upgraded, and nothing was
    changed.
    """

    def __init__(self, problem: str, advice: str = "", *, objects: tuple[str, ...]) -> None:
        super().__init__(problem, advice)
        self.objects = objects
        """The objects as PostgreSQL describes them, such as ``view public.backlog``;
        empty when only the text names them."""
