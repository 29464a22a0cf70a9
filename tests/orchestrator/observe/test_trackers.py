"""Trackers never end, slow or block a run, and get every message that they can take."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from data.errors import InputError
from orchestrator.config.load import config_from, load_recipe
from orchestrator.config.observe import ObserveConfig
from orchestrator.errors import RecipeError
from orchestrator.observe import trackers as module
from orchestrator.observe.observer import new_points
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.observe.trackers import TRACKERS, Tracking, refuse_missing_packages
from orchestrator.run.progress import Progress
from tests.orchestrator.finished_run import recipe_in
from tests.waiting import wait_until

RUN = Tracked("id", "run", "url", 0, {"train.lr": 0.1})
NEVER = 1e9


class Recorder:
    """A tracker that records its calls.

    Args:
        failing: raises from this step on, `failures` times.
        held_up: blocks until `released`.
    """

    name = "Recorder"

    def __init__(self, failing: int | None = None, failures: float = float("inf"), *, held_up: bool = False) -> None:
        self.calls: list[Any] = []
        self._failures = failures
        self._failing, self.released = failing, threading.Event()
        if not held_up:
            self.released.set()

    def begin(self, run: Tracked) -> None:
        self.released.wait()
        self.calls.append(run)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            if self._failing is not None and point.step >= self._failing and self._failures > 0:
                self._failures -= 1
                raise ConnectionError("no route\nto host")
            self.calls.append(point.step)

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        self.calls.append((point.step, final))

    def finish(self, status: str) -> None:
        self.calls.append(status)


def points(*steps: int) -> list[Point]:
    return [Point(step, 0.0, {"loss": 1.0}) for step in steps]


def test_calls_arrive_in_order() -> None:
    tracking = Tracking(recorder := Recorder(), RUN)
    tracking.log(points(1, 2))
    tracking.log_evaluation(points(2)[0])
    tracking.log(points(3))
    tracking.log_evaluation(points(3)[0], final=True)
    tracking.close("finished", NEVER)
    assert recorder.calls == [RUN, 1, 2, (2, False), 3, (3, True), "finished"]
    assert tracking.problems() == []


def test_a_tracker_that_fails_for_a_while_gets_everything_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    tracking = Tracking(recorder := Recorder(failing=2, failures=4), RUN)
    for step in range(1, 5):
        tracking.log(points(step))
    wait_until(lambda: 4 in recorder.calls, "all steps")
    tracking.close("finished", NEVER)
    assert recorder.calls == [RUN, 1, 2, 3, 4, "finished"]
    assert tracking.problems() == [
        "Recorder fails, and is tried again until the run ends: ConnectionError: no route to host",
        "Recorder works again, after 0 s.",
    ]


def test_a_tracker_that_fails_for_good_is_told_of_twice_and_not_waited_for() -> None:
    tracking = Tracking(recorder := Recorder(failing=2), RUN)
    for step in range(1, 9):
        tracking.log(points(step))
    problems: list[str] = []
    wait_until(lambda: problems.extend(tracking.problems()) or problems, "a failure")  # type: ignore[func-returns-value]
    tracking.close("finished", NEVER)
    assert recorder.calls == [RUN, 1]
    assert [*problems, *tracking.problems()] == [
        "Recorder fails, and is tried again until the run ends: ConnectionError: no route to host",
        "Recorder still fails: the last metrics were not logged there.",
    ]
    assert tracking.problems() == []


def test_a_tracker_that_blocks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 3)
    tracking = Tracking(recorder := Recorder(held_up=True), RUN)
    for step in range(1, 100):
        tracking.log(points(step))
    tracking.close("stopped", time.monotonic())
    assert tracking.problems() == [
        "Recorder is slower than the run: some metrics are not logged there.",
        "Recorder is too slow: the last metrics were not logged there.",
    ]
    recorder.released.set()


def test_every_step_is_logged_once_and_the_newest_with_all_values() -> None:
    row = {"step": 5, "loss": 0.2, "lr": 0.1, "at": 9.0}
    progress = Progress(row=row, losses=[(1, 0.9), (2, 0.8), (3, 0.7), (4, None), (3, 0.7), (4, None), (5, 0.2)])
    found = new_points(progress, logged=2)
    assert [(point.step, point.values) for point in found] == [
        (3, {"loss": 0.7}),
        (4, {"loss": None}),
        (5, {"loss": 0.2, "lr": 0.1}),
    ]
    assert new_points(progress, logged=5) == new_points(Progress(), logged=0) == []
    assert new_points(progress, logged=8) == [], "repeated steps have been logged before"


@pytest.mark.parametrize(("package", "field"), [(kind.section, kind.field) for kind in TRACKERS])
def test_a_package_that_is_missing_is_named_with_the_remedy(
    package: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse_missing_packages(ObserveConfig())
    with pytest.raises(InputError, match=rf"observe.{package}.{field} = there.*pip install .* '\.\[{package}\]'"):
        refuse_missing_packages(ObserveConfig.model_validate({package: {field: "there"}}))


def test_a_password_in_an_address_is_refused_and_not_shown(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        load_recipe(recipe_in(tmp_path), ["observe.mlflow.tracking_uri=https://me:hidden@host"])
    assert "hidden" not in str(refused.value)


def test_an_empty_section_turns_no_tracker_on(tmp_path: Any) -> None:
    config = load_recipe(recipe_in(tmp_path))
    document = config.model_dump(mode="json") | {"observe": {"mlflow": None, "wandb": None}}
    assert config_from(document, "here").observe == ObserveConfig()
    assert module.trackers(config.observe) == []
