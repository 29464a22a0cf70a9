"""`manta cluster`: one spec, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import seconds_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="One cluster spec: manifests for Kubernetes, YAML for virtual machines, or real nodes on this machine.",
)

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file that describes the cluster.")]

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Name of the cluster; may be left out where one is up.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field by its dotted name; may be given many times."),
]


@app.command(epilog="Example: [bold]manta cluster up recipes/clusters/local.yaml[/]")
def up(spec: Spec, overrides: Overrides = None) -> None:
    """Start the cluster on this machine: real nodes under Ray's own autoscaler. It stays until [bold]down[/].

    Nodes come when a run or a sweep asks for them, and go when they have been idle. A GPU is stood in for by a resource
    named gpu-stand-in.
    """
    from orchestrator.commands.cluster import bring_up
    from orchestrator.config.cluster_spec import load_cluster

    bring_up(load_cluster(spec, overrides or []))


@app.command(epilog="Example: [bold]manta cluster status[/]")
def status(name: Name = None, as_json: AsJson = False) -> None:
    """Nodes of a cluster on this machine, what uses them, and what is waited for."""
    from orchestrator.commands.cluster import show_status

    show_status(name, as_json)


@app.command(epilog='Example: [bold]eval "$(manta cluster env local)"[/], then [bold]manta train RECIPE[/]')
def env(name: Name = None) -> None:
    """Print the variables with which commands of a shell join a cluster on this machine. A token is among them."""
    from orchestrator.commands.cluster import print_environment

    print_environment(name)


@app.command(epilog="Example: [bold]manta cluster reclaim train --grace 30s[/]")
def reclaim(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Group of which a node is taken.")],
    name: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="Cluster; the only one that is up.")
    ] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="From the notice to the node's end, as 30s; default grace_s.")
    ] = None,
) -> None:
    """Take a node away as a cloud reclaims a spot machine: notice now, the end after the grace."""
    from orchestrator.commands.cluster import reclaim

    reclaim(name, group, seconds_of(grace, "--grace") if grace else None)


@app.command(epilog="Example: [bold]manta cluster down local[/]")
def down(
    name: Name = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let jobs save first.")] = False,
) -> None:
    """End a cluster on this machine. Jobs that run are stopped first, which saves; no process is left."""
    from orchestrator.commands.cluster import take_down

    take_down(name, at_once=now)


@app.command(
    epilog="Example: [bold]manta cluster render recipes/clusters/gpu-spot.yaml --recipe recipes/mine.yaml "
    "| kubectl apply -f -[/]"
)
def render(
    spec: Spec,
    to: Annotated[str, typer.Option("--to", metavar="kuberay|vm", help="Kubernetes, or virtual machines.")] = "kuberay",
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="rayjob|raycluster",
            help="One run in a cluster of its own, the default, or a cluster that jobs are submitted to; for kuberay.",
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="RECIPE", help="The run of a RayJob.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the cluster as manifests for KubeRay, or as YAML for [bold]ray up[/].

    Nothing is contacted. What could not run there is refused, and no secret is in what is printed.
    """
    from orchestrator.commands.render import render

    typer.echo(render(spec, to, kind, recipe, overrides or ()), nl=False)
