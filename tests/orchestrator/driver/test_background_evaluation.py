"""A background evaluation that is given up."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator.driver import background_evaluation
from orchestrator.driver.background_evaluation import BackgroundEvaluation
from tests.waiting import wait_until


class Endless:
    """An evaluator whose evaluation never ends."""

    def __init__(self, job: object) -> None:
        pass

    def evaluate(self, weights: object) -> None:
        threading.Event().wait()


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster_small")
def test_its_place_is_free_at_once_though_it_never_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_evaluation, "_Evaluator", Endless)
    job: Any = SimpleNamespace(config=SimpleNamespace(scaling=SimpleNamespace(per_worker={"CPU": 3})))
    evaluation = BackgroundEvaluation(job, None)
    wait_until(lambda: free_cpus() == 1, "a place for the evaluation")
    assert evaluation.scores() is None
    evaluation.cancel()
    wait_until(lambda: free_cpus() == 4, "the place to be free again")
