"""Tells Ray's autoscaler what nodes are wanted, by what waits for room.

A worker is placed on one node by hard affinity: it waits for that node and no other, and is no demand to the
autoscaler. What is wanted is shown by tasks and placement groups that wait, each of which the autoscaler looks after by
itself. `ray.autoscaler.sdk.request_resources` does not do: what all programs of a cluster ask for with it is one
request, which Ray 2.60 fulfils whole or not at all, so that whoever wants more than there may be keeps nodes from all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

HELD_S, RETRY_S = 0.5, 1.0
"""Seconds for which room that has come may be held, and for which it is then left to whoever looks for it, before it is
waited for again."""

POLL_INTERVAL_S = 10.0
"""Seconds between two looks for an autoscaler where none has been seen."""

Bundles = tuple[Mapping[str, float], ...]
"""Resources of places that are of use only together."""


def place_of(resources: Mapping[str, float]) -> dict[str, Any]:
    """Options of an actor or a task that takes these resources, by Ray's names."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": others}


class _Demand:
    """What is of use only where an autoscaler looks after the cluster."""

    def __init__(self) -> None:
        self._brings_nodes, self._looked_at = False, float("-inf")

    def _is_of_use(self) -> bool:
        """Whether one does: once seen, it stays; one that has not reported yet may come."""
        import ray

        from cluster.autoscaler_state import look

        if not self._brings_nodes and time.monotonic() - self._looked_at >= POLL_INTERVAL_S:
            self._looked_at = time.monotonic()
            with suppress(Exception):  # Ray's own, where it is slow to answer
                self._brings_nodes = look(ray.get_runtime_context().gcs_address).is_looked_after
        return self._brings_nodes


class TaskDemand(_Demand):
    """Has nodes come for workers each of which is of use by itself, where an autoscaler brings nodes.

    Tasks that do nothing wait for the workers' resources. They reserve nothing, so whoever needs a place sooner has it,
    and where there is room they are over at once.

    Args:
        each: resources of a worker.
    """

    def __init__(self, each: Mapping[str, float]) -> None:
        super().__init__()
        self._each = dict(each)
        self._waiting: list[Any] = []

    def want(self, places: int) -> None:
        """Have so many tasks wait; called again and again, as those that are over are no longer counted."""
        import ray

        if self._waiting:
            _, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        for surplus in self._waiting[max(0, places) :]:
            ray.cancel(surplus)  # nodes that are on their way for it come
        del self._waiting[max(0, places) :]
        if places > len(self._waiting) and self._is_of_use():
            # "DEFAULT": else one from within a trial of Ray Tune would wait for the trial's own resources.
            task = ray.remote(_nothing).options(**place_of(self._each), max_retries=0, scheduling_strategy="DEFAULT")
            self._waiting += [task.remote() for _ in range(places - len(self._waiting))]


def _nothing() -> None:
    """Body of a task that is only to wait for its place."""


class PlacementGroupDemand(_Demand):
    """Has nodes come for groups of workers that are of use only as a whole, where an autoscaler brings nodes.

    A placement group that waits reserves nothing. Once its room is there it has it for a moment only, and then leaves
    it to whoever looks for room: no bundles ever holds one place while waiting for another.

    Args:
        name: of the placement groups; `remove_placement_groups` removes what a process that died has left behind.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._made, self._is_watched = name, 0, False
        self._waiting: list[tuple[Bundles, Any]] = []
        self._was_there_at = float("-inf")

    def release(self) -> bool:
        """Give back the room that has come; returns whether any had, which the cluster takes a moment to see."""
        from ray.util import placement_group_table

        with _changing:
            there = [each for each in self._waiting if placement_group_table(each[1])["state"] != "PENDING"]
            for waiting in there:
                self._was_there_at = time.monotonic()
                self._remove(waiting)
        return bool(there)

    def want(self, groups: Sequence[Bundles]) -> None:
        """Have these wait and no others; called again and again, as those whose room has come wait no longer."""
        from ray.util import placement_group

        self.release()
        with _changing:
            missing = list(groups)
            for waiting in list(self._waiting):
                if waiting[0] in missing:
                    missing.remove(waiting[0])
                else:
                    self._remove(waiting)
            if not missing or time.monotonic() - self._was_there_at < RETRY_S or not self._is_of_use():
                return
            for bundles in missing:
                self._made += 1  # Ray has no two groups of one name
                group = placement_group([dict(each) for each in bundles], name=f"{self._name}/{self._made}")
                self._waiting.append((bundles, group))
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._release_in_time, name="let-go", daemon=True).start()

    def _release_in_time(self) -> None:
        """Whoever wants them may be long in coming again."""
        import ray

        while True:
            time.sleep(HELD_S)
            is_gone = not ray.is_initialized()  # and they with it; asking would join it again
            if not is_gone:
                with suppress(Exception):  # Ray's own, where it is slow to answer
                    self.release()
            with _changing:
                if is_gone or not self._waiting:
                    self._is_watched = False
                    return

    def _remove(self, waiting: tuple[Bundles, Any]) -> None:
        from ray.util import remove_placement_group

        self._waiting.remove(waiting)
        remove_placement_group(waiting[1])


_changing = threading.RLock()
"""One for all: what holds it is short, and a `PlacementGroupDemand` is pickled."""


def remove_placement_groups(name: str) -> None:
    """Remove what is left of the placement groups of that name: those of an actor that died live as long as its job.

    What cannot be removed now goes when the job ends.
    """
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    with suppress(Exception):  # Ray's own
        for key, group in placement_group_table().items():
            if group["name"].startswith(f"{name}/") and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
