"""Requests nodes for a run's workers from the autoscaler, in the process of Ray Train's controller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from cluster.demand import Bundles, PlacementGroupDemand, TaskDemand

_logger = logging.getLogger(__name__)

TOKENIZING = {"CPU": 1.0}
"""Resources of a tokenizing task."""


def placement_group_name(run: str, attempt: int | None = None) -> str:
    """Name of the pending placement groups of a run: of one attempt, or the common prefix of all attempts."""
    return f"manta {run}" if attempt is None else f"manta {run}/{attempt}"


class NodeRequests:
    """Keeps as many placement groups and tasks pending as the workers lack slots, so that an autoscaler adds nodes.

    Errors of Ray are not raised: the next call repeats the request.

    Args:
        name: name of the placement groups.
        per_worker: resources of a worker.
        min_workers: workers that a start needs; their slots are requested together.
        max_workers: workers that are of use.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], min_workers: int, max_workers: int) -> None:
        self._per_worker, self._min_workers, self._max_workers = dict(per_worker), min_workers, max_workers
        self._group_demand, self._task_demand = PlacementGroupDemand(name), TaskDemand(per_worker)

    def release(self) -> bool:
        """Removes placement groups that have got their capacity, to free it; returns whether there were any."""
        with suppress(Exception):
            return self._group_demand.release()
        return False

    def for_start(self, slots: int, held: int, reserved_slots: int) -> None:
        """Requests nodes for a start: `min_workers` slots together with the reserved ones, then single ones.

        Single slots are requested only while none is free: otherwise their tasks would run at once, and add no node.

        Args:
            slots: slots on the nodes there are.
            held: slots of live workers.
            reserved_slots: free slots that no worker takes, because a tokenizing task needs a CPU.
        """
        missing = slots < self._min_workers + reserved_slots
        bundles = (*[self._per_worker] * (self._min_workers - held), *[TOKENIZING] * reserved_slots)
        self._request(
            [bundles] if missing and bundles else [],
            self._max_workers - self._min_workers if missing and slots == held else 0,
        )

    def end_start(self) -> None:
        """Withdraws the request for `min_workers`, as they start; single slots stay requested."""
        with suppress(Exception):
            self._group_demand.request([])

    def for_running(self, wanted: int, slots: int, held: int, reserved_slots: int) -> None:
        """Requests nodes for the slots that running workers lack.

        While slots are free, the request is for one more than those, together: a single one would find capacity at
        once, and add no node.

        Args:
            wanted: workers that would be of use.
            slots: slots on nodes that are not about to go.
            held: slots of live workers.
            reserved_slots: free slots that no worker takes.
        """
        free, missing = slots - held, max(0, wanted - held)
        tokenizing = reserved_slots if missing else 0
        lacks = missing + tokenizing > free
        together = min(missing, free + 1 - tokenizing) if free else 0
        bundles = (*[self._per_worker] * together, *[TOKENIZING] * tokenizing)
        self._request([bundles] if lacks and bundles else [], missing if lacks and not free else 0)

    def end(self) -> None:
        """Withdraws all requests."""
        self._request([], 0)

    def _request(self, groups: list[Bundles], singles: int) -> None:
        try:
            self._group_demand.request(groups)
            self._task_demand.request(singles)
        except Exception as error:  # the controller would not survive it
            _logger.warning("Nodes cannot be requested now: %s", error)
