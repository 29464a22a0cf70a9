"""How a run's workers have nodes come for them, in the process of Ray Train's controller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from cluster.demand import Bundles, PlacementGroupDemand, TaskDemand

_logger = logging.getLogger(__name__)

TOKENIZING = {"CPU": 1.0}
"""What a task that tokenizes takes."""


def placement_group_name(run: str, attempt: int | None = None) -> str:
    """Name of the placement groups that wait for capacity for a run's workers: of one attempt, or of all."""
    return f"manta {run}" if attempt is None else f"manta {run}/{attempt}"


class NodeRequests:
    """Asks for what the workers lack, where an autoscaler brings nodes.

    Nothing that Ray says to it is raised: what cannot be asked for now is asked for at the next look.

    Args:
        name: of the placement groups that wait.
        per_worker: resources of a worker.
        min_workers, max_workers: workers.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], min_workers: int, max_workers: int) -> None:
        self._per_worker, self._min_workers, self._max_workers = dict(per_worker), min_workers, max_workers
        self._group_demand, self._task_demand = PlacementGroupDemand(name), TaskDemand(per_worker)

    def release(self) -> bool:
        """Give back the capacity that has come, before it is looked for; returns whether any had."""
        with suppress(Exception):
            return self._group_demand.release()
        return False

    def for_start(self, places: int, held: int, reserved_slots: int) -> None:
        """No worker runs; there are `places`, `held` of them by living workers, and `reserved_slots` are for no worker.

        The min_workers that can begin wait together, with who tokenizes; those beyond come one by one. While some are free,
        these would not have to wait, and so bring nobody.
        """
        missing = places < self._min_workers + reserved_slots
        bundles = (*[self._per_worker] * (self._min_workers - held), *[TOKENIZING] * reserved_slots)
        self._want(
            [bundles] if missing and bundles else [],
            self._max_workers - self._min_workers if missing and places == held else 0,
        )

    def is_over(self) -> None:
        """Workers start; what was wanted beyond them still is."""
        with suppress(Exception):
            self._group_demand.want([])

    def for_running(self, wanted: int, places: int, held: int, reserved_slots: int) -> None:
        """Workers run, and `wanted` would be of use; there are `places` that stay, `held` of them by living workers.

        `reserved_slots` of the others are for no worker. While some are free, one place more than those is waited for
        together with them: alone, it would find capacity there, and bring nobody.
        """
        free, missing = places - held, max(0, wanted - held)
        tokenizing = reserved_slots if missing else 0
        lacks = missing + tokenizing > free
        together = min(missing, free + 1 - tokenizing) if free else 0
        bundles = (*[self._per_worker] * together, *[TOKENIZING] * tokenizing)
        self._want([bundles] if lacks and bundles else [], missing if lacks and not free else 0)

    def end(self) -> None:
        """Ask for nothing any more."""
        self._want([], 0)

    def _want(self, groups: list[Bundles], singles: int) -> None:
        try:
            self._group_demand.want(groups)
            self._task_demand.want(singles)
        except Exception as error:  # the controller does not survive one
            _logger.warning("Nodes cannot be asked for now: %s", error)
