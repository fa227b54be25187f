"""The command line: each command reads its options, makes one library call, and prints what came out.

Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from keyhole.cli import faces
from keyhole.cli.distill import distill, train
from keyhole.cli.export import export
from keyhole.cli.hints import hints
from keyhole.cli.look import demo, evaluate, figures, layers
from keyhole.cli.options import process_number
from keyhole.cli.search import search
from keyhole.cli.study import study
from keyhole.errors import KeyholeError

_INTERRUPTED = 130
_MISUSE: Any = typer.BadParameter.__mro__[1]  # UsageError, which typer does not give a name of its own

app = typer.Typer(
    help="Small networks that recognize from little: hint points by clustering, and students distilled with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("keyhole"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


for command in (hints, search, train, distill, study, evaluate, export, figures, layers, demo):
    app.command()(command)
app.add_typer(faces.app, name="faces")


def main() -> None:
    """Run the command line; an error that a person can act on is one line and exit code 1."""
    _wait_briefly()
    sys.path.append(str(Path.cwd()))  # so that package.module:function finds the user's own file, and hides nothing
    try:
        code = app(standalone_mode=False)
    except _MISUSE as error:
        _refuse(error)
    except typer.Abort:  # of a question that nobody answered, whose line is still open
        typer.echo(err=True)
        _fail("Stopped at a question. Answer it in a terminal, or see --help for the option that does.")
    except KeyholeError as error:
        if getattr(error, "__notes__", None):  # that of the first process, which tells it
            raise SystemExit(1) from None
        _fail(str(error))
    except OSError as error:
        _fail(f"Cannot use {error.filename or 'a file'}: {error.strerror or error}. Check the path and the disk.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        _fail("Out of memory. Lower --batch-size, --samples or --grid.")
    else:
        if code == _INTERRUPTED:
            typer.echo(
                "Stopped. A run of train or distill goes on with --resume, any other when it is run again.", err=True
            )
        raise SystemExit(code or 0)


def _wait_briefly() -> None:
    """Let threads of PyTorch's that wait for each other soon leave the processor to those that they wait for.

    GNU OpenMP has them wait busily. Where another process is at work, or two of Keyhole's, they then take the very
    cores on which the rest would get done: several times the time of the same work alone, in the worst case. It is
    read when PyTorch is imported, which no command has done yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # turns of the loop, some microseconds


def _refuse(error: Any) -> NoReturn:
    """Tell of a call that is none in one line; a call without a command gets the help that it asks for."""
    if "\n" in error.message:
        error.show()
        raise SystemExit(1) from None
    command = "keyhole" if error.ctx is None else error.ctx.command_path
    message = error.format_message().rstrip(".")
    _fail(f"{message}{'' if message.endswith('?') else '.'} See {command} --help.")


def _fail(message: str) -> NoReturn:
    with suppress(OSError):
        number = process_number()
        who = f"Process {number}: " if number else ""
        typer.echo(f"{who}Error: " + " ".join(message.splitlines()), err=True)
    with suppress(OSError):  # what could not be printed is not tried again at exit
        sys.stdout.flush()
    raise SystemExit(1) from None
