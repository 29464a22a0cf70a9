"""The importance of a sweep's fields: how much of the order of its trials each field explains by itself.

A forest or a functional ANOVA fitted to sixteen trials depends on its own seed as much as on the sweep. The method here
has few parameters and states its certainty: for each field a linear model of the trials' ranks by loss, its adjusted R
squared, and a permutation test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.sweep.report.facts import Facts, Field, Trial

Array = NDArray[np.float64]

MIN_TRIALS = 6
"""Minimum number of trials for a statement."""

PERMUTATIONS = 2000
"""Shuffles of the permutation test."""

METHOD = (
    "Every trial that finished or was stopped is ranked by its loss at the last step that all of them reached. For "
    "each field by itself, the share of the variance of these ranks that it explains is the adjusted R² of a linear "
    "model: the groups' means for a choice; a line, and with four or more values a parabola, for a number (in its "
    "logarithm where it was searched so). p is how often shuffled losses give as large a share "
    f"({PERMUTATIONS:,} shuffles)."
)

LIMITS = (
    "Read it as a hint. One field at a time says nothing of fields that matter only together: a learning rate that "
    "suits one optimizer and not another looks unimportant here. Stopped trials are compared early, which favours what "
    "learns fast at first. A searcher that goes where losses are low leaves less variance to explain. With few trials "
    "only strong effects stand out, and of ten fields without any, one has p < 0.1 by chance."
)


@dataclass(frozen=True)
class Effect:
    """The importance of one field.

    Attributes:
        trials: number of trials that use the field.
        share: share of the variance of these trials' ranks, 0 to 1; None where it cannot be computed.
        p: probability of a share as large by chance.
        note: why there is no share.
    """

    field: Field
    trials: int
    share: float | None
    p: float | None
    note: str = ""


@dataclass(frozen=True)
class Importance:
    """`effects` by share, the largest first; `step` is where the trials were compared, None if none could be."""

    step: int | None
    trials: int
    failed: int
    effects: tuple[Effect, ...]


def importance(facts: Facts, seed: int = 0) -> Importance:
    """The importance of each field for the trials' order at the last step that all finished and stopped trials reached.

    If all of them reached rungs of the scheduler, it is the last such rung.
    """
    trials = [trial for trial in facts.trials if trial.status in ("finished", "stopped") and trial.curve]
    failed = sum(trial.status == "failed" for trial in facts.trials)
    if not trials:
        return Importance(None, 0, failed, ())
    reached = min(trial.reached for trial in trials)
    step = max((rung for rung in facts.rungs if rung <= reached), default=reached)
    compared = [(trial, loss) for trial in trials if (loss := trial.loss_at(step)) is not None]
    effects = [_effect(field, compared, seed) for field in facts.fields]
    effects.sort(key=lambda effect: -1.0 if effect.share is None else effect.share, reverse=True)
    return Importance(step, len(compared), failed, tuple(effects))


def _effect(field: Field, compared: Sequence[tuple[Trial, float]], seed: int) -> Effect:
    having = [(trial, loss) for trial, loss in compared if field.of(trial) is not None]
    if len(having) < MIN_TRIALS:
        return Effect(field, len(having), None, None, f"too few trials use it; {MIN_TRIALS} are needed")
    design = _design(field, [trial for trial, _ in having])
    parameters = design.shape[1]
    if parameters == 0:
        return Effect(field, len(having), None, None, "all of them have the same value")
    if len(having) - parameters - 1 < 3:
        return Effect(field, len(having), None, None, "it has almost as many values as there are trials")
    ranks = _ranks(np.array([loss for _, loss in having]))
    if not np.ptp(ranks):
        return Effect(field, len(having), None, None, "all losses are the same")
    share, p = _explained(design, ranks, seed)
    return Effect(field, len(having), share, p)


def _design(field: Field, trials: Sequence[Trial]) -> Array:
    """Columns of the linear model without the constant, centred. (trials, parameters) float64."""
    numbers = [field.number(trial) for trial in trials]
    if field.is_numeric and None not in numbers:
        x = np.array(numbers, dtype=float)
        spread = np.ptp(x)
        if not spread:
            return np.empty((len(x), 0))
        x = (x - x.mean()) / spread
        columns = [x, x**2] if len(np.unique(x)) > 3 else [x]
    else:
        of_group: list[Any] = []
        for trial in trials:
            if field.of(trial) not in of_group:
                of_group.append(field.of(trial))
        columns = [np.array([float(field.of(trial) == value) for trial in trials]) for value in of_group[1:]]
    if not columns:
        return np.empty((len(trials), 0))
    matrix = np.stack(columns, axis=1)
    return np.asarray(matrix - matrix.mean(axis=0))


def _ranks(losses: Array) -> Array:
    """Ranks from 1; equal losses share their average rank."""
    _, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=float)


def _explained(design: Array, ranks: Array, seed: int) -> tuple[float, float]:
    """Adjusted R squared, at least 0, and the share of shuffles that reach it."""
    basis, _ = np.linalg.qr(design)
    y = ranks - ranks.mean()
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    total = float(y @ y)
    r2 = float(np.sum((basis.T @ y) ** 2)) / total
    by_chance = np.sum((shuffled @ basis) ** 2, axis=1) / total
    p = (1 + int(np.sum(by_chance >= r2 - 1e-12))) / (1 + PERMUTATIONS)
    freedom = len(y) - design.shape[1] - 1
    return max(0.0, 1 - (1 - r2) * (len(y) - 1) / freedom), p
