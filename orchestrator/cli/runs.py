"""Commands on runs: quickstart, prepare, train, show, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    Audit,
    Overrides,
    Patience,
    Recipe,
    RecipeOrRun,
    Takeover,
    load_config,
    seconds_of,
)

app = typer.Typer()


@app.command(epilog="Example: [bold]manta quickstart[/], then [bold]manta quickstart docstrings[/]")
def quickstart(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[modules|docstrings]",
            help="modules: a language model of Python's standard library; docstrings: an encoder-decoder that reads "
            "the library's functions and writes the summaries of their docstrings.",
        ),
    ] = "modules",
    overrides: Overrides = None,
) -> None:
    """Train and evaluate a small model on this machine in a few minutes; needs no data and no cluster."""
    from data.errors import InputError
    from orchestrator.commands.quickstart import QUICKSTARTS, quickstart

    if name not in QUICKSTARTS:
        raise InputError(f"There is no quickstart {name!r}. There are: {', '.join(QUICKSTARTS)}.")
    quickstart(name, tuple(overrides or ()))


@app.command(epilog="Example: [bold]manta prepare recipes/quickstart.yaml[/]")
def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prepare the data of a run: check the shards, train the tokenizer, tokenize. Finished parts are not repeated."""
    config = load_config(recipe, overrides)
    from orchestrator.driver.prepare import prepare

    prepare(config)


@app.command(epilog="Example: [bold]manta train recipes/quickstart.yaml --set train.lr=3e-4 --set run=lower-lr[/]")
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    takeover: Takeover = False,
    patience: Patience = "0s",
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="FOLDER",
            help="Start from the weights in a folder written by [bold]manta export[/] or transformers; short for "
            "--set train.init_from=FOLDER.",
        ),
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            min=1,
            help="Continue from the checkpoint of this step, not from the newest; what came after it is trained again, "
            "and replaced.",
        ),
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Begin a run of this name anew at step 1; its checkpoints are deleted once there are new ones.",
        ),
    ] = False,
) -> None:
    """Train, or continue a stopped run of this name. Ctrl-C saves, then stops."""
    from cluster.strict_yaml import override

    given = [] if init_from is None else [override("train.init_from", init_from)]
    wait_s = seconds_of(patience, "--patience")
    if from_scratch and from_step is not None:
        raise typer.BadParameter("give --from-step or --from-scratch, not both")
    config = load_config(recipe, [*(overrides or []), *given])
    from orchestrator.driver.train import train
    from orchestrator.run.fence import process_started_at

    begin = 0 if from_scratch else from_step
    train(config, takeover=takeover, started_at=process_started_at(), wait_s=wait_s, from_step=begin)


@app.command(epilog="Example: [bold]manta show quickstart --json[/]")
def show(
    run: RecipeOrRun,
    overrides: Overrides = None,
    as_json: AsJson = False,
    audit: Audit = False,
) -> None:
    """Show a run or a sweep: steps, losses, evaluations, workers, checkpoints, goodput."""
    from orchestrator.commands.show import show

    show(run, as_json, tuple(overrides or ()), audit)


@app.command(epilog="Example: [bold]manta report quickstart[/], then open .manta/reports/quickstart.html")
def report(
    run: RecipeOrRun,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="File to write; default: .manta/reports/RUN.html."),
    ] = None,
    overrides: Overrides = None,
    audit: Audit = False,
) -> None:
    """Write the report of a run or a sweep: one HTML file with curves, workers, events, goodput, samples and config.

    The file loads nothing from the network. A copy is put into the run's folder. Works at any time, also while the
    run is training.
    """
    from orchestrator.commands.report import report

    report(run, to, tuple(overrides or ()), audit)
