"""The run in MLflow: one run there, whatever the number of attempts, found again by a tag."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from orchestrator.observe.tracker import Point, Tracked

RUN_TAG = "manta.id"
"""Tag by which a later attempt finds the run."""

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_PARAMETERS_AT_ONCE, _METRICS_AT_ONCE, _LONGEST_PARAMETER = 100, 1000, 6000
"""What MLflow takes in a call, and characters of a parameter."""


class MlflowTracker:
    """See `orchestrator.observe.trackers.Tracker`; by MLflow's client, which keeps no global state.

    Args:
        tracking_uri: of a server, or a database.
    """

    name = "MLflow"

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._uri, self._experiment = tracking_uri, experiment
        self._client: Any = None
        self._id = ""

    def begin(self, run: Tracked) -> None:
        """Find the run or make it, and log the parameters that it does not have yet; those never change there."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell of every table they make in a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(self._uri)
        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        found = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            there = found[0]
            self._client.update_run(there.info.run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.id, "manta.url": run.url}
            there = self._client.create_run(experiment_id, run_name=run.name, tags=tags)
        self._id = there.info.run_id
        new = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in run.parameters.items()
            if name not in there.data.params
        ]
        for start in range(0, len(new), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=new[start : start + _PARAMETERS_AT_ONCE])

    def log(self, points: Sequence[Point]) -> None:
        """Their values, under their names."""
        self._log(points)

    def evaluated(self, point: Point, *, final: bool) -> None:
        """Its values, under `held_out`."""
        self._log([point], "held_out.")

    def finish(self, status: str) -> None:
        """End the run there; a later attempt opens it again."""
        self._client.set_terminated(self._id, _STATUS[status])

    def _log(self, points: Sequence[Point], prefix: str = "") -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(prefix + name, value, round(point.at * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if value is not None
        ]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics[start : start + _METRICS_AT_ONCE])
