"""A sweep that ends where further points no longer help: another schedule decides on the points up to there.

How many points that are follows from their losses in the order of their numbers, so it does not depend on the cluster.
Slots that were free may have begun more of them, which are not compared; they go on if the plateau is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from orchestrator.sweep.schedule.legs import Decisions, Schedule, Trials, loss_at


class UntilPlateau:
    """The schedule.

    Args:
        schedule_of: the schedule of this many points.
        points: number of points without a plateau.
        window: number of points without an improvement after which there is a plateau.
        by: least improvement that counts, by more than this.
    """

    def __init__(self, schedule_of: Callable[[int], Schedule], points: int, window: int, by: float) -> None:
        self._schedule_of, self._points, self._window, self._by = schedule_of, points, window, by
        self.levels = schedule_of(points).levels

    def decide(self, trials: Trials) -> Decisions:
        """See `Schedule`."""
        count = self._count(trials)
        decisions = self._schedule_of(count).decide(trials)
        decisions.compared = count
        if count < self._points:
            first = count - self._window + 1
            decisions.early = (
                f"plateau: the best loss at step {self.levels[0]} has not improved by more than {self._by:g} "
                f"with points {first} to {count}"
            )
        return decisions

    def _count(self, trials: Trials) -> int:
        """Number of points up to the first plateau; all where there is none yet."""
        losses: list[float] = []
        for number in range(1, self._points):
            record = trials.get(number)
            loss = loss_at(record, self.levels[0])
            if loss is None and (record is None or not record.has_ended):
                break  # not known yet, so nothing is known of a plateau beyond
            losses.append(math.inf if loss is None else loss)
            before, window = losses[: -self._window], losses[-self._window :]
            if before and min(before) - min(window) <= self._by:
                return number
        return self._points
