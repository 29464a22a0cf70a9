"""Commands that check and explain: doctor, chaos, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import Address, AsJson, Overrides, Recipe, load_config

if TYPE_CHECKING:
    pass


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
        bool, typer.Option("--cluster", help="Examine a cluster instead of this machine, the one of --address.")
    ] = False,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, machine, object storage and Ray, and say what to do about each thing that fails.

    With [bold]--cluster[/], a job on the cluster's head does so there.
    """
    config = load_config(recipe, overrides) if recipe else None
    from orchestrator.commands.doctor import examine, print_checks

    if cluster or address is not None:
        from orchestrator.commands.cluster_doctor import examine_cluster

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
        typer.Option(metavar="KIND,KIND,…", help="Faults to do, or all: every kind once before any comes again."),
    ] = "all",
    every: Annotated[str, typer.Option(metavar="SECONDS", help="Time from one fault to the next, as 20s.")] = "20s",
    count: Annotated[int | None, typer.Option(min=1, help="Most faults; as many as there is time for.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which faults come in which order, and to whom.")] = 1,
    nodes: Annotated[int, typer.Option(min=2, help="Nodes of the local cluster, of one CPU each.")] = 4,
    baseline: Annotated[
        str | None, typer.Option(metavar="ray", help="Also do the faults to the same model on stock Ray Train.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train a run twice on a local cluster of real nodes, once disturbed, and report what every fault cost.

    Faults: kill-worker, kill-node, drain-node, remove-node, add-node, hang-worker, store-errors, store-slow,
    corrupt-checkpoint. Ends with status 1 if the disturbed run is not the undisturbed one: its samples, or its losses
    by more than rounding.
    """
    from data.errors import InputError
    from orchestrator.chaos.command import Plan, chaos, is_same_run
    from orchestrator.chaos.plan import KINDS
    from orchestrator.chaos.report import print_report
    from orchestrator.cli.options import seconds_of
    from orchestrator.console import Console

    if baseline not in (None, "ray"):
        raise InputError(f"--baseline {baseline}: there is one, `ray`.")
    kinds = list(KINDS) if faults == "all" else [kind.strip() for kind in faults.split(",") if kind.strip()]
    plan = Plan(kinds, seconds_of(every), seed, count, nodes)

    def tell(report: dict[str, Any]) -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1))
        print_report(report, Console().rich)

    report = chaos(recipe, overrides or [], plan, baseline is not None, tell)
    raise typer.Exit(0 if is_same_run(report) else 1)


@app.command(epilog="Example: [bold]manta schema --markdown[/]")
def schema(
    as_table: Annotated[
        bool, typer.Option("--markdown", help="A table of name, type, default and meaning instead of JSON schema.")
    ] = False,
    of_cluster: Annotated[
        bool, typer.Option("--cluster", help="The fields of a cluster's spec, not of a recipe.")
    ] = False,
) -> None:
    """Print every field a recipe may have, as JSON schema for editors or as a table for people."""
    from cluster.spec import ClusterSpec
    from orchestrator.config.recipe import RunConfig
    from orchestrator.config.schema import markdown

    model = ClusterSpec if of_cluster else RunConfig
    schema = model.model_json_schema()
    typer.echo(markdown(model) if as_table else json.dumps(schema, indent=2, ensure_ascii=False))
