"""Writes docs/cli.md from the command line itself: ``uv run python -m
tests.support.cli_manual``."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from tocsin._cli import tocsin
from tocsin._cli.program import Command, Group

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

INTRODUCTION = """\
# The command line

The extra `cli` (`pip install '.[cli]'` in a checkout) brings the command `tocsin`, also as `python -m tocsin`. Each command tells
about itself with `--help`. This page is written from the commands themselves.

**Which database.** `--dsn` and `--schema` may stand before or after the subcommand; else `TOCSIN_DSN` and `TOCSIN_SCHEMA` count, else
`[tool.tocsin]` in `pyproject.toml` (see [settings](settings.md)), else what libpq finds by itself: `PGHOST`, `PGSERVICE`, `~/.pgpass`.
Everybody on the machine can read the arguments of a process, so a password does not belong into `--dsn`: put it into `TOCSIN_DSN`, or
into the file that `PGPASSFILE` names. No error and no log shows it.

**For programs.** `--format json` (before or after the subcommand) prints one JSON document on standard output. Its names are those of the
Python classes' fields and stay as they are; times are ISO 8601 in UTC, durations are numbers of seconds, null stands for what is not
there or has no end. The tables are for people, and may change. Errors are one line on standard error, in both formats.

**Exit codes.** 0 done; 1 refused, or not found; 2 bad usage; 3 the database cannot be reached; 4 unhealthy (`worker health`, `admin
verify`); 128 + n ended by signal n.

**Durations** are written `250ms`, `1.5s`, `30m`, `2h`, `7d`, `1w`, or `12` for seconds.

**What destroys something asks first.** `--yes` answers beforehand; where there is no terminal to ask at, as in cron, it is refused
without. `--dry-run` says what would go, and changes nothing.
"""

_EVERYWHERE = {"dsn", "schema", "format", "help"}


def write_manual() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *_describe(tocsin, "tocsin", 2)])


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands and groups below this one, and itself, with what one types to
    call them."""
    yield path, command
    if isinstance(command, Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], f"{path} {name}")


def _describe(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if path != "tocsin":
        yield f"{'#' * level} {path}\n"
        if not isinstance(command, Group):
            yield f"`{' '.join([path, *command.collect_usage_pieces(context)])}`\n"
        yield _paragraphs(command)
        options = [
            p for p in command.params if isinstance(p, click.Option) and p.name not in _EVERYWHERE
        ]
        if options:
            yield "| option | meaning |\n| --- | --- |"
            yield from (_row(option, context) for option in options)
            yield ""
    assert isinstance(command, (Command, Group))
    if command.examples:
        test = (
            "test_the_examples_of_groups_can_be_typed"
            if isinstance(command, Group)
            else "test_each_example_can_be_typed"
        )
        yield "\n".join(
            [f"<!-- run by tests/cli/test_tree.py::{test} -->", "```sh", *command.examples, "```\n"]
        )
    if isinstance(command, Group):
        for name in sorted(command.commands):
            yield from _describe(
                command.commands[name], f"{path} {name}", level + (path != "tocsin")
            )


def _paragraphs(command: click.Command) -> str:
    text = cleandoc(str(command.help))
    if "\b" in text:
        before, after = text.split("\b\n")
        table, _, rest = after.partition("\n\n")
        text = f"{before}```text\n{table}\n```\n{rest}"
    return text.strip() + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None, option
    name, text = (part.replace("|", "\\|") for part in record)
    return f"| `{name}` | {text} |"


if __name__ == "__main__":
    PAGE.write_text(write_manual(), encoding="utf-8")
