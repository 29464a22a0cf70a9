"""Commands on jobs of a cluster: submit, jobs, logs, stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Address, AsJson, Overrides, RunOrJob, Takeover

app = typer.Typer()


@app.command(
    epilog="Example: [bold]manta submit recipes/mine.yaml --address http://HOST:8265[/]. The same by Ray alone: "
    "[bold]ray job submit --working-dir . -- manta train recipes/mine.yaml[/]"
)
def submit(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the run, or a sweep of runs.")
    ],
    address: Address = None,
    overrides: Overrides = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--detach", help="Follow the run to its end and return its exit status, or return at once."
        ),
    ] = True,
    folder: Annotated[
        Path, typer.Option("--working-dir", metavar="FOLDER", help="Folder that is shipped; the recipe must be in it.")
    ] = Path(),
    takeover: Takeover = False,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would be shipped, and what is left out and why."),
    ] = False,
) -> None:
    """Train on a cluster: ship this folder, run [bold]manta train[/] there, and follow it. Ctrl-C leaves it running.

    The recipe of a sweep runs [bold]manta tune[/]. A run that is training already is refused. A run that was stopped,
    or whose cluster died, is continued.
    """
    from orchestrator.commands.submit import submit

    status = submit(recipe, overrides or [], address, folder=folder, wait=wait, takeover=takeover, dry=dry)
    raise typer.Exit(status)


@app.command(epilog="Example: [bold]manta jobs --address http://HOST:8265[/]")
def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the runs and sweeps that were submitted to a cluster, with their status."""
    from orchestrator.commands.jobs import show_jobs

    show_jobs(address, as_json)


@app.command(epilog="Example: [bold]manta logs mine --follow[/]")
def logs(
    run: RunOrJob,
    address: Address = None,
    follows: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
) -> None:
    """Print the log of a submitted run."""
    from orchestrator.commands.jobs import show_logs

    raise typer.Exit(show_logs(run, address, follows=follows))


@app.command(epilog="Example: [bold]manta stop mine[/]; [bold]manta submit[/] then continues it")
def stop(
    run: RunOrJob,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return once the run has saved and ended, or at once.")
    ] = True,
) -> None:
    """Save a submitted run, then stop it."""
    from orchestrator.commands.jobs import stop

    stop(run, address, wait=wait)
