"""Sweeps on clusters that are too small for them, and trials that are stopped: minutes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.local.nodes import LocalNodes
from cluster.local.ray import ray_cluster
from orchestrator.sweep.command import tune
from tests.end_to_end.manta_process import MantaProcess
from tests.end_to_end.test_tune import settled
from tests.orchestrator.sweep.site import QUIET, SweepSite

pytestmark = [pytest.mark.sweep, *QUIET]


STOPPED_TRIALS = int(os.environ.get("STOPPED_TRIALS", "4"))
"""Five seconds each; `STOPPED_TRIALS=50 pytest -m sweep -k stopped_trials` is a good measure."""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder of a short name: the system refuses sockets of long ones."""
    with tempfile.TemporaryDirectory(prefix="manta-") as folder:
        yield Path(folder)


@pytest.mark.soak
def test_more_trials_than_the_cluster_holds_do_not_wait_for_each_other(site: SweepSite, ray_folder: Path) -> None:
    """Three nodes of one CPU, three trials of two workers each: one and a half fit."""
    scaling = {"scaling.num_workers": 2, "scaling.min_workers": 2, "scaling.max_workers": 2}
    searcher = {"name": "random", "trials": 3, "seed": 1}
    recipe = site.recipe(set={**scaling, "train.steps": 20}, searcher=searcher, scheduler={"name": "none"})
    with LocalNodes(ray_folder) as nodes:
        nodes.add(3)
        with MantaProcess("tune", str(recipe), folder=site.folder, environment=nodes.environment) as process:
            assert process.wait(400) == 0, process.output
    summary = site.summary(recipe)
    assert [trial["status"] for trial in summary["trials"]] == ["finished"] * 3
    spans = sorted((trial["started_at"], trial["ended_at"]) for trial in summary["trials"])
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))  # type: ignore[operator]


@pytest.mark.soak
def test_a_trial_that_loses_a_node_goes_on_smaller(site: SweepSite, ray_folder: Path) -> None:
    scaling = {"scaling.num_workers": 2, "scaling.min_workers": 1, "scaling.max_workers": 2}
    recipe = site.recipe(
        set={**scaling, "train.steps": 600, "model.d_model": 128},
        scheduler={"name": "none"},
        searcher={"name": "random", "trials": 1},
    )
    with LocalNodes(ray_folder) as nodes:
        nodes.add(2)
        with MantaProcess("tune", str(recipe), folder=site.folder, environment=nodes.environment) as process:
            process.wait_until(lambda: any(record.reports for record in site.book(recipe)), "a report")
            nodes.living()[0].kill()
            assert process.wait(400) == 0, process.output
    summary = site.summary(recipe)
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]


@pytest.mark.soak
def test_a_sweep_on_a_cluster_without_workers_brings_nodes_up(site: SweepSite) -> None:
    """The head has no CPU, so nothing is tokenized or trained anywhere but on nodes that come."""
    recipe = site.recipe(set={"train.steps": 20}, scheduler={"name": "none"}, searcher={"name": "random", "trials": 2})
    with MantaProcess("tune", str(recipe), "--autoscale", "2", folder=site.folder, environment={}) as process:
        assert process.wait(400) == 0, process.output
        assert "Traceback" not in process.output
    assert [trial["status"] for trial in site.summary(recipe)["trials"]] == ["finished"] * 2


@pytest.mark.soak
def test_stopped_trials_leave_nothing_behind(site: SweepSite) -> None:
    points = [{"train.optimizer.name": "adamw", "train.lr": 1e-3}]
    recipe = site.recipe(
        set={"train.steps": 30, "train.schedule.warmup_steps": 0},
        space={"train.optimizer.name": {"choice": ["sgd", "adamw"]}, "train.lr": {"loguniform": [1e-7, 1e-3]}},
        searcher={"name": "random", "trials": STOPPED_TRIALS + 1, "points": points},
        scheduler={"name": "asha", "grace_steps": 10, "factor": STOPPED_TRIALS},
        max_concurrent=2,
    )
    with ray_cluster(4):
        summary = tune(recipe, [])
        # The first two have nobody to be worse than, and a few more come between the best by chance.
        assert sum(trial["status"] == "stopped" for trial in summary["trials"]) >= 0.7 * STOPPED_TRIALS
        assert settled() == {"actors": [], "groups": [], "processes": [], "snapshots": []}
