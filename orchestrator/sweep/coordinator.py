"""The state of a running sweep: assigns the next trial, and records what each trial reports before anyone uses it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.config.recipe_file import remember_recipe
from orchestrator.config.result_fields import resolved
from orchestrator.sweep.capacity import WorkerSlots, share
from orchestrator.sweep.milestones import grace_steps, rungs
from orchestrator.sweep.records import Donor, TrialBook, TrialRecord, TrialRun
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.suggest import suggest
from orchestrator.sweep.trial import Assignment


class TrialCoordinator:
    """Assigns and records trials for Ray Tune's searcher and scheduler, in Tune's own process and thread.

    Attributes:
        interrupted: no more trials start, and running trials are stopped; a later attempt at the sweep continues them.
    """

    def __init__(self, sweep: Sweep, book: TrialBook, cluster: WorkerSlots) -> None:
        self.sweep, self.book = sweep, book
        self.interrupted = False
        self._cluster = cluster
        self._shares: dict[str, int] = {}
        self._rungs = rungs(sweep)
        self._counted: dict[str, tuple[float, float]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickles as a bare object. Tune pickles the coordinator with its own state, which a sweep never reads back."""
        return object, ()

    @property
    def to_resume(self) -> list[TrialRecord]:
        """Trials that an earlier attempt started and that do not run in this one yet."""
        return [record for record in self.book if not record.has_ended and record.id not in self._shares]

    @property
    def remaining(self) -> int:
        """Number of trials that still have to start in this attempt."""
        return len(self.to_resume) + max(0, self.sweep.trials - len(self.book))

    @property
    def slots(self) -> int:
        """Worker slots of the cluster, occupied ones included."""
        return self._cluster.total()

    def next_assignment(self) -> Assignment | None:
        """Starts the next trial; None where it has to wait for capacity."""
        scaling, shares = self.sweep.base.scaling, self._shares
        is_population = self.sweep.spec.scheduler.name == "pbt"  # started all at once; Tune lets them take turns
        limit = self.sweep.spec.max_concurrent
        if not is_population and limit is not None and len(shares) >= limit:
            self._cluster.request(0, scaling.effective_min_workers)
            return None
        max_workers: int | None = scaling.effective_min_workers
        if not is_population:
            remaining = self.remaining if limit is None else min(self.remaining, limit - len(shares))
            max_workers = share(
                self._cluster.total(), shares, remaining, scaling.effective_min_workers, scaling.effective_max_workers
            )
            waiting = remaining - (max_workers is not None)
            self._cluster.request(waiting, scaling.effective_min_workers)
            if max_workers is None:
                return None
        assert max_workers is not None
        record = next(iter(self.to_resume), None) or self._new()
        shares[record.id] = max_workers
        return self._begin(record, max_workers if max_workers < scaling.effective_max_workers else 0)

    def _new(self) -> TrialRecord:
        number = len(self.book) + 1
        point = suggest(self.sweep, number, list(self.book))
        record = TrialRecord(number, [])
        record.trial_runs.append(TrialRun(f"{self.sweep.name}-{record.id}", point))
        return self.book.add(record)

    def _begin(self, record: TrialRecord, max_workers: int) -> Assignment:
        record.status, now = "running", time.time()
        record.started_at = record.started_at or now
        self._counted[record.id] = record.worker_s, 0.0
        self.book.save(record)
        return self.assignment(record, now, max_workers)

    def assignment(self, record: TrialRecord, now: float, max_workers: int = 0) -> Assignment:
        """Builds the assignment for the trial's actor, and remembers the run's recipe for `manta show`."""
        trial_run, number = record.trial_run, len(record.trial_runs) - 1
        reported = max((each.step for each in record.reports if each.trial_run == number), default=0)
        reported = max(reported, trial_run.donor.step if trial_run.donor else 0)
        remember_recipe(trial_run.run, resolved(self.sweep.config_of(trial_run.point, trial_run.run)))
        return Assignment(record.id, trial_run.run, dict(trial_run.point), now, max_workers, reported, trial_run.donor)

    def record_result(self, name: str, result: Mapping[str, Any]) -> bool:
        """Records a result from a trial's actor; returns whether it was a new report, which is then in the store."""
        record = self.book[name]
        record.workers = int(result.get("workers") or 0)
        before, counted = self._counted[name]
        worker_s = float(result.get("worker_s") or 0.0)
        if worker_s < counted:  # a new actor, which counts from its own start
            before += counted
        self._counted[name] = before, worker_s
        record.worker_s = before + worker_s
        record.trial_run.step = max(record.trial_run.step, int(result.get("at_step") or 0))
        if record.setup_s is None and result.get("setup_s"):
            record.setup_s = float(result["setup_s"])
        if record.first_step_s is None and result.get("first_step_s"):
            record.first_step_s = float(result["first_step_s"])
        step = result.get("step")
        if step is None or record.has_reported(step):
            return False
        loss = result.get("loss")
        loss = float(loss) if loss is not None and math.isfinite(loss) else None
        self.book.report(record, int(step), loss, record.worker_s, int(result.get("attempt") or 0))
        return True

    def record_decision(self, record: TrialRecord, step: int, stop: bool) -> None:
        """Records the scheduler's decision on a trial after its report at `step`."""
        decides_always = self.sweep.spec.scheduler.name == "median" and step >= grace_steps(self.sweep)
        if step in self._rungs or decides_always or stop:
            record.rungs.append(step)
        if stop:
            record.end("stopped", f"loss {record.loss:.4f} at step {step}: {self._rule()}")
        if stop or step in self._rungs:
            self.book.save(record)

    def record_end(self, name: str, result: Mapping[str, Any]) -> None:
        """Records that a trial's run has ended, by itself or because it was stopped, and releases its share."""
        self._release(name)
        record = self.book[name]
        if record.has_ended or self.interrupted:
            return
        status, reason = result.get("status", "failed"), result.get("reason", "its process ended")
        if status == "stopped":  # not by the scheduler, but by another attempt at the sweep, or a signal
            return
        record.end(status, reason)
        self.book.save(record)

    def record_death(self, name: str, reason: str) -> None:
        """Records that a trial's own process has died, and releases its share."""
        self._release(name)
        record = self.book[name]
        if not record.has_ended and not self.interrupted:
            record.end("failed", reason)
            self.book.save(record)

    def close(self) -> None:
        """Withdraws the request for more nodes."""
        self._cluster.request(0, self.sweep.base.scaling.effective_min_workers)

    def _release(self, name: str) -> None:
        self._shares.pop(name, None)
        for trial_run in self.book[name].trial_runs:
            self._cluster.cancel(trial_run.run)

    def continue_from(self, record: TrialRecord, point: dict[str, Any], donor: TrialRecord) -> Assignment:
        """Continues a trial from a donor's state with other values, as a new run; recorded when this returns."""
        report = next(
            each for each in reversed(donor.reports) if each.trial_run == len(donor.trial_runs) - 1 and each.attempt
        )
        run = f"{self.sweep.name}-{record.id}-m{len(record.trial_runs)}"
        record.trial_runs.append(
            TrialRun(run, point, Donor(donor.id, donor.trial_run.run, report.step, report.attempt), report.step)
        )
        self._counted[record.id] = record.worker_s, 0.0
        self.book.save(record)
        return self.assignment(record, time.time())

    def _rule(self) -> str:
        scheduler = self.sweep.spec.scheduler
        if scheduler.name == "median":
            return "worse than the median of the trials that reached this step"
        return f"not among the best one in {scheduler.factor:g} of the trials that reached this step before"
