"""Write the page of the command line from the command line itself: ``uv run python docs/cli_page.py > docs/cli.md``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from tocsin.cli import tocsin

EVERYWHERE = ("dsn", "schema", "format")
INTRODUCTION = """\
# The command line

`pip install 'tocsin[cli]'` installs the command `tocsin`. Each command has `--help`, with examples. This page says the same, and is made from it.

| everywhere | |
| --- | --- |
{everywhere}

These may stand before or after the subcommand. Durations are written such as `250ms`, `1.5s`, `30m`, `2h`, `7d`, `1w`, or `12` for seconds. An id may be
given as an argument or as `--id`.

| exit code | |
| ---: | --- |
| 0 | done |
| 1 | refused, or not found |
| 2 | bad usage |
| 3 | the database cannot be reached |
| 4 | unhealthy, for `worker health` and `admin verify` |
| 128 + n | ended by signal n |

What destroys something asks before it does. `--yes` answers beforehand; without it, on a pipe, nothing is destroyed. An error is one line on standard
error.
"""


def page() -> str:
    """The whole page."""
    parts = list(_sections(tocsin, click.Context(tocsin, info_name="tocsin")))
    common = {str(p.name): p for p in tocsin.get_params(click.Context(tocsin, info_name="tocsin"))}
    everywhere = "\n".join(_row(common[name], tocsin) for name in EVERYWHERE)
    return INTRODUCTION.format(everywhere=everywhere) + "".join(parts)


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    if context.parent is not None:
        yield _section(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _sections(found, click.Context(found, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    mark = "#" * (1 + context.command_path.count(" "))
    parts = [f"\n{mark} {context.command_path}\n"]
    if not isinstance(command, click.Group):
        parts.append(f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n")
    parts.append(_text(inspect.cleandoc(command.help or "")) + "\n")
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in EVERYWHERE]
    if options and not isinstance(command, click.Group):
        parts.append("| option | |\n| --- | --- |\n" + "\n".join(_row(p, command) for p in options) + "\n")
    examples = getattr(command, "examples", ())
    if examples:
        parts.append("```text\n" + "\n".join(examples) + "\n```\n")
    return "\n".join(parts)


def _text(text: str) -> str:
    """Paragraphs as Markdown; an indented one is a table of two columns."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.replace("\b\n", "").split("\n")
        if all(re.match(r"\S+ {2,}\S", line) for line in lines):
            rows = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
            paragraphs.append("| | |\n| --- | --- |\n" + "\n".join(f"| `{left}` | {right} |" for left, right in rows))
        else:
            paragraphs.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(paragraphs)


def _row(parameter: click.Parameter, command: click.Command) -> str:
    names, text = parameter.get_help_record(click.Context(command)) or ("", "")
    names, text = (cell.replace("|", "\\|") for cell in (names, " ".join(text.split())))
    return f"| `{names}` | {text} |"


if __name__ == "__main__":
    sys.stdout.write(page())
