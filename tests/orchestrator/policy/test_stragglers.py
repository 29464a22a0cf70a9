"""Slow ranks are reported once, and others never."""

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.stragglers import SETTLED_STEPS, SLOW_FACTOR, StragglerWatch


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


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.5, 4.0, 9.0]), min_size=2, max_size=12))
def test_each_rank_is_compared_with_the_median_of_the_others(seconds: list[float]) -> None:
    watch, found = StragglerWatch(), list[tuple[int, float]]()
    for _ in range(SETTLED_STEPS + 1):
        found += watch.add_step(seconds)
    medians = [statistics.median(seconds[:rank] + seconds[rank + 1 :]) for rank in range(len(seconds))]
    slow = [
        (rank, pytest.approx(own / median))
        for rank, (own, median) in enumerate(zip(seconds, medians, strict=True))
        if own > SLOW_FACTOR * median > 0
    ]
    assert found == slow
