"""Slow ranks are reported once, and others never."""

import itertools

import pytest

from orchestrator.policy.stragglers import SETTLED_STEPS, StragglerWatch


def found(watch: StragglerWatch, seconds: list[float], steps: int) -> list[tuple[int, float]]:
    return list(itertools.chain.from_iterable(watch.add_step(seconds) for _ in range(steps)))


def test_a_slow_rank_is_reported_once_with_its_factor() -> None:
    watch = StragglerWatch()
    assert found(watch, [0.1, 0.3, 0.1], SETTLED_STEPS - 1) == []
    assert found(watch, [0.1, 0.3, 0.1], 100) == [(1, pytest.approx(3.0))]


def test_one_slow_step_makes_no_straggler() -> None:
    watch = StragglerWatch()
    for step in range(4 * SETTLED_STEPS):
        assert watch.add_step([0.1, 2.0 if step == 40 else 0.1]) == []


def test_a_rank_that_slows_down_later_is_found() -> None:
    watch = StragglerWatch()
    assert found(watch, [0.1, 0.1], 200) == []
    assert [rank for rank, _ in found(watch, [0.1, 0.5], 100)] == [1]


def test_a_single_rank_and_ranks_without_work_are_no_stragglers() -> None:
    assert found(StragglerWatch(), [5.0], 100) == []
    assert found(StragglerWatch(), [0.0, 0.0], 100) == []
