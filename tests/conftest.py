"""Settings of the test session; the fixtures are in ``tests/support``."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Generator
from typing import Any

import attrs
import pytest

import tocsin

pytest_plugins = [
    "tests.support.database_fixtures",
    "tests.support.store_fixtures",
    "tests.support.cli_fixtures",
]


def pytest_configure(config: pytest.Config) -> None:
    """The settings of the user are not for the tests; nor is that a shell
    ignores signals for a job in the background."""
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        _share_compiled_code(config)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for setting in attrs.fields(tocsin.Settings):
        os.environ.pop(f"TOCSIN_{setting.name.upper()}", None)
    os.environ.pop("TOCSIN_CONFIG", None)


def _share_compiled_code(config: pytest.Config) -> None:
    """Let the processes that the tests start keep their compiled code in a temporary
    directory: each would compile all modules again."""
    folder = tempfile.TemporaryDirectory(prefix="tocsin-test-code-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run the tests in this process when each argument names a file or a test: it would
    take longer to start more.

    Else there is one process more than processors, because tests wait for a sixth of
    their time.
    """
    named = [str(argument).partition("::")[0] for argument in config.args]
    if named and all(name.endswith(".py") for name in named):
        return 0
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any], dict[str, Any]]:
    """Escape lone surrogates in what a test logged or printed: pytest-xdist sends
    UTF-8."""
    report = yield
    report["sections"] = [
        (name, text.encode("utf-8", "backslashreplace").decode())
        for name, text in report.get("sections", ())
    ]
    return report
