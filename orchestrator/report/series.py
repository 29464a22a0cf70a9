"""Curves of any length as few points: thinned without losing an extreme, and smoothed without a lag. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

Point = tuple[float, float]

BUCKETS = 180
"""Equal parts of a curve, of each of which the least and the greatest value are drawn: two points to a few pixels."""

SMOOTH_PART = 50
"""A smoothed value is the mean of so large a part of the curve's points around it: one in SMOOTH_PART."""


def outline(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """The first and the last point, and between them each bucket's least and greatest, in their order.

    A curve of at most twice as many points as buckets is returned whole.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    kept = {0, len(points) - 1}
    for first, end in pairwise(round(part * len(points) / buckets) for part in range(buckets + 1)):
        kept.add(min(range(first, end), key=lambda at: points[at][1]))
        kept.add(max(range(first, end), key=lambda at: points[at][1]))
    return [points[at] for at in sorted(kept)]


def window(count: int) -> int:
    """Points that a smoothed value of a curve of `count` points is the mean of; odd."""
    return 2 * (count // SMOOTH_PART // 2) + 1


def smoothed(points: Sequence[Point], weights: Sequence[float] | None = None, most: int = 2 * BUCKETS) -> list[Point]:
    """Means over the `window` around a point, narrower towards both ends, where it would reach beyond them.

    So the first and the last point stay what they are, and a curve that falls steeply is not held up.

    Args:
        weights: of the values, greater than 0; None: the same for all.
        most: smoothed points, about, at equal distances; the last point is always among them.
    """
    count, half = len(points), window(len(points)) // 2
    weights = [1.0] * count if weights is None else weights
    sums = [0.0, *accumulate(value * weight for (_, value), weight in zip(points, weights, strict=True))]
    totals = [0.0, *accumulate(weights)]
    kept = range(0, count, max(1, -(-count // most)))
    found = []
    for at in dict.fromkeys((*kept, count - 1)) if count else ():
        reach = min(half, at, count - 1 - at)
        first, end = at - reach, at + reach + 1
        mean = (sums[end] - sums[first]) / (totals[end] - totals[first]) if reach else points[at][1]
        found.append((points[at][0], mean))
    return found
