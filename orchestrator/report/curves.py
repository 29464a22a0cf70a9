"""Curves of a run by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.run_facts import RunFacts
from orchestrator.report.series import Point, band, outline, smoothed
from orchestrator.report.sizes import RIGHT, TOP, Size
from orchestrator.report.svg import Scale, axes, esc, line, mark, polygon, polyline, svg, tag
from orchestrator.report.words import label

LOG_FROM, SLICE, SAMPLE = 20.0, 9.0, 2000
"""Values so many times apart are shown on a logarithmic axis; pixels of a place to point at; points of a curve by which
the part of an axis is chosen that is shown, about."""


@dataclass(frozen=True)
class Curve:
    """Values by step, and how they are drawn: raw and faint, with their mean over it, or as what was measured rarely.

    Attributes:
        weights: of the values in means; None: the same for all.
    """

    name: str
    points: Sequence[Point]
    weights: Sequence[float] | None = None
    is_rare: bool = False
    is_smooth: bool = True


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
    """Curves by step, with the places where the workers changed; "" where there is nothing to draw."""
    shown = [curve for curve in curves if curve.points]
    values = [value for curve in shown for _, value in _sample(curve.points)]
    if not shown or (is_log and min(values) <= 0):
        return ""

    def height(value: float) -> float:
        return y(math.log10(max(value, 1e-300)) if is_log else value)

    means = {curve.name: smoothed(curve.points, curve.weights) for curve in shown if curve.is_smooth}
    ends = _range([means.get(curve.name, curve.points) for curve in shown], values)
    held = [math.log10(value) for value in ends] if is_log else [*ends, 0.0] if from_zero else ends
    right, bottom = size.width - RIGHT, size.height - 48
    y = Scale.over(held, bottom, TOP, is_log)
    if from_zero:
        y = Scale(0.0, y.high, bottom, TOP)
    x = Scale(
        0, max(facts.story.get("steps") or 1, *(curve.points[-1][0] for curve in shown)) * 1.005, size.left, right
    )
    drawn = [_changes(facts, x, bottom)]
    for curve in shown:
        drawn.append(_drawn(curve, means.get(curve.name), x, height, bottom))
    box = tag("rect", x=size.left, y=TOP - 4, width=right - size.left + 4, height=bottom - TOP + 6)
    clip = f"{name}-{size.name}-clip"
    inside = tag("clipPath", box, id=clip) + tag("g", *drawn, clip_path=f"url(#{clip})")
    slices = _slices(shown, means, x, bottom)
    ticks = x.ticks(4 if size.is_narrow else 8)
    told = "; ".join(
        f"{curve.name}: {label(curve.points[0][1])} at step {curve.points[0][0]:.0f}, least "
        f"{label(min(value for _, value in curve.points))}, greatest {label(max(value for _, value in curve.points))}, "
        f"{label(curve.points[-1][1])} at step {curve.points[-1][0]:.0f}"
        for curve in shown
    )
    axis = title + (", logarithmic" if is_log else "")
    drawn_axes = axes(x, y, "step", axis, ticks)
    return svg(f"{name}-{size.name}", axis, told + ".", size.width, size.height, drawn_axes, inside, slices)


def is_wide_range(points: Sequence[Point]) -> bool:
    """Whether values are better seen on a logarithmic axis."""
    values = [value for _, value in points]
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _range(lines: Sequence[Sequence[Point]], values: Sequence[float]) -> list[float]:
    """Least and greatest value that a chart shows: all of what is smooth, most single values, and those not far beyond.

    Args:
        values: the single ones, or a sample of them.
    """
    shown = sorted(values)
    usual = shown[len(shown) // 100], shown[-1 - len(shown) // 100]
    low, high = (
        min(*usual, *(v for line in lines for _, v in line)),
        max(*usual, *(v for line in lines for _, v in line)),
    )
    room = 0.35 * (high - low) or 0.1 * abs(high)
    return [max(shown[0], low - room), min(shown[-1], high + room)]


def _sample(points: Sequence[Point]) -> list[Point]:
    """Points of all parts of a curve, the least and the greatest among them."""
    return [*points[:: 1 + len(points) // SAMPLE], *outline(points, 1)]


def _drawn(
    curve: Curve, means: Sequence[Point] | None, x: Scale, height: Callable[[float], float], bottom: float
) -> str:
    def places(points: Sequence[Point]) -> list[Point]:
        # Far outside of the chart it is not a place that can be drawn.
        return [(x(step), min(2 * bottom, max(-bottom, height(value)))) for step, value in points]

    if curve.is_rare:
        marks = [mark(1, *at, "dot", 4.0) for at in places(outline(curve.points, 40))]
        return tag("g", polyline(places(outline(curve.points)), "curve"), *marks, class_="g1")
    if means is None:
        return tag("g", polyline(places(outline(curve.points)), "curve"), class_="g0")
    ends = band(curve.points)
    around = [*((step, most) for step, _, most in ends), *((step, least) for step, least, _ in reversed(ends))]
    raw = polygon(places(around), "band") if ends else polyline(places(curve.points), "raw")
    return tag("g", raw, polyline(places(means), "curve"), class_="g0")


def _changes(facts: RunFacts, x: Scale, bottom: float) -> str:
    """Dashed lines where workers ended or an attempt went on."""
    steps = [event.step for event in facts.events if event.number]
    steps += [first for first, _, _ in facts.lives_by_step() if first > 0]
    seen = {round(x(step) / 3): x(step) for step in steps}
    return "".join(line(at, TOP - 4, at, bottom, "rung") for at in seen.values())


def _slices(curves: Sequence[Curve], means: Mapping[str, Sequence[Point]], x: Scale, bottom: float) -> str:
    """Invisible places to point at, that tell the values there."""
    by_place: dict[int, dict[str, str]] = {}
    for curve in curves:
        shown = outline(curve.points, 40) if curve.is_rare else means.get(curve.name) or outline(curve.points)
        for step, value in shown:
            told = f"step {step:,.0f}: {curve.name} {value:.4g}"
            by_place.setdefault(int((x(step) - x.start) / SLICE), {})[curve.name] = told
    drawn = []
    for place, told_by_name in sorted(by_place.items()):
        title = tag("title", esc("\n".join(told_by_name.values())))
        box = tag("rect", x=x.start + place * SLICE, y=TOP - 4, width=SLICE, height=bottom - TOP + 4)
        drawn.append(tag("g", title, box, class_="mark slice"))
    return "".join(drawn)
