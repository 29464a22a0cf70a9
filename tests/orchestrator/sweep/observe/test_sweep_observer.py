"""The observer of a sweep: what its metrics, its trackers and TensorBoard are told, and what none of them can end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import TransientStoreError
from data.stores.local import LocalStore
from orchestrator.config.result_fields import result_fields
from orchestrator.errors import FencedError
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.run.fence import Fence
from orchestrator.run.record import RunRecord
from orchestrator.sweep.claim import claim
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.observe import observer as module
from orchestrator.sweep.observe.metrics import SWEEP_METRICS
from orchestrator.sweep.observe.observer import SweepObserver, observing, tracked_sweep
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.tune import fit as fit_module
from orchestrator.sweep.tune.fit import passed_on
from tests.orchestrator.sweep.test_policies import sweep_of, trial

Told = list[tuple[str, ...]]


class _Slots:
    def request(self, trials: int, min_workers: int) -> None:
        pass


class _Tracker:
    """Writes down what it is told."""

    name = "a tracker"

    def __init__(self, told: Told) -> None:
        self._told, self._name = told, ""

    def begin(self, run: Tracked) -> None:
        assert run.group is not None and run.group.name == "lr"
        self._name = run.name
        self._told.append(("begin", run.name, "sweep" if run.is_sweep else "trial", *run.labels.values()))

    def log(self, points: Sequence[Point]) -> None:
        [(step, _, values)] = points
        self._told.append(("log", self._name, str(step), *(f"{name} {value}" for name, value in values.items())))

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        raise AssertionError

    def finish(self, status: str) -> None:
        self._told.append(("finish", self._name, status))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What all trackers are told."""
    told: Told = []
    monkeypatch.setattr(module, "trackers", lambda _: [_Tracker(told)])
    return told


