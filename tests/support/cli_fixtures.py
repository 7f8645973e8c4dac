"""Fixtures: the command line, called in this process."""

from __future__ import annotations

import io
import sys
import tempfile

import pytest

from tests.support.commands import Call, Ended
from tocsin.__main__ import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line, in this process; gives its exit code, its output and its
    errors."""

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            monkeypatch.setattr(sys, "argv", ["tocsin", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def cli(call: Call, store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Like `call`, with a fresh store as its database."""
    monkeypatch.setenv("TOCSIN_DSN", store_dsn)
    return call
