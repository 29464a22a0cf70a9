"""Values that driver, monitor and workers exchange: the loop's reported progress, and requests to the loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from orchestrator.policy.save_interval import PRIOR_MTBF_S
from orchestrator.run.record import DECISIONS, DISRUPTIONS
from orchestrator.run.state import StepSeconds

LOG_LINES = 1000
"""Most lines that are kept for the driver's console, which takes them every second."""

RECENT_STEPS = 1024
"""Number of newest steps whose losses are kept for the driver."""


PHASES = (
    "starting",
    "waiting",
    "training",
    "waiting for data",
    "evaluating",
    "saving",
    "restarting",
    "done",
)
"""Phases of the loop; "waiting" is for nodes."""


@dataclass
class Progress:
    """Progress of an attempt's loop, as rank 0 last reported it.

    Attributes:
        phase: what the loop is doing, one of PHASES.
        restored_step: step of the state that the attempt continued from; None until the state is restored.
        world_size: workers of the current or last group.
        row: newest metrics row.
        step_seconds: time that the steps up to that row took; None if not known.
        device: name of rank 0's device.
        saved: step of the newest checkpoint and when it was saved, seconds since the epoch; None before the first.
        goodput: seconds by cause since the first group's loop started.
        losses: step and loss of the newest RECENT_STEPS steps, in the order computed; a repeated step is listed again.
        evaluations: evaluations during training: "step", "at" (seconds since the epoch) and scores by name. Beyond
            `record.EVALUATIONS`, every second one is dropped.
        log_lines: lines for the driver's console, oldest first; the newest `LOG_LINES`.
        logged: number of all lines so far.
        disruptions: ends of worker groups before the end of the run, and what each cost; the newest `DISRUPTIONS`.
        restart_counts: number of all of them by cause.
        decisions: decisions about workers, with reason and step; the newest `DECISIONS`.
        outages: of stores: what needed the store ("doing"), "since" and "until" (seconds since the epoch; None: it goes
            on), and the newest "problem".
        gave_up: why the run is not restarted; "" if it is.
        result: the loop's result; None until it has ended.
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
    logged: int = 0
    disruptions: list[Disruption] = field(default_factory=list)
    restart_counts: dict[str, int] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    outages: list[dict[str, Any]] = field(default_factory=list)
    gave_up: str = ""
    result: dict[str, Any] | None = None

    def log(self, line: str) -> None:
        """Adds a line for the driver's console."""
        self.log_lines.append(line)
        self.logged += 1
        del self.log_lines[:-LOG_LINES]

    def lines_after(self, logged: int) -> list[str]:
        """The lines after the first `logged` ones, as far as they are kept."""
        return self.log_lines[max(0, len(self.log_lines) - max(0, self.logged - logged)) :]

    def add_disruption(self, disruption: Disruption) -> None:
        """Adds the end of a worker group."""
        self.disruptions.append(disruption)
        del self.disruptions[:-DISRUPTIONS]
        self.restart_counts[disruption.cause] = self.restart_counts.get(disruption.cause, 0) + 1

    def add_decision(self, decision: dict[str, Any]) -> None:
        """Adds a decision."""
        self.decisions.append(decision)
        del self.decisions[:-DECISIONS]

    @property
    def waits_for_nodes(self) -> bool:
        """Whether there are no workers because no node has room for them, as far as is known."""
        return self.phase == "waiting" or (self.phase == "starting" and not self.decisions)

    @property
    def has_workers(self) -> bool:
        """Whether a loop is running that can take requests."""
        return self.phase not in ("starting", "waiting", "restarting")


class LoopRequests(NamedTuple):
    """Requests to the loop.

    Attributes:
        stop: save, and end after the current step.
        pause: take a snapshot and end, to be restarted at another size.
        saves: number of checkpoints requested so far.
        mtbf_s: mean seconds between failures, as far as is known.
        background: the cluster has room for an evaluation beside the workers.
        store_fails: a store that the run needs does not answer.
    """

    stop: bool = False
    pause: bool = False
    saves: int = 0
    mtbf_s: float = PRIOR_MTBF_S
    background: bool = False
    store_fails: bool = False


RESTORING = "restoring the state"
"""What a worker group that starts needs the store for, as it is told in outages."""


class GroupStart(NamedTuple):
    """What a worker group has to know of those before it.

    Attributes:
        done: newest step that any of them completed; the steps up to it are replayed.
        checkpoint_age_s: seconds since the newest checkpoint of this attempt; before the first, since its begin.
    """

    done: int
    checkpoint_age_s: float


@dataclass
class Disruption:
    """The end of a worker group: from its last report to the first new step of the next group.

    Attributes:
        cause: a `policy.failure.Cause`, "bad step", or "resize" if it was planned.
        step: newest step completed before.
        workers: workers before.
        last_report_at: when the group last reported, by the monitor's monotonic clock.
        ended_at: when its end was detected, by the same clock.
        at: when its end was detected, seconds since the epoch.
        phases: seconds of each phase of the restart in order: "teardown", "placement", "processes", "process_group",
            "state" and "first_step".
        restored_step: step that the next group continued from.
        workers_after: workers of the next group.
        lost_s: seconds from `last_report_at` to the first new step; None until there is one.
    """

    cause: str
    step: int
    workers: int
    last_report_at: float
    ended_at: float
    at: float
    phases: dict[str, float] = field(default_factory=dict)
    restored_step: int | None = None
    workers_after: int | None = None
    lost_s: float | None = None

    def end_phase(self, phase: str, now: float) -> None:
        """Records the end of a phase of the restart. A repeated phase, as waiting for nodes is, is extended."""
        if self.lost_s is None:
            before = sum(seconds for name, seconds in self.phases.items() if name != phase)
            self.phases[phase] = max(0.0, now - self.ended_at - before)

    def restored(self, restored_step: int, workers: int, now: float) -> None:
        """Records that the next group has restored its state."""
        self.restored_step, self.workers_after = restored_step, workers
        self.end_phase("state", now)

    def step_done(self, step: int, now: float) -> bool:
        """Records that the next group has completed `step`; returns whether this ends the disruption."""
        if self.lost_s is not None or self.restored_step is None or step <= self.step:
            return False
        self.end_phase("first_step", now)
        self.lost_s = now - self.last_report_at
        return True

    def summary(self) -> dict[str, Any]:
        """Fields of the run's record."""
        fields = asdict(self)
        last_report_at, ended_at = fields.pop("last_report_at"), fields.pop("ended_at")
        # The last report may be older than the newest snapshot.
        replayed = None if self.restored_step is None else max(0, self.step - self.restored_step)
        return {**fields, "detection_s": max(0.0, ended_at - last_report_at), "replayed_steps": replayed}
