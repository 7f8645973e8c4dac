"""The command ``tocsin``, also as ``python -m tocsin``. The command line is an extra; without it this file says so."""

import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from .cli import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("click", "rich"):
            raise
        sys.stderr.write(f"tocsin: the command line needs {package}: pip install 'tocsin[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
