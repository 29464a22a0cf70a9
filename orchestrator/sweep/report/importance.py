"""The importance of a sweep's fields: how much of the order of its points each field explains by itself.

A forest or a functional ANOVA fitted to sixteen trials depends on its own seed as much as on the sweep. The method here
has few parameters and states its certainty: for each field a linear model of the points' ranks by loss, its adjusted R
squared with an interval from resampled points, and a permutation test. Trials of one point are no independent
observations of its fields, so they count as one, by their mean loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.sweep.report.facts import Facts, Field, Trial

Array = NDArray[np.float64]

MIN_POINTS = 6
"""Minimum number of points for a statement."""

PERMUTATIONS = 2000
"""Shuffles of the permutation test."""

RESAMPLES = 1000
"""Resamples of the points, from which the interval of a share follows."""

CONFIDENCE, CHANCE = 0.95, 0.05
"""Confidence of the intervals; probability at most that, where no field matters, one is said to."""

METHOD = (
    "Every point whose trials finished or were stopped is ranked by its loss, the mean over its trials, at the last "
    "step that all of them reached. For each field by itself, the share of the variance of these ranks that it "
    "explains is the adjusted R² of a linear "
    "model: the groups' means for a choice; a line, and with four or more values a parabola, for a number (in its "
    "logarithm where it was searched so). The range after it is where the share lies in 95 % of the samples of as many "
    f"points, drawn from these with replacement ({RESAMPLES:,} samples). p is how often shuffled losses give as large "
    f"a share ({PERMUTATIONS:,} shuffles). There are not enough points to tell where the range includes 0, or where p "
    "times the number of fields is above 0.05."
)

LIMITS = (
    "Read it as a hint. One field at a time says nothing of fields that matter only together: a learning rate that "
    "suits one optimizer and not another looks unimportant here. Stopped points are compared early, which favours what "
    "learns fast at first. A searcher that goes where losses are low leaves less variance to explain. With few points "
    "only strong effects stand out."
)


@dataclass(frozen=True)
class Effect:
    """The importance of one field.

    Attributes:
        points: number of points that use the field.
        share: share of the variance of these points' ranks, 0 to 1; None where it cannot be computed.
        low, high: interval of the share, 0 to 1.
        p: probability of a share as large by chance.
        is_certain: whether the points are enough to tell that the field matters at all.
        note: why there is no share.
    """

    field: Field
    points: int
    share: float | None = None
    low: float = 0.0
    high: float = 1.0
    p: float = 1.0
    is_certain: bool = False
    note: str = ""

    @property
    def text(self) -> str:
        """The share as it is shown, with its interval."""
        if self.share is None:
            return self.note
        interval = f"{self.low:.0%} to {self.high:.0%}"
        return f"{self.share:.0%} ({interval})" if self.is_certain else f"not enough points to tell ({interval})"


@dataclass(frozen=True)
class Importance:
    """`effects` by share, the largest first; `step` is where the points were compared, None if none could be."""

    step: int | None
    points: int
    failed: int
    effects: tuple[Effect, ...]

    @property
    def text(self) -> str:
        """What the points tell of all fields, in one line; "" where there is nothing to compare."""
        if self.step is None or self.points < MIN_POINTS:
            return ""
        certain = [f"{effect.field.short} {effect.text}" for effect in self.effects if effect.is_certain]
        others = [effect.field.short for effect in self.effects if effect.share is not None and not effect.is_certain]
        unknown = [f"not enough points to tell of {', '.join(others)}"] if others else []
        return "; ".join([*certain, *unknown])


def importance(facts: Facts, seed: int = 0) -> Importance:
    """The importance of each field for the points' order at the last step that all finished and stopped ones reached.

    If all of them reached rungs of the scheduler, it is the last such rung.
    """
    points = [point for point in facts.points if point.status in ("finished", "stopped") and point.curve]
    failed = sum(point.status == "failed" for point in facts.points)
    if not points:
        return Importance(None, 0, failed, ())
    reached = min(point.reached for point in points)
    step = max((rung for rung in facts.rungs if rung <= reached), default=reached)
    compared = [(point, loss) for point in points if (loss := point.loss_at(step)) is not None]
    effects = [_effect(field, compared, len(facts.fields), seed) for field in facts.fields]
    effects.sort(key=lambda effect: -1.0 if effect.share is None else effect.share, reverse=True)
    return Importance(step, len(compared), failed, tuple(effects))


def _effect(field: Field, compared: Sequence[tuple[Trial, float]], fields: int, seed: int) -> Effect:
    having = [(trial, loss) for trial, loss in compared if field.of(trial) is not None]
    if len(having) < MIN_POINTS:
        return Effect(field, len(having), note=f"too few points use it; {MIN_POINTS} are needed")
    design = _design(field, [trial for trial, _ in having])
    parameters = design.shape[1] - 1
    if parameters == 0:
        return Effect(field, len(having), note="all of them have the same value")
    if len(having) - parameters - 1 < 3:
        return Effect(field, len(having), note="it has almost as many values as there are points")
    ranks = _ranks(np.array([loss for _, loss in having]))
    if not np.ptp(ranks):
        return Effect(field, len(having), note="all losses are the same")
    share, p = _explained(design, ranks, seed)
    low, high = _interval(design, ranks, seed)
    return Effect(field, len(having), share, max(0.0, low), max(0.0, high), p, low > 0 and p * fields <= CHANCE)


def _design(field: Field, trials: Sequence[Trial]) -> Array:
    """Columns of the linear model, which contain the constant. (trials, parameters + 1) float64.

    For a number its powers from 0, for a choice an indicator of each of its values.
    """
    numbers = [field.number(trial) for trial in trials]
    if field.is_numeric and None not in numbers:
        x = np.array(numbers, dtype=float)
        x = (x - x.mean()) / (np.ptp(x) or 1.0)
        distinct = len(np.unique(x))
        return np.vander(x, 3 if distinct > 3 else min(2, distinct), increasing=True)
    values: list[Any] = []
    for trial in trials:  # they need not be hashable
        if field.of(trial) not in values:
            values.append(field.of(trial))
    return np.array([[float(field.of(trial) == value) for value in values] for trial in trials])


def _ranks(losses: Array) -> Array:
    """Ranks from 1; equal losses share their average rank."""
    _, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=float)


def _explained(design: Array, ranks: Array, seed: int) -> tuple[float, float]:
    """Adjusted R squared, at least 0, and the share of shuffles that reach it."""
    basis, _ = np.linalg.qr(design[:, 1:] - design[:, 1:].mean(axis=0))
    y = ranks - ranks.mean()
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    total = float(y @ y)
    r2 = float(np.sum((basis.T @ y) ** 2)) / total
    by_chance = np.sum((shuffled @ basis) ** 2, axis=1) / total
    p = (1 + int(np.sum(by_chance >= r2 - 1e-12))) / (1 + PERMUTATIONS)
    return max(0.0, float(_adjusted(np.array(r2), design))), p


def _interval(design: Array, ranks: Array, seed: int) -> tuple[float, float]:
    """The interval of the adjusted R squared, which may be below 0, by bootstrap: percentiles over resampled trials.

    In simulations of 8 to 200 trials it contains the truth about as often as it should; intervals that are corrected
    for bias, or mirrored, do so far less often where a field explains little.
    """
    trials, columns = design.shape
    y = ranks - ranks.mean()
    rng = np.random.default_rng(seed)
    times = rng.multinomial(trials, np.full(trials, 1 / trials), size=RESAMPLES).astype(float)
    sums, mean = times @ (design * y[:, None]), times @ y / trials
    if np.isin(design, (0.0, 1.0)).all():  # indicators, of which there may be many: the groups' means
        explained = np.sum(sums**2 / np.maximum(times @ design, 1.0), axis=1)
    else:
        products = (design[:, :, None] * design[:, None, :]).reshape(trials, -1)
        squares = (times @ products).reshape(RESAMPLES, columns, columns)
        explained = np.einsum("ri,rij,rj->r", sums, np.linalg.pinv(squares, hermitian=True), sums)
    total = times @ y**2 - trials * mean**2
    varied = total > 1e-9  # not the same trial again and again
    r2 = (explained - trials * mean**2)[varied] / total[varied]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_adjusted(r2, design), [tail, 1 - tail])
    return float(low), float(high)


def _adjusted(r2: Array, design: Array) -> Array:
    """R squared, adjusted for the model's parameters."""
    trials, columns = design.shape
    return np.asarray(1 - (1 - r2) * (trials - 1) / (trials - columns))
