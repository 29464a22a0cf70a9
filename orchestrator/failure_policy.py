"""What to do when the worker group fails: start it again or end the run. Pure: failures and times in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass

CRASHES_PER_HOUR = 10
"""Deaths of workers that a run gets over within an hour; more are no accident of the cluster."""

ERRORS_AT_ONE_STEP = 2
"""Failures at one and the same step after which that step is to blame: the cluster does not fail to measure."""

HOUR_S = 3600.0


@dataclass(frozen=True)
class Failure:
    """Something ended the worker group.

    Attributes:
        step: newest step that was done.
        is_death: a worker or its node died; else the training code raised.
        reason: what is known of it, in one line.
    """

    step: int
    is_death: bool
    reason: str


@dataclass(frozen=True)
class Restart:
    """Start the worker group again; `why` tells a person, with the numbers the decision rests on."""

    why: str


@dataclass(frozen=True)
class GiveUp:
    """End the run; `why` tells a person, with the numbers the decision rests on."""

    why: str


class FailurePolicy:
    """Budgets by cause: deaths by the hour, errors of the training code by the step."""

    def __init__(self) -> None:
        self._deaths_at: list[float] = []
        self._step: int | None = None
        self._at_one_step = 0

    def decide(self, failure: Failure, now: float) -> Restart | GiveUp:
        """The answer to a failure that cannot be told from an accident; `now` in seconds of any clock."""
        self._at_one_step = self._at_one_step + 1 if failure.step == self._step else 1
        self._step = failure.step
        if self._at_one_step > ERRORS_AT_ONE_STEP:
            return GiveUp(
                f"it failed {self._at_one_step} times in a row with step {failure.step} as the last one done: "
                f"that is in the run, not in the cluster"
            )
        if not failure.is_death:
            return Restart(f"an error after step {failure.step}: {failure.reason}")
        self._deaths_at = [at for at in self._deaths_at if now - at < HOUR_S] + [now]
        deaths = len(self._deaths_at)
        if deaths > CRASHES_PER_HOUR:
            return GiveUp(f"workers died {deaths} times within an hour, and {CRASHES_PER_HOUR} are let pass")
        return Restart(
            f"a worker died after step {failure.step}, {deaths} of {CRASHES_PER_HOUR} deaths an hour: {failure.reason}"
        )
