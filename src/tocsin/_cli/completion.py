"""``tocsin completion``: completion of commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from .program import Command

_VARIABLE = "_TOCSIN_COMPLETE"
_SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command(
    cls=Command,
    examples=[
        'eval "$(tocsin completion bash)"    # in ~/.bashrc',
        'eval "$(tocsin completion zsh)"     # in ~/.zshrc',
        "tocsin completion fish | source    # in ~/.config/fish/config.fish",
    ],
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete this command line."""
    root = click.get_current_context().find_root()
    # Not `source()`, which runs the shell to learn its version.
    complete = _SHELLS[shell](root.command, {}, str(root.info_name), _VARIABLE)
    click.echo(complete.source_template % complete.source_vars())
