"""Tocsin: an event-driven message queue in PostgreSQL for services on trio.

The public names are those in ``__all__``, and the modules `tocsin.driver` (psycopg on
trio), `tocsin.embedded`, `tocsin.errors`, `tocsin.settings` and `tocsin.telemetry`.
Modules with a leading underscore are internal. ``ARCHITECTURE.md`` has the way of a
message by files.

A program that imports `tocsin.driver` alone loads the driver alone: the public names
are loaded when the first of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import driver as driver
    from . import embedded as embedded
    from . import errors as errors
    from . import settings as settings
    from . import telemetry as telemetry
    from ._api import *
    from ._api import __all__ as __all__
else:  # hidden from type checkers, for which each misspelled name would have the type Any
    _MODULES = ("driver", "embedded", "errors", "settings", "telemetry")

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name in ("__all__", "__version__") or not name.startswith("_"):
            api = import_module(f"{__name__}._api")
            if name == "__all__" or name in api.__all__:
                found = globals()[name] = getattr(api, name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*__getattr__("__all__"), *_MODULES]
