"""The commands doctor, chaos and schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Address, AsJson, Overrides, Recipe, load_config

app = typer.Typer()


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
        typer.echo(json.dumps([check.as_dict() for check in checks], indent=2))
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
            metavar="KIND,KIND,…", help="Kinds of faults to inject, or all: every kind once before any is repeated."
        ),
    ] = "all",
    every: Annotated[str, typer.Option(metavar="SECONDS", help="Time between two faults, such as 20s.")] = "20s",
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

    Faults: kill-worker, kill-node, drain-node, remove-node, add-node, hang-worker, slow-node, store-errors, store-slow,
    store-away, corrupt-checkpoint, kill-monitor, kill-feeder, kill-agent. The exit status is 1 if the samples of the
    two runs differ, or their losses by more than rounding.
    """
    from data.errors import InputError
    from orchestrator.chaos.command import Plan, chaos, is_same_run
    from orchestrator.chaos.plan import KINDS
    from orchestrator.chaos.report import print_report
    from orchestrator.cli.options import seconds_of
    from orchestrator.console import Console

    if baseline not in (None, "ray"):
        raise InputError(f"--baseline {baseline}: must be ray.")
    kinds = list(KINDS) if faults == "all" else [kind.strip() for kind in faults.split(",") if kind.strip()]
    plan = Plan(kinds, seconds_of(every), seed, count, nodes)

    def write(report: dict[str, Any]) -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1))
        print_report(report, Console().rich)

    report = chaos(recipe, overrides or [], plan, baseline is not None, write)
    raise typer.Exit(0 if is_same_run(report) else 1)


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
