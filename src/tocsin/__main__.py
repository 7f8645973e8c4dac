"""The command ``tocsin``, also as ``python -m tocsin``.

The command line is an extra. Where it is not installed, this module says so.
"""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit."""
    # Not by importing them: rich is imported only when there is a table to show, and by
    # then something has been done.
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
