"""A run's summary, read for showing: its curves, its life by time and by step, and every event on it. Pure."""

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
"""What `orchestrator.report.run_data.summary_of` makes; all of it is JSON."""

KINDS = ("restart", "resize", "checkpoint", "evaluation", "left out")
"""Of events that happen at one moment, in the order in which they are shown."""

SHORTEST_S = 1e-6
"""Seconds of a step, below which it has no speed."""

PLANNED = "resize"
"""Cause of an end of a worker group that was planned."""


@dataclass(frozen=True)
class Event:
    """Something that happened to the run.

    Attributes:
        kind: one of KINDS.
        at: seconds since the epoch; None where it is not known.
        number: among restarts and resizes, from 1; 0 for any other.
        told: the whole of it, in words.
    """

    kind: str
    step: int
    at: float | None
    told: str
    number: int = 0


@dataclass(frozen=True)
class Span:
    """A part of the run's time or of its steps.

    Attributes:
        size: workers that trained.
        kind: why there were none: "pause", "startup", "restart" or "resize"; "" where there were.
        told: the same in words.
    """

    start: float
    end: float
    size: int
    kind: str = ""
    told: str = ""


class RunFacts:
    """What is shown of a run."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.rows: Sequence[Mapping[str, Any]] = summary.get("rows") or ()
        self.lives: Sequence[Mapping[str, Any]] = summary.get("lives") or ()
        self.disruptions: Sequence[Mapping[str, Any]] = summary.get("disruptions") or ()
        self.evaluations: Sequence[Mapping[str, Any]] = [
            each for each in summary.get("evaluations") or () if is_number(each.get("val_loss"))
        ]
        self.began: float = self.lives[0]["started_at"] if self.lives else 0.0
        self.ended: float = max((life["ended_at"] for life in self.lives), default=self.began)

    def curve(self, name: str) -> list[Point]:
        """(step, value) of a column of the metrics, where it is a finite number."""
        return [(row["step"], float(row[name])) for row in self.rows if is_number(row.get(name))]

    def speed(self) -> tuple[list[Point], list[float]]:
        """(step, tokens/s) of each step whose tokens are known, and the seconds it took."""
        points, seconds, tokens, step = [], [], 0, 0
        for row in self.rows:
            if row["step"] == step + 1 and row["step_s"] > SHORTEST_S:
                points.append((row["step"], (row["tokens"] - tokens) / row["step_s"]))
                seconds.append(row["step_s"])
            tokens, step = row["tokens"], row["step"]
        return points, seconds

    def at_step(self, step: int) -> float | None:
        """When a step was done; None where the metrics do not say."""
        place = bisect_left(self._steps, step)
        return float(self.rows[place]["at"]) if place < len(self.rows) and self._steps[place] == step else None

    @cached_property
    def events(self) -> list[Event]:
        """All events, in the order of steps."""
        found = [*self._ends_of_groups(), *self._saves(), *self._evaluated()]
        for step in self.summary.get("skipped_steps") or ():
            found.append(Event("left out", step, self.at_step(step), f"step {step:,}: its data is left out"))
        return sorted(found, key=lambda event: (event.step, event.at or 0.0))

    @cached_property
    def pauses(self) -> list[tuple[float, float]]:
        """Times between attempts, when nothing ran."""
        return [
            (before["ended_at"], after["started_at"])
            for before, after in pairwise(self.lives)
            if after["started_at"] > before["ended_at"]
        ]

    def sizes_by_time(self) -> list[Span]:
        """World size over time; 0, and why, where no workers trained."""
        holes: list[Span] = []
        for hole in sorted(self._without_workers(), key=lambda span: span.start):
            # A group may fail before the one before it has been got over.
            start = max(hole.start, holes[-1].end) if holes else hole.start
            holes.append(replace(hole, start=start, end=max(start, hole.end)))
        return list(_cut(self._trained(), holes))

    def sizes_by_step(self) -> list[Span]:
        """World size by step: what each step was done with."""
        starts = [(row["step"] - 1, row["world_size"]) for row in _changes(self.rows)]
        return _spans(starts, self.rows[-1]["step"]) if self.rows else []

    def lives_by_step(self) -> list[tuple[int, int, Mapping[str, Any]]]:
        """First and last step that each attempt added to the run, if any, and the attempt."""
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
    def _steps(self) -> list[int]:
        return [row["step"] for row in self.rows]

    def _ends_of_groups(self) -> Iterator[Event]:
        for number, each in enumerate(self.disruptions, 1):
            kind = "resize" if each["cause"] == PLANNED else "restart"
            yield Event(kind, each["step"], each.get("at"), f"{number}: {told_of_group(each)}", number)

    def _saves(self) -> Iterator[Event]:
        for save in self.summary.get("saves") or ():
            yield Event("checkpoint", save["step"], self.at_step(save["step"]), f"checkpoint of step {save['step']:,}")

    def _evaluated(self) -> Iterator[Event]:
        for each in self.evaluations:
            told = f"step {each['step']:,}: held-out loss {each['val_loss']:.4f}"
            yield Event("evaluation", each["step"], each.get("at"), told)

    def _trained(self) -> list[Span]:
        starts = [(row["at"] - row["step_s"], row["world_size"]) for row in _changes(self.rows)]
        return _spans(starts, max(self.ended, self.rows[-1]["at"])) if self.rows else []

    def _without_workers(self) -> Iterator[Span]:
        for start, end in self.pauses:
            yield Span(start, end, 0, "pause", f"pause of {duration(end - start)}")
        for life in self.lives:
            taken = life.get("first_step_s")
            start, end = life["started_at"], life["ended_at"]
            end = end if taken is None else min(start + taken, end)
            yield Span(start, end, 0, "startup", f"attempt {life['number']} starts: {duration(end - start)}")
        for number, each in enumerate(self.disruptions, 1):
            if not is_number(each.get("at")):
                continue
            phases = sum((each.get("phases") or {}).values())
            start = each["at"] - (each.get("detection_s") or 0.0)
            kind = "resize" if each["cause"] == PLANNED else "restart"
            yield Span(start, each["at"] + phases, 0, kind, f"{number}: {told_of_group(each)}")


def told_of_group(each: Mapping[str, Any]) -> str:
    """An end of a worker group, in a line."""
    after = each.get("workers_after")
    told = f"after step {each['step']:,}: {each['cause']}, {each['workers']} workers"
    told += f" → {after}" if after is not None else ", and no group after it"
    if is_number(each.get("lost_s")):
        told += f"; {duration(each['lost_s'])} to the next new step"
    if each.get("replayed_steps"):
        told += f", {each['replayed_steps']} steps done again"
    return told


def told_of_life(life: Mapping[str, Any]) -> str:
    """An attempt, in a line."""
    told = f"attempt {life['number']} on {life.get('host', '')}: {life['status']}, from {clock(life['started_at'])}"
    told += f", {duration(max(0.0, life['ended_at'] - life['started_at']))}"
    first = life.get("from_step")
    return told if first is None else f"{told}, step {first:,} to {life['step']:,}"


def clusters(events: Sequence[Event], x_of: Callable[[Event], float], apart: float) -> list[tuple[float, list[Event]]]:
    """Events with the place to draw them at; those less than `apart` from the first of their neighbours are one."""
    found: list[tuple[float, list[Event]]] = []
    for x, event in sorted(((x_of(event), event) for event in events), key=lambda pair: pair[0]):
        if found and x - found[-1][0] < apart:
            found[-1][1].append(event)
        else:
            found.append((x, [event]))
    return found


def _changes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of which the world size is not that of the row before."""
    return [*rows[:1], *(row for before, row in pairwise(rows) if row["world_size"] != before["world_size"])]


def _spans(starts: Sequence[tuple[float, int]], end: float) -> list[Span]:
    ends = [*(start for start, _ in starts[1:]), end]
    return [Span(start, max(start, until), size) for (start, size), until in zip(starts, ends, strict=True)]


def _cut(spans: Sequence[Span], holes: Sequence[Span]) -> Iterator[Span]:
    """`spans` without the times of `holes`, and the holes themselves."""
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
