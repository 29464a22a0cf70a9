"""The monitor: one actor a run through which the driver sees the loop and the loop hears the driver.

It outlives worker groups. Each group keeps its own goodput clock; the monitor adds them up and knows the time between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.failure_policy import Failure, FailurePolicy, Restart


@dataclass
class Progress:
    """The loop as rank 0 last told it.

    Attributes:
        phase: what it is at: "starting", "training", "evaluating", "saving", "restarting" or "done".
        restored_step: step the attempt went on from; None until it knows.
        row: newest metrics row.
        goodput: seconds by cause since the first group's loop began.
        notes: lines for the person watching, oldest first.
        restarts: worker groups started after the first.
        gave_up: why the run is not tried again; "" where it was.
        result: what the loop ended with; None until it has.
    """

    phase: str = "starting"
    restored_step: int | None = None
    world_size: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    restarts: int = 0
    gave_up: str = ""
    result: dict[str, Any] | None = None


class Monitor:
    """Body of the actor. Nothing here waits.

    Args:
        now: monotonic clock, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._progress = Progress()
        self._policy = FailurePolicy()
        self._past: dict[str, float] = {}
        self._told_at = self._failed_at = now()
        self._stop = False

    def begin_group(self, step: int, world_size: int, clock_s: float) -> int:
        """Rank 0, once its state is restored to `step`; its goodput clock is `clock_s` old.

        Returns:
            newest step done by any group before; what lies between is replay.
        """
        progress = self._progress
        done = max(step, progress.row.get("step", step))  # the newest word may be older than the newest snapshot
        if progress.restored_step is None:
            progress.restored_step = step
        else:
            progress.restarts += 1
            self._past = dict(progress.goodput)
            self._add("detection", max(0.0, self._failed_at - self._told_at))
            began_at = self._now() - clock_s
            self._add("restart", max(0.0, began_at - max(self._failed_at, self._told_at)))
            self.note(f"step {step}: going on with {world_size} workers; {done - step} steps are done again")
        progress.phase, progress.world_size = "training", world_size
        return int(done)

    def report(self, **changes: Any) -> bool:
        """Rank 0: fields of Progress that changed. Returns whether the run is to stop."""
        goodput = changes.pop("goodput", None)
        for name, value in changes.items():
            setattr(self._progress, name, value)
        if goodput is not None:
            self._told_at = self._now()
            if self._progress.restarts:  # a loop does not know that it is not the first
                goodput["restart"] = goodput.get("restart", 0.0) + goodput.pop("startup", 0.0)
            causes = self._past.keys() | goodput.keys()
            self._progress.goodput = {
                cause: self._past.get(cause, 0.0) + goodput.get(cause, 0.0) for cause in sorted(causes)
            }
        return self._stop

    def failed(self, is_death: bool, reason: str) -> bool:
        """Controller: the worker group failed. Returns whether it is to be started again."""
        self._failed_at = self._now()
        progress = self._progress
        step = progress.row.get("step", progress.restored_step or 0)
        decision = self._policy.decide(Failure(step, is_death, reason), self._failed_at)
        if isinstance(decision, Restart):
            progress.phase = "restarting"
            self.note(f"starting the workers again: {decision.why}")
            return True
        progress.gave_up = decision.why
        return False

    def note(self, line: str) -> None:
        """Any rank: a line for the person watching."""
        self._progress.notes.append(line)

    def progress(self) -> Progress:
        """Driver: the loop's state."""
        return self._progress

    def request_stop(self) -> None:
        """Driver: save and stop at the next step."""
        self._stop = True

    def _add(self, cause: str, seconds: float) -> None:
        self._past[cause] = self._past.get(cause, 0.0) + seconds
