"""Draws charts of a run's values by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.report.format import label
from orchestrator.report.run_facts import RunFacts
from orchestrator.report.series import Point, band, outline, smoothed
from orchestrator.report.svg import RIGHT, TOP, Scale, Size, axes, esc, line, mark, polygon, polyline, svg, tag

LOG_FROM = 20.0
"""Ratio of maximum and minimum from which a logarithmic axis is used."""

SLICE = 9.0
"""Width in pixels of the areas that show a tooltip."""

RARE = 40
"""Buckets of a rarely measured curve, every drawn point of which gets a mark."""

SAMPLE = 2000
"""Approximate number of points from which the range of an axis is chosen."""


@dataclass(frozen=True)
class Curve:
    """Values by step, and how they are drawn.

    Attributes:
        weights: weights of the values in means; None: all equal.
        is_rare: measured rarely; points are marked.
        is_smooth: drawn as a mean over faint raw values.
    """

    name: str
    points: Sequence[Point]
    weights: Sequence[float] | None = None
    is_rare: bool = False
    is_smooth: bool = True

    # Cached: a chart is drawn in two sizes, the loss also on two axes, and a long run has millions of points.

    @cached_property
    def outline(self) -> list[Point]:
        """The raw values, thinned."""
        return outline(self.points, RARE) if self.is_rare else outline(self.points)

    @cached_property
    def band(self) -> list[tuple[float, float, float]]:
        """Range of the raw values by bucket; empty if they are few enough for a line."""
        return band(self.points)

    @cached_property
    def line(self) -> list[Point]:
        """The main line: means, or the values themselves."""
        return smoothed(self.points, self.weights) if self.is_smooth else self.outline

    @cached_property
    def sample(self) -> list[float]:
        """Values from all parts of the curve, sorted, with the minimum and the maximum of all at its ends."""
        some = self.points[:: 1 + len(self.points) // SAMPLE]
        return sorted(value for _, value in (*some, *outline(self.points, 1)))


def chart(
    name: str,
    title: str,
    facts: RunFacts,
    curves: Sequence[Curve],
    size: Size,
    *,
    is_log: bool = False,
    from_zero: bool = False,
) -> str:
    """Draws curves by step, with dashed lines where the workers changed; "" if there is nothing to draw."""
    shown = [curve for curve in curves if curve.points]
    if not shown or (is_log and min(curve.sample[0] for curve in shown) <= 0):
        return ""

    def height(value: float) -> float:
        return y(math.log10(max(value, 1e-300)) if is_log else value)

    ends = _range(shown)
    held = [math.log10(value) for value in ends] if is_log else [*ends, 0.0] if from_zero else ends
    right, bottom = size.width - RIGHT, size.height - 48
    y = Scale.over(held, bottom, TOP, is_log)
    if from_zero:
        y = Scale(0.0, y.high, bottom, TOP)
    x = Scale(
        0, max(facts.summary.get("steps") or 1, *(curve.points[-1][0] for curve in shown)) * 1.005, size.left, right
    )
    drawn = [_changes(facts, x, bottom)]
    for curve in shown:
        drawn.append(_drawn(curve, x, height, bottom))
    box = tag("rect", x=size.left, y=TOP - 4, width=right - size.left + 4, height=bottom - TOP + 6)
    clip = f"{name}-{size.name}-clip"
    inside = tag("clipPath", box, id=clip) + tag("g", *drawn, clip_path=f"url(#{clip})")
    slices = _slices(shown, x, bottom)
    ticks = x.ticks(4 if size.is_narrow else 8)
    description = "; ".join(
        f"{curve.name}: {label(curve.points[0][1])} at step {curve.points[0][0]:.0f}, minimum "
        f"{label(curve.sample[0])}, maximum {label(curve.sample[-1])}, "
        f"{label(curve.points[-1][1])} at step {curve.points[-1][0]:.0f}"
        for curve in shown
    )
    axis = title + (", logarithmic" if is_log else "")
    drawn_axes = axes(x, y, "step", axis, ticks)
    return svg(f"{name}-{size.name}", axis, description + ".", size.width, size.height, drawn_axes, inside, slices)


def is_wide_range(curve: Curve) -> bool:
    """Whether the values need a logarithmic axis."""
    return bool(curve.points) and curve.sample[0] > 0 and curve.sample[-1] / curve.sample[0] >= LOG_FROM


def _range(curves: Sequence[Curve]) -> list[float]:
    """Range of a chart's axis: all lines, 98 % of the raw values, and outliers not far beyond."""
    seen = [value for curve in curves for _, value in curve.line]
    for curve in curves:
        few = len(curve.sample) // 100
        seen += [curve.sample[few], curve.sample[-1 - few]]
    low, high = min(seen), max(seen)
    room = 0.35 * (high - low) or 0.1 * abs(high)
    least, greatest = min(curve.sample[0] for curve in curves), max(curve.sample[-1] for curve in curves)
    return [max(least, low - room), min(greatest, high + room)]


def _drawn(curve: Curve, x: Scale, height: Callable[[float], float], bottom: float) -> str:
    def positions(points: Sequence[Point]) -> list[Point]:
        # Clamped: browsers cannot draw coordinates far outside of the chart.
        return [(x(step), min(2 * bottom, max(-bottom, height(value)))) for step, value in points]

    followed = polyline(positions(curve.line), "curve")
    if curve.is_rare:
        return tag("g", followed, *(mark(1, *at, "dot", 4.0) for at in positions(curve.outline)), class_="g1")
    if not curve.is_smooth:
        return tag("g", followed, class_="g0")
    around = [(step, most) for step, _, most in curve.band]
    around += [(step, least) for step, least, _ in reversed(curve.band)]
    raw = polygon(positions(around), "band") if around else polyline(positions(curve.outline), "raw")
    return tag("g", raw, followed, class_="g0")


def _changes(facts: RunFacts, x: Scale, bottom: float) -> str:
    """Dashed lines where a worker group ended or a new attempt continued."""
    steps = [event.step for event in facts.events if event.number]
    steps += [first for first, _, _ in facts.attempts_by_step() if first > 0]
    seen = {round(x(step) / 3): x(step) for step in steps}
    return "".join(line(at, TOP - 4, at, bottom, "rung") for at in seen.values())


def _slices(curves: Sequence[Curve], x: Scale, bottom: float) -> str:
    """Invisible areas whose tooltips show the values there."""
    by_slice: dict[int, dict[str, str]] = {}
    for curve in curves:
        for step, value in curve.line:
            text = f"step {step:,.0f}: {curve.name} {value:.4g}"
            by_slice.setdefault(int((x(step) - x.start) / SLICE), {})[curve.name] = text
    drawn = []
    for slot, text_by_curve in sorted(by_slice.items()):
        title = tag("title", esc("\n".join(text_by_curve.values())))
        box = tag("rect", x=x.start + slot * SLICE, y=TOP - 4, width=SLICE, height=bottom - TOP + 4)
        drawn.append(tag("g", title, box, class_="mark slice"))
    return "".join(drawn)
