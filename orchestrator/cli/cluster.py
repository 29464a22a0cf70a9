"""The commands `manta cluster ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, Overrides, seconds_of
from orchestrator.printable import printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Clusters from one spec: local clusters, manifests for Kubernetes, YAML for virtual machines.",
)

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file that describes the cluster.")]

Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Name of the local cluster; default: the only one that is running."),
]


@app.command(epilog="Example: [bold]manta cluster up recipes/clusters/local.yaml[/]")
def up(spec: Spec, overrides: Overrides = None) -> None:
    """Start the cluster on this machine: real nodes under Ray's own autoscaler. It runs until [bold]down[/].

    Nodes are added when a run or a sweep requests them, and removed when they are idle. The resource gpu-stand-in takes
    the place of GPUs.
    """
    from orchestrator.commands.cluster import bring_up
    from orchestrator.config.cluster_spec import load_cluster

    bring_up(load_cluster(spec, overrides or []))


@app.command(epilog="Example: [bold]manta cluster status[/]")
def status(name: Name = None, as_json: AsJson = False) -> None:
    """Show the nodes of a local cluster, their use, and the resources that are requested."""
    from orchestrator.commands.cluster import show_status

    show_status(name, as_json)


@app.command(epilog='Example: [bold]eval "$(manta cluster env local)"[/], then [bold]manta train RECIPE[/]')
def env(name: Name = None) -> None:
    """Print the environment variables with which a shell joins a local cluster. They include an access token."""
    from orchestrator.commands.cluster import print_environment

    print_environment(name)


@app.command(epilog="Example: [bold]manta cluster reclaim train --grace 30s[/]")
def reclaim(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Group of nodes to reclaim a node from.")],
    name: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="NAME", help="Name of the local cluster; default: the only one that is running."
        ),
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS", help="Time from the notice to the node's end, such as 30s; default: grace_s of the spec."
        ),
    ] = None,
) -> None:
    """Reclaim a node as a cloud reclaims a spot machine: notice now, the end after the grace period."""
    from orchestrator.commands.cluster import reclaim

    reclaim(name, group, seconds_of(grace, "--grace") if grace else None)


@app.command(epilog="Example: [bold]manta cluster down local[/]")
def down(
    name: Name = None,
    now: Annotated[bool, typer.Option("--now", help="End at once, without letting jobs save.")] = False,
) -> None:
    """End a local cluster. Running jobs are saved and stopped first; no process is left."""
    from orchestrator.commands.cluster import take_down

    take_down(name, at_once=now)


@app.command(
    epilog="Example: [bold]manta cluster render recipes/clusters/gpu-spot.yaml --recipe recipes/mine.yaml "
    "| kubectl apply -f -[/]"
)
def render(
    spec: Spec,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="kuberay|vm", help="kuberay: manifests for Kubernetes; vm: YAML for virtual machines."
        ),
    ] = "kuberay",
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="rayjob|raycluster",
            help="kuberay only. rayjob (the default): a cluster for one run; raycluster: a cluster that jobs are "
            "submitted to.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="RECIPE", help="Recipe that the RayJob runs.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print the cluster as manifests for KubeRay, or as YAML for [bold]ray up[/].

    Contacts nothing. Refuses a spec or recipe that could not run there; the output contains no secret.
    """
    from orchestrator.commands.render import render

    def warn(text: str) -> None:
        typer.echo(f"warning: {printable(text)}", err=True)

    typer.echo(render(spec, to, kind, recipe, overrides or (), warn), nl=False)
