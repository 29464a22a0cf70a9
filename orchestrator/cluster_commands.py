"""`manta cluster`: one spec, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="One cluster spec: manifests for Kubernetes, YAML for virtual machines, or real nodes on this machine.",
)

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file that describes the cluster.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field by its dotted name; may be given many times."),
]


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
    from orchestrator.render import render

    typer.echo(render(spec, to, kind, recipe, overrides or ()), nl=False)
