"""Workers that wait for the next run of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.workers import warm as module
from orchestrator.workers.warm import WarmWorkers
from tests.waiting import wait_until

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


class Pool:
    """A pool that notes what is done with it."""

    def __init__(self, resources: dict[str, float], prepare: Any, send: Any, most_workers: int) -> None:
        self.done = [f"made for {most_workers}"]

    def adopt(self, prepare: Any, send: Any, most_workers: int) -> None:
        self.done.append(f"adopted for {most_workers}")

    def leave_group(self) -> None:
        self.done.append("left")

    def end(self) -> None:
        self.done.append("ended")


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[WarmWorkers, dict[str, float], int], Any]:
    monkeypatch.setattr(module, "WorkerPool", Pool)
    return lambda warm, resources, workers: warm.take(resources, lambda: None, lambda beat: False, workers)


def test_the_next_run_takes_the_workers_of_the_one_before(take: Any) -> None:
    warm = WarmWorkers()
    pool = take(warm, CPU, 1)
    warm.keep(CPU, pool)
    assert take(warm, CPU, 2) is pool
    assert pool.done == ["made for 1", "left", "adopted for 2"]
    assert take(warm, CPU, 1) is not pool, "it is in use"


def test_workers_of_other_resources_end(take: Any) -> None:
    warm = WarmWorkers()
    pool = take(warm, CPU, 1)
    warm.keep(CPU, pool)
    assert take(warm, GPU, 1) is not pool
    assert pool.done[-1] == "ended"


def test_workers_for_which_no_run_comes_end(take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    warm = WarmWorkers()
    pool = take(warm, CPU, 1)
    warm.keep(CPU, pool)
    wait_until(lambda: pool.done[-1] == "ended", "the end of the workers")
    warm.end()
    assert pool.done.count("ended") == 1
