"""How often a run is saved to object storage, from what a save costs and how often workers die. Pure.

J. W. Young, A first order approximation to the optimum checkpoint interval (1974), and J. T. Daly, A higher order
estimate of the optimum checkpoint interval for restart dumps (2006): with a save that costs C seconds of training and M
seconds between failures, sqrt(2 C M) - C seconds of training between two saves lose the least time in all.
"""

from __future__ import annotations

import math

PRIOR_MTBF_S = 4 * 3600.0
"""Seconds between failures that are expected before any has been seen: it counts like one seen failure."""

UPLOAD_SHARE = 0.1
"""Part of an upload's time that training takes longer for it: it goes on beside, and takes some of the same machine."""

FIRST_SAVE_S, SHORTEST_S, LONGEST_S = 30.0, 10.0, 1800.0
"""Seconds to the first save, which shows what one costs, and bounds of what follows from it."""


def observed_mtbf_s(trained_s: float, failures: int) -> float:
    """Seconds between failures, after so many within so many seconds."""
    return (PRIOR_MTBF_S + trained_s) / (1 + failures)


def save_cost_s(stall_s: float, upload_s: float) -> float:
    """Seconds of training that a save costs whose state was kept in `stall_s` and uploaded in `upload_s`."""
    return stall_s + UPLOAD_SHARE * upload_s


def save_interval_s(cost_s: float, mtbf_s: float, upload_s: float = 0.0) -> float:
    """Seconds from one save to the next; never so few that uploads, of `upload_s` each, follow without a break."""
    best_s = math.sqrt(2 * cost_s * mtbf_s) - cost_s if cost_s < 2 * mtbf_s else mtbf_s
    return min(LONGEST_S, max(SHORTEST_S, 2 * upload_s, best_s))
