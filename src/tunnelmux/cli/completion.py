"""tunnelmux completion: shell completion, with the names of devices and services."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from tunnelmux.cli.fleet_options import examples

__all__ = ["completion"]

_PROGRAM = "tunnelmux"
_VARIABLE = "_TUNNELMUX_COMPLETE"


@click.command(
    epilog=examples(
        (
            'eval "$(tunnelmux completion bash)"',
            "For bash 4.4 or newer, in ~/.bashrc.",
        ),
        ('eval "$(tunnelmux completion zsh)"', "For zsh, in ~/.zshrc."),
        (
            "tunnelmux completion fish > ~/.config/fish/completions/tunnelmux.fish",
            "For fish.",
        ),
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the completion for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    maker = kind(context.find_root().command, {}, _PROGRAM, _VARIABLE)
    # As source() does, but without looking for the shell on this machine.
    click.echo(maker.source_template % maker.source_vars())
