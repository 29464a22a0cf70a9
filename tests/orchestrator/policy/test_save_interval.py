"""The interval between saves, compared with the least lost time among many intervals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.save_interval import (
    LONGEST_S,
    PRIOR_MTBF_S,
    SHORTEST_S,
    observed_mtbf_s,
    save_cost_s,
    save_interval_s,
)


def lost_share(interval_s: float, cost_s: float, mtbf_s: float) -> float:
    """Part of the time spent on saves and repeated work, with random failures, each of which loses half a period."""
    period_s = interval_s + cost_s
    lost_a_failure_s = mtbf_s * math.expm1(period_s / mtbf_s) - interval_s  # expected, for a period of work
    return lost_a_failure_s / (interval_s + lost_a_failure_s)


@given(cost_s=st.floats(0.05, 20.0), mtbf_s=st.floats(600.0, 1e6))
def test_no_other_interval_loses_noticeably_less(cost_s: float, mtbf_s: float) -> None:
    chosen = lost_share(save_interval_s(cost_s, mtbf_s), cost_s, mtbf_s)
    tried = [SHORTEST_S * (LONGEST_S / SHORTEST_S) ** (step / 200) for step in range(201)]
    assert chosen <= min(lost_share(each, cost_s, mtbf_s) for each in tried) * 1.05 + 1e-6


@given(cost_s=st.floats(0.0, 1e4), mtbf_s=st.floats(1.0, 1e9), upload_s=st.floats(0.0, 800.0))
def test_it_stays_within_its_bounds_and_lets_uploads_end(cost_s: float, mtbf_s: float, upload_s: float) -> None:
    interval_s = save_interval_s(cost_s, mtbf_s, upload_s)
    assert max(SHORTEST_S, 2 * upload_s) <= interval_s <= LONGEST_S


def test_observed_failures_outweigh_the_prior() -> None:
    assert observed_mtbf_s(0.0, 0) == PRIOR_MTBF_S
    assert observed_mtbf_s(0.0, 3) == PRIOR_MTBF_S / 4
    assert observed_mtbf_s(1e6, 1000) == pytest.approx(1000.0, rel=0.02)


def test_a_save_costs_its_stall_and_a_part_of_its_upload() -> None:
    assert save_cost_s(0.5, 0.0) == 0.5 < save_cost_s(0.5, 10.0) < 10.5
