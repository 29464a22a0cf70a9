"""Requests nodes from Ray's autoscaler by keeping tasks and placement groups pending.

A worker is placed on one node by hard affinity: it waits for that node only, and the autoscaler does not count it as
demand. Demand is therefore expressed by pending tasks and placement groups, each of which the autoscaler handles
separately. `ray.autoscaler.sdk.request_resources` is not suitable: the requests of all programs of a cluster are merged
into one, which Ray 2.60 fulfils as a whole or not at all, so that one excessive request would leave all without nodes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.autoscaler_state import read_autoscaler_state

HOLD_S, RETRY_S = 0.5, 1.0
"""Seconds for which a placement group may hold capacity that has become free, and for which that capacity is then left
to others before it is requested again."""

POLL_INTERVAL_S = 10.0
"""Seconds between two checks for an autoscaler, as long as none has been found."""

Bundles = tuple[Mapping[str, float], ...]
"""Resources of workers that are of use only together, one mapping for each."""


def resource_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Ray's options of an actor or a task that takes these resources."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": others}


class _Demand:
    """A request for nodes, which has an effect only in a cluster with an autoscaler."""

    def __init__(self) -> None:
        self._has_autoscaler, self._checked_at = False, float("-inf")

    def _check_for_autoscaler(self) -> bool:
        """Whether the cluster has an autoscaler. Checked again while there is none: it may not have reported yet."""
        import ray

        if not self._has_autoscaler and time.monotonic() - self._checked_at >= POLL_INTERVAL_S:
            self._checked_at = time.monotonic()
            with suppress(Exception):  # Ray's own, if it is slow to answer
                state = read_autoscaler_state(ray.get_runtime_context().gcs_address)
                self._has_autoscaler = state.has_autoscaler
        return self._has_autoscaler


class TaskDemand(_Demand):
    """Requests nodes for workers that are each useful alone, one pending task per worker.

    The tasks wait for the resources of a worker and do nothing. They reserve nothing: others may take the capacity
    first, and a task ends as soon as it is placed.

    Args:
        per_worker: resources of a worker.
    """

    def __init__(self, per_worker: Mapping[str, float]) -> None:
        super().__init__()
        self._per_worker = dict(per_worker)
        self._pending: list[Any] = []

    def request(self, slots: int) -> None:
        """Keeps `slots` tasks pending. Must be called repeatedly: tasks that have been placed are not replaced else."""
        import ray

        if self._pending:
            _, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=0)
        for surplus in self._pending[max(0, slots) :]:
            ray.cancel(surplus)  # nodes that are already starting for it still come
        del self._pending[max(0, slots) :]
        if slots > len(self._pending) and self._check_for_autoscaler():
            # "DEFAULT": else a task from within a trial of Ray Tune would wait for the trial's own resources.
            options = {**resource_options(self._per_worker), "max_retries": 0, "scheduling_strategy": "DEFAULT"}
            task = ray.remote(_nothing).options(**options)
            self._pending += [task.remote() for _ in range(slots - len(self._pending))]


def _nothing() -> None:
    """Body of a task whose only purpose is to be pending."""


class PlacementGroupDemand(_Demand):
    """Requests nodes for groups of workers that are useful only together, one pending placement group per group.

    A pending placement group reserves nothing. When it gets its capacity it is removed within moments, so that the
    workers can take it: no group ever holds part of its capacity while it waits for the rest.

    Args:
        name: prefix of the placement groups' names; `remove_placement_groups` removes those of a process that died.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._created, self._is_watched = name, 0, False
        self._pending: list[tuple[Bundles, Any]] = []
        self._placed_at = float("-inf")

    def release(self) -> bool:
        """Removes placement groups that have got their capacity, to free it.

        Returns:
            whether there were any; the cluster takes a moment to report the capacity as free.
        """
        from ray.util import placement_group_table

        with _changing:
            placed = [each for each in self._pending if placement_group_table(each[1])["state"] != "PENDING"]
            for each in placed:
                self._placed_at = time.monotonic()
                self._remove(each)
        return bool(placed)

    def request(self, groups: Sequence[Bundles]) -> None:
        """Keeps placement groups for these pending, and no others. Must be called repeatedly, see `release`."""
        from ray.util import placement_group

        self.release()
        with _changing:
            missing = list(groups)
            for each in list(self._pending):
                if each[0] in missing:
                    missing.remove(each[0])
                else:
                    self._remove(each)
            if not missing or time.monotonic() - self._placed_at < RETRY_S or not self._check_for_autoscaler():
                return
            for bundles in missing:
                self._created += 1  # names of placement groups are unique
                group = placement_group([dict(each) for each in bundles], name=f"{self._name}/{self._created}")
                self._pending.append((bundles, group))
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._release_regularly, name="release-placed-groups", daemon=True).start()

    def _release_regularly(self) -> None:
        """Frees capacity in time even if the next call of `request` is late."""
        import ray

        while True:
            time.sleep(HOLD_S)
            has_left = not ray.is_initialized()  # the placement groups are gone, too; a call would join Ray again
            if not has_left:
                with suppress(Exception):  # Ray's own, if it is slow to answer
                    self.release()
            with _changing:
                if has_left or not self._pending:
                    self._is_watched = False
                    return

    def _remove(self, pending: tuple[Bundles, Any]) -> None:
        from ray.util import remove_placement_group

        self._pending.remove(pending)
        remove_placement_group(pending[1])


_changing = threading.RLock()
"""Held while placement groups are added or removed. Module-level, because a `PlacementGroupDemand` is pickled."""


def remove_placement_groups(name: str) -> None:
    """Removes the placement groups of that name: those of an actor that died would live until its job ends.

    Placement groups that cannot be removed now end with the job.
    """
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    with suppress(Exception):  # Ray's own
        for key, group in placement_group_table().items():
            if group["name"].startswith(f"{name}/") and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
