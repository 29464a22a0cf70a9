"""Detects slow ranks from the seconds that each rank takes for a micro-batch. Pure.

A module of its own, short as it is: it shares nothing with the other policies.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SLOW_FACTOR = 2.0
"""A rank that takes more than this many times the median of the others is a straggler: every step waits for it."""

SETTLED_STEPS = 30
"""Steps before any rank counts as a straggler, and the length of the moving average."""


class StragglerWatch:
    """Keeps a moving average of the seconds of each rank of a worker group."""

    def __init__(self) -> None:
        self._average: list[float] = []
        self._steps = 0
        self._reported: set[int] = set()

    def add_step(self, seconds: Sequence[float]) -> list[tuple[int, float]]:
        """Adds a step's seconds by rank; returns new stragglers, each with its multiple of the others' median."""
        if not self._average:
            self._average = list(seconds)
        weight = 1 / min(self._steps + 1, SETTLED_STEPS)
        self._average = [old + weight * (new - old) for old, new in zip(self._average, seconds, strict=True)]
        self._steps += 1
        if self._steps < SETTLED_STEPS or len(seconds) < 2:
            return []
        found = []
        for rank, average in enumerate(self._average):
            median = statistics.median(other for at, other in enumerate(self._average) if at != rank)
            if rank not in self._reported and average > SLOW_FACTOR * median > 0:
                self._reported.add(rank)
                found.append((rank, average / median))
        return found
