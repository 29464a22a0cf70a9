"""What Ray Train's controller asks: whether a worker group is tried again, and how large; and failures in our words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ray

from data.errors import MantaError
from data.ray_internals import root_cause, timed_out_starting
from orchestrator.errors import WorkerDiedError
from orchestrator.monitor import Progress

_TORN_CONNECTION = re.compile(r"gloo|Connection (closed|reset) by peer|NCCL", re.IGNORECASE)


class PlannedRestart(Exception):
    """The worker group has kept its state in memory and ends, to be started again; never seen by the user."""


@dataclass(frozen=True)
class Retry:
    """Asked by Ray Train's controller, in its own process, whether a worker group that failed is started again.

    What the project raises itself is final: wrong data or a fenced attempt is the same the second time.
    """

    monitor: Any

    def __call__(self, error: BaseException) -> bool:
        if root_cause(error, MantaError) is not None:
            return False
        if root_cause(error, PlannedRestart) is not None:
            ray.get(self.monitor.paused.remote())
            return True
        if timed_out_starting(error):
            ray.get(self.monitor.start_timed_out.remote())
            return True
        death = death_in(error)
        # What the code raised comes with its traceback, whose end is what says something.
        reason = one_line(error)[-300:] if death is None else describe_death(death)
        return bool(ray.get(self.monitor.failed.remote(death is not None, reason)))


@dataclass(frozen=True)
class Size:
    """Asked by Ray Train's controller, in its own process, how many workers there are to be."""

    monitor: Any

    def when_idle(self, free: int, total: int) -> int | None:
        """See `Monitor.workers_to_start`."""
        workers: int | None = ray.get(self.monitor.workers_to_start.remote(free, total))
        return workers

    def when_running(self, workers: int, slots: int, on_draining: int) -> None:
        """See `Monitor.room_seen`; does not wait."""
        self.monitor.room_seen.remote(workers, slots, on_draining)


def death_in(error: BaseException) -> BaseException | None:
    """The worker's death among what Ray wrapped up, or None where nobody died."""
    death = root_cause(error, ray.exceptions.RayActorError)
    if death is not None:
        return death
    # A rank whose peer dies may say so, in Gloo's words, before Ray has noticed the death.
    torn = root_cause(error, RuntimeError)
    return torn if _TORN_CONNECTION.search(str(torn)) else None


def describe_death(death: BaseException) -> str:
    """Which process died, and of what, out of Ray's paragraph about it."""
    text = one_line(death)
    process = re.search(r"pid: (\d+).*? ip: (\S+)", text)
    cause = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    node = re.search(r"node has died|node was terminated|NODE_DIED", text)
    where = f"process {process[1]} on {process[2]}" if process else ""
    what = "its node died" if node else cause[1] if cause else text[:300]
    return f"{where}: {what}" if where else what


def in_our_words(error: BaseException, progress: Progress) -> BaseException:
    """What ended the run: our own error inside Ray's wrappers, that workers keep dying, or the error as it is."""
    ours = root_cause(error, MantaError)
    if ours is not None:
        return ours
    death = death_in(error)
    if death is None:
        return error
    why = f" Not tried again: {progress.gave_up}." if progress.gave_up else ""
    return WorkerDiedError(
        f"A training worker died at step {progress.row.get('step', 0)}: {describe_death(death)}{why} The same command "
        f"continues from the last checkpoint. A worker that keeps dying is often out of memory: lower "
        f"train.micro_batch_size."
    )


def one_line(error: BaseException) -> str:
    """An error's message for the middle of a line."""
    return " ".join(str(error).split()) or type(error).__name__
