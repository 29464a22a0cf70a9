"""Which ranks are slow, from what each takes for a micro-batch. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SLOW_FACTOR = 2.0
"""A rank that takes so many times as long as the others' median is a straggler: each step waits for it."""

SETTLED_STEPS = 30
"""Steps before anybody is called one, and over about which times are averaged."""


class StragglerWatch:
    """Keeps a moving average for each rank of a worker group."""

    def __init__(self) -> None:
        self._average: list[float] = []
        self._steps = 0
        self._told: set[int] = set()

    def note(self, seconds: Sequence[float]) -> list[tuple[int, float]]:
        """Take in a step's seconds by rank; returns ranks newly found slow, each with how many times the median."""
        if not self._average:
            self._average = list(seconds)
        weight = 1 / min(self._steps + 1, SETTLED_STEPS)
        self._average = [old + weight * (new - old) for old, new in zip(self._average, seconds, strict=True)]
        self._steps += 1
        if self._steps < SETTLED_STEPS or len(seconds) < 2:
            return []
        found = []
        for rank, average in enumerate(self._average):
            usual = statistics.median(other for at, other in enumerate(self._average) if at != rank)
            if rank not in self._told and average > SLOW_FACTOR * usual > 0:
                self._told.add(rank)
                found.append((rank, average / usual))
        return found
