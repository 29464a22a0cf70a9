"""Decides how often a run is saved to object storage, from the cost of a save and the failure rate. Pure.

J. W. Young, A first order approximation to the optimum checkpoint interval (1974), and J. T. Daly, A higher order
estimate of the optimum checkpoint interval for restart dumps (2006): with a save that costs C seconds of training and M
seconds between failures, sqrt(2 C M) - C seconds of training between two saves minimize the lost time.

A module of its own, short as it is: the loop uses it, and none of the other policies.
"""

from __future__ import annotations

import math

PRIOR_MTBF_S = 4 * 3600.0
"""Seconds between failures that are expected before any failure; the prior weighs as much as one observed failure."""

UPLOAD_SHARE = 0.1
"""Part of an upload's time by which it slows training down: it runs in parallel, on the same machine."""

FIRST_SAVE_S, SHORTEST_S, LONGEST_S = 30.0, 10.0, 1800.0
"""Seconds to the first save, whose cost is then measured, and the bounds of every interval after it."""


def observed_mtbf_s(trained_s: float, failures: int) -> float:
    """Mean seconds between failures, after `failures` of them within `trained_s`, prior included."""
    return (PRIOR_MTBF_S + trained_s) / (1 + failures)


def save_cost_s(stall_s: float, upload_s: float) -> float:
    """Seconds of training that a save costs; it stalled the loop for `stall_s`, and uploaded in `upload_s`."""
    return stall_s + UPLOAD_SHARE * upload_s


def save_interval_s(cost_s: float, mtbf_s: float, upload_s: float = 0.0) -> float:
    """Seconds from one save to the next: at least twice `upload_s`, so that uploads never follow without a break."""
    best_s = math.sqrt(2 * cost_s * mtbf_s) - cost_s if cost_s < 2 * mtbf_s else mtbf_s
    return min(LONGEST_S, max(SHORTEST_S, 2 * upload_s, best_s))
