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
