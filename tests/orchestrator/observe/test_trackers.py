"""Trackers never end, slow or hold up a run, and are told all that they can take."""

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
from orchestrator.observe.trackers import Tracking, refuse_missing_packages
from orchestrator.run.progress import Progress
from tests.orchestrator.finished_run import recipe_in

RUN = Tracked("id", "run", "url", 0, {"train.lr": 0.1})
NEVER = 1e9


class Told:
    """Remembers what it is told; `failing` from the step of this number on, or held up until `released`."""

    name = "Told"

    def __init__(self, failing: int | None = None, *, held_up: bool = False) -> None:
        self.said: list[Any] = []
        self._failing, self.released = failing, threading.Event()
        if not held_up:
            self.released.set()

    def begin(self, run: Tracked) -> None:
        self.released.wait()
        self.said.append(run)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            if self._failing is not None and point.step >= self._failing:
                raise ConnectionError("no route\nto host")
            self.said.append(point.step)

    def evaluated(self, point: Point, *, final: bool) -> None:
        self.said.append((point.step, final))

    def finish(self, status: str) -> None:
        self.said.append(status)


def points(*steps: int) -> list[Point]:
    return [Point(step, 0.0, {"loss": 1.0}) for step in steps]


def test_all_is_told_in_order() -> None:
    tracking = Tracking(told := Told(), RUN)
    tracking.log(points(1, 2))
    tracking.evaluated(points(2)[0])
    tracking.log(points(3))
    tracking.evaluated(points(3)[0], final=True)
    tracking.close("finished", NEVER)
    assert told.said == [RUN, 1, 2, (2, False), 3, (3, True), "finished"]
    assert tracking.problems() == []


def test_one_that_fails_is_told_of_once_and_left_alone() -> None:
    tracking = Tracking(told := Told(failing=2), RUN)
    for step in range(1, 9):
        tracking.log(points(step))
    tracking.close("finished", NEVER)
    assert told.said == [RUN, 1]
    assert tracking.problems() == ["Told is not told of the run any more: ConnectionError: no route to host"]
    assert tracking.problems() == []


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 3)
    tracking = Tracking(told := Told(held_up=True), RUN)
    for step in range(1, 100):
        tracking.log(points(step))
    tracking.close("stopped", time.monotonic())
    assert tracking.problems() == [
        "Told is slower than the run: some of it is not told there.",
        "Told has not been told all: it takes too long to answer.",
    ]
    told.released.set()


def test_every_step_is_told_once_and_the_newest_whole() -> None:
    row = {"step": 5, "loss": 0.2, "lr": 0.1, "at": 9.0}
    progress = Progress(row=row, losses=[(1, 0.9), (2, 0.8), (3, 0.7), (4, None), (3, 0.7), (4, None), (5, 0.2)])
    found = new_points(progress, told=2)
    assert [(point.step, point.values) for point in found] == [
        (3, {"loss": 0.7}),
        (4, {"loss": None}),
        (5, {"loss": 0.2, "lr": 0.1}),
    ]
    assert new_points(progress, told=5) == new_points(Progress(), told=0) == []
    assert new_points(progress, told=8) == [], "steps that are done again have been told"


@pytest.mark.parametrize(("package", "field"), [("mlflow", "tracking_uri"), ("wandb", "project")])
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


def test_none_is_asked_for_by_an_empty_section(tmp_path: Any) -> None:
    config = load_recipe(recipe_in(tmp_path))
    document = config.model_dump(mode="json") | {"observe": {"mlflow": None, "wandb": None}}
    assert config_from(document, "here").observe == ObserveConfig()
    assert module.trackers(config.observe) == []
