"""What to do when the worker group fails: start it again or end the run. Pure: failures and times in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CRASHES_PER_HOUR = 10
"""Deaths of workers on nodes that live, and hangs, that a run gets over within an hour; more are no accident."""

ERRORS_AT_ONE_STEP = 2
"""Crashes and errors at one and the same step after which that step is to blame: a cluster does not fail to measure."""

MAX_SKIPPED_STEPS = 1
"""Steps of a run whose data may be left out because the loss went astray on them."""

HOUR_S = 3600.0

HANG_S, HANG_FACTOR, FIRST_STEP_S = 15.0, 20.0, 900.0
"""The loop hangs if it has said nothing for so many seconds and for so many times as long as a step takes; before its
first step, which may compile the model, for FIRST_STEP_S."""

FIRST_START_S, START_S, START_FACTOR = 600.0, 30.0, 4.0
"""A start of the workers hangs if it takes so many times as long as the longest before it, and so many seconds; the
first, of which nothing is known, if it takes FIRST_START_S."""

Cause = Literal["node", "crash", "hang", "error"]


@dataclass(frozen=True)
class Failure:
    """Something ended the worker group.

    Attributes:
        step: newest step that was done.
        cause: "node": a node went, and its workers with it; "crash": a worker died, its node did not, as far as one
            knows; "hang": no step was done any more; "error": the training code raised.
        reason: what is known of it, in one line.
    """

    step: int
    cause: Cause
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
    """Budgets by cause: none for nodes that go, crashes and hangs by the hour, errors and bad data by the step."""

    def __init__(self) -> None:
        self._crashes_at: list[float] = []
        self._step: int | None = None
        self._at_one_step = 0
        self.skipped_steps: set[int] = set()

    def decide(self, failure: Failure, now: float) -> Restart | GiveUp:
        """The answer to a failure that cannot be told from an accident; `now` in seconds of any clock."""
        if failure.cause == "node":
            return Restart(f"a node went after step {failure.step}: {failure.reason}")
        self._at_one_step = self._at_one_step + 1 if failure.step == self._step else 1
        self._step = failure.step
        if self._at_one_step > ERRORS_AT_ONE_STEP:
            return GiveUp(
                f"it failed {self._at_one_step} times in a row with step {failure.step} as the last one done: "
                f"that is in the run, not in the cluster"
            )
        if failure.cause == "error":
            return Restart(f"an error after step {failure.step}: {failure.reason}")
        self._crashes_at = [at for at in self._crashes_at if now - at < HOUR_S] + [now]
        crashes = len(self._crashes_at)
        if crashes > CRASHES_PER_HOUR:
            return GiveUp(f"workers died or hung {crashes} times within an hour, and {CRASHES_PER_HOUR} are let pass")
        what = "no step was done any more" if failure.cause == "hang" else "a worker died"
        return Restart(
            f"{what} after step {failure.step}, {crashes} of {CRASHES_PER_HOUR} such an hour: {failure.reason}"
        )

    def decide_on_loss_spike(self, step: int, reason: str) -> Restart | GiveUp:
        """The answer to a loss that went astray in `step`; the run's earlier bad steps count."""
        if len(self.skipped_steps) >= MAX_SKIPPED_STEPS:
            return GiveUp(
                f"the data of {len(self.skipped_steps)} step has been left out before, and {MAX_SKIPPED_STEPS} may be"
            )
        self.skipped_steps.add(step)
        return Restart(f"{reason}; back to before it, and the data of step {step} is left out")


def is_hung(silence_s: float, step_s: float | None) -> bool:
    """Whether a loop whose steps take `step_s`, None before the first, hangs after a silence."""
    return silence_s > (FIRST_STEP_S if step_s is None else max(HANG_S, HANG_FACTOR * step_s))


def start_patience_s(longest_s: float | None) -> float:
    """Seconds after which a start of the workers hangs, given the longest before it, None for none."""
    return FIRST_START_S if longest_s is None else max(START_S, START_FACTOR * longest_s)
