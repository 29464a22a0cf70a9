"""SnapshotClock: how often the loop takes a snapshot, from what one costs and how long a step takes."""

from __future__ import annotations

COST_SHARE = 0.01
"""Largest part of the training time that snapshots may take."""

SECOND_SNAPSHOT_S = 2.0
"""Seconds from a worker group's first snapshot to its second."""

COST_DECAY = 0.8
"""Factor by which the expected cost falls at most from one snapshot to the next."""


class SnapshotClock:
    """Decides after which steps to take a snapshot; rank 0 keeps one for the whole group.

    The first snapshot is taken after the first step, while the group is still warming up and everything is slow: its
    cost is not counted, and the second follows `SECOND_SNAPSHOT_S` later.
    """

    def __init__(self) -> None:
        self._cost_s = 0.0
        self._taken = 0
        self._since_s = 0.0

    def is_due(self, step_s: float) -> bool:
        """Whether to take a snapshot after the current step, given that the last one took `step_s` seconds."""
        self._since_s += step_s
        if self._taken < 2:
            return self._taken == 0 or self._since_s >= SECOND_SNAPSHOT_S
        return self._cost_s <= COST_SHARE * self._since_s

    def taken(self, cost_s: float) -> None:
        """Records a snapshot for which the loop stood still for `cost_s` seconds."""
        self._taken += 1
        if self._taken > 1:
            # The slower of two: one that happened to be quick must not set the pace.
            self._cost_s = max(cost_s, COST_DECAY * self._cost_s)
        self._since_s = 0.0
