"""The observer reports to event files, MLflow and W&B at once; no secret key reaches any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import result_fields
from orchestrator.observe import observer as module
from orchestrator.observe.event_files import HELD_OUT
from orchestrator.observe.observer import Observer
from orchestrator.run.fence import Fence
from orchestrator.run.progress import Progress
from orchestrator.run.run import Run, stores
from tests.orchestrator.event_reader import curves_in
from tests.orchestrator.finished_run import recipe_in
from tests.waiting import wait_until

KEYS = {"access_key_id": "AKIAHIDDENHIDDEN", "secret_access_key": "hiddenhiddenhidden"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0  # every call is a second after the one before
        return self.now


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Run, Fence]]:
    def make(*overrides: str) -> tuple[Run, Fence]:
        keys = [f"store.{name}={value}" for name, value in KEYS.items()]
        config: RunConfig = load_recipe(recipe_in(tmp_path), [*keys, *overrides])
        root, store = stores(config)
        fence = Fence.claim(store, config.run, result_fields(config), keep_pins=False)
        return Run(config, root, store, fence.record), fence

    return make


def progress_at(step: int, scores: list[dict[str, float]] | None = None) -> Progress:
    row: dict[str, Any] = {"step": step, "loss": 1 / step, "lr": 0.1, "tokens": 10 * step, "at": 1000.0 + step}
    losses: list[tuple[int, float | None]] = [(each, 1 / each) for each in range(1, step + 1)]
    return Progress("training", 0, row=row, losses=losses, evaluations=scores or [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_all_trackers_get_the_metrics_and_none_gets_a_key(
    made: Callable[..., tuple[Run, Fence]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb-files"))
    monkeypatch.setattr(module, "FLUSH_S", 120.0)  # a new database takes its time on a machine that is busy
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run, fence = made(f"observe.mlflow.tracking_uri={uri}", "observe.wandb.project=p", "observe.wandb.mode=offline")
    lines: list[str] = []
    found = {"step": 3, "at": 9.0, "val_loss": 2.5, "val_bits_per_byte": 1.5}
    observer = Observer(run, lines.append, Clock())
    observer.follow(fence.record.attempts, Progress())
    observer.follow(fence.record.attempts, progress_at(2))
    observer.follow(fence.record.attempts, progress_at(7, [found]))
    observer.follow(fence.record.attempts, progress_at(7, [found]))
    observer.close("finished", {"step": 8, "val_loss": 2.0, "val_bleu": 30.0, "val_bleu_signature": "nrefs:1"})
    observer.close("failed")
    assert lines == []

    assert curves_in(Path(run.store.url_of(HELD_OUT))) == {
        "loss": [(3, 2.5), (8, 2.0)],
        "bits_per_byte": [(3, 1.5)],
        "bleu": [(8, 30.0)],
    }
    from mlflow.tracking import MlflowClient  # slow to import

    client = MlflowClient(uri)
    [there] = client.search_runs([client.get_experiment_by_name("manta").experiment_id])
    assert there.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(there.info.run_id, "loss")] == list(range(1, 8))
    assert there.data.metrics["held_out.bleu"] == 30.0
    assert there.data.params["train.lr"] == "0.001"
    assert not any(name.endswith(tuple(KEYS)) for name in there.data.params)
    [kept] = (tmp_path / "wandb-files").glob("wandb/offline-run-*/*.wandb")
    wait_until(lambda: b"train.lr" in kept.read_bytes(), "the config in the file of Weights & Biases")

    recipe = tmp_path / "made.yaml"
    assert not any(value in recipe.read_text() for value in KEYS.values()), "else the next line says nothing"
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(value.encode() in content for value in KEYS.values()), path


def test_an_unreachable_tracker_is_one_log_line(made: Callable[..., tuple[Run, Fence]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    run, fence = made(f"observe.mlflow.tracking_uri=sqlite:///{tmp_path}/file/mlflow.db")
    lines: list[str] = []
    observer = Observer(run, lines.append, Clock())
    observer.follow(fence.record.attempts, progress_at(2))
    wait_until(lambda: observer.follow(fence.record.attempts, progress_at(2), now=True) or lines, "a line")
    observer.close("stopped")
    assert [line.partition(":")[0] for line in lines] == [
        "MLflow fails, and is tried again until the run ends",
        "MLflow still fails",
    ]


def test_a_failure_to_set_metrics_is_logged_once(
    made: Callable[..., tuple[Run, Fence]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(module, "live_summary", fail)
    run, fence = made("observe.tensorboard=false")
    lines: list[str] = []
    observer = Observer(run, lines.append, Clock())
    for step in (1, 2):
        observer.follow(fence.record.attempts, progress_at(step))
    assert lines == ["metrics are no longer set: RuntimeError: no agent"]


def test_an_observer_that_fails_is_one_line_and_ends_nothing(
    made: Callable[..., tuple[Run, Fence]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "RayMetrics", lambda metrics: None)
    monkeypatch.setattr(module, "Tracking", fail)
    run, fence = made("observe.tensorboard=true")
    lines: list[str] = []
    observer = Observer(run, lines.append, Clock())
    for step in (1, 2, 3):
        observer.follow(fence.record.attempts, progress_at(step))
    observer.close("finished")
    assert lines == ["metrics and trackers do not get everything: RuntimeError: can't start new thread"]


def test_reports_are_at_least_a_second_apart(made: Callable[..., tuple[Run, Fence]]) -> None:
    run, fence = made("observe.tensorboard=false")
    reported: list[int] = []

    class Watched(Observer):
        def _set_metrics(self, attempts: Any, progress: Progress) -> None:
            reported.append(progress.row["step"])

    now = iter([0.0, 0.0, 0.4, 0.8, 1.1, 1.1, 1.2, 1.2])
    observer = Watched(run, print, lambda: next(now))
    for step in range(1, 5):
        observer.follow(fence.record.attempts, progress_at(step))
    observer.follow(fence.record.attempts, progress_at(5), now=True)
    assert reported == [1, 4, 5]


def test_the_id_is_the_same_in_every_attempt_and_for_no_other_run(made: Callable[..., tuple[Run, Fence]]) -> None:
    run, fence = made()
    first = module.tracked(run, 0)
    fence.update(attempt={"status": "stopped"})
    again, _ = made("observe.tensorboard=false")
    assert module.tracked(again, 5).id == first.id
    other = replace(again, record=replace(again.record, created_at=again.record.created_at + 1))
    assert module.tracked(other, 0).id != first.id
    elsewhere = replace(again, store=LocalStore(run.store.url_of("elsewhere")))
    assert module.tracked(elsewhere, 0).id != first.id
