"""Hooks that Ray Train's controller calls in its own process: whether a worker group is restarted, and how large it is.

Each is picklable, since the driver makes it, and passes the question on to the monitor or the feeder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.answers import ANSWER_S, is_true
from cluster.ray_nodes import root_cause
from data.errors import MantaError
from orchestrator.errors import BadLossError
from orchestrator.policy.hang import Beat, Hang
from orchestrator.policy.scaling import Observation
from orchestrator.run.job import PlannedRestart
from orchestrator.workers.failure_causes import cause_of
from orchestrator.workers.group_size import PoolAction, StartAction
from orchestrator.workers.pooled_group import Losses, timed_out_starting


@dataclass(frozen=True)
class RetryHook:
    """Decides whether a worker group that failed is started again.

    Errors that the project raises itself are final: wrong data or a fenced attempt is the same the second time.
    """

    monitor: Any

    def __call__(self, error: BaseException, losses: Losses) -> bool:
        if root_cause(error, BadLossError) is not None:
            return bool(ray.get(self.monitor.restart_after_loss_spike.remote()))
        if root_cause(error, MantaError) is not None:
            return False
        if root_cause(error, PlannedRestart) is not None:
            ray.get(self.monitor.report_planned_restart.remote())
            return True
        if timed_out_starting(error):
            ray.get(self.monitor.report_start_timeout.remote())
            return True
        cause, reason = cause_of(error)
        if losses.node_lost and cause in ("crash", "error"):
            cause = "node"
        failure = self.monitor.restart_after_failure.remote(cause, reason, losses.failed_on, losses.nodes)
        return bool(ray.get(failure))


@dataclass(frozen=True)
class BeatHook:
    """Sends the beats of a worker, in whose process it is called, to the monitor."""

    monitor: Any

    def __call__(self, beat: Beat) -> bool:
        return bool(ray.get(self.monitor.beat.remote(beat), timeout=ANSWER_S))


class SizeHook:
    """Decides how many workers there are; a `GroupSize` that the monitor stands behind."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._answer: ray.ObjectRef[PoolAction] | None = None

    def when_idle(self, seen: Observation) -> StartAction | None:
        """The monitor's decision; waits for it."""
        decision: StartAction | None = ray.get(self._monitor.decide_start.remote(seen))
        return decision

    def when_running(self, seen: Observation) -> PoolAction:
        """The monitor's decision on the previous observation; does not wait."""
        action = PoolAction()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            action, self._answer = ray.get(self._answer), None
        # After a hang, another call would be answered before the monitor knows that the group has ended.
        if self._answer is None and action.hung is None:
            self._answer = self._monitor.decide_running.remote(seen)
        return action

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        """The monitor's decision; waits for it."""
        hang: Hang | None = ray.get(self._monitor.decide_starting.remote(workers), timeout=ANSWER_S)
        return hang

    def report_start_phase(self, phase: str) -> None:
        """Passes the report on to the monitor; does not wait."""
        self._monitor.report_start_phase.remote(phase)


class TokenizingHook:
    """Decides whether a CPU must stay free for tokenizing: as long as units are left to tokenize.

    Args:
        is_done: nothing is left to tokenize.
    """

    def __init__(self, feeder: Any, *, is_done: bool) -> None:
        self._feeder, self._is_done = feeder, is_done
        self._answer: ray.ObjectRef[bool] | None = None

    def __call__(self) -> bool:
        """The feeder's answer to the previous call; does not wait."""
        if not self._is_done:
            if self._answer is None:
                self._answer = self._feeder.knows_all.remote()
            elif ray.wait([self._answer], timeout=0)[0]:
                self._is_done, self._answer = is_true(self._answer), None
        return not self._is_done
