"""Derives what a run's report shows from its data: curves, workers by time and by step, and events. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from orchestrator.report.format import clock, duration, is_number
from orchestrator.report.series import Point

Summary = Mapping[str, Any]
"""A `run_data.ReportData`, read leniently: a field that is missing is not shown."""

KINDS = ("restart", "resize", "checkpoint", "evaluation", "skipped step")
"""Kinds of events, in the order in which they are shown."""

SHORTEST_S = 1e-6
"""Steps shorter than this have no speed."""

PLANNED = "resize"
"""Cause of a planned end of a worker group."""


@dataclass(frozen=True)
class Event:
    """An event of the run.

    Attributes:
        kind: one of KINDS.
        at: seconds since the epoch; None if not known.
        number: number among restarts and resizes, from 1; 0 for other kinds.
        text: description of the event.
    """

    kind: str
    step: int
    at: float | None
    text: str
    number: int = 0


@dataclass(frozen=True)
class Span:
    """An interval of the run's time or of its steps.

    Attributes:
        size: workers that trained; 0 if none did.
        kind: why none trained: "pause", "startup", "restart" or "resize"; "" if some did.
        text: description of why none trained.
    """

    start: float
    end: float
    size: int
    kind: str = ""
    text: str = ""


class RunFacts:
    """The facts that the report shows of a run."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.columns: Mapping[str, Sequence[Any]] = summary.get("rows") or {}
        self.steps: Sequence[int] = self.columns.get("step") or ()
        self.lives: Sequence[Mapping[str, Any]] = summary.get("lives") or ()
        self.disruptions: Sequence[Mapping[str, Any]] = summary.get("disruptions") or ()
        self.restart_counts: Mapping[str, int] = summary.get("restart_counts") or {}
        self.evaluations: Sequence[Mapping[str, Any]] = [
            each for each in summary.get("evaluations") or () if is_number(each.get("val_loss"))
        ]
        self.began: float = self.lives[0]["started_at"] if self.lives else 0.0
        self.ended: float = max((life["ended_at"] for life in self.lives), default=self.began)

    def curve(self, name: str) -> list[Point]:
        """(step, value) of every step whose value in this column is a finite number."""
        return [
            (step, float(value))
            for step, value in zip(self.steps, self.columns.get(name, ()), strict=False)
            if is_number(value)
        ]

    def speed(self) -> tuple[list[Point], list[float]]:
        """(step, tokens/s) of each step whose tokens are known, and the seconds each took."""
        points, seconds, tokens, step = [], [], 0, 0
        columns = (self.columns.get(name, ()) for name in ("tokens", "step_s"))
        for at, after, step_s in zip(self.steps, *columns, strict=True):
            if at == step + 1 and step_s > SHORTEST_S:
                points.append((at, (after - tokens) / step_s))
                seconds.append(step_s)
            tokens, step = after, at
        return points, seconds

    def at_step(self, step: int) -> float | None:
        """When a step was completed, seconds since the epoch; None if the metrics do not have it."""
        place = bisect_left(self.steps, step)
        is_there = place < len(self.steps) and self.steps[place] == step
        return float(self.columns["at"][place]) if is_there else None

    @cached_property
    def events(self) -> list[Event]:
        """All events, ordered by step."""
        found = [*self._disruption_events(), *self._save_events(), *self._evaluation_events()]
        for step in self.summary.get("skipped_steps") or ():
            found.append(Event("skipped step", step, self.at_step(step), f"step {step:,}: its data was skipped"))
        return sorted(found, key=lambda event: (event.step, event.at or 0.0))

    @cached_property
    def pauses(self) -> list[tuple[float, float]]:
        """(start, end) of the times between attempts."""
        return [
            (before["ended_at"], after["started_at"])
            for before, after in pairwise(self.lives)
            if after["started_at"] > before["ended_at"]
        ]

    def sizes_by_time(self) -> list[Span]:
        """World size over time, with spans of size 0 where no workers trained."""
        holes: list[Span] = []
        for hole in sorted(self._without_workers(), key=lambda span: span.start):
            # Disruptions may overlap: a group may fail before the restart after the previous one is complete.
            start = max(hole.start, holes[-1].end) if holes else hole.start
            holes.append(replace(hole, start=start, end=max(start, hole.end)))
        return list(_cut(self._trained(), holes))

    def sizes_by_step(self) -> list[Span]:
        """World size by step."""
        starts = [(self.steps[place] - 1, self.columns["world_size"][place]) for place in self._changes]
        return _spans(starts, self.steps[-1]) if self.steps else []

    def attempts_by_step(self) -> list[tuple[int, int, Mapping[str, Any]]]:
        """(first step, last step, attempt) of every attempt that added steps to the run."""
        found = []
        for number, life in enumerate(self.lives):
            first = life.get("from_step")
            if first is None:
                continue
            ends = [later["from_step"] for later in self.lives[number + 1 :] if later.get("from_step") is not None]
            last = min([life["step"], *ends])
            if last > first:
                found.append((first, last, life))
        return found

    @cached_property
    def _changes(self) -> list[int]:
        """Places of the first row and of every row whose world size differs from the row before."""
        sizes = self.columns.get("world_size") or ()
        changes = [place for place, (before, size) in enumerate(pairwise(sizes), 1) if size != before]
        return [0, *changes] if sizes else []

    def _disruption_events(self) -> Iterator[Event]:
        for each in self.disruptions:
            kind = "resize" if each["cause"] == PLANNED else "restart"
            yield Event(kind, each["step"], each.get("at"), disruption_line(each), each["number"])

    def _save_events(self) -> Iterator[Event]:
        for save in self.summary.get("saves") or ():
            yield Event("checkpoint", save, self.at_step(save), f"checkpoint of step {save:,}")

    def _evaluation_events(self) -> Iterator[Event]:
        for each in self.evaluations:
            text = f"step {each['step']:,}: held-out loss {each['val_loss']:.4f}"
            yield Event("evaluation", each["step"], each.get("at"), text)

    def _trained(self) -> list[Span]:
        at, step_s, sizes = (self.columns.get(name, ()) for name in ("at", "step_s", "world_size"))
        starts = [(at[place] - step_s[place], sizes[place]) for place in self._changes]
        return _spans(starts, max(self.ended, at[-1])) if at else []

    def _without_workers(self) -> Iterator[Span]:
        for start, end in self.pauses:
            yield Span(start, end, 0, "pause", f"pause of {duration(end - start)}")
        for life in self.lives:
            taken = life.get("first_step_s")
            start, end = life["started_at"], life["ended_at"]
            end = end if taken is None else min(start + taken, end)
            yield Span(start, end, 0, "startup", f"attempt {life['number']} starts: {duration(end - start)}")
        for each in self.disruptions:
            if not is_number(each.get("at")):
                continue
            phases = sum((each.get("phases") or {}).values())
            start = each["at"] - (each.get("detection_s") or 0.0)
            kind = "resize" if each["cause"] == PLANNED else "restart"
            yield Span(start, each["at"] + phases, 0, kind, disruption_line(each))


