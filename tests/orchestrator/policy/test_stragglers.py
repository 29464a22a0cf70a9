"""Slow ranks are found, once, and fast ones are left in peace."""

import itertools

import pytest

from orchestrator.policy.stragglers import SETTLED_STEPS, StragglerWatch


def found(watch: StragglerWatch, seconds: list[float], steps: int) -> list[tuple[int, float]]:
    return list(itertools.chain.from_iterable(watch.note(seconds) for _ in range(steps)))


def test_a_slow_rank_is_named_once_with_how_slow_it_is() -> None:
    watch = StragglerWatch()
    assert found(watch, [0.1, 0.3, 0.1], SETTLED_STEPS - 1) == []
    assert found(watch, [0.1, 0.3, 0.1], 100) == [(1, pytest.approx(3.0))]


def test_one_slow_step_makes_no_straggler() -> None:
    watch = StragglerWatch()
    for step in range(4 * SETTLED_STEPS):
        assert watch.note([0.1, 2.0 if step == 40 else 0.1]) == []


def test_a_rank_that_slows_down_later_is_found() -> None:
    watch = StragglerWatch()
    assert found(watch, [0.1, 0.1], 200) == []
    assert [rank for rank, _ in found(watch, [0.1, 0.5], 100)] == [1]


def test_a_rank_alone_and_ranks_that_compute_nothing_are_no_stragglers() -> None:
    assert found(StragglerWatch(), [5.0], 100) == []
    assert found(StragglerWatch(), [0.0, 0.0], 100) == []