class _Sweep:
    """A sweep of three trials in a folder, which have ended."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        self.sweep: Sweep = sweep_of(folder, sweep="lr", scheduler={"name": "none"}, searcher={"trials": 3})
        self.root = LocalStore(str(folder / "kept"))
        self.store = self.root.child("sweeps/lr")
        book, steps = TrialBook(self.store), self.sweep.steps
        self.runs: list[Fence] = []
        for number, loss in ((1, 3.0), (2, 2.0), (3, 4.0)):
            record = trial(number, {"train.lr": 0.1 * number, "train.optimizer.name": "sgd"}, "finished", {steps: loss})
            record.trial_run.run, record.trial_run.step, record.worker_s = f"lr-t{number:03d}", steps, 10.0
            record.failures = ["a node was lost"] * (number - 1)
            book.add(record)
            config = self.sweep.config_of(record.point, record.trial_run.run)
            run = self.root.child(f"runs/{config.run}")
            self.runs.append(Fence.claim(run, config.run, result_fields(config), keep_pins=False))
            self.runs[-1].update(attempt={"status": "finished"})
        self.record: RunRecord = claim(self.sweep, self.store, takeover=False).record
        self.coordinator = TrialCoordinator(self.sweep, book, _Slots())  # type: ignore[arg-type]
        self.lines: list[str] = []

    def observer(self, now: Callable[[], float] = time.monotonic) -> SweepObserver:
        return SweepObserver(self.coordinator, self.root, self.record, self.lines.append, now)


@pytest.fixture
def lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Sweep:
    return _Sweep(tmp_path, monkeypatch)


def test_trackers_get_the_sweep_and_its_best_trial_is_marked(lr: _Sweep, told: Told) -> None:
    with observing(lr.coordinator, lr.root, lr.record, lr.lines.append) as observer:
        observer.follow(observer.summary())
        observer.follow(observer.summary())
    values = "trials_ended 3.0", "worker_s 30.0", "best_loss 2.0", "best_trial 2.0"
    assert told == [
        ("begin", "lr", "sweep"),
        ("log", "lr", str(3 * lr.sweep.steps), *values),
        ("finish", "lr", "finished"),
        ("begin", "lr-t002", "trial", "true"),
        ("finish", "lr-t002", "finished"),
    ]
    assert lr.lines == []


def test_a_trial_that_is_no_longer_the_best_is_no_longer_marked(lr: _Sweep, told: Told) -> None:
    lr.record = replace(lr.record, result={"best_run": "lr-t003"})
    lr.observer().close("finished")
    assert [each for each in told if each[0] == "begin"][1:] == [
        ("begin", "lr-t003", "trial", "false"),
        ("begin", "lr-t002", "trial", "true"),
    ]


@pytest.mark.parametrize(("interrupted", "error"), [(True, None), (False, ValueError("x"))])
def test_a_sweep_that_has_not_finished_marks_no_trial(
    lr: _Sweep, told: Told, interrupted: bool, error: Exception | None
) -> None:
    with suppress(ValueError), observing(lr.coordinator, lr.root, lr.record, lr.lines.append):
        lr.coordinator.interrupted = interrupted
        if error is not None:
            raise error
    assert told[-1] == ("finish", "lr", "stopped" if interrupted else "failed")
    assert [each[1] for each in told if each[0] == "begin"] == ["lr"]


def test_an_attempt_that_is_fenced_does_not_end_the_sweep_in_the_trackers(lr: _Sweep, told: Told) -> None:
    with pytest.raises(FencedError), observing(lr.coordinator, lr.root, lr.record, lr.lines.append) as observer:
        observer.follow(observer.summary())
        raise FencedError("another attempt has taken the sweep over")
    assert "finish" not in [each[0] for each in told]


@pytest.mark.parametrize(("status", "ended"), [("stopped", "stopped"), ("failed", "failed"), ("running", "stopped")])
def test_a_trial_that_is_marked_has_ended_as_before(lr: _Sweep, told: Told, status: str, ended: str) -> None:
    lr.runs[1].update(attempt={"status": status})
    lr.observer().close("finished")
    assert told[-1] == ("finish", "lr-t002", ended)


@pytest.mark.parametrize(("gone", "marked"), [("lr-t002", "lr-t003"), ("lr-t003", "lr-t002")])
def test_a_trial_whose_record_is_gone_is_one_line(lr: _Sweep, told: Told, gone: str, marked: str) -> None:
    lr.record = replace(lr.record, result={"best_run": "lr-t003"})
    lr.root.delete_prefix(f"runs/{gone}/")
    lr.observer().close("finished")
    [line] = lr.lines
    assert line.startswith(f"trackers are not told whether trial {gone} is the best: ")
    assert [each[1] for each in told if each[0] == "begin"] == ["lr", marked]


def test_trackers_get_the_fields_of_the_sweep_by_their_own_names(lr: _Sweep) -> None:
    spec = lr.sweep.spec
    warm = spec.model_copy(update={"searcher": spec.searcher.model_copy(update={"from_": "early"})})
    parameters = tracked_sweep(replace(lr.sweep, spec=warm), lr.store, lr.record).parameters
    assert (parameters["searcher.from"], parameters["searcher.trials"]) == ("early", 3)
    assert not [name for name in parameters if name.endswith("_")]


def test_metrics_follow_from_the_records(lr: _Sweep, told: Told) -> None:
    lr.coordinator.book["t003"].status = "failed"
    summary = {**lr.observer().summary(), "legs": 5}
    found = {
        (metric.name, labels.get("status")): value
        for metric in SWEEP_METRICS
        for labels, value in metric.samples(summary)  # type: ignore[arg-type]
        if labels["sweep"] == "lr"
    }
    trials = {status: value for (name, status), value in found.items() if name == "manta_sweep_trials"}
    assert trials == {"finished": 2, "failed": 1, "pending": 0, "running": 0, "paused": 0, "stopped": 0}
    others = {name.removeprefix("manta_sweep_"): value for (name, status), value in found.items() if status is None}
    steps = 3 * lr.sweep.steps
    expected = {"best_loss": 2.0, "steps": steps, "steps_of_all": steps, "worker_seconds": 30.0, "legs": 5}
    assert others == expected | {"failures": 1 + 2 + 1}


def test_the_sweep_reports_once_a_second(lr: _Sweep, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.9, 1.1, 1.9, 2.2])
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    observer, seen, checked = lr.observer(), [], []
    heartbeat = SimpleNamespace(check=lambda: checked.append(True))
    console = SimpleNamespace(line=lr.lines.append)
    watch = fit_module._SweepWatch(heartbeat, lr.coordinator, console, seen.append, observer, None)  # type: ignore[arg-type]
    for _ in range(4):
        watch.on_step_end(0, [])
    assert [summary["best"] and summary["best"]["id"] for summary in seen] == ["t002"] * 2 and len(checked) == 2
    observer.close("stopped")
    assert [each[0] for each in told] == ["begin", "log", "finish"]


def test_a_fenced_attempt_reports_nothing_more(lr: _Sweep, told: Told) -> None:
    def check() -> None:
        raise FencedError("another attempt has taken the sweep over")

    heartbeat, console = SimpleNamespace(check=check), SimpleNamespace(line=lr.lines.append)
    observer = SimpleNamespace(summary=lambda: pytest.fail("asked"), follow=lambda _: pytest.fail("told"))
    watch = fit_module._SweepWatch(heartbeat, lr.coordinator, console, None, observer, None)  # type: ignore[arg-type]
    watch._watched_at = float("-inf")
    watch.on_step_end(0, [])
    assert isinstance(lr.coordinator.error, FencedError) and lr.lines == []


@pytest.mark.parametrize("error", [TransientStoreError("busy"), TypeError("of protobuf")])
def test_what_fails_is_one_line_and_ends_nothing(
    lr: _Sweep, told: Told, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module.HparamsFiles, "follow", fail)
    monkeypatch.setattr(module.RayMetrics, "set", fail)
    clock = iter(range(0, 1000, 40))
    observer = lr.observer(lambda: next(clock))
    for _ in range(3):
        observer.follow(observer.summary())
    assert lr.lines == [
        f"metrics of the sweep are no longer set: {type(error).__name__}: {error}",
        f"TensorBoard's files of the sweep are not all written: {type(error).__name__}: {error}",
    ]


@pytest.mark.parametrize(("fails", "written"), [(False, [0, 31, 50]), (True, [0, 31])])
def test_the_store_is_waited_for_every_half_minute_and_at_the_end_if_it_answers(
    lr: _Sweep, told: Told, fails: bool, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = SimpleNamespace(at=0.0), list[float]()

    def follow(*_: Any) -> None:
        seen.append(clock.at)
        if fails:
            raise TransientStoreError("busy")

    monkeypatch.setattr(module.HparamsFiles, "follow", follow)
    observer = lr.observer(lambda: clock.at)
    for at in (0.0, 1.0, 29.0, 31.0, 50.0):
        clock.at = at
        observer.follow(observer.summary())
    observer.close("stopped")
    assert seen == written


def test_trials_get_no_variable_with_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune pickles what it passes to its actors; nodes have keys of their own."""
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef0123",
        "MLFLOW_TRACKING_PASSWORD": "hidden-password",
        "MLFLOW_TRACKING_TOKEN": "hidden-token",
        "AWS_SECRET_ACCESS_KEY": "hidden-secret-key",
        "AWS_ENDPOINT_URL": "http://user:hidden-in-url@store:9000",
    }
    others = {"AWS_REGION": "eu-central-1", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in (secrets | others).items():
        monkeypatch.setenv(name, value)
    assert passed_on(secrets | others | {"HOME": "/root"}) == others
