"""How many trials run at once, and with how many workers each: never more than all of them can have at the same time.

A trial holds a share of the cluster's places for workers from its start to its end. The shares never add up to more
than there is, so that no two trials ever wait for what the other holds. Pure but for `Cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from cluster.demand import PlacementGroupDemand, remove_placement_groups
from cluster.ray_nodes import find_free_capacity
from orchestrator.nodes.requests import placement_group_name

POLL_INTERVAL_S, ASK_EVERY_S = 1.0, 1.0
"""Seconds between two looks at the cluster's nodes, and at what waits for more."""


def share(total: int, shares: Mapping[str, int], left: int, min_workers: int, max_workers: int) -> int | None:
    """Workers that one more trial may have; None: it has to wait.

    Args:
        total: places for workers in the cluster.
        shares: of the trials that run.
        left: trials that do not run yet, this one included.
        min_workers, max_workers: workers of a trial by its recipe.
    """
    free = total - sum(shares.values())
    if free < min_workers:
        # One trial alone is always let in: it asks for nodes itself, and says what it waits for.
        return None if shares else min_workers
    at_once = max(1, min(left, free // min_workers))
    return min(max_workers, max(min_workers, free // at_once))


def slots(total: int, trials: int, min_workers: int, most_at_once: int | None) -> int:
    """Trials that can run at once."""
    return max(1, min(trials, total // min_workers, most_at_once or trials))


class Cluster:
    """The places there are.

    Args:
        name: of what waits for nodes.
        per_worker: resources of a worker.
        at_most: places counted on, of those there are; None: all.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], at_most: int | None) -> None:
        self._per_worker, self._at_most = dict(per_worker), at_most
        self._group_demand = PlacementGroupDemand(name)
        self._looked_at = self._asked_at = float("-inf")
        self._total, self._asked = 0, (0, 0)

    def total(self) -> int:
        """Places on all nodes that are there and stay, taken ones included."""
        if time.monotonic() - self._looked_at >= POLL_INTERVAL_S:
            self._looked_at = time.monotonic()
            found = find_free_capacity(self._per_worker).total.total()
            self._total = found if self._at_most is None else min(found, self._at_most)
        return self._total

    def clear(self, run: str) -> None:
        """Have nothing wait for a run that has ended, however it has."""
        if self._at_most is None:
            remove_placement_groups(placement_group_name(run))

    def ask(self, trials: int, min_workers: int) -> None:
        """Have nodes come for so many more trials of `min_workers` workers, where any can be had.

        Those that run ask for their own.
        """
        asked = (trials, min_workers)
        due = time.monotonic() - self._asked_at >= ASK_EVERY_S
        if self._at_most is None and (due or asked != self._asked):
            self._asked, self._asked_at = asked, time.monotonic()
            self._group_demand.want([tuple([self._per_worker] * min_workers)] * trials)