def disruption_line(each: Mapping[str, Any]) -> str:
    """One line about the end of a worker group."""
    after = each.get("workers_after")
    text = f"{each['number']}: after step {each['step']:,}: {each['cause']}, {each['workers']} workers"
    text += f" → {after}" if after is not None else ", and no group after it"
    if is_number(each.get("lost_s")):
        text += f"; {duration(each['lost_s'])} to the next new step"
    if each.get("replayed_steps"):
        text += f", {each['replayed_steps']} steps repeated"
    return text


def attempt_line(life: Mapping[str, Any]) -> str:
    """One line about an attempt."""
    text = f"attempt {life['number']} on {life.get('host', '')}: {life['status']}, from {clock(life['started_at'])}"
    text += f", {duration(max(0.0, life['ended_at'] - life['started_at']))}"
    first = life.get("from_step")
    return text if first is None else f"{text}, step {first:,} to {life['step']:,}"


def clusters(events: Sequence[Event], x_of: Callable[[Event], float], apart: float) -> list[tuple[float, list[Event]]]:
    """Groups events for drawing: (position, events); those less than `apart` from a group's first event join it."""
    found: list[tuple[float, list[Event]]] = []
    for x, event in sorted(((x_of(event), event) for event in events), key=lambda pair: pair[0]):
        if found and x - found[-1][0] < apart:
            found[-1][1].append(event)
        else:
            found.append((x, [event]))
    return found


def _spans(starts: Sequence[tuple[float, int]], end: float) -> list[Span]:
    ends = [*(start for start, _ in starts[1:]), end]
    return [Span(start, max(start, until), size) for (start, size), until in zip(starts, ends, strict=True)]


def _cut(spans: Sequence[Span], holes: Sequence[Span]) -> Iterator[Span]:
    """Yields the holes, and `spans` without the times of the holes."""
    yield from holes
    for span in spans:
        at = span.start
        for hole in holes:
            if hole.end <= at or hole.start >= span.end:
                continue
            if hole.start > at:
                yield Span(at, hole.start, span.size)
            at = hole.end
        if at < span.end:
            yield Span(at, span.end, span.size)
