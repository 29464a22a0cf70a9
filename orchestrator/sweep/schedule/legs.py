"""What a schedule decides: the legs that may run now, the trials that are out, and those that can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.sweep.trial_record import TrialRecord

Trials = Mapping[int, TrialRecord]
"""Records of the trials by number; a trial that has not begun has none."""


@dataclass(frozen=True)
class Leg:
    """A part of a trial, from where it is up to a step, at whose end its state is saved.

    Attributes:
        number: of the trial, from 1.
        until: step at which the leg ends.
        is_early: it may turn out not to be needed; it only takes slots that would be idle.
        donor: number of the trial from whose state at step `donor_step` it continues; None: from its own.
    """

    number: int
    until: int
    donor: int | None = None
    donor_step: int = 0
    is_early: bool = False


@dataclass
class Decisions:
    """What follows from the records.

    Attributes:
        legs: those that may run now or do so, the most important first.
        out: why a trial goes no further, by number.
        finalists: numbers of the points from which the best is chosen, the best first; where each point is one trial,
            they are numbers of trials.
        compared: the highest number of a point that is compared.
        early: why no more points are begun; "" where there is no such reason.
    """

    legs: list[Leg] = field(default_factory=list)
    out: dict[int, str] = field(default_factory=dict)
    finalists: list[int] = field(default_factory=list)
    compared: float = math.inf
    early: str = ""


class Schedule(Protocol):
    """A rule that needs nothing but the records: an interrupted sweep decides as one that was left alone."""

    levels: list[int]
    """Steps at which trials are compared, the last step included."""

    def decide(self, trials: Trials) -> Decisions:
        """What follows from these records."""


def ranked(numbers: list[int], trials: Trials, step: int) -> list[int]:
    """The trials that have a loss at `step`, the best first; equal ones by number."""
    found = [(loss, number) for number in numbers if (loss := loss_at(trials.get(number), step)) is not None]
    return [number for _, number in sorted(found)]


def loss_at(record: TrialRecord | None, step: int) -> float | None:
    """The newest loss that the trial reported at `step`."""
    reports = record.reports if record is not None else []
    return next((report.loss for report in reversed(reports) if report.step == step), None)


def is_lost(record: TrialRecord | None) -> bool:
    """Whether the trial has failed for good."""
    return record is not None and record.status == "failed"
