"""The database roles that may use Tocsin, in addition to the schema's owner.

``sql/security/access.sql`` says what each may do.
"""

from __future__ import annotations

from typing import Any

import attrs

from tocsin.errors import ConfigError

_MAX_BYTES = 63


def _check_name(roles: object, attribute: attrs.Attribute[Any], name: str | None) -> None:
    # PostgreSQL would truncate a longer name, and could then find another role.
    if name is not None and (not name or "\0" in name or len(name.encode()) > _MAX_BYTES):
        raise ConfigError(
            f"roles.{attribute.name}",
            f"{name!r} is not the name of a role: 1 to {_MAX_BYTES} bytes of text",
        )
    if name is not None and (name.startswith("pg_") or name in ("public", "none")):
        raise ConfigError(f"roles.{attribute.name}", f"{name!r} is reserved by PostgreSQL")


@attrs.frozen
class Roles:
    """Names of the roles that `Store.install` lets in; None for an unwanted one."""

    producer: str | None = attrs.field(default="tocsin_producer", validator=_check_name)
    """Its members may enqueue to the queues that they were granted, and nothing else.
    """
    consumer: str | None = attrs.field(default="tocsin_consumer", validator=_check_name)
    """Its members may consume from every queue, and enqueue to those that they were
    granted."""
    admin: str | None = attrs.field(default="tocsin_admin", validator=_check_name)
    """Its members may do all but install and uninstall, and read every table."""
