"""Writes an attempt's progress to the run's record, the terminal and the observer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from data.stores.patience import Patience, telling
from orchestrator.console import Console
from orchestrator.driver.flops import FlopsPerToken
from orchestrator.observe.observer import Observer
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.progress import Progress
from orchestrator.run.record import Attempt
from orchestrator.run.run import Run

_CAUSE_OF_PHASE = {
    "done": "shutdown",
    "restarting": "restart",
    "waiting": "restart",
    "waiting for data": "data_wait",
    "evaluating": "evaluation",
    "saving": "checkpoint",
}
"""Goodput cause, by phase, of the seconds that the loop has not reported yet; "training" for all other phases."""


class AttemptRecord:
    """Follows the progress of an attempt, and writes it to the run's record and to the terminal.

    Attributes:
        logged: number of the monitor's lines that have been printed.
    """

    def __init__(
        self, heartbeat: Heartbeat, console: Console, run: Run, observer: Observer, flops: FlopsPerToken
    ) -> None:
        self._heartbeat, self._fence, self._console, self._run = heartbeat, heartbeat.fence, console, run
        self._observer, self._flops = observer, flops
        self._began = time.monotonic() - (time.time() - self._fence.record.last.started_at)
        self._first_step_s: float | None = None
        self._startup_s: float | None = None
        self.logged = 0
        self._had_workers = self._had_begun = False
        self._evaluations = 0

    def follow(self, progress: Progress, *, force: bool = False) -> None:
        """Shows the progress, and passes it on to the heartbeat.

        Args:
            force: write the record now, not with the next heartbeat.

        Raises:
            see `Heartbeat.check`.
        """
        # The goodput clock began with the loop, and includes the loop's own start-up; the time before it is the rest.
        if self._startup_s is None and progress.goodput:
            self._startup_s = max(0.0, self._age_s() - sum(progress.goodput.values()))
        if self._first_step_s is None and progress.row:
            self._first_step_s = self._age_s()
        for line in progress.lines_after(self.logged):
            self._console.line(line)
        self.logged = progress.logged
        self._console.progress(progress, self._run.config.train.steps)
        # Write the restored step at once: from then on, nothing an earlier attempt still writes belongs to the run.
        restored = progress.restored_step is not None and not self._had_begun
        # Write at once, too, when the workers are lost or back, and scores, which are not computed again.
        changed = progress.has_workers != self._had_workers or len(progress.evaluations) != self._evaluations
        self._heartbeat.write(self._fields(progress), at_once=force or restored or changed)
        self._evaluations = len(progress.evaluations)
        self._had_workers, self._had_begun = progress.has_workers, progress.restored_step is not None
        self._observer.follow(self._attempts(progress), progress)

    @property
    def has_begun(self) -> bool:
        """Whether a step has completed."""
        return self._first_step_s is not None

    def finish(self, progress: Progress, steps: int) -> None:
        """Writes how the attempt ended; waits for a store that fails.

        Raises:
            see `Heartbeat.check`.
        """
        result = progress.result or {}
        status = "finished" if result.get("step") == steps else "stopped"
        self._heartbeat.stop()
        patience = Patience(self._run.config.store.patience, telling(self._console.line, "writing the run's record"))
        patience.call(
            lambda: self._fence.update(
                attempt={**self._fields(progress), "status": status}, result=result if status == "finished" else {}
            )
        )
        self._observer.follow(self._fence.record.attempts, progress, now=True)
        self._observer.close(status, result)

    def _attempts(self, progress: Progress) -> tuple[Attempt, ...]:
        """The attempts of the record, the last one with its current progress."""
        *before, last = self._fence.record.attempts
        return (*before, replace(last, heartbeat_at=time.time(), **self._fields(progress)))

    def _age_s(self) -> float:
        """Seconds since the start of the command."""
        return time.monotonic() - self._began

    def _fields(self, progress: Progress) -> dict[str, Any]:
        age_s = self._age_s()
        startup_s = self._startup_s if self._startup_s is not None else age_s
        loop_s = sum(progress.goodput.values())
        # The goodput is that of the loop's last report: the rest of the wall time belongs to the current phase.
        rest = max(0.0, age_s - startup_s - loop_s)
        goodput = dict(progress.goodput) | {"startup": progress.goodput.get("startup", 0.0) + startup_s}
        cause = _CAUSE_OF_PHASE.get(progress.phase, "training")
        goodput[cause] = goodput.get(cause, 0.0) + rest
        restored = progress.restored_step
        return {
            "status": "running" if restored is not None else "preparing",
            "from_step": restored if restored is not None else self._fence.record.last.from_step,
            "saved_step": None if progress.saved is None else progress.saved[0],
            "step": progress.row.get("step", restored or 0),
            "world_size": progress.world_size if progress.has_workers else 0,
            "device": progress.device,
            "flops_per_token": self._flops.value if progress.row else None,
            "phase": progress.phase,
            "disruptions": [disruption.summary() for disruption in progress.disruptions],
            "restart_counts": progress.restart_counts,
            "decisions": progress.decisions,
            "evaluations": progress.evaluations,
            "outages": progress.outages,
            "first_step_s": self._first_step_s,
            "goodput": goodput,
        }
