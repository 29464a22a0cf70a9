"""The commands doctor, chaos and schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.known_secrets import struck
from orchestrator.cli.options import Address, AsJson, Overrides, Recipe, load_config

app = typer.Typer()

Soak = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Train for this long, such as 30m, under faults drawn by how often they happen to large runs; then stop, "
        "and report samples lost or doubled, tracebacks, and what is left over.",
    ),
]


@app.command(
    epilog="Example: [bold]manta doctor recipes/quickstart.yaml[/], "
    "[bold]manta doctor recipes/mine.yaml --cluster --address http://HOST:8265[/]"
)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also try this recipe's object storage.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Check the cluster of --address instead of this machine.")
    ] = False,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, machine, object storage and Ray, and print a remedy for each problem.

    With [bold]--cluster[/], a job runs these checks on the cluster's head.
    """
    config = load_config(recipe, overrides) if recipe else None
    from orchestrator.commands.doctor.examine import examine, print_checks

    if cluster or address is not None:
        from orchestrator.commands.doctor.cluster import examine_cluster

        checks = examine_cluster(address, config, recipe, overrides or [], Path())
    else:
        checks = examine(config)
    if as_json:
        typer.echo(struck(json.dumps([check.as_dict() for check in checks], indent=2)))
    else:
        print_checks(checks)
    raise typer.Exit(int(any(check.status == "fail" for check in checks)))


@app.command(
    epilog="Example: [bold]manta chaos recipes/quickstart.yaml --faults kill-worker,kill-node,add-node --every 15s[/]"
)
def chaos(
    recipe: Recipe,
    faults: Annotated[
        str,
        typer.Option(
            metavar="KIND,KIND,…",
            help="Kinds of faults to inject, or all that are possible here: every kind once before any is repeated.",
        ),
    ] = "all",
    every: Annotated[
        str, typer.Option(metavar="SECONDS", help="Time between two faults, such as 20s; with --soak, their mean.")
    ] = "20s",
    soak: Soak = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of faults; default: as many as fit into the run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order and the targets of the faults.")] = 1,
    nodes: Annotated[int, typer.Option(min=2, help="Number of nodes of the local cluster, with one CPU each.")] = 4,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ray", help="ray: also inject the faults into the same model on stock Ray Train."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File to write the report to, as JSON.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a run twice on a local cluster of real nodes, once with faults, and report the cost of every fault.

    Faults: kill-worker, kill-node, drain-node, remove-node, add-node, hang-worker, partition, clock-skew, slow-node,
    store-errors, store-slow, store-away, full-disk, full-shm, corrupt-checkpoint, kill-monitor, kill-feeder,
    kill-agent, kill-driver, kill-head. The exit status is 1 if the samples of the two runs differ, or their losses by
    more than rounding; with [bold]--soak[/], if the run has lost or left anything.
    """
    from data.errors import InputError
    from orchestrator.chaos.command import chaos, is_same_run, possible_kinds
    from orchestrator.chaos.plan import Plan
    from orchestrator.chaos.report import print_report, print_soak
    from orchestrator.chaos.soak import is_clean
    from orchestrator.cli.options import seconds_of
    from orchestrator.console import Console

    if baseline not in (None, "ray"):
        raise InputError(f"--baseline {baseline}: must be ray.")
    if soak is not None and baseline is not None:
        raise InputError("--soak and --baseline cannot be combined: a soak has no undisturbed run to compare with.")
    if faults == "all":
        kinds = possible_kinds(load_config(recipe, overrides))
    else:
        kinds = [kind.strip() for kind in faults.split(",") if kind.strip()]
    soak_s = None if soak is None else seconds_of(soak, "--soak")
    plan = Plan(kinds, seconds_of(every), seed, count, nodes, soak_s)

    def write(report: dict[str, Any]) -> None:
        if json_file is not None:
            json_file.write_text(struck(json.dumps(report, indent=1)))
        (print_report if soak is None else print_soak)(report, Console().rich)

    report = chaos(recipe, overrides or [], plan, baseline is not None, write)
    raise typer.Exit(0 if (is_same_run if soak is None else is_clean)(report) else 1)


@app.command(epilog="Example: [bold]manta schema --markdown[/]")
def schema(
    as_table: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table instead of JSON schema.")
    ] = False,
    of_cluster: Annotated[
        bool, typer.Option("--cluster", help="The fields of a cluster spec, not of a recipe.")
    ] = False,
) -> None:
    """Print all fields of a recipe, as JSON schema for editors or as a table."""
    from cluster.spec import ClusterSpec
    from orchestrator.config.recipe import RunConfig
    from orchestrator.config.schema import markdown

    model = ClusterSpec if of_cluster else RunConfig
    schema = model.model_json_schema()
    typer.echo(markdown(model) if as_table else json.dumps(schema, indent=2, ensure_ascii=False))
