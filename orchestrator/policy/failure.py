"""Decides whether a failed worker group is restarted or the run ends. Pure: failures and times in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.policy.hang import NODE_ID_SHOWN

CRASHES_PER_HOUR = 10
"""Crashes on nodes that stay alive, and hangs, that a run survives within an hour; more than that is no accident."""

ERRORS_AT_ONE_STEP = 2
"""Crashes and errors in a row at one step that a run survives; after that, the step is to blame, not the cluster."""

NODES_WITHOUT_A_STEP = 10
"""Lost nodes in a row, without a new step in between, that a run survives; more are lost because of the run."""

FAILURES_ALONE = 2
"""Failures in a row of workers of one node, while those of other nodes were well, after which the node is avoided."""

MAX_SKIPPED_STEPS = 1
"""Steps of a run whose data may be skipped because the loss spiked on them."""

HOUR_S = 3600.0

FIRST_START_S, START_S, START_FACTOR = 600.0, 30.0, 4.0
"""A start of the workers hangs if it takes longer than START_S and than START_FACTOR times the longest start before it;
the first start, which has nothing to compare with, if it takes longer than FIRST_START_S."""

OUT_OF_MEMORY = "out of memory"
"""What the reason of a failure says where Ray or the system says that memory was the cause."""

Cause = Literal["node", "crash", "hang", "error"]


@dataclass(frozen=True)
class Failure:
    """An unplanned end of the worker group.

    Attributes:
        step: newest completed step.
        cause: "node": a node was lost, and its workers with it; "crash": a worker died, and its node did not, as far as
            is known; "hang": no step completed any more; "error": the training code raised.
        reason: what is known about the failure, in one line.
        failed_on: nodes whose workers failed by themselves; empty where that is not known.
        nodes: all nodes of the group.
    """

    step: int
    cause: Cause
    reason: str
    failed_on: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Restart:
    """Start the worker group again; `why` states the reason for the log, with the numbers behind the decision."""

    why: str


@dataclass(frozen=True)
class GiveUp:
    """End the run; `why` states the reason for the log, with the numbers behind the decision."""

    why: str


class FailurePolicy:
    """Limits retries by cause: lost nodes in a row, crashes and hangs in an hour, errors and bad data at one step.

    Attributes:
        skipped_steps: steps whose data is skipped because the loss spiked on them.
        avoided: nodes on which workers fail again and again, while those of other nodes are well.
    """

    def __init__(self) -> None:
        self._crashes_at: list[float] = []
        self._step: int | None = None
        self._failures_at_step = 0
        self._newest_step = -1
        self._nodes_lost = 0
        self._blamed: tuple[str, int] = "", 0
        self.skipped_steps: set[int] = set()
        self.avoided: frozenset[str] = frozenset()

    def decide(self, failure: Failure, now: float) -> Restart | GiveUp:
        """Decides about any failure but a loss spike; `now` in seconds of any clock."""
        if failure.cause == "node":
            return self._decide_on_lost_node(failure)
        self._failures_at_step = self._failures_at_step + 1 if failure.step == self._step else 1
        self._step = failure.step
        if self._failures_at_step > ERRORS_AT_ONE_STEP:
            return GiveUp(
                f"it failed {self._failures_at_step} times in a row with step {failure.step} as the last completed "
                f"step: the cause is in the run, not in the cluster"
            )
        blame = self._blame(failure)
        if failure.cause == "error":
            return Restart(f"an error after step {failure.step}: {failure.reason}{blame}")
        self._crashes_at = [at for at in self._crashes_at if now - at < HOUR_S] + [now]
        crashes = len(self._crashes_at)
        if crashes > CRASHES_PER_HOUR:
            return GiveUp(f"workers died or hung {crashes} times within an hour; the limit is {CRASHES_PER_HOUR}")
        what = "the workers hung" if failure.cause == "hang" else "a worker died"
        return Restart(
            f"{what} after step {failure.step} (failure {crashes} of at most {CRASHES_PER_HOUR} within an hour): "
            f"{failure.reason}{blame}"
        )

    def _decide_on_lost_node(self, failure: Failure) -> Restart | GiveUp:
        if failure.step > self._newest_step:
            self._newest_step, self._nodes_lost = failure.step, 0
        self._nodes_lost += 1
        if self._nodes_lost <= NODES_WITHOUT_A_STEP:
            return Restart(f"a node was lost after step {failure.step}: {failure.reason}")
        if OUT_OF_MEMORY in failure.reason:
            memory = "It ran out of memory: lower train.micro_batch_size"
        else:
            memory = "If nodes run out of memory (`OOMKilled` in Kubernetes), lower train.micro_batch_size"
        return GiveUp(
            f"{self._nodes_lost} times in a row a node was lost, and no step after step {self._newest_step} was "
            f"completed: the run ends its nodes. The last time: {failure.reason.rstrip('.')}. {memory}"
        )

    def _blame(self, failure: Failure) -> str:
        """Finds a node whose workers fail again and again while others are well; returns what to add to the reason."""
        if len(failure.failed_on) != 1 or len(failure.nodes) < 2:
            self._blamed = "", 0
            return ""
        [node] = failure.failed_on
        self._blamed = node, 1 + (self._blamed[1] if self._blamed[0] == node else 0)
        if self._blamed[1] < FAILURES_ALONE:
            return ""
        self.avoided |= {node}
        return (
            f". Workers on node {node[:NODE_ID_SHOWN]} failed {self._blamed[1]} times in a row, and those of other "
            f"nodes did not: new workers go elsewhere where there is room"
        )

    def decide_on_loss_spike(self, step: int, reason: str) -> Restart | GiveUp:
        """Decides about a loss spike in `step`; steps skipped earlier in the run count against the limit."""
        skipped = len(self.skipped_steps)
        if skipped >= MAX_SKIPPED_STEPS:
            return GiveUp(f"the run has already skipped the data of {skipped} step; the limit is {MAX_SKIPPED_STEPS}")
        self.skipped_steps.add(step)
        return Restart(f"{reason}; going back to a state before step {step}, whose data is skipped")


def start_timeout_s(longest_s: float | None) -> float:
    """Seconds after which a start of the workers counts as hung.

    Args:
        longest_s: duration of the longest start so far; None before the first.
    """
    return FIRST_START_S if longest_s is None else max(START_S, START_FACTOR * longest_s)
