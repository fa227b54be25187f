"""The command line: each command reads its options, makes one library call, and prints what came out.

Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from keyhole.cli.distill import distill, train
from keyhole.cli.hints import hints
from keyhole.cli.look import demo, evaluate, layers
from keyhole.cli.study import study
from keyhole.errors import KeyholeError

app = typer.Typer(
    help="Small networks that recognize from little: hint points by clustering, and students distilled with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (hints, train, distill, study, evaluate, layers, demo):
    app.command()(command)


def main() -> None:
    """Run the command line; an error that a person can act on is one line and exit code 1."""
    sys.path.insert(0, str(Path.cwd()))  # so that package.module:function finds the user's own file
    try:
        app()
    except KeyholeError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. A run with --out goes on with --resume.", err=True)
        raise SystemExit(130) from None
