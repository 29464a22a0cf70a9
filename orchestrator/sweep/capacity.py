"""Decides how many trials run at once, and with how many workers each.

A trial holds a share of the cluster's worker slots from its start to its end. The shares never add up to more than the
slots there are, so that no two trials wait for each other's workers. Everything is pure except `WorkerSlots`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from cluster.demand import PlacementGroupDemand, remove_placement_groups
from cluster.ray_nodes import find_free_capacity
from orchestrator.nodes.requests import placement_group_name

POLL_INTERVAL_S = 1.0
"""Seconds between two counts of the cluster's slots, and between two renewals of the request for nodes."""


def share(total: int, shares: Mapping[str, int], remaining: int, min_workers: int, max_workers: int) -> int | None:
    """Maximum number of workers of the next trial; None: it has to wait.

    Args:
        total: worker slots of the cluster.
        shares: slots that each running trial holds.
        remaining: trials that wait, this one included.
        min_workers, max_workers: limits of a trial by its recipe.
    """
    free = total - sum(shares.values())
    if free < min_workers:
        # A single trial always starts: it requests nodes itself, and logs what it waits for.
        return None if shares else min_workers
    at_once = max(1, min(remaining, free // min_workers))
    return min(max_workers, max(min_workers, free // at_once))


class WorkerSlots:
    """Counts the cluster's worker slots, and requests nodes for trials that wait.

    Args:
        name: name of the request for nodes.
        per_worker: resources of a worker.
        at_most: limit on the slots that are counted, on a cluster that does not grow; None: all slots, and nodes are
            requested.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], at_most: int | None) -> None:
        self._per_worker, self._at_most = dict(per_worker), at_most
        self._group_demand = PlacementGroupDemand(name)
        self._counted_at = self._requested_at = float("-inf")
        self._total, self._requested = 0, (0, 0)

    def total(self) -> int:
        """Slots on all nodes that are up and not draining, occupied ones included."""
        if time.monotonic() - self._counted_at >= POLL_INTERVAL_S:
            self._counted_at = time.monotonic()
            found = find_free_capacity(self._per_worker).total.total()
            self._total = found if self._at_most is None else min(found, self._at_most)
        return self._total

    def cancel(self, run: str) -> None:
        """Removes the placement groups of a run that has ended, in whatever way."""
        if self._at_most is None:
            remove_placement_groups(placement_group_name(run))

    def request(self, trials: int, min_workers: int) -> None:
        """Requests nodes for this many more trials of `min_workers` workers, on a cluster that grows.

        Running trials request nodes themselves.
        """
        wanted = (trials, min_workers)
        due = time.monotonic() - self._requested_at >= POLL_INTERVAL_S
        if self._at_most is None and (due or wanted != self._requested):
            self._requested, self._requested_at = wanted, time.monotonic()
            self._group_demand.request([tuple([self._per_worker] * min_workers)] * trials)
