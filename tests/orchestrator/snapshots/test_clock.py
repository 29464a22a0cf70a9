"""SnapshotClock: snapshots take a bounded share of the training time."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.snapshots.clock import COST_SHARE, SECOND_SNAPSHOT_S, SnapshotClock


@given(
    base=st.floats(1e-4, 0.2),
    scatter=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20),
    steps_s=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20),
)
def test_snapshots_take_no_more_than_their_share_of_time(
    base: float, scatter: list[float], steps_s: list[float]
) -> None:
    """Costs vary fourfold, so one may cost four times the expected; the first two come before any expectation."""
    clock, spent, trained = SnapshotClock(), 0.0, 0.0
    costs = itertools.cycle(scatter)
    for step_s in itertools.islice(itertools.cycle(steps_s), 500):
        trained += step_s
        if clock.is_due(step_s):
            paid = base * next(costs)
            spent += paid
            clock.taken(paid)
    assert spent <= 4 * COST_SHARE * trained + 4 * base


def test_cheap_snapshots_are_taken_every_step() -> None:
    clock = SnapshotClock()
    for _ in range(5):
        assert clock.is_due(SECOND_SNAPSHOT_S)
        clock.taken(0.001)


def test_the_first_cost_is_not_counted_and_a_costly_one_delays_the_next() -> None:
    clock = SnapshotClock()
    assert clock.is_due(0.5)
    clock.taken(3.0)
    due: list[Any] = [clock.is_due(0.5) for _ in range(4)]
    assert due == [False] * 3 + [True]
    clock.taken(0.1)
    due = [clock.is_due(0.5) for _ in range(20)]
    assert due == [False] * 19 + [True]
