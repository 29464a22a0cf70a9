"""TensorBoard's HPARAMS tab of a sweep: its trials with their points and losses.

sweeps/NAME/tensorboard/events.out.tfevents.hparams         the experiment: the searched fields, and the metric
sweeps/NAME/tensorboard/t001/events.out.tfevents.hparams    a trial that has ended: its point, its reports, its end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.stores.store import Store
from orchestrator.observe.event_files import PREFIX, encoded, package_alone, scalar_events
from orchestrator.observe.tracker import Point
from orchestrator.report.format import label
from orchestrator.sweep.report.facts import Field, Trial, read
from orchestrator.sweep.summary import SweepSummary
from orchestrator.sweep.trial_record import ENDED

FOLDER, FILE = "tensorboard/", f"{PREFIX}hparams"
"""The folder in the sweep's own, and the name of each file."""


class HparamsFiles:
    """Writes the files of trials that have ended.

    Args:
        store: the sweep's own folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: set[str] | None = None

    def follow(self, summary: SweepSummary) -> None:
        """Writes what is new. May be called again after an error.

        Raises:
            MantaError: see `data.stores.store`.
        """
        if self._ended is None:  # files of earlier attempts stay, but for trials that run again
            self._store.put(FOLDER + FILE, experiment_file(summary))
            self._ended = {found.key.split("/")[-2] for found in self._store.list(FOLDER)}
        ended = [trial for trial in summary["trials"] if trial["status"] in ENDED]
        self._ended &= {trial["id"] for trial in ended}
        if not (new := [trial for trial in ended if trial["id"] not in self._ended]):
            return
        facts = read({**summary, "trials": new})
        for trial in facts.trials:
            self._store.put(f"{FOLDER}{trial.id}/{FILE}", session_file(trial, facts.fields, summary["metric"]))
            self._ended.add(trial.id)


def experiment_file(summary: SweepSummary) -> bytes:
    """The file of the whole sweep: the names and types of fields, and the metric."""
    api, _ = _messages()
    infos = [
        api.HParamInfo(
            name=field.name,
            type=api.DataType.Value("DATA_TYPE_FLOAT64" if field.is_numeric else "DATA_TYPE_STRING"),
        )
        for field in read({**summary, "trials": []}).fields
    ]
    metric = api.MetricInfo(name=api.MetricName(tag=summary["metric"]), display_name=summary["metric"])
    began = summary["started_at"]
    experiment = api.Experiment(
        name=summary["sweep"], time_created_secs=began, hparam_infos=infos, metric_infos=[metric]
    )
    return encoded([_event("experiment", began, experiment=experiment)])


def session_file(trial: Trial, fields: Sequence[Field], metric: str) -> bytes:
    """The file of a trial that has ended."""
    api, hparams = _messages()
    began, ended = trial.started_at or 0.0, trial.ended_at or 0.0
    start = hparams.SessionStartInfo(start_time_secs=began, model_uri=trial.run)
    for field in fields:
        value = field.of(trial)
        if value is None:
            continue
        if field.is_numeric:
            start.hparams[field.name].number_value = float(value)
        else:
            start.hparams[field.name].string_value = label(value)
    status = api.Status.Value("STATUS_FAILURE" if trial.status == "failed" else "STATUS_SUCCESS")
    end = hparams.SessionEndInfo(status=status, end_time_secs=ended)
    # Reports have no times in the summary: as if all steps had taken the same.
    step_s = (ended - began) / max(1, trial.reached)
    points = [Point(step, began + step_s * step, {metric: loss}) for step, loss in trial.curve]
    return encoded(
        [
            _event("session_start_info", began, session_start_info=start),
            *scalar_events(points),
            _event("session_end_info", ended, session_end_info=end),
        ]
    )


def _event(tag: str, at: float, **content: Any) -> Any:
    """An event with content of the plugin, which is in the metadata of an empty value."""
    _, hparams = _messages()
    [event] = scalar_events([Point(0, at, {})])
    value = event.summary.value.add(tag=f"_hparams_/{tag}")
    value.metadata.plugin_data.plugin_name = "hparams"
    value.metadata.plugin_data.content = hparams.HParamsPluginData(version=0, **content).SerializeToString()
    return event


def _messages() -> tuple[Any, Any]:
    """Modules of tensorboardX with the plugin's messages."""
    with package_alone("tensorboardX"):
        from tensorboardX.proto import api_pb2, plugin_hparams_pb2
    return api_pb2, plugin_hparams_pb2
