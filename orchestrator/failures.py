"""What Ray Train's controller asks: whether a worker group is tried again, and how large; and failures in our words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from data.errors import MantaError
from data.ray_internals import root_cause
from orchestrator.errors import BadLossError, WorkerDiedError
from orchestrator.failure_policy import Cause
from orchestrator.job import PlannedRestart
from orchestrator.monitor import Progress
from orchestrator.process_group import is_torn_connection
from orchestrator.ray_train_internals import timed_out_starting
from orchestrator.worker_pool import Wish, WorkersHung

_NODE_GONE = re.compile(r"node has died|node was terminated|NODE_DIED")


@dataclass(frozen=True)
class Retry:
    """Asked by Ray Train's controller, in its own process, whether a worker group that failed is started again.

    What the project raises itself is final: wrong data or a fenced attempt is the same the second time.
    """

    monitor: Any

    def __call__(self, error: BaseException, node_gone: bool = False) -> bool:
        if root_cause(error, BadLossError) is not None:
            return bool(ray.get(self.monitor.went_astray.remote()))
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
        self._answer: ray.ObjectRef[Wish] | None = None

    def when_idle(self, free: int, total: int, ready: int, kept_free: int) -> tuple[int, float] | None:
        """See `Monitor.workers_to_start`."""
        asked = self._monitor.workers_to_start.remote(free, total, ready, kept_free)
        decision: tuple[int, float] | None = ray.get(asked)
        return decision

    def when_running(self, workers: int, slots: int, on_draining: int, standing_by: int, kept_free: int) -> Wish:
        """What `Monitor.seen_running` has answered to the look before this one; does not wait."""
        wish = Wish()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            wish, self._answer = ray.get(self._answer), None
        if self._answer is None and not wish.hung:  # what is asked now would be answered before the end is known
            self._answer = self._monitor.seen_running.remote(workers, slots, on_draining, standing_by, kept_free)
        return wish

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


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """What ended the worker group, and what is known of it in one line."""
    hung = root_cause(error, WorkersHung)
    if hung is not None:
        return "hang", str(hung)
    raised, death = raised_in(error), death_in(error)
    if raised is not None or death is None:  # what the code raised comes with its traceback, whose end says something
        return "error", one_line(raised or error)[-300:]
    return "node" if _NODE_GONE.search(str(death)) else "crash", describe_death(death)


def raised_in(error: BaseException) -> BaseException | None:
    """What one rank's code raised, among the others' complaints that it is gone; None where all only complain."""
    failures: Iterable[BaseException] = getattr(error, "worker_failures", {}).values()
    own = (each for each in failures if root_cause(each, ray.exceptions.RayActorError) is None)
    return next((each for each in own if not is_torn_connection(each)), None)


def death_in(error: BaseException) -> BaseException | None:
    """The worker's death among what Ray wrapped up, or None where nobody died."""
    death = root_cause(error, ray.exceptions.RayActorError)
    if death is not None:
        return death
    # A rank whose peer dies may say so, in Gloo's words, before Ray has noticed the death.
    torn = root_cause(error, RuntimeError)
    return torn if torn is not None and is_torn_connection(torn) else None


def describe_death(death: BaseException) -> str:
    """Which process died, and of what, out of Ray's paragraph about it."""
    text = one_line(death)
    if is_torn_connection(death):
        return "its connection to another was cut"
    process = re.search(r"pid: (\d+).*? ip: (\S+)", text)
    cause = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    where = f"process {process[1]} on {process[2]}" if process else ""
    what = "its node died" if _NODE_GONE.search(text) else cause[1] if cause else text[:300]
    return f"{where}: {what}" if where else what


def in_our_words(error: BaseException, progress: Progress) -> BaseException:
    """What ended the run: our own error inside Ray's wrappers, that workers keep dying, or the error as it is."""
    why = f" Not tried again: {progress.gave_up}." if progress.gave_up else ""
    ours = root_cause(error, MantaError)
    if isinstance(ours, BadLossError):
        return BadLossError(f"{ours}{why}")
    if ours is not None:
        return ours
    death = death_in(error)
    if death is None:
        death = root_cause(error, WorkersHung)
    if death is None:
        return error
    return WorkerDiedError(
        f"Training ended at step {progress.row.get('step', 0)}: {describe_death(death)}{why} The same command "
        f"continues from the last checkpoint. A worker that keeps dying is often out of memory: lower "
        f"train.micro_batch_size."
    )


def one_line(error: BaseException) -> str:
    """An error's message for the middle of a line."""
    return " ".join(str(error).split()) or type(error).__name__
