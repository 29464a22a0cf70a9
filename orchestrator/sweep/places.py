"""How many trials run at once, and with how many workers each: never more than all of them can have at the same time.

A trial holds a share of the cluster's places for workers from its start to its end. The shares never add up to more
than there is, so that no two trials ever wait for what the other holds. Pure but for `Cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from data.ray_internals import ask_for_places, look_for_room

LOOK_EVERY_S, ASK_EVERY_S = 1.0, 5.0
"""Seconds between two looks at the cluster's nodes, and between two requests for more."""


def share(total: int, shares: Mapping[str, int], left: int, fewest: int, most: int) -> int | None:
    """Workers that one more trial may have; None: it has to wait.

    Args:
        total: places for workers in the cluster.
        shares: of the trials that run.
        left: trials that do not run yet, this one included.
        fewest, most: workers of a trial by its recipe.
    """
    free = total - sum(shares.values())
    if free < fewest:
        # One trial alone is always let in: it asks for nodes itself, and says what it waits for.
        return None if shares else fewest
    at_once = max(1, min(left, free // fewest))
    return min(most, max(fewest, free // at_once))


def slots(total: int, trials: int, fewest: int, most_at_once: int | None) -> int:
    """Trials that can run at once."""
    return max(1, min(trials, total // fewest, most_at_once or trials))


class Cluster:
    """The places there are.

    Args:
        name: under which nodes are asked for.
        per_worker: resources of a worker.
        at_most: places counted on, of those there are; None: all.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], at_most: int | None) -> None:
        self._name, self._per_worker, self._at_most = name, dict(per_worker), at_most
        self._looked_at = self._asked_at = float("-inf")
        self._total = self._asked = 0

    def total(self) -> int:
        """Places on all nodes that are there and stay, taken ones included."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            found = look_for_room(self._per_worker).total.total()
            self._total = found if self._at_most is None else min(found, self._at_most)
        return self._total

    def ask(self, workers: int) -> None:
        """Ask for nodes with so many more places, where nodes can be had; those that run ask for their own."""
        due = time.monotonic() - self._asked_at >= ASK_EVERY_S
        if self._at_most is None and (workers or self._asked) and (due or workers != self._asked):
            self._asked, self._asked_at = workers, time.monotonic()
            ask_for_places(self._name, [self._per_worker] * workers, 4 * ASK_EVERY_S)
