"""Run the command ``tocsin``, also as ``python -m tocsin``.

The command line is an extra. If it is not installed, this module prints how to install
it.
"""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit."""
    # Test without importing the packages. rich is imported only when a table is shown,
    # and by then the command has had an effect.
    for package in ("click", "rich"):
        if find_spec(package) is None:
            sys.stderr.write(
                f"tocsin: the command line needs {package}: pip install 'tocsin[cli]'\n"
            )
            sys.exit(2)
    from ._cli import run

    run()


if __name__ == "__main__":
    main()
