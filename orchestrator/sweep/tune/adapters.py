"""The searcher and the scheduler that Ray Tune calls. To Tune, each leg of a trial is a trial of its own.

Every report is in object storage before a rule sees it. A continued sweep builds a new rule and replays all reports to
it in their order; a rule's own state is never saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from data.errors import MantaError
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.schedule.milestones import grace_steps
from orchestrator.sweep.trial_record import TrialRecord
from orchestrator.sweep.tune.internals import median_rule

_Method = TypeVar("_Method", bound=Callable[..., Any])

_ATTRIBUTES: dict[str, Any] = {"time_attr": "step", "metric": "loss", "mode": "min"}


def _ending_with_the_sweep(method: _Method) -> _Method:
    """The method, whose errors of the records' store end the sweep: Tune would swallow or wrap them."""

    @functools.wraps(method)
    def call(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        except MantaError as error:
            self._coordinator.fail(error)
            return TrialScheduler.CONTINUE

    return cast(_Method, call)


class CoordinatorSearcher(Searcher):
    """Tune's searcher: takes the next leg from the coordinator."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        super().__init__(metric="loss", mode="min")
        self._coordinator, self._legs = coordinator, 0

    def suggest(self, trial_id: str) -> Any:
        """The config of the next leg; None where it has to wait."""
        coordinator = self._coordinator
        if coordinator.interrupted or coordinator.is_settled or coordinator.ends_early:
            return str(Searcher.FINISHED)
        try:
            assignment = coordinator.next_assignment()
        except MantaError as error:
            coordinator.fail(error)
            return str(Searcher.FINISHED)
        if assignment is None:
            return None
        self._legs += 1
        return {"trial": assignment.id, "name": f"{assignment.id}-{self._legs}", "assignment": assignment}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: the records have the result."""

    def save(self, checkpoint_path: str) -> None:
        """Writes an empty file, which Tune expects: there is no state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: there is no state."""


class _TrialId:
    """A trial for a scheduler of Tune, which uses only its id."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TrialId) and other.trial_id == self.trial_id

    def __hash__(self) -> int:
        return hash(self.trial_id)


class RecordingScheduler(FIFOScheduler):
    """Records results, and stops trials by the recipe's rule, to which the reports of earlier attempts are replayed."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator = coordinator
        self._rule: Any = _rule_of(coordinator)
        self._added: set[str] = set()
        reports = [
            (report, record) for record in coordinator.book for report in record.reports if report.loss is not None
        ]
        for record in coordinator.book:
            self._add(record)
        for report, record in sorted(reports, key=lambda each: each[0].number):
            stop = self._ask(record, report.step, report.loss) == TrialScheduler.STOP
            # The attempt that recorded the report may have died before it stopped the trial.
            if stop and not record.has_ended and report is record.reports[-1] and report.step < coordinator.sweep.steps:
                coordinator.record_decision(record, report.step, stop=True)
        for record in coordinator.book:
            if record.has_ended:
                self._complete(record)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Adds the trial to the rule."""
        self._add(self._coordinator.book[trial.config["trial"]])

    @_ending_with_the_sweep
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records the report, then returns the decision of the rule."""
        is_new = self._coordinator.record_result(trial.config["trial"], result)
        record, step = self._coordinator.book[trial.config["trial"]], result.get("step")
        if not is_new or step is None or record.loss is None or self._rule is None:
            return str(TrialScheduler.CONTINUE)
        decision = self._ask(record, step, record.loss)
        if step >= self._coordinator.sweep.steps:  # the trial is finishing: it saves and evaluates
            return str(TrialScheduler.CONTINUE)
        self._coordinator.record_decision(record, step, stop=decision == TrialScheduler.STOP)
        return decision

    @_ending_with_the_sweep
    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Records that a trial's leg has ended, or is being stopped."""
        if "at_step" in result:
            self._coordinator.record_result(trial.config["trial"], result)
        self._coordinator.record_end(trial.config["trial"], result)
        self._complete(self._coordinator.book[trial.config["trial"]])

    @_ending_with_the_sweep
    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Records that a leg failed, or that its process died."""
        self._coordinator.record_failure(trial.config["trial"], "the trial's process died")

    @_ending_with_the_sweep
    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Records that a trial was removed before it started."""
        self._coordinator.record_end(trial.config["trial"], {"status": "stopped"})

    def _add(self, record: TrialRecord) -> None:
        if self._rule is not None and record.id not in self._added:
            self._rule.on_trial_add(None, _TrialId(record.id))
        self._added.add(record.id)

    def _ask(self, record: TrialRecord, step: int, loss: float | None) -> str:
        if self._rule is None:
            return str(TrialScheduler.CONTINUE)
        return str(self._rule.on_trial_result(None, _TrialId(record.id), {"step": step, "loss": loss}))

    def _complete(self, record: TrialRecord) -> None:
        if self._rule is not None and record.loss is not None and record.has_ended:
            last = {"step": record.reports[-1].step, "loss": record.loss}
            self._rule.on_trial_complete(None, _TrialId(record.id), last)


def _rule_of(coordinator: TrialCoordinator) -> Any:
    spec, sweep = coordinator.sweep.spec.scheduler, coordinator.sweep
    if spec.name == "asha-stopping":
        return ASHAScheduler(
            **_ATTRIBUTES,
            max_t=sweep.steps,
            grace_period=coordinator.levels[0],
            reduction_factor=spec.factor,
            stop_last_trials=False,
        )
    if spec.name == "median":
        return median_rule(**_ATTRIBUTES, grace_period=grace_steps(sweep), min_samples_required=spec.min_trials)
    return None
