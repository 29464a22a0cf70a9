"""Commands on jobs of a cluster: submit, jobs, logs, stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Address, AsJson, Overrides, Recipe, RunOrJob, load_config

app = typer.Typer()


@app.command(
    epilog="Example: [bold]manta submit recipes/mine.yaml --address http://HOST:8265[/]. The same by Ray alone: "
    "[bold]ray job submit --working-dir . -- manta train recipes/mine.yaml[/]"
)
def submit(
    recipe: Recipe,
    address: Address = None,
    overrides: Overrides = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Follow the run to its end and return its exit status, or leave.")
    ] = True,
    folder: Annotated[
        Path, typer.Option("--working-dir", metavar="FOLDER", help="What is shipped; the recipe lies in it.")
    ] = Path(),
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the run from an attempt that seems alive; it will stop.")
    ] = False,
) -> None:
    """Train on a cluster: ship this folder, run [bold]manta train[/] there, and follow it. Ctrl-C leaves it running.

    A run that is live is refused; one that was stopped, or whose cluster died, goes on where it was.
    """
    config = load_config(recipe, overrides)
    from orchestrator.commands.submit import submit

    raise typer.Exit(submit(config, recipe, overrides or [], address, folder=folder, wait=wait, takeover=takeover))


@app.command(epilog="Example: [bold]manta jobs --address http://HOST:8265[/]")
def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """Runs submitted to a cluster, and how each stands."""
    from orchestrator.commands.jobs import show_jobs

    show_jobs(address, as_json)


@app.command(epilog="Example: [bold]manta logs mine --follow[/]")
def logs(
    run: RunOrJob,
    address: Address = None,
    follows: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """What a submitted run has printed."""
    from orchestrator.commands.jobs import show_logs

    raise typer.Exit(show_logs(run, address, follows=follows))


@app.command(epilog="Example: [bold]manta stop mine[/]; [bold]manta submit[/] then continues it")
def stop(
    run: RunOrJob,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has saved and ended.")] = True,
) -> None:
    """Have a submitted run save, then stop."""
    from orchestrator.commands.jobs import stop

    stop(run, address, wait=wait)
