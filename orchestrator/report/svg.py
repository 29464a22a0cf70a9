"""Draws charts as SVG: escaped tags, scales with round ticks, axes, marks of several shapes."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.report.format import label

GROUPS = 8
"""Groups with their own colour, shape and dash; further groups share the last ones."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "9 3 2 3 2 3")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def esc(text: object) -> str:
    """Escapes text for an element or a quoted attribute; control characters become U+FFFD."""
    return html.escape(_CONTROL.sub("�", str(text)))


def tag(name: str, *inside: str, **attributes: object) -> str:
    """An element. Attributes that are None or "" are omitted; `class_` is class, `stroke_width` is stroke-width."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{esc(_px(value) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
        if value not in (None, "")
    )
    return f"<{name}{written}>{''.join(inside)}</{name}>"


def svg(name: str, title: str, description: str, width: float, height: float, *inside: str) -> str:
    """A chart with a title and a description for screen readers. `name` must be unique on the page."""
    head = tag("title", esc(title), id=f"{name}-t") + tag("desc", esc(description), id=f"{name}-d")
    return (
        f'<svg viewBox="0 0 {_px(width)} {_px(height)}" role="img" aria-labelledby="{name}-t {name}-d" '
        f'style="max-width:{_px(width * 1.25)}px">{head}{"".join(inside)}</svg>'
    )


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; `is_log`: the values are base-10 logarithms."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, is_log: bool = False, pad: float = 0.04) -> Scale:
        """A scale that covers all of `values` with some padding on both sides."""
        values = list(values)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = (high - low) * pad or abs(high) * 0.05 or 0.5
        return cls(low - room, high + room, start, end, is_log)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """(pixel, text) of about `count` round values."""
        return [(self(at), label(10**at if self.is_log else at)) for at in self._round_values(count)]

    def _round_values(self, count: int) -> list[float]:
        span = self.high - self.low
        if self.is_log:
            every = max(1, math.ceil(span / count))
            decades = [float(d) for d in range(math.ceil(self.low), math.floor(self.high) + 1) if d % every == 0]
            if len(decades) >= 3:
                return decades
            multiples = (1, 3) if span > 1.2 else (1, 2, 5) if span > 0.5 else (1, 1.5, 2, 3, 4, 5, 6, 8)
            exponents = range(math.floor(self.low), math.floor(self.high) + 1)
            fine = [math.log10(m) + d for d in exponents for m in multiples]
            inside = [at for at in fine if self.low <= at <= self.high]
            if len(inside) >= 2:
                return inside
            # The range is narrower than any step of these: take equally spaced values.
            return [self.low + span * part for part in (0.1, 0.5, 0.9)]
        rough = span / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
        first = math.ceil(self.low / step)
        return [
            round(step * n, 12) if step > 1e-9 else step * n for n in range(first, math.floor(self.high / step) + 1)
        ]


def axes(x: Scale, y: Scale, x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
    """Grid, ticks and names of the axes of a chart."""
    top, bottom, left, right = y.end, y.start, x.start, x.end
    drawn = []
    for at, text in y.ticks():
        drawn.append(line(left, at, right, at, "grid"))
        drawn.append(text_at(left - 8, at + 4, text, "tick end"))
    for at, text in x_ticks if x_ticks is not None else x.ticks(8):
        drawn.append(line(at, bottom, at, bottom + 5, "axis"))
        drawn.append(text_at(at, bottom + 19, text, "tick mid"))
    drawn.append(line(left, bottom, right, bottom, "axis"))
    drawn.append(text_at((left + right) / 2, bottom + 38, x_name, "name mid", 60))
    drawn.append(text_at(left - 8, top - 12, y_name, "name", 60))
    return tag("g", *drawn, aria_hidden="true")


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "") -> str:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def text_at(x: float, y: float, text: str, class_: str = "", most: int = 28) -> str:
    """Text at a position, cut off after `most` characters."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return tag("text", esc(shown), x=float(x), y=float(y), class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str, dash: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
    return tag("polyline", points=path, class_=class_, stroke_dasharray=dash)


def polygon(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A filled polygon."""
    return tag("polygon", points=" ".join(f"{_px(x)},{_px(y)}" for x, y in points), class_=class_)


def mark(group: int, x: float, y: float, class_: str, r: float = 5.0) -> str:
    """The shape of a group, so that groups differ not only by colour. -1 is a small dot."""
    x, y = float(x), float(y)
    if group < 0:
        return tag("circle", cx=x, cy=y, r=r * 0.8, class_=class_)
    kind = min(group, GROUPS - 1)
    if kind == 0:
        return tag("circle", cx=x, cy=y, r=r, class_=class_)
    corners: tuple[tuple[float, float], ...] = (
        ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
        ((-1.2, -0.45), (1.2, -0.45), (1.2, 0.45), (-1.2, 0.45)),
        ((-0.45, -1.2), (0.45, -1.2), (0.45, 1.2), (-0.45, 1.2)),
        ((-1.1, -1.1), (1.1, 0), (-1.1, 1.1)),
    )[kind - 1]
    return polygon(((x + r * dx, y + r * dy) for dx, dy in corners), class_)


def cross(x: float, y: float, class_: str, r: float = 5.0) -> str:
    """A cross, the mark of a failure."""
    return line(x - r, y - r, x + r, y + r, class_) + line(x - r, y + r, x + r, y - r, class_)


def colour(group: int) -> str:
    """Style class with the colour of a group."""
    return f"g{min(group, GROUPS - 1)}" if group >= 0 else "gx"


def dash(group: int) -> str:
    """Dash pattern of a group's lines."""
    return DASHES[min(group, GROUPS - 1)] if group >= 0 else ""


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


TOP, RIGHT = 34.0, 22.0
"""Margins above and right of a chart's area in pixels; the right one holds half of the last tick's text."""


@dataclass(frozen=True)
class Size:
    """Size of a chart in its own pixels. `name` is part of element ids, since a chart may be drawn in two sizes."""

    name: str
    width: float
    height: float
    left: float = 58.0

    @property
    def is_narrow(self) -> bool:
        """Whether the chart is for a phone, or stands beside others."""
        return self.width < 500


WIDE = Size("wide", 860.0, 330.0)

NARROW = Size("narrow", 360.0, 270.0, 46.0)

SMALL = Size("small", 360.0, 220.0, 54.0)
