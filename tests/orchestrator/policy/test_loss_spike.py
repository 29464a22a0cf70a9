"""Loss spikes are told apart from losses that are only high, whenever the detector starts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.loss_spike import WINDOW, LossSpikeDetector


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_a_spike_from_the_first_step_on(loss: float) -> None:
    assert LossSpikeDetector(None, []).problem(loss) == f"loss={loss}"


def test_a_jump_is_a_spike_only_against_a_full_window() -> None:
    detector = LossSpikeDetector(3.0, [2.0] * (WINDOW - 1))
    assert detector.problem(100.0) is None  # and this loss fills the window
    assert detector.problem(5.9) is None
    assert "more than train.max_loss_jump=3 times 2, the median" in (detector.problem(6.1) or "")


def test_a_spike_does_not_join_the_recent_losses() -> None:
    detector = LossSpikeDetector(3.0, [2.0] * WINDOW)
    for _ in range(2 * WINDOW):
        assert detector.problem(50.0) is not None
    assert detector.problem(2.1) is None


def test_without_a_limit_no_number_is_a_spike() -> None:
    detector = LossSpikeDetector(None, [2.0] * WINDOW)
    assert detector.problem(1e9) is None


@given(losses=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=3 * WINDOW), cut=st.integers(0, 3 * WINDOW))
def test_a_detector_that_starts_in_the_middle_agrees_with_one_from_the_beginning(losses: list[float], cut: int) -> None:
    whole, normal = LossSpikeDetector(2.0, []), []
    before = losses[: min(cut, len(losses))]
    for loss in before:
        if whole.problem(loss) is None:
            normal.append(loss)
    later = LossSpikeDetector(2.0, normal)
    for loss in losses[len(before) :]:
        assert later.problem(loss) == whole.problem(loss)
