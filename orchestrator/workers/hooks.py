"""What Ray Train's controller asks, in its own process: whether a worker group is tried again, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from cluster.ray_nodes import root_cause
from data.errors import MantaError
from orchestrator.errors import BadLossError
from orchestrator.run.job import PlannedRestart
from orchestrator.workers.failure_causes import cause_of
from orchestrator.workers.pool import PoolAction
from orchestrator.workers.pooled_group import timed_out_starting


@dataclass(frozen=True)
class Retry:
    """Asked by Ray Train's controller, in its own process, whether a worker group that failed is started again.

    What the project raises itself is final: wrong data or a fenced attempt is the same the second time.
    """

    monitor: Any

    def __call__(self, error: BaseException, node_gone: bool = False) -> bool:
        if root_cause(error, BadLossError) is not None:
            return bool(ray.get(self.monitor.skip_spiked_step.remote()))
        if root_cause(error, MantaError) is not None:
            return False
        if root_cause(error, PlannedRestart) is not None:
            ray.get(self.monitor.paused.remote())
            return True
        if timed_out_starting(error):
            ray.get(self.monitor.start_timed_out.remote())
            return True
        cause, reason = cause_of(error)
        if node_gone and cause in ("crash", "error"):
            cause = "node"
        return bool(ray.get(self.monitor.failed.remote(cause, reason)))


class Size:
    """Asked by Ray Train's controller, in its own process, how many workers there are to be."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._answer: ray.ObjectRef[PoolAction] | None = None

    def when_idle(self, free: int, total: int, ready: int, reserved_slots: int) -> tuple[int, float] | None:
        """See `Monitor.workers_to_start`."""
        asked = self._monitor.workers_to_start.remote(free, total, ready, reserved_slots)
        decision: tuple[int, float] | None = ray.get(asked)
        return decision

    def when_running(
        self, workers: int, slots: int, on_draining: int, warm_spares: int, reserved_slots: int
    ) -> PoolAction:
        """What `Monitor.seen_running` has answered to the look before this one; does not wait."""
        action = PoolAction()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            action, self._answer = ray.get(self._answer), None
        if self._answer is None and not action.hung:  # what is asked now would be answered before the end is known
            self._answer = self._monitor.seen_running.remote(workers, slots, on_draining, warm_spares, reserved_slots)
        return action

    def reached(self, phase: str) -> None:
        """See `Monitor.reached`; does not wait."""
        self._monitor.reached.remote(phase)


class Tokenizes:
    """Asked by Ray Train's controller, in its own process, whether units are left to be tokenized on the way."""

    def __init__(self, feeder: Any, *, is_done: bool) -> None:
        self._feeder, self._is_done = feeder, is_done
        self._answer: ray.ObjectRef[bool] | None = None

    def __call__(self) -> bool:
        """What the feeder has answered to the question before this one; does not wait."""
        if not self._is_done:
            if self._answer is None:
                self._answer = self._feeder.knows_all.remote()
            elif ray.wait([self._answer], timeout=0)[0]:
                self._is_done, self._answer = self._answered(self._answer), None
        return not self._is_done

    @staticmethod
    def _answered(answer: ray.ObjectRef[bool]) -> bool:
        try:
            return ray.get(answer)
        except ray.exceptions.RayError:  # it is made anew, or the run ends
            return False
