"""The MLflow tracker on a SQLite database, read with MLflow's own client: one MLflow run for all attempts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator.config.observe import MlflowConfig
from orchestrator.observe.mlflow_tracker import MlflowTracker
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.observe.trackers import Tracking
from orchestrator.run.run import Group
from tests.waiting import wait_until

# MLflow's tables use what SQLAlchemy is about to drop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")]

EXPERIMENT = "manta tests"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def attempt(uri: str, steps: range, status: str, run_id: str = "one", workers: int = 1) -> None:
    tracker = MlflowTracker(MlflowConfig(tracking_uri=uri, experiment=EXPERIMENT))
    parameters = {"train.lr": 0.1, "scaling.num_workers": workers, "sample.prompts": "x" * 9000}
    tracker.begin(Tracked(run_id, f"run {run_id}", "s3://here", steps.start - 1, parameters))
    tracker.log([Point(step, 1000.0 + step, {"loss": 1 / step, "grad_norm": None}) for step in steps])
    tracker.log_evaluation(Point(steps[-1], 2000.0, {"loss": 0.5, "bits_per_byte": 2.0}), final=False)
    tracker.finish(status)


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient  # seconds

    return MlflowClient(uri)


def runs(uri: str) -> list[Any]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_later_attempts_continue_the_same_mlflow_run(uri: str) -> None:
    attempt(uri, range(1, 1501), "stopped")
    [run] = runs(uri)
    assert (run.info.run_name, run.info.status) == ("run one", "KILLED")
    attempt(uri, range(1501, 1504), "finished", workers=2)
    attempt(uri, range(1, 3), "failed", run_id="two")
    two, one = sorted(runs(uri), key=lambda run: run.info.run_name == "run one")
    assert (one.info.run_id, one.info.status, two.info.status) == (run.info.run_id, "FINISHED", "FAILED")
    assert one.data.tags["manta.url"] == "s3://here"
    assert (one.data.params["train.lr"], one.data.params["scaling.num_workers"]) == ("0.1", "1")

    history = client_of(uri).get_metric_history(one.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in range(1, 1504)]
    assert history[0].timestamp == 1_001_000
    assert (one.data.metrics["held_out.loss"], one.data.metrics["held_out.bits_per_byte"]) == (0.5, 2.0)
    assert "grad_norm" not in one.data.metrics


def test_the_trials_of_a_sweep_are_children_of_its_run(uri: str) -> None:
    """Also one that began before the sweep's run was there; and only its own."""
    group, other = Group("sweep1", "lr"), Group("sweep2", "lr")

    def begun(run_id: str, group: Group | None, labels: dict[str, str] | None = None) -> MlflowTracker:
        tracker = MlflowTracker(MlflowConfig(tracking_uri=uri, experiment=EXPERIMENT))
        tracker.begin(Tracked(run_id, run_id, "s3://here", 0, {"train.lr": 0.1}, group, labels or {}))
        return tracker

    begun("t1", group)
    sweep = begun("sweep1", group)
    begun("t2", group), begun("foreign", other), begun("alone", None)
    sweep.log([Point(7, 1000.0, {"best_loss": 2.0})])
    begun("t3", group, {"manta.best": "false"}).finish("finished")
    sweep.finish("finished")
    begun("t3", group, {"manta.best": "true"}).finish("finished")
    found = {run.info.run_name: run for run in runs(uri)}
    parent = found["sweep1"].info.run_id
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in found.items()}
    expected = dict.fromkeys(("t1", "t2", "t3"), parent) | dict.fromkeys(("sweep1", "foreign", "alone"), None)
    assert parents == expected
    assert (found["sweep1"].data.metrics, found["sweep1"].info.status) == ({"best_loss": 2.0}, "FINISHED")
    assert found["t3"].data.tags["manta.best"] == "true" and "manta.best" not in found["t1"].data.tags


class _Page(list[Any]):
    """The last page of a search, which found nothing."""

    token = None


def test_points_are_logged_once_where_a_trial_is_only_found_at_the_second_try(uri: str) -> None:
    tracker = MlflowTracker(MlflowConfig(tracking_uri=uri, experiment=EXPERIMENT))
    tracker.begin(Tracked("sweep1", "lr", "s3://here", 0, {}, Group("sweep1", "lr")))
    tracker._client = Mock(**{"search_runs.side_effect": [ConnectionError("away"), _Page()]})
    points = [Point(7, 1000.0, {"best_loss": 2.0})]
    with pytest.raises(ConnectionError):
        tracker.log(points)
    tracker.log(points)
    assert tracker._client.log_batch.call_count == 1


def test_runs_that_begin_together_on_a_new_database_are_all_there(uri: str) -> None:
    trackings = []
    for number in range(4):
        tracker = MlflowTracker(MlflowConfig(tracking_uri=uri, experiment=EXPERIMENT))
        trackings.append(Tracking(tracker, Tracked(str(number), f"run {number}", "s3://here", 0, {"train.lr": 0.1})))
        trackings[-1].log([Point(1, 1000.0, {"loss": float(number)})])
    wait_until(lambda: len(logged(uri)) == 4, "four runs", 60)
    for tracking in trackings:
        tracking.close("finished", time.monotonic() + 60)
    assert logged(uri) == {f"run {number}": float(number) for number in range(4)}


def logged(uri: str) -> dict[str, float]:
    """Loss by name of the runs that have one."""
    try:
        return {run.info.run_name: run.data.metrics["loss"] for run in runs(uri) if "loss" in run.data.metrics}
    except Exception:  # while tables are made
        return {}
