"""Reduces curves of any length to few points: thins them without losing extremes, smooths them without lag. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

Point = tuple[float, float]

BUCKETS = 180
"""Buckets of a curve; the minimum and the maximum of each are drawn, which is two points per few pixels."""

SMOOTH_PART = 50
"""A smoothed value is the mean of one SMOOTH_PART-th of the curve's points, centred on it."""


def outline(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """Thins a curve to its first and last point and the minimum and maximum of each bucket, in order.

    A curve of at most twice as many points as buckets is returned unchanged.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    kept = {0, len(points) - 1}
    for bucket in _buckets(len(points), buckets):
        kept.add(min(bucket, key=lambda at: points[at][1]))
        kept.add(max(bucket, key=lambda at: points[at][1]))
    return [points[at] for at in sorted(kept)]


def band(points: Sequence[Point], buckets: int = BUCKETS) -> list[tuple[float, float, float]]:
    """(middle, minimum, maximum) of each bucket; empty if `outline` returns the curve unchanged."""
    if len(points) <= 2 * buckets:
        return []
    found = []
    for bucket in _buckets(len(points), buckets):
        values = [points[at][1] for at in bucket]
        found.append(((points[bucket[0]][0] + points[bucket[-1]][0]) / 2, min(values), max(values)))
    return found


def _buckets(count: int, buckets: int) -> Iterator[range]:
    yield from (range(*ends) for ends in pairwise(round(part * count / buckets) for part in range(buckets + 1)))


def window(count: int) -> int:
    """Number of points in the mean of a smoothed value, for a curve of `count` points; odd."""
    return 2 * (count // SMOOTH_PART // 2) + 1


def smoothed(points: Sequence[Point], weights: Sequence[float] | None = None, most: int = 2 * BUCKETS) -> list[Point]:
    """Smooths a curve with a mean over the `window` around each point, cut off at the end of the curve.

    Near the start, the window is as narrow on the right as on the left. The first point therefore stays unchanged, and
    a steep fall at the start is not delayed.

    Args:
        weights: weights of the values, greater than 0; None: all equal.
        most: approximate number of smoothed points, equally spaced; the last point is always included.
    """
    count, half = len(points), window(len(points)) // 2
    weights = [1.0] * count if weights is None else weights
    sums = [0.0, *accumulate(value * weight for (_, value), weight in zip(points, weights, strict=True))]
    totals = [0.0, *accumulate(weights)]
    kept = range(0, count, max(1, -(-count // most)))
    found = []
    for at in dict.fromkeys((*kept, count - 1)) if count else ():
        reach = min(half, at)
        first, end = at - reach, min(at + reach + 1, count)
        mean = (sums[end] - sums[first]) / (totals[end] - totals[first]) if end - first > 1 else points[at][1]
        found.append((points[at][0], mean))
    return found
