"""The command `manta tune`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Patience, Takeover, seconds_of

app = typer.Typer()


@app.command(epilog="Example: [bold]manta tune recipes/sweep.yaml --set searcher.trials=8[/]")
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the sweep.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a field of the sweep, or of the run for all trials; repeatable.",
        ),
    ] = None,
    resume_best: Annotated[
        bool, typer.Option("--resume-best", help="Train the best trial to its full length afterwards.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try trials again that have failed for good.")
    ] = False,
    takeover: Takeover = False,
    patience: Patience = "0s",
    autoscale: Annotated[
        int | None,
        typer.Option(
            "--autoscale",
            min=1,
            metavar="NODES",
            help="Run on a local cluster that starts without worker nodes: Ray's autoscaler adds up to this many nodes "
            "of one CPU each, and removes them again.",
        ),
    ] = None,
) -> None:
    """Search learning rates, optimizers and other fields, or continue a stopped sweep of this name."""
    wait_s = seconds_of(patience, "--patience")
    with ExitStack() as stack:
        if autoscale is not None:
            from cluster.local.autoscaled import AutoscaledCluster
            from cluster.spec import ClusterSpec, GroupSpec

            group = GroupSpec(name="worker", cpus=1, max=autoscale)
            spec = ClusterSpec(cluster="sweep", groups=(group,))
            stack.enter_context(stack.enter_context(AutoscaledCluster(spec)).joined())
        from orchestrator.sweep.command import tune

        tune(
            recipe,
            overrides or [],
            resume_best=resume_best,
            retry_failed=retry_failed,
            takeover=takeover,
            wait_s=wait_s,
        )
