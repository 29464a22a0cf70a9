"""What an attempt's loop has reported, and what it is asked for: values that driver, monitor and workers exchange."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from orchestrator.policy.save_interval import PRIOR_MTBF_S
from orchestrator.run.state import StepSeconds

DECISIONS = 200
"""Decisions that are remembered: a run of months has no end of them."""

EVALUATIONS = 1000
"""Evaluations on the way that are remembered."""

RECENT_STEPS = 1024
"""Newest steps whose losses are kept for the driver."""


@dataclass
class Progress:
    """The loop as rank 0 last told it.

    Attributes:
        phase: what it is at: "starting", "waiting", "training", "evaluating", "saving", "restarting" or "done".
        restored_step: step the attempt went on from; None until it knows.
        row: newest metrics row.
        step_seconds: what the steps up to that row took, see `run_state.StepSeconds`; None where it is not known.
        device: name of what rank 0 computes on.
        saved: step of the newest checkpoint and when it was saved, seconds since the epoch; None before there is one.
        goodput: seconds by cause since the first group's loop began.
        losses: step and loss of the newest RECENT_STEPS steps, in the order done; a step done again is there again.
        evaluations: those on the way: "step", "at" (seconds since the epoch) and scores by name; where there are more
            than `EVALUATIONS`, every second one is forgotten.
        notes: lines for the person watching, oldest first.
        disruptions: ends of worker groups before the run's, and what each cost.
        decisions: what was decided about workers, why, and at which step; the newest `DECISIONS`.
        gave_up: why the run is not tried again; "" where it was.
        result: what the loop ended with; None until it has.
    """

    phase: str = "starting"
    restored_step: int | None = None
    world_size: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    step_seconds: StepSeconds | None = None
    device: str = ""
    saved: tuple[int, float] | None = None
    goodput: dict[str, float] = field(default_factory=dict)
    losses: list[tuple[int, float | None]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)
    disruptions: list[Disruption] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    gave_up: str = ""
    result: dict[str, Any] | None = None

    @property
    def waits_for_nodes(self) -> bool:
        """Whether there are no workers because there is no room for them, as far as is known."""
        return self.phase == "waiting" or (self.phase == "starting" and not self.decisions)

    @property
    def has_workers(self) -> bool:
        """Whether there is a loop that can be asked for anything."""
        return self.phase not in ("starting", "waiting", "restarting")


class LoopRequests(NamedTuple):
    """What the loop is asked for.

    Attributes:
        stop: save, and do no further step.
        pause: keep the state in memory and end, to be started again in another size.
        saves: times that a checkpoint has been asked for.
        mtbf_s: seconds from one failure to the next, as far as is known.
        background: there is a place to evaluate in that no worker can use.
    """

    stop: bool = False
    pause: bool = False
    saves: int = 0
    mtbf_s: float = PRIOR_MTBF_S
    background: bool = False


@dataclass
class Disruption:
    """From the last word before to the first new step after; `told_at` and `ended_at` by the monitor's own clock.

    Attributes:
        cause: a `failure_policy.Cause`, "bad step", or "resize" where it was planned.
        step: newest step done before.
        workers: workers before.
        told_at: when the group last said something.
        ended_at: when its end was known.
        at: the same, in seconds since the epoch.
        phases: seconds of each phase of the restart in turn: "teardown", "placement", "processes", "process_group",
            "state" and "first_step".
        restored_step: step it went on from.
        workers_after: workers of the next group.
        lost_s: from `told_at` to the first step not done before; None until there is one.
    """

    cause: str
    step: int
    workers: int
    told_at: float
    ended_at: float
    at: float
    phases: dict[str, float] = field(default_factory=dict)
    restored_step: int | None = None
    workers_after: int | None = None
    lost_s: float | None = None

    def reached(self, phase: str, now: float) -> None:
        """A phase of the restart is over; one that comes again, as waiting for room does, goes on where it was."""
        if self.lost_s is None:
            before = sum(seconds for name, seconds in self.phases.items() if name != phase)
            self.phases[phase] = max(0.0, now - self.ended_at - before)

    def begun(self, restored_step: int, workers: int, now: float) -> None:
        """The next group's state is restored."""
        self.restored_step, self.workers_after = restored_step, workers
        self.reached("state", now)

    def stepped(self, step: int, now: float) -> None:
        """The next group has done `step`."""
        if self.lost_s is None and self.restored_step is not None and step > self.step:
            self.reached("first_step", now)
            self.lost_s = now - self.told_at

    def summary(self) -> dict[str, Any]:
        """What of it goes into the run's record."""
        fields = asdict(self)
        told_at, ended_at = fields.pop("told_at"), fields.pop("ended_at")
        # The newest word may be older than the newest snapshot.
        replayed = None if self.restored_step is None else max(0, self.step - self.restored_step)
        return {**fields, "detection_s": max(0.0, ended_at - told_at), "replayed_steps": replayed}
