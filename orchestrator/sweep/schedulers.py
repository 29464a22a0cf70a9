"""Ray Tune's schedulers and searcher interface on top of the sweep's records.

Every report is in object storage before Tune's scheduler sees it. A continued sweep builds a new scheduler and replays
all reports to it in their order; the scheduler's own state is never saved.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.milestones import grace_steps
from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.space import perturbed
from orchestrator.sweep.tune_internals import median_rule, population

_ATTRIBUTES: dict[str, Any] = {"time_attr": "step", "metric": "loss", "mode": "min"}

_STRUCTURE = (
    "model.",
    "train.optimizer.name",
    "train.optimizer.momentum",  # decides whether torch's rmsprop has a momentum buffer
    "train.ema_decay",
    "train.global_batch_size",
    "train.micro_batch_size",
)
"""Prefixes of fields that a trial takes from its donor unchanged: the donor's tensors and data position need them."""


class CoordinatorSearcher(Searcher):
    """Tune's searcher: takes the next trial from the coordinator."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        super().__init__(metric="loss", mode="min")
        self._coordinator = coordinator

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial; None where it has to wait."""
        if self._coordinator.interrupted or self._coordinator.remaining == 0:
            return str(Searcher.FINISHED)
        assignment = self._coordinator.next_assignment()
        return None if assignment is None else {"trial": assignment.id, "assignment": assignment}

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


class RecordedScheduler(FIFOScheduler):
    """Stops trials by one of Tune's schedulers, to which the reports of earlier attempts are replayed first."""

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
        """Adds the trial to Tune's scheduler."""
        self._add(self._coordinator.book[trial.config["trial"]])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records the report, then returns the decision of Tune's scheduler."""
        is_new = self._coordinator.record_result(trial.config["trial"], result)
        record, step = self._coordinator.book[trial.config["trial"]], result.get("step")
        if not is_new or step is None or record.loss is None:
            return str(TrialScheduler.CONTINUE)
        decision = self._ask(record, step, record.loss)
        if step >= self._coordinator.sweep.steps:  # the trial is finishing: it saves and evaluates
            return str(TrialScheduler.CONTINUE)
        self._coordinator.record_decision(record, step, decision == TrialScheduler.STOP)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Records that a trial has ended, or is being stopped."""
        if "at_step" in result:
            self._coordinator.record_result(trial.config["trial"], result)
        self._coordinator.record_end(trial.config["trial"], result)
        self._complete(self._coordinator.book[trial.config["trial"]])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Records that a trial's process has died."""
        self._coordinator.record_death(trial.config["trial"], f"the trial's process died: {_last_line(trial)}")

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Records that a trial was removed before it started."""
        self._coordinator.record_end(trial.config["trial"], {"status": "stopped"})

    def _add(self, record: TrialRecord) -> None:
        if self._rule is not None and record.id not in self._added:
            # Tune draws the bracket from numpy's global generator, which is seeded so that a replay draws the same.
            np.random.seed((self._coordinator.sweep.spec.searcher.seed * 1_000_003 + record.number) % 2**32)
            self._rule.on_trial_add(None, _TrialId(record.id))
        self._added.add(record.id)

    def _ask(self, record: TrialRecord, step: int, loss: float | None) -> str:
        if self._rule is None:
            return str(TrialScheduler.CONTINUE)
        return str(self._rule.on_trial_result(None, _TrialId(record.id), {"step": step, "loss": loss}))

    def _complete(self, record: TrialRecord) -> None:
        if self._rule is not None and record.loss is not None:
            last = {"step": record.reports[-1].step, "loss": record.loss}
            self._rule.on_trial_complete(None, _TrialId(record.id), last)


class RecordedPopulation(RecordedScheduler):
    """Tune's population-based training on our checkpoints: a trial that takes a donor's state starts a new run."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        super().__init__(coordinator)
        self._mutable = [name for name in coordinator.sweep.spec.space if not name.startswith(_STRUCTURE)]
        random.seed(
            f"{coordinator.sweep.spec.searcher.seed}/{len(coordinator.book)}"
        )  # Tune draws donors from the global generator
        self._population = population(
            self._config_after_exploit,
            **_ATTRIBUTES,
            perturbation_interval=grace_steps(coordinator.sweep),
            quantile_fraction=coordinator.sweep.spec.scheduler.quantile,
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Adds the trial to Tune's scheduler."""
        self._population.on_trial_add(tune_controller, trial)
        record = self._coordinator.book[trial.config["trial"]]
        if record.loss is not None:
            self._population.restore_trial(trial, record.reports[-1].step, -record.loss)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records the report, then lets Tune compare the trial with the population."""
        is_new = self._coordinator.record_result(trial.config["trial"], result)
        record, step = self._coordinator.book[trial.config["trial"]], result.get("step")
        if not is_new or step is None or record.loss is None or step >= self._coordinator.sweep.steps:
            return str(TrialScheduler.CONTINUE)
        self._coordinator.record_decision(record, step, stop=False)
        return str(self._population.on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The trial that is furthest behind."""
        chosen: Trial | None = self._population.choose_trial_to_run(tune_controller)
        return chosen

    def _config_after_exploit(self, trial: Trial, trial_to_clone: Trial) -> dict[str, Any]:
        book, sweep = self._coordinator.book, self._coordinator.sweep
        record, donor = book[trial.config["trial"]], book[trial_to_clone.config["trial"]]
        rng = random.Random(f"{sweep.spec.searcher.seed}/{record.number}/{len(record.trial_runs)}")
        point = perturbed(sweep.spec.space, donor.point, self._mutable, rng, sweep.spec.scheduler.resample)
        return {"trial": record.id, "assignment": self._coordinator.continue_from(record, point, donor)}


def scheduler_of(coordinator: TrialCoordinator) -> TrialScheduler:
    """The scheduler of the sweep's recipe, with the reports of the records replayed to it."""
    is_population = coordinator.sweep.spec.scheduler.name == "pbt"
    return RecordedPopulation(coordinator) if is_population else RecordedScheduler(coordinator)


def _rule_of(coordinator: TrialCoordinator) -> Any:
    spec, sweep = coordinator.sweep.spec.scheduler, coordinator.sweep
    if spec.name in ("asha", "hyperband"):
        return ASHAScheduler(
            **_ATTRIBUTES,
            max_t=sweep.steps,
            grace_period=grace_steps(sweep),
            reduction_factor=spec.factor,
            brackets=spec.brackets if spec.name == "hyperband" else 1,
            stop_last_trials=False,
        )
    if spec.name == "median":
        return median_rule(**_ATTRIBUTES, grace_period=grace_steps(sweep), min_samples_required=spec.min_trials)
    return None


def _last_line(trial: Any) -> str:
    error = trial.get_pickled_error() or trial.get_error()
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[-300:] if lines else "no reason given"
