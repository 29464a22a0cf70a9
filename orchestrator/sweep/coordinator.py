"""The sweep while it runs: which trial is next, what has come of each; everything goes into the records first."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.config.recipe_file import remember_recipe
from orchestrator.config.result_fields import resolved
from orchestrator.sweep.capacity import Cluster, share
from orchestrator.sweep.milestones import grace_steps, rungs
from orchestrator.sweep.records import Donor, TrialBook, TrialRecord, TrialRun
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.suggest import suggest
from orchestrator.sweep.trial import Assignment


class TrialCoordinator:
    """Asked by searcher and scheduler, in the process and thread that run Ray Tune.

    Attributes:
        interrupted: no trial is begun any more, and those that run are to be stopped; they go on another time.
    """

    def __init__(self, sweep: Sweep, book: TrialBook, cluster: Cluster) -> None:
        self.sweep, self.book = sweep, book
        self.interrupted = False
        self._cluster = cluster
        self._shares: dict[str, int] = {}
        self._rungs = rungs(sweep)
        self._counted: dict[str, tuple[float, float]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles whatever it is given, and is never asked for it: there is nothing here that the records lack."""
        return object, ()

    @property
    def to_resume(self) -> list[TrialRecord]:
        """Trials that an earlier attempt began, and that do not run yet."""
        return [record for record in self.book if not record.has_ended and record.id not in self._shares]

    @property
    def left(self) -> int:
        """Trials that have not begun in this attempt and are to."""
        return len(self.to_resume) + max(0, self.sweep.trials - len(self.book))

    @property
    def places(self) -> int:
        """Places for workers in the cluster."""
        return self._cluster.total()

    def next(self) -> Assignment | None:
        """The next trial, or None: not now."""
        scaling, shares = self.sweep.base.scaling, self._shares
        is_population = self.sweep.spec.scheduler.name == "pbt"  # begun all at once; they take turns by Tune's count
        limit = self.sweep.spec.max_concurrent
        if not is_population and limit is not None and len(shares) >= limit:
            self._cluster.ask(0, scaling.effective_min_workers)
            return None
        max_workers: int | None = scaling.effective_min_workers
        if not is_population:
            left = self.left if limit is None else min(self.left, limit - len(shares))
            max_workers = share(
                self._cluster.total(), shares, left, scaling.effective_min_workers, scaling.effective_max_workers
            )
            waiting = left - (max_workers is not None)
            self._cluster.ask(waiting, scaling.effective_min_workers)
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
        """What the trial's actor is told."""
        trial_run, number = record.trial_run, len(record.trial_runs) - 1
        reported = max((each.step for each in record.reports if each.trial_run == number), default=0)
        reported = max(reported, trial_run.donor.step if trial_run.donor else 0)
        remember_recipe(trial_run.run, resolved(self.sweep.config_of(trial_run.point, trial_run.run)))
        return Assignment(record.id, trial_run.run, dict(trial_run.point), now, max_workers, reported, trial_run.donor)

    def heard(self, name: str, result: Mapping[str, Any]) -> bool:
        """A trial's actor has told how far it is. Returns whether that was a new report, which is in the store then."""
        record = self.book[name]
        record.workers = int(result.get("workers") or 0)
        before, told = self._counted[name]
        worker_s = float(result.get("worker_s") or 0.0)
        if worker_s < told:  # another actor, which counts from its own start
            before += told
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

    def decided(self, record: TrialRecord, step: int, stop: bool) -> None:
        """The scheduler has judged a trial by its report at `step`."""
        decides_always = self.sweep.spec.scheduler.name == "median" and step >= grace_steps(self.sweep)
        if step in self._rungs or decides_always or stop:
            record.rungs.append(step)
        if stop:
            record.end("stopped", f"loss {record.loss:.4f} at step {step}: {self._rule()}")
        if stop or step in self._rungs:
            self.book.save(record)

    def ended(self, name: str, result: Mapping[str, Any]) -> None:
        """A trial's run has ended, by itself or because it was stopped; its share is free."""
        self._give_back(name)
        record = self.book[name]
        if record.has_ended or self.interrupted:
            return
        status, reason = result.get("status", "failed"), result.get("reason", "its process ended")
        if status == "stopped":  # by nobody here: another attempt at the sweep, or a signal
            return
        record.end(status, reason)
        self.book.save(record)

    def died(self, name: str, reason: str) -> None:
        """A trial's own process has died."""
        self._give_back(name)
        record = self.book[name]
        if not record.has_ended and not self.interrupted:
            record.end("failed", reason)
            self.book.save(record)

    def close(self) -> None:
        """Nothing is waited for any more."""
        self._cluster.ask(0, self.sweep.base.scaling.effective_min_workers)

    def _give_back(self, name: str) -> None:
        self._shares.pop(name, None)
        for trial_run in self.book[name].trial_runs:
            self._cluster.clear(trial_run.run)

    def moved(self, record: TrialRecord, point: dict[str, Any], donor: TrialRecord) -> Assignment:
        """A trial goes on from a donor's state with other values, as a new run; the records know when this returns."""
        seen = next(
            each for each in reversed(donor.reports) if each.trial_run == len(donor.trial_runs) - 1 and each.attempt
        )
        run = f"{self.sweep.name}-{record.id}-m{len(record.trial_runs)}"
        record.trial_runs.append(
            TrialRun(run, point, Donor(donor.id, donor.trial_run.run, seen.step, seen.attempt), seen.step)
        )
        self._counted[record.id] = record.worker_s, 0.0
        self.book.save(record)
        return self.assignment(record, time.time())

    def _rule(self) -> str:
        scheduler = self.sweep.spec.scheduler
        if scheduler.name == "median":
            return "worse than the median of the trials that came as far"
        return f"not among the best one in {scheduler.factor:g} of those that came as far before"
