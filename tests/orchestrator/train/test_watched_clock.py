"""The clock of the training loop: what the worker's beacon learns from it."""

from __future__ import annotations

import pytest

from orchestrator.run.goodput import CAUSES
from orchestrator.train import watched_clock
from orchestrator.train.watched_clock import WatchedClock, counting_compilations, each_marked


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The phases that were marked so far; None where the phase stayed the same."""
    marks: list[str | None] = []
    monkeypatch.setattr(watched_clock, "mark", lambda phase=None: marks.append(phase))
    return marks


def test_the_beacon_learns_what_the_loop_does(marks: list[str | None]) -> None:
    clock = WatchedClock("startup")
    for cause in ("data_wait", "store_wait", "compile", "data_wait", "replay"):
        clock.switch(cause)
    with clock.during("snapshot"):
        clock.seconds()  # a report is no progress
    with clock.during("evaluation"):
        assert list(each_marked([1, 2])) == [1, 2]
    clock.switch("checkpoint")
    data, step = "waiting for data", "step"
    assert marks == [
        *("restoring", data, data, "first step", data, step),
        *("snapshot", step, "evaluation", None, None, step, "saving"),
    ]


def test_every_cause_that_a_loop_counts_has_a_phase() -> None:
    assert watched_clock._PHASES.keys() == set(CAUSES) - {"detection", "restart", "shutdown", "idle"}


def test_without_compilation_the_compiler_is_not_imported(marks: list[str | None]) -> None:
    with counting_compilations(WatchedClock("startup"), compiles=False):
        assert marks == ["restoring"]


@pytest.mark.slow  # imports torch's compiler
def test_what_is_compiled_in_the_middle_of_a_run_is_told(marks: list[str | None]) -> None:
    import torch

    compiled = torch.compile(lambda tensor: tensor * 2 + 1, backend="eager", dynamic=False)
    clock = WatchedClock("startup")
    with counting_compilations(clock, compiles=True):
        for size in (3, 3, 4):
            clock.switch("data_wait")
            clock.switch("training")
            compiled(torch.zeros(size))
    compiled(torch.zeros(5))
    data = "waiting for data"
    assert marks == [
        *("restoring", data, "first step", "first step", "first step"),
        *(data, "step"),
        *(data, "step", "compiling", "step"),
    ]
    assert clock.seconds()["compile"] > 0
