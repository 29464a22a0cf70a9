"""The state of a running sweep: assigns the next leg, and records what each trial reports before anyone uses it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from data.errors import MantaError
from orchestrator.config.recipe_file import remember_recipe
from orchestrator.config.result_fields import resolved
from orchestrator.sweep.capacity import WorkerSlots, share
from orchestrator.sweep.new_trials import continued_point, is_held_back, new_trial
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.schedule.choice import schedule_of
from orchestrator.sweep.schedule.legs import Decisions, Leg, loss_at
from orchestrator.sweep.schedule.milestones import grace_steps
from orchestrator.sweep.schedule.repeated import point_of, points_of, trials_of
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial import Assignment
from orchestrator.sweep.trial_record import Donor, TrialRecord, TrialRun

RETRY_WAIT_S, LONGEST_RETRY_WAIT_S = 5.0, 60.0
"""Seconds until a trial that has failed is tried again, four times as many after each further failure, and the most."""


class TrialCoordinator:
    """Assigns and records trials for Ray Tune's searcher and scheduler, in Tune's own process and thread.

    Args:
        spent_s: seconds that earlier attempts at the sweep took.

    Attributes:
        interrupted: no more legs start, and running ones are stopped; a later attempt at the sweep continues them.
        error: what ended this attempt at the sweep; None if nothing did.
        notices: lines of trials for the sweep's terminal, each once.
        cut_short: trials that were stopped amid a leg, and may have done more steps than they reported.
        legs: how many legs have begun.
    """

    def __init__(self, sweep: Sweep, book: TrialBook, cluster: WorkerSlots, spent_s: float = 0.0) -> None:
        self.sweep, self.book = sweep, book
        self._began_at = time.time() - spent_s
        self.interrupted, self.cut_short = False, set[str]()
        self.notices: dict[str, str] = {}
        self.legs = 0
        self.error: MantaError | None = None
        self._cluster, self._schedule, self._repeats = cluster, schedule_of(sweep), sweep.spec.searcher.repeats
        self._running: dict[str, Leg] = {}
        self._shares: dict[str, int] = {}
        self._remembered: set[str] = set()
        self._counted: dict[str, tuple[float, float]] = {}
        self._decided: Decisions | None = None
        self._tried_at: dict[int, float] = {}
        self._failed: dict[str, tuple[str, bool]] = {}
        for record in book:
            if record.status == "running":  # when the attempt before ended
                self._pause(record)
                self.book.save(record)
        if len(book) % self._repeats:  # the attempt before ended amid `_add`
            self._add(len(book))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickles as a bare object. Tune pickles the coordinator with its own state, which a sweep never reads back."""
        return object, ()

    @property
    def levels(self) -> list[int]:
        """Steps at which trials are compared, the last step included."""
        return self._schedule.levels

    @property
    def decisions(self) -> Decisions:
        """What the schedule makes of the records."""
        if self._decided is None:
            self._decided = self._schedule.decide(self.book.by_number)
        return self._decided

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to train; a leg that still runs was begun early, and is not needed any more."""
        ending = any(self.book[name].has_reported(leg.until) for name, leg in self._running.items())
        return not self.decisions.legs and not ending

    @property
    def ends_early(self) -> str:
        """Why the sweep ends though there is something left to train; "" if it does not."""
        spec = self.sweep.spec
        if spec.max_hours is not None and time.time() - self._began_at > 3600 * spec.max_hours:
            return f"max_hours = {spec.max_hours:g} have passed"
        if spec.target is not None:
            points = points_of(self.book.by_number, self._repeats).values()
            losses = ((loss_at(record, level), record) for record in points for level in self.levels)
            for loss, record in losses:
                if loss is not None and loss <= spec.target:
                    return f"trial {record.id} has reached target = {spec.target:g}"
        return ""

    @property
    def waiting(self) -> list[Leg]:
        """Legs that may run now and do not."""
        running, known, found = {self.book[name].number for name in self._running}, self.book.by_number, list[Leg]()
        is_held = False  # a new trial that has to wait for results, and all after it
        for leg in self.decisions.legs:
            is_new = leg.number not in known
            is_held = is_held or (is_new and is_held_back(self.sweep, leg.number, self.book, self.levels))
            is_too_early = self._tried_at.get(leg.number, 0.0) > time.monotonic()
            if leg.number not in running and not (is_new and is_held) and not is_too_early:
                found.append(leg)
        return found

    def next_assignment(self) -> Assignment | None:
        """Begins the next leg; None where it has to wait for capacity, or for others."""
        scaling, limit = self.sweep.base.scaling, self.sweep.spec.max_concurrent
        while waiting := self.waiting:
            needed = [leg for leg in waiting if not leg.is_early]  # first; no nodes are requested for the others
            free = len(waiting) if limit is None else limit - len(self._running)
            at_once = max(0, min(len(needed) or 1, free))
            limits = scaling.effective_min_workers, scaling.effective_max_workers
            max_workers = at_once and share(self._cluster.total(), self._shares, at_once, *limits)
            self._cluster.request(at_once - bool(max_workers) if needed else 0, scaling.effective_min_workers)
            if not max_workers:
                return None
            leg = waiting[0]
            record = self.book.by_number.get(leg.number) or self._add(leg.number)
            if record.status == "failed":  # no point was found that its recipe allows
                continue
            return self._begin(record, leg, max_workers)
        self._cluster.request(0, scaling.effective_min_workers)
        return None

    def _add(self, number: int) -> TrialRecord:
        """Adds a trial, and the others of its point: no number may be left out if the point fails meanwhile."""
        self._decided, repeats = None, self._repeats
        for each in trials_of(point_of(number, repeats), repeats):
            if each not in self.book.by_number:
                self.book.add(new_trial(self.sweep, each, self.book, self.levels))
        return self.book.by_number[number]

    def _begin(self, record: TrialRecord, leg: Leg, max_workers: int) -> Assignment:
        now = time.time()
        self.legs += 1
        if leg.donor is not None:
            self._continue_from(record, self.book.by_number[leg.donor], leg.donor_step)
        record.status, record.reason, record.ended_at = "running", "", None
        record.started_at = record.started_at or now
        self._running[record.id], self._shares[record.id] = leg, max_workers
        self._counted[record.id] = record.worker_s, 0.0
        self.book.save(record)
        trial_run, number = record.trial_run, len(record.trial_runs) - 1
        reported = max((each.step for each in record.reports if each.trial_run == number), default=0)
        reported = max(reported, trial_run.donor.step if trial_run.donor else 0)
        seed = self.sweep.seed_of(record.number)
        if trial_run.run not in self._remembered:
            self._remembered.add(trial_run.run)
            remember_recipe(trial_run.run, resolved(self.sweep.config_of(trial_run.point, trial_run.run, seed)))
        limit = max_workers if max_workers < self.sweep.base.scaling.effective_max_workers else 0
        return Assignment(
            *(record.id, trial_run.run, dict(trial_run.point), now, leg.until, limit, reported, trial_run.donor),
            running=len(self._running),
            seed=seed,
        )

    def _continue_from(self, record: TrialRecord, donor: TrialRecord, step: int) -> None:
        """Adds a run that continues from a donor's state with other values, unless the trial has it already."""
        if record.trial_run.donor is not None and record.trial_run.donor.step == step:
            return
        report = next(each for each in reversed(donor.reports) if each.step == step)
        donor_run = donor.trial_runs[report.trial_run]
        run = f"{self.sweep.name}-{record.id}-m{len(record.trial_runs)}"
        point = continued_point(self.sweep, record, donor_run.point)
        record.trial_runs.append(TrialRun(run, point, Donor(donor.id, donor_run.run, step, report.attempt), step))

    def record_result(self, name: str, result: Mapping[str, Any]) -> bool:
        """Records a result from a trial's actor; returns whether it was a new report, which is then in the store."""
        record = self.book[name]
        record.workers = int(result.get("workers") or 0)
        if result.get("status") == "failed":
            self._failed[name] = result["reason"], bool(result.get("is_final"))
        for line in result.get("notices") or ():
            self.notices.setdefault(line, f"{name}: {line}")
        before, counted = self._counted[name]
        worker_s = float(result.get("worker_s") or 0.0)
        if worker_s < counted:  # a new actor, which counts from its own start
            before += counted
        self._counted[name] = before, worker_s
        record.worker_s = before + worker_s
        record.trial_run.step = max(record.trial_run.step, int(result.get("at_step") or 0))
        record.parameters = result.get("parameters") or record.parameters
        if record.setup_s is None and result.get("setup_s"):
            record.setup_s = float(result["setup_s"])
        if record.first_step_s is None and result.get("first_step_s"):
            record.first_step_s = float(result["first_step_s"])
        if result.get("is_forked") and not record.trial_run.is_forked:
            record.trial_run.is_forked = True
            self.book.save(record)
        step = result.get("step")
        if step is None or record.has_reported(step):
            return False
        loss = result.get("loss")
        loss = float(loss) if loss is not None and math.isfinite(loss) else None
        if step == self._running[name].until and loss is not None:
            record.rungs.append(step)
        self.book.report(record, int(step), loss, record.worker_s, int(result.get("attempt") or 0))
        if step in self.levels:
            self._decided = None
        return True

    def record_decision(self, record: TrialRecord, step: int, *, stop: bool) -> None:
        """Records the decision of a rule that stops trials while they run, after a report at `step`."""
        decides_always = self.sweep.spec.scheduler.name == "median" and step >= grace_steps(self.sweep)
        if step in self.levels or decides_always or stop:
            record.rungs.append(step)
        self._decided = None
        if stop:
            record.end("stopped", f"loss {record.loss:.4f} at step {step}: {self._rule()}")
        if stop or step in self.levels:
            self.book.save(record)

    def record_end(self, name: str, result: Mapping[str, Any]) -> None:
        """Records that a leg has ended, by itself or because it was stopped, and releases its share."""
        leg, record = self._release(name), self.book[name]
        if result.get("status") not in ("done", "failed"):
            self.cut_short.add(name)
        if record.has_ended or leg is None:
            return
        status, reason = result.get("status", "failed"), result.get("reason", "its process ended")
        if status == "stopped" or self.interrupted:
            self._pause(record)
        elif status == "failed":
            self._fail(record, reason, is_final=False)
        elif not record.has_reported(leg.until) or record.loss is None:
            record.end("failed", f"no finite {self.sweep.spec.metric} was reported at step {leg.until}")
        else:
            record.failures_of_leg = 0
            self._pause(record)
        self.book.save(record)
        self.record_outs()

    def record_outs(self) -> None:
        """Records which paused trials go no further."""
        decisions, is_settled = self.decisions, self.is_settled
        for record in self.book:
            reason = decisions.out.get(record.number)
            if reason is None and is_settled and not decisions.early:  # else it may go on with another `plateau`
                reason = f"the best is decided at step {record.reports[-1].step}" if record.reports else "not needed"
            if reason is not None and record.status in ("paused", "pending"):
                record.end("stopped", reason if record.loss is None else f"loss {record.loss:.4f}: {reason}")
                self.book.save(record)

    def record_failure(self, name: str, reason: str) -> None:
        """Records that a leg failed, by what its last result told, or else by `reason`; releases its share."""
        leg, record = self._release(name), self.book[name]
        reason, is_final = self._failed.pop(name, (reason, False))
        if record.has_ended or leg is None:
            return
        if self.interrupted or record.has_reported(leg.until):
            self._pause(record)
        else:
            self._fail(record, reason, is_final=is_final)
        self.book.save(record)
        self.record_outs()

    def fail(self, error: MantaError) -> None:
        """Ends this attempt at the sweep by an error of the records' store, or of another attempt."""
        self.error, self.interrupted = self.error or error, True

    def close(self) -> None:
        """Records that what ran has been stopped, and withdraws the request for more nodes."""
        self._cluster.request(0, self.sweep.base.scaling.effective_min_workers)
        if self.error is not None:  # the next attempt does it
            return
        for name in list(self._running):
            self.record_end(name, {"status": "stopped"})
        self.record_outs()

    def _pause(self, record: TrialRecord) -> None:
        """Marks a trial that does not run now as paused; as finished where it has come to its last step."""
        record.status, record.workers = "paused", 0
        if record.has_reported(self.sweep.steps) and record.loss is not None:
            record.end("finished")

    def _fail(self, record: TrialRecord, reason: str, *, is_final: bool) -> None:
        """Pauses a trial whose failure may pass, as often as the recipe allows; else it has failed."""
        if is_final or record.failures_of_leg >= self.sweep.spec.max_failures:
            record.end("failed", reason)
            return
        wait_s = min(LONGEST_RETRY_WAIT_S, RETRY_WAIT_S * 4.0 ** min(record.failures_of_leg, 9))
        self._tried_at[record.number] = time.monotonic() + wait_s
        record.failures.append(reason)
        record.failures_of_leg += 1
        self._pause(record)
        record.reason = reason

    def _release(self, name: str) -> Leg | None:
        self._decided = None
        self._shares.pop(name, None)
        for trial_run in self.book[name].trial_runs:
            self._cluster.cancel(trial_run.run)
        return self._running.pop(name, None)

    def _rule(self) -> str:
        scheduler = self.sweep.spec.scheduler
        if scheduler.name == "median":
            return "worse than the median of the trials that reached this step"
        return f"not among the best one in {scheduler.factor:g} of the trials that reached this step before"
