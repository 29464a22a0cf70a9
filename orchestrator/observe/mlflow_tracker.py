"""Logs a run to MLflow: one MLflow run for all attempts, which is found again by a tag.

The MLflow run of a sweep is the parent of its trials'. The sweep's own process sets the tag that says so, since a trial
may begin before the sweep's run is there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from orchestrator.config.observe import MlflowConfig
from orchestrator.observe.tracker import Point, Tracked

RUN_TAG = "manta.id"
"""Tag by which a later attempt finds the MLflow run."""

SWEEP_TAG, PARENT_TAG = "manta.sweep", "mlflow.parentRunId"
"""Tags of a trial: the id of its sweep in RUN_TAG, and the MLflow run under which MLflow shows it."""

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_PARAMETERS_PER_CALL, _METRICS_PER_CALL, _MAX_PARAMETER_CHARS = 100, 1000, 6000
"""Limits of MLflow."""


_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow tries for minutes by itself, without a word; who calls tries again."""


class MlflowTracker:
    """A tracker, see `orchestrator.observe.tracker.Tracker`. Uses MLflow's client, which keeps no global state."""

    name = "MLflow"

    def __init__(self, config: MlflowConfig) -> None:
        self._uri, self._experiment = config.tracking_uri, config.experiment
        self._client: Any = None
        self._id = self._experiment_id = ""
        self._sweep: str | None = None

    def begin(self, run: Tracked) -> None:
        """Finds or creates the MLflow run, and logs the parameters that it does not have: MLflow never changes one."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # they log every table that they create in a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        self._client = MlflowClient(self._uri)
        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        self._experiment_id, self._sweep = experiment_id, run.id if run.is_sweep else None
        found = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            mlflow_run = found[0]
            self._client.update_run(mlflow_run.info.run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.id, "manta.url": run.url}
            if run.group is not None and not run.is_sweep:
                tags[SWEEP_TAG] = run.group.id
            mlflow_run = self._client.create_run(experiment_id, run_name=run.name, tags=tags)
        self._id = mlflow_run.info.run_id
        for name, value in run.labels.items():
            self._client.set_tag(self._id, name, value)
        new = [
            Param(name, str(value)[:_MAX_PARAMETER_CHARS])
            for name, value in run.parameters.items()
            if name not in mlflow_run.data.params
        ]
        for start in range(0, len(new), _PARAMETERS_PER_CALL):
            self._client.log_batch(self._id, params=new[start : start + _PARAMETERS_PER_CALL])

    def log(self, points: Sequence[Point]) -> None:
        """Logs the values under their own names."""
        self._adopt()  # first: a call that raises is repeated, and this may be done twice
        self._log(points)

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        """Logs the values with the prefix `held_out.`."""
        self._log([point], "held_out.")

    def finish(self, status: str) -> None:
        """Ends the MLflow run; a later attempt reopens it."""
        self._adopt()
        self._client.set_terminated(self._id, _STATUS[status])

    def _adopt(self) -> None:
        """Makes the runs of the sweep's trials children of the sweep's run."""
        if self._sweep is None:
            return
        query, token = f"tags.`{SWEEP_TAG}` = '{self._sweep}'", None
        while True:
            found = self._client.search_runs([self._experiment_id], query, page_token=token)
            for trial in found:
                if trial.data.tags.get(PARENT_TAG) != self._id:
                    self._client.set_tag(trial.info.run_id, PARENT_TAG, self._id)
            if not (token := found.token):
                return

    def _log(self, points: Sequence[Point], prefix: str = "") -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(prefix + name, value, round(point.at * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if value is not None
        ]
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            self._client.log_batch(self._id, metrics[start : start + _METRICS_PER_CALL])
