"""The `manta` command: parses arguments, calls the module that does the work, and prints its errors as messages.

That module is imported inside the command's function, so that `manta --help` does not wait for Ray and torch.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.known_secrets import struck
from data.errors import InputError, MantaError
from orchestrator.cli import checks, cluster, jobs, models, runs, tune
from orchestrator.printable import printable

_INTERRUPTED = 130
"""Exit status after Ctrl-C, 128 + SIGINT as in a shell, so that scripts stop too."""


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Makes the messages of Typer's own errors printable: they repeat the arguments."""
    try:
        yield
    except Exception as error:
        if message := getattr(error, "format_message", None):  # Typer's class of them is not public
            shown = printable(message())
            error.format_message = lambda: shown  # type: ignore[attr-defined]
        raise


class _Commands(TyperGroup):
    """Prints a `MantaError` as a message and sets the exit status; any other error is a bug and keeps its traceback."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _printable_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        try:
            _refuse_deleted_folder()
            with _printable_usage_errors():
                result = super().invoke(ctx)
            sys.stdout.flush()  # else a full disk would be found out when the process ends
            return result
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            typer.echo(f"error: {error.strerror}: the output or a file could not be written.", err=True)
            _forget_output()
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.secho("stopped.", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except MantaError as error:
            # Ray wraps an error of a task in a class whose text is a traceback; the error itself is its cause.
            cause = getattr(error, "cause", error)
            typer.secho("error:", fg=typer.colors.RED, bold=True, err=True, nl=False)
            typer.echo(f" {printable(str(cause))}", err=True)
            raise typer.Exit(error.exit_status) from None


def _forget_output() -> None:
    """Leads standard output to nowhere: Python would try to write what is left of it when the process ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_deleted_folder() -> None:
    """Raises InputError where the working directory does not exist any more."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("The folder in which this shell is was deleted. Change into another one: cd /") from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train Transformers on a cluster that changes: change the cluster, not the result.",
    epilog="Start with [bold]manta quickstart[/]. Help on a command: [bold]manta train --help[/].",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"manta {version('manta')}")
        except PackageNotFoundError:
            typer.echo("manta, run from a source tree that is not installed")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# In the order in which --help shows them.
for part in (runs, models, tune, jobs, checks):
    app.add_typer(part.app)
app.add_typer(cluster.app, name="cluster")


def main() -> None:
    """Entry point of the `manta` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a character
    sys.excepthook = _print_without_secrets
    app()


def _print_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of a bug."""
    sys.stderr.write(struck("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    main()
