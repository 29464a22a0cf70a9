"""Draws the timeline of a run, by time and by step: its workers, and below them a lane for each kind of event."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.report.format import count, duration
from orchestrator.report.run_facts import KINDS, Event, RunFacts, Span, attempt_line, clusters
from orchestrator.report.svg import RIGHT, TOP, Scale, Size, cross, esc, line, mark, svg, tag, text_at
from orchestrator.report.time_scale import TimeScale

AREA, LANE = 84.0, 25.0
"""Height of the area of workers and of a lane in pixels."""

THINNEST = 0.4
"""Least width in pixels of a span with workers that is drawn."""

APART = 2.5
"""Distance in pixels below which two spans without workers are drawn as one."""

_LANES = {"restart": "restarts", "resize": "resizes", "checkpoint": "checkpoints", "evaluation": "evaluations"}

_CLOSE = {"restart": 27.0, "resize": 27.0, "checkpoint": 4.0, "evaluation": 10.0, "skipped step": 10.0}
"""Distance in pixels, by kind of event, below which neighbours are drawn as one."""


def life_by_time(facts: RunFacts, size: Size) -> str:
    """Draws workers over time, and lanes with every event; "" for a run without attempts."""
    if not facts.lives:
        return ""
    x = TimeScale(facts.began, facts.ended, _lane_left(size), size.width - RIGHT, facts.pauses)

    def place(event: Event) -> float:
        return x(event.at or facts.began)

    lives = [(x(life["started_at"]), x(life["ended_at"]), life) for life in facts.lives]
    known = [event for event in facts.events if event.at is not None]
    spans = facts.sizes_by_time()
    breaks = [(x(start), x(end), end - start) for start, end in x.shortened]
    name = "time since the start" + (", long pauses shortened" if breaks else "")
    ticks = x.ticks(92.0 if size.is_narrow else 80.0)
    drawn = _life(size, spans, x, place, known, lives, ticks, name, breaks)
    description = f"{len(facts.lives)} attempts in {duration(facts.ended - facts.began)}; {_counted(known)}."
    return svg(f"time-{size.name}", "Workers and events over time", description, *drawn)


def life_by_step(facts: RunFacts, size: Size) -> str:
    """Draws workers by step, and lanes with every event; "" before the first checkpoint."""
    if not facts.steps:
        return ""
    x = Scale(0, max(facts.summary.get("steps") or 1, facts.steps[-1]), _lane_left(size), size.width - RIGHT)

    def place(event: Event) -> float:
        return x(min(event.step, x.high))

    lives = [(x(first), x(min(last, x.high)), life) for first, last, life in facts.attempts_by_step()]
    ticks = [(at, text) for at, text in x.ticks(4 if size.is_narrow else 8) if at >= x.start]
    drawn = _life(size, facts.sizes_by_step(), x, place, facts.events, lives, ticks, "step", [])
    description = f"{facts.steps[-1]:,} steps; {_counted(facts.events)}."
    return svg(f"steps-{size.name}", "Workers and events by step", description, *drawn)


def _lane_left(size: Size) -> float:
    return 84.0 if size.is_narrow else 96.0


def _life(
    size: Size,
    spans: Sequence[Span],
    x: Callable[[float], float],
    place: Callable[[Event], float],
    events: Sequence[Event],
    lives: Sequence[tuple[float, float, Mapping[str, Any]]],
    ticks: Sequence[tuple[float, str]],
    axis: str,
    breaks: Sequence[tuple[float, float, float]],
) -> tuple[float, float, str]:
    """Draws frame, workers, attempts and events.

    Args:
        x: maps a time or a step to pixels.
        place: maps an event to pixels.
        lives: (start, end, attempt) of every attempt, in pixels.
        breaks: (start, end, seconds) of every shortened pause, in pixels.

    Returns:
        width, height and content of the chart.
    """
    left, right = _lane_left(size), size.width - RIGHT
    kinds = [kind for kind in KINDS if any(event.kind == kind for event in events)]
    area_end = TOP + AREA
    bottom = area_end + 10 + LANE * (len(kinds) + 1)
    drawn = [_frame(left, right, bottom, ticks, axis), _workers(spans, x, left, right, area_end)]
    names = [_lane_name(left, area_end + 10, "attempts")]
    marks = [_attempts(lives, area_end + 10)]
    for number, kind in enumerate(kinds, 1):
        y = area_end + 10 + number * LANE
        names.append(_lane_name(left, y, _LANES.get(kind, kind)))
        marks.append(line(left, y + LANE / 2, right, y + LANE / 2, "grid"))
        found = clusters([event for event in events if event.kind == kind], place, _CLOSE[kind])
        marks += [_event(kind, at, y + LANE / 2, together, left, right) for at, together in found]
    for start, end, seconds in breaks:
        title = tag("title", esc(f"pause of {duration(seconds)}, shortened here"))
        box = tag("rect", x=start, y=TOP, width=end - start, height=bottom - TOP, class_="pause")
        middle, high = (start + end) / 2, TOP + AREA / 2
        text = tag(
            "text",
            esc(f"pause {duration(seconds)}"),
            class_="note mid",
            transform=f"translate({middle + 4:.1f} {high + 24:.1f}) rotate(-90)",
        )
        marks.append(tag("g", title, box, text, class_="mark"))
    return size.width, bottom + 46, "".join([*drawn, *names, *marks])


def _frame(left: float, right: float, bottom: float, ticks: Sequence[tuple[float, str]], axis: str) -> str:
    drawn = []
    for at, text in ticks:
        drawn.append(line(at, TOP, at, bottom, "grid") + line(at, bottom, at, bottom + 5, "axis"))
        drawn.append(text_at(at, bottom + 19, text, "tick mid"))
    drawn.append(line(left, bottom, right, bottom, "axis"))
    drawn.append(text_at((left + right) / 2, bottom + 38, axis, "name mid", 60))
    return tag("g", *drawn, aria_hidden="true")


def _workers(spans: Sequence[Span], x: Callable[[float], float], left: float, right: float, bottom: float) -> str:
    most = max((span.size for span in spans), default=0) or 1
    drawn = [text_at(left - 8, TOP - 12, "workers", "name end")]
    step = max(1, math.ceil(most / 4))
    for size in range(0, most + 1, step):
        drawn.append(text_at(left - 8, _height(size, most, bottom) + 4, str(size), "tick end"))
        drawn.append(line(left, _height(size, most, bottom), right, _height(size, most, bottom), "grid"))
    for span in spans:
        start, end, top = x(span.start), x(span.end), _height(span.size, most, bottom)
        if span.kind or end - start < THINNEST:
            continue
        box = tag("rect", x=start, y=top, width=max(0.5, end - start), height=bottom - top, class_="area")
        text = text_at((start + end) / 2, top + 15, str(span.size), "note strong mid") if end - start > 16 else ""
        edge = line(start, top, max(start + 0.5, end), top, "edge")
        drawn.append(tag("g", tag("title", count(span.size, "worker")), box, edge, text, class_="mark g0"))
    for start, end, span in _without_workers(spans, x):
        width, css = max(1.5, end - start), f"without {span.kind}"
        box = tag("rect", x=start, y=TOP, width=width, height=bottom - TOP, class_=css)
        drawn.append(tag("g", tag("title", esc(span.text)), box, class_="mark"))
    return "".join(drawn)


def _without_workers(spans: Sequence[Span], x: Callable[[float], float]) -> list[tuple[float, float, Span]]:
    """(start, end, span) in pixels where no workers trained; close neighbours of one kind are merged."""
    found: list[tuple[float, float, Span]] = []
    for span in sorted((span for span in spans if span.kind), key=lambda span: span.start):
        start, end = x(span.start), x(span.end)
        if found and span.kind == found[-1][2].kind and start - found[-1][0] < APART:
            found[-1] = (found[-1][0], max(end, found[-1][1]), found[-1][2])
        else:
            found.append((start, end, span))
    return found


def _height(size: float, most: int, bottom: float) -> float:
    return bottom - (AREA - 6) * size / most


def _attempts(lives: Sequence[tuple[float, float, Mapping[str, Any]]], y: float) -> str:
    drawn = []
    for start, end, life in lives:
        width = max(2.0, end - start - 1)
        box = tag("rect", x=start, y=y + 5, width=width, height=LANE - 10, rx=3, class_=f"life-bar {_css(life)}")
        full, short = f"{life['number']}  {life['status']}", str(life["number"])
        fitting = full if width > 8 + 7 * len(full) else short if width > 6 + 7 * len(short) else ""
        text = text_at(start + 6, y + LANE / 2 + 4, fitting, "on")
        drawn.append(tag("g", tag("title", esc(attempt_line(life))), box, text, class_="mark"))
    return "".join(drawn)


def _css(life: Mapping[str, Any]) -> str:
    status = str(life["status"])
    return status if status in ("finished", "failed", "died", "stopped") else "running"


def _event(kind: str, at: float, y: float, events: Sequence[Event], left: float, right: float) -> str:
    title = tag("title", esc(_event_lines(events)))
    if kind in ("restart", "resize"):
        numbers = [event.number for event in events]
        text = str(numbers[0]) if len(numbers) == 1 else f"{min(numbers)}-{max(numbers)}"
        if len(numbers) > 1 and max(numbers) - min(numbers) != len(numbers) - 1:
            text = f"{len(numbers)} of"
        width = 9 + 6.5 * len(text)
        x = min(max(at - width / 2, left), right - width)
        box = tag("rect", x=x, y=y - 8, width=width, height=16.0, rx=8, class_=f"pill {kind}")
        return tag("g", title, box, text_at(x + width / 2, y + 4, text, "on mid"), class_="mark")
    if kind == "checkpoint":
        return tag("g", title, line(at, y - 7, at, y + 7, "save"), class_="mark g2")
    if kind == "evaluation":
        return tag("g", title, mark(1, at, y, "dot", 4.0), class_="mark g1")
    return tag("g", title, cross(at, y, "curve"), class_="mark g6")


def _event_lines(events: Sequence[Event]) -> str:
    if len(events) <= 8:
        return "\n".join(event.text for event in events)
    return "\n".join([*(event.text for event in events[:7]), f"… and {len(events) - 7} more"])


def _counted(events: Sequence[Event]) -> str:
    counts = [f"{sum(event.kind == kind for event in events)} {_LANES.get(kind, kind)}" for kind in KINDS]
    return ", ".join(counts) + ". The tables below list all of them"


def _lane_name(left: float, y: float, name: str) -> str:
    return text_at(left - 8, y + LANE / 2 + 4, name, "tick end")
