"""TensorBoard's own HPARAMS plugin lists the trials of a sweep from the files that are written for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from data.errors import TransientStoreError
from data.stores.local import LocalStore
from orchestrator.sweep.observe.hparams import FILE, FOLDER, HparamsFiles
from orchestrator.sweep.summary import SweepSummary
from tests.orchestrator.event_reader import curves_in
from tests.orchestrator.sweep.summaries import realistic


def summary_of(**changes: Any) -> SweepSummary:
    return cast(SweepSummary, realistic() | changes)


def listed(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What the HPARAMS tab shows: the experiment, and a session for each trial, by its folder."""
    from google.protobuf import json_format
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    tensorboard = SimpleNamespace(data_provider=MultiplexerDataProvider(multiplexer, str(folder)), flags=None)
    context, request = backend_context.Context(tensorboard), RequestContext()
    every = [api_pb2.Status.Value(f"STATUS_{name}") for name in ("SUCCESS", "FAILURE", "RUNNING", "UNKNOWN")]
    asked = api_pb2.ListSessionGroupsRequest(
        experiment_name="", allowed_statuses=every, start_index=0, slice_size=1000, col_params=[]
    )
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, metadata, context.hparams_from_data_provider(request, "", limit=100)
    )
    groups = list_session_groups.Handler(request, context, "", asked).run()
    shown = json.loads(json_format.MessageToJson(groups, preserving_proto_field_name=True))
    return experiment, {group["sessions"][0]["name"]: group for group in shown["session_groups"]}


def test_the_tab_lists_every_trial_with_its_point_and_its_last_loss(tmp_path: Path) -> None:
    summary = summary_of()
    HparamsFiles(LocalStore(str(tmp_path))).follow(summary)
    experiment, sessions = listed(tmp_path / FOLDER)
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert kinds.keys() == summary["space"].keys()
    assert (kinds["train.optimizer.name"], kinds["train.lr"]) == (1, 3)  # text and number, see DataType
    assert [info.name.tag for info in experiment.metric_infos] == ["train_loss"]
    assert sessions.keys() == {trial["id"] for trial in summary["trials"]}
    for trial in summary["trials"]:
        group = sessions[trial["id"]]
        [session] = group["sessions"]
        assert group["hparams"] == {name: pytest.approx(value) for name, value in trial["config"].items()}
        assert session["status"] == ("STATUS_FAILURE" if trial["status"] == "failed" else "STATUS_SUCCESS")
        assert session["model_uri"] == trial["run"]
        [metric] = session["metric_values"]
        assert (metric["name"]["tag"], metric["value"]) == ("train_loss", pytest.approx(trial["loss"]))
        assert int(metric["training_step"]) == trial["curve"][-1][0]


def test_a_trials_reports_are_a_curve(tmp_path: Path) -> None:
    summary = summary_of()
    HparamsFiles(LocalStore(str(tmp_path))).follow(summary)
    trial = summary["trials"][3]
    expected = [(step, pytest.approx(loss)) for step, loss in trial["curve"]]
    assert curves_in(tmp_path / FOLDER / trial["id"]) == {"train_loss": expected}


def test_trials_are_written_once_they_have_ended_and_again_after_they_went_on(tmp_path: Path) -> None:
    store, summary = LocalStore(str(tmp_path)), summary_of()
    [first, second, *_] = summary["trials"]
    ended = first["status"], second["status"]
    first["status"], second["status"] = "running", "paused"
    summary["trials"] = [first, second]
    files = HparamsFiles(store)
    files.follow(summary)
    assert [found.key for found in store.list(FOLDER)] == [FOLDER + FILE]
    first["status"], second["status"] = ended
    files.follow(summary)
    before = store.get(f"{FOLDER}{first['id']}/{FILE}")
    HparamsFiles(store).follow(summary)  # another attempt has nothing to write
    first["status"] = "running"
    files.follow(summary)
    first |= {"status": "finished", "curve": [[1, 9.0]]}  # type: ignore[typeddict-item]
    files.follow(summary)
    assert store.get(f"{FOLDER}{first['id']}/{FILE}") != before
    assert curves_in(tmp_path / FOLDER / first["id"]) == {"train_loss": [(1, 9.0)]}


def test_after_a_failure_of_the_store_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, summary, files = LocalStore(str(tmp_path)), summary_of(), HparamsFiles(LocalStore(str(tmp_path)))
    put, calls = LocalStore.put, iter(range(100))

    def fails(self: LocalStore, key: str, data: bytes) -> Any:
        if next(calls) == 5:
            raise TransientStoreError("busy")
        return put(self, key, data)

    monkeypatch.setattr(LocalStore, "put", fails)
    with pytest.raises(TransientStoreError):
        files.follow(summary)
    files.follow(summary)
    assert len(list(store.list(FOLDER))) == 1 + len(summary["trials"])
