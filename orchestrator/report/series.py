"""Curves of any length as few points: thinned without losing an extreme, and smoothed without a lag. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    for bucket in _buckets(len(points), buckets):
        kept.add(min(bucket, key=lambda at: points[at][1]))
        kept.add(max(bucket, key=lambda at: points[at][1]))
    return [points[at] for at in sorted(kept)]


def band(points: Sequence[Point], buckets: int = BUCKETS) -> list[tuple[float, float, float]]:
    """Where a curve runs: (middle of the bucket, least, greatest) of each; none where `outline` is the curve itself."""
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
    """Points that a smoothed value of a curve of `count` points is the mean of; odd."""
    return 2 * (count // SMOOTH_PART // 2) + 1


def smoothed(points: Sequence[Point], weights: Sequence[float] | None = None, most: int = 2 * BUCKETS) -> list[Point]:
    """Means over the `window` around a point, of as much of it as there is.

    Towards the beginning it is as narrow on the right as on the left: the first point stays what it is, and a curve
    that falls steeply there is not held up.

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
        reach = min(half, at)
        first, end = at - reach, min(at + reach + 1, count)
        mean = (sums[end] - sums[first]) / (totals[end] - totals[first]) if end - first > 1 else points[at][1]
        found.append((points[at][0], mean))
    return found
