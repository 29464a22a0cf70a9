"""A loss that has gone astray is told from one that is only high, whenever the watch begins."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.loss_spike import WINDOW, LossSpikeDetector


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_one_from_the_first_step_on(loss: float) -> None:
    assert LossSpikeDetector(None, []).problem(loss) == f"loss={loss}"


def test_a_jump_is_one_only_against_a_full_window() -> None:
    watch = LossSpikeDetector(3.0, [2.0] * (WINDOW - 1))
    assert watch.problem(100.0) is None  # and it fills the window
    assert watch.problem(5.9) is None
    assert "more than train.max_loss_jump=3 times the 2 that was usual" in (watch.problem(6.1) or "")


def test_a_loss_that_went_astray_is_not_among_what_is_usual() -> None:
    watch = LossSpikeDetector(3.0, [2.0] * WINDOW)
    for _ in range(2 * WINDOW):
        assert watch.problem(50.0) is not None
    assert watch.problem(2.1) is None


def test_without_a_bound_any_number_will_do() -> None:
    watch = LossSpikeDetector(None, [2.0] * WINDOW)
    assert watch.problem(1e9) is None


@given(losses=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=3 * WINDOW), cut=st.integers(0, 3 * WINDOW))
def test_one_that_begins_in_the_middle_judges_as_one_that_saw_all(losses: list[float], cut: int) -> None:
    whole, usual = LossSpikeDetector(2.0, []), []
    before = losses[: min(cut, len(losses))]
    for loss in before:
        if whole.problem(loss) is None:
            usual.append(loss)
    later = LossSpikeDetector(2.0, usual)
    for loss in losses[len(before) :]:
        assert later.problem(loss) == whole.problem(loss)
