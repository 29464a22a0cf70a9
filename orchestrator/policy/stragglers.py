"""Detects slow ranks from the seconds that each rank takes for a micro-batch. Pure.

A module of its own, short as it is: it shares nothing with the other policies.
"""

from __future__ import annotations

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
        ranks = sorted(range(len(seconds)), key=self._average.__getitem__)
        ordered, found = [self._average[rank] for rank in ranks], []
        for place in reversed(range(len(ordered))):  # the slowest first: once one is no straggler, no other is
            median = _median_without(ordered, place)
            if not ordered[place] > SLOW_FACTOR * median > 0:
                break
            if (rank := ranks[place]) not in self._reported:
                self._reported.add(rank)
                found.append((rank, ordered[place] / median))
        return sorted(found)


def _median_without(ordered: Sequence[float], place: int) -> float:
    """The median of sorted values, without the one at `place`."""

    def other(at: int) -> float:
        return ordered[at + (at >= place)]

    half, is_odd = divmod(len(ordered) - 1, 2)
    return other(half) if is_odd else (other(half - 1) + other(half)) / 2
