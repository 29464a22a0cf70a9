"""The monitor: one actor a run through which the driver sees the loop and the loop hears the driver.

It outlives worker groups. Each group keeps its own goodput clock; the monitor adds them up and knows the time between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.failure_policy import Failure, FailurePolicy, Restart
from orchestrator.scaling_policy import SaveThenResize, ScalingPolicy, Situation, Start

SETTLING_S = 2.0
"""Seconds after a worker group's end within which the cluster may not have its resources back yet."""


@dataclass
class Progress:
    """The loop as rank 0 last told it.

    Attributes:
        phase: what it is at: "starting", "waiting", "training", "evaluating", "saving", "restarting" or "done".
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


class Wishes(NamedTuple):
    """What the loop is asked for.

    Attributes:
        stop: save, and do no further step.
        pause: keep the state in memory and end, to be started again in another size.
    """

    stop: bool = False
    pause: bool = False


class Monitor:
    """Body of the actor. Nothing here waits.

    Args:
        scaling: decides on the number of workers.
        steps: length of the run.
        now: monotonic clock, seconds.
    """

    def __init__(self, scaling: ScalingPolicy, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._scaling, self._steps = now, scaling, steps
        self._progress = Progress()
        self._policy = FailurePolicy()
        self._past: dict[str, float] = {}
        self._told_at = self._failed_at = self._started_at = now()
        self._wishes = Wishes()
        self._waiting_for = ""
        self._holding = False

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
            self._scaling.restart_s = self._now() - self._started_at  # without the wait for nodes, if there was one
            self._add("detection", max(0.0, self._failed_at - self._told_at))
            began_at = self._now() - clock_s
            self._add("restart", max(0.0, began_at - max(self._failed_at, self._told_at)))
            self.note(f"step {step}: going on with {world_size} workers; {done - step} steps are done again")
        progress.phase, progress.world_size = "training", world_size
        self._wishes = self._wishes._replace(pause=False)
        return int(done)

    def report(self, **changes: Any) -> Wishes:
        """Rank 0: fields of Progress that changed."""
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
        return self._wishes

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

    def paused(self) -> None:
        """Controller: the worker group has kept its state and ended as it was asked to."""
        self._failed_at = self._now()
        self._progress.phase = "restarting"

    def start_timed_out(self) -> None:
        """Controller: the places counted on were not to be had; somebody else has them."""
        self._holding = False

    def workers_to_start(self, free: int, total: int) -> int | None:
        """Controller: no worker runs, and `free` of `total` places for them are free. None: none for now."""
        now = self._now()
        # Ray Train gives a group's places back when it starts the next: until then, those not free are taken for ours.
        if not self._holding and free < total and now - self._failed_at < SETTLING_S:
            return None
        decision = self._scaling.when_idle(Situation(now, 0, total if self._holding else free))
        if isinstance(decision, Start):
            self._waiting_for, self._holding, self._started_at = "", True, now
            self.note(f"starting {decision.workers} workers: {decision.why}")
            return decision.workers
        if decision.why != self._waiting_for:
            self._waiting_for = decision.why
            self.note(f"waiting: {decision.why}")
        self._progress.phase = "waiting"
        return None

    def room_seen(self, workers: int, slots: int, on_draining: int) -> None:
        """Controller: `workers` run, `on_draining` of them on nodes about to go; `slots` places are on the others."""
        row = self._progress.row
        if self._wishes.pause or self._progress.phase != "training" or row.get("world_size") != workers:
            return
        left = self._steps - row["step"]
        decision = self._scaling.when_running(Situation(self._now(), workers, slots, on_draining, row["step_s"], left))
        if isinstance(decision, SaveThenResize):
            self._wishes = self._wishes._replace(pause=True)
            self.note(f"from {workers} workers to {decision.workers}: {decision.why}")

    def note(self, line: str) -> None:
        """Any rank: a line for the person watching."""
        self._progress.notes.append(line)

    def progress(self) -> Progress:
        """Driver: the loop's state."""
        return self._progress

    def request_stop(self) -> None:
        """Driver: save and stop at the next step."""
        self._wishes = self._wishes._replace(stop=True)

    def _add(self, cause: str, seconds: float) -> None:
        self._past[cause] = self._past.get(cause, 0.0) + seconds
