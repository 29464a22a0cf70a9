"""One end of a worker group and what it cost, phase by phase."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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

    def story(self) -> dict[str, Any]:
        """What of it goes into the run's record."""
        fields = asdict(self)
        told_at, ended_at = fields.pop("told_at"), fields.pop("ended_at")
        # The newest word may be older than the newest snapshot.
        replayed = None if self.restored_step is None else max(0, self.step - self.restored_step)
        return {**fields, "detection_s": max(0.0, ended_at - told_at), "replayed_steps": replayed}
