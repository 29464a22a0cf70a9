"""The Pareto fronts of a sweep: points that no other beats in both loss and cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.report.format import duration, label
from orchestrator.report.svg import Scale, axes, mark, polyline, svg, tag
from orchestrator.sweep.report.facts import LOG_FROM, Facts, Trial
from orchestrator.sweep.report.plots import LEFT, SMALL_BOTTOM, SMALL_HEIGHT, SMALL_RIGHT, SMALL_WIDTH, TOP, trial_mark


@dataclass(frozen=True)
class Cost:
    """What a trial cost. `of` gives None, or 0, where that is not known; `text` formats it."""

    name: str
    unit: str
    of: Callable[[Trial], float | None]
    text: Callable[[float], str]


COSTS = (
    Cost("worker time", "worker time, seconds", lambda trial: trial.worker_s, duration),
    Cost("parameters", "parameters of the model", lambda trial: trial.parameters, label),
)


@dataclass(frozen=True)
class Front:
    """The points that are compared, by cost, as `Facts.points`; `best` are those of them that no other beats in both.

    One point beats another if its loss and its cost are not higher, and one of them is lower.
    """

    cost: Cost
    compared: tuple[Trial, ...]
    best: tuple[Trial, ...]

    @property
    def text(self) -> str:
        """The best points in one line, the cheapest first."""
        return ", ".join(
            f"{trial.id} {trial.loss:.4f} ({self.cost.text(self.cost.of(trial) or 0)})" for trial in self.best
        )


def fronts(facts: Facts) -> list[Front]:
    """The front of each cost in which the points differ.

    Compared are points whose last loss is of as late a step as any: the loss of one that was stopped before is of
    another step.
    """
    with_loss = [point for point in facts.points if point.loss is not None and point.status != "failed"]
    last = max((point.reported for point in with_loss), default=0)
    finalists = [point for point in with_loss if point.reported == last]
    found = []
    for cost in COSTS:
        known = [(float(at), trial.loss or 0.0, trial.id, trial) for trial in finalists if (at := cost.of(trial))]
        if len({at for at, *_ in known}) < 2:
            continue
        known.sort(key=lambda each: each[:3])
        best: list[tuple[float, float, Trial]] = []
        for at, loss, _, trial in known:
            if not best or loss < best[-1][1] or (at, loss) == best[-1][:2]:
                best.append((at, loss, trial))
        found.append(Front(cost, tuple(each[-1] for each in known), tuple(each[-1] for each in best)))
    return found


def front_chart(facts: Facts, front: Front, metric: str) -> str:
    """Loss against cost, with a line through the trials that no other beats."""
    costs = [front.cost.of(trial) or 0.0 for trial in front.compared]
    is_log = max(costs) / min(costs) >= LOG_FROM

    def position(trial: Trial) -> float:
        cost = front.cost.of(trial) or 0.0
        return math.log10(cost) if is_log else cost

    x = Scale.over(map(position, front.compared), LEFT, SMALL_RIGHT, is_log)
    y = Scale.over([trial.loss or 0.0 for trial in front.compared], SMALL_BOTTOM, TOP)
    place = {trial.id: (x(position(trial)), y(trial.loss or 0.0)) for trial in front.compared}
    best = {trial.id for trial in front.best}
    drawn = [polyline([place[trial.id] for trial in front.best], "middle", "4 4")]
    for trial in front.compared:
        at, loss = place[trial.id]
        ring = tag("circle", cx=at, cy=loss, r=9.0, class_="ring") if trial.id in best else ""
        drawn.append(trial_mark(facts, trial, mark(facts.group(trial), at, loss, "dot"), ring))
    axis = f"{front.cost.unit}{', logarithmic' if is_log else ''}"
    name = f"front-{front.cost.name.replace(' ', '-')}"
    text = f"Of {len(front.compared)} points, no other beats these in both: {front.text}."
    drawn.insert(0, axes(x, y, axis, metric))
    return svg(name, f"Loss against {front.cost.name}", text, SMALL_WIDTH, SMALL_HEIGHT, *drawn)
