"""Commands on runs: prepare, train, show, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, Overrides, Recipe, RecipeOrRun, load_config

app = typer.Typer()


@app.command(epilog="Example: [bold]manta quickstart[/], then [bold]manta quickstart docstrings[/]")
def quickstart(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[modules|docstrings]",
            help="A language model of Python's standard library, or an encoder-decoder that reads its functions and "
            "writes their docstrings' summaries.",
        ),
    ] = "modules",
    overrides: Overrides = None,
) -> None:
    """From nothing to a trained, evaluated model on this machine, in a few minutes."""
    from data.errors import InputError
    from orchestrator.commands.quickstart import QUICKSTARTS, quickstart

    if name not in QUICKSTARTS:
        raise InputError(f"There is no quickstart {name!r}. There are: {', '.join(QUICKSTARTS)}.")
    quickstart(name, tuple(overrides or ()))


@app.command(epilog="Example: [bold]manta prepare recipes/quickstart.yaml[/]")
def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Read the shards once: check them, train the tokenizer, tokenize. What is done already is not done again."""
    config = load_config(recipe, overrides)
    from orchestrator.driver.prepare import prepare

    prepare(config)


@app.command(epilog="Example: [bold]manta train recipes/quickstart.yaml --set train.lr=3e-4 --set run=lower-lr[/]")
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Take the run from an attempt that seems alive; it will stop."),
    ] = False,
    patience: Annotated[
        str,
        typer.Option(metavar="SECONDS", help="Wait so long for an attempt that seems alive to end, as 60s."),
    ] = "0s",
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="FOLDER",
            help="Begin with the weights of a folder that [bold]manta export[/] or transformers has written; stands "
            "for --set train.init_from=FOLDER.",
        ),
    ] = None,
) -> None:
    """Train, or continue where the run of this name stopped. Ctrl-C saves, then stops."""
    given = [] if init_from is None else [f"train.init_from={json.dumps(init_from)}"]
    from orchestrator.cli.options import seconds_of

    wait_s = seconds_of(patience, "--patience")
    config = load_config(recipe, [*(overrides or []), *given])
    from orchestrator.driver.train import train
    from orchestrator.run.fence import process_started_at

    train(config, takeover=takeover, started_at=process_started_at(), wait_s=wait_s)


@app.command(epilog="Example: [bold]manta show quickstart --json[/]")
def show(
    run: RecipeOrRun,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Where a run stands: steps, losses, samples, checkpoints, and where the time went."""
    from orchestrator.commands.show import show

    show(run, as_json, tuple(overrides or ()))


@app.command(epilog="Example: [bold]manta report quickstart[/], then open .manta/reports/quickstart.html")
def report(
    run: RecipeOrRun,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Where to write it, in place of .manta/reports/RUN.html."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a run's report: one HTML file with its curves, workers and events over time, seconds, samples and config.

    It needs no network and runs no script from elsewhere, and is also put into the run's folder. Works at any time:
    also while the run goes on. For a sweep, its report is written anew.
    """
    from orchestrator.commands.report import report

    report(run, to, tuple(overrides or ()))
