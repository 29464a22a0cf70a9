"""Decides whether a failed worker group is restarted or the run ends. Pure: failures and times in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CRASHES_PER_HOUR = 10
"""Crashes on nodes that stay alive, and hangs, that a run survives within an hour; more than that is no accident."""

ERRORS_AT_ONE_STEP = 2
"""Crashes and errors in a row at one step that a run survives; after that, the step is to blame, not the cluster."""

MAX_SKIPPED_STEPS = 1
"""Steps of a run whose data may be skipped because the loss spiked on them."""

HOUR_S = 3600.0

HANG_S, HANG_FACTOR, FIRST_STEP_S = 15.0, 20.0, 900.0
"""The loop hangs if its last report is older than HANG_S and older than HANG_FACTOR steps; before its first step, which
may compile the model, if it is older than FIRST_STEP_S."""

FIRST_START_S, START_S, START_FACTOR = 600.0, 30.0, 4.0
"""A start of the workers hangs if it takes longer than START_S and than START_FACTOR times the longest start before it;
the first start, which has nothing to compare with, if it takes longer than FIRST_START_S."""

Cause = Literal["node", "crash", "hang", "error"]


@dataclass(frozen=True)
class Failure:
    """An unplanned end of the worker group.

    Attributes:
        step: newest completed step.
        cause: "node": a node was lost, and its workers with it; "crash": a worker died, and its node did not, as far as
            is known; "hang": no step completed any more; "error": the training code raised.
        reason: what is known about the failure, in one line.
    """

    step: int
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Restart:
    """Start the worker group again; `why` states the reason for the log, with the numbers behind the decision."""

    why: str


@dataclass(frozen=True)
class GiveUp:
    """End the run; `why` states the reason for the log, with the numbers behind the decision."""

    why: str


class FailurePolicy:
    """Limits retries by cause: not for lost nodes, per hour for crashes and hangs, per step for errors and bad data.

    Attributes:
        skipped_steps: steps whose data is skipped because the loss spiked on them.
    """

    def __init__(self) -> None:
        self._crashes_at: list[float] = []
        self._step: int | None = None
        self._failures_at_step = 0
        self.skipped_steps: set[int] = set()

    def decide(self, failure: Failure, now: float) -> Restart | GiveUp:
        """Decides about any failure but a loss spike; `now` in seconds of any clock."""
        if failure.cause == "node":
            return Restart(f"a node was lost after step {failure.step}: {failure.reason}")
        self._failures_at_step = self._failures_at_step + 1 if failure.step == self._step else 1
        self._step = failure.step
        if self._failures_at_step > ERRORS_AT_ONE_STEP:
            return GiveUp(
                f"it failed {self._failures_at_step} times in a row with step {failure.step} as the last completed "
                f"step: the cause is in the run, not in the cluster"
            )
        if failure.cause == "error":
            return Restart(f"an error after step {failure.step}: {failure.reason}")
        self._crashes_at = [at for at in self._crashes_at if now - at < HOUR_S] + [now]
        crashes = len(self._crashes_at)
        if crashes > CRASHES_PER_HOUR:
            return GiveUp(f"workers died or hung {crashes} times within an hour; the limit is {CRASHES_PER_HOUR}")
        what = "the workers hung" if failure.cause == "hang" else "a worker died"
        return Restart(
            f"{what} after step {failure.step} (failure {crashes} of at most {CRASHES_PER_HOUR} within an hour): "
            f"{failure.reason}"
        )

    def decide_on_loss_spike(self, step: int, reason: str) -> Restart | GiveUp:
        """Decides about a loss spike in `step`; steps skipped earlier in the run count against the limit."""
        skipped = len(self.skipped_steps)
        if skipped >= MAX_SKIPPED_STEPS:
            return GiveUp(f"the run has already skipped the data of {skipped} step; the limit is {MAX_SKIPPED_STEPS}")
        self.skipped_steps.add(step)
        return Restart(f"{reason}; going back to a state before step {step}, whose data is skipped")


def is_hung(silence_s: float, step_s: float | None) -> bool:
    """Whether a loop whose last report is `silence_s` old hangs.

    Args:
        step_s: seconds that a step takes; None before the first step.
    """
    return silence_s > (FIRST_STEP_S if step_s is None else max(HANG_S, HANG_FACTOR * step_s))


def start_timeout_s(longest_s: float | None) -> float:
    """Seconds after which a start of the workers counts as hung.

    Args:
        longest_s: duration of the longest start so far; None before the first.
    """
    return FIRST_START_S if longest_s is None else max(START_S, START_FACTOR * longest_s)
