"""The parts of Ray Tune that are not public API. `tests/orchestrator/sweep/test_tune_internals.py` checks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.execution import class_cache
from ray.tune.schedulers import MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pbt import _PBTTrialState

from cluster.known_secrets import looks_secret

HEAD_NODE = "node:__internal_head__"
"""Resource that only the head node has, with amount 1; equals `HEAD_NODE_RESOURCE_NAME` of Ray's constants."""


def pass_on_no_secrets() -> None:
    """Keeps AWS keys out of the runtime environment of Tune's actors, which Ray's state API shows to every client."""
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in passed_on if not looks_secret(name)}


def median_rule(**arguments: Any) -> Any:
    """Tune's median rule without pauses, since a paused trial would lose its state."""

    class UnpausedRule(MedianStoppingRule):
        def _on_insufficient_samples(self, *_: Any) -> str:
            return str(TrialScheduler.CONTINUE)

    return UnpausedRule(**arguments)


def population(new_config: Callable[[Any, Any], dict[str, Any]], **arguments: Any) -> Any:
    """Tune's population-based training for trials that come from a searcher.

    Tune refuses all searchers, since one that learns would be misled. Ours starts all trials at once and never learns.
    A trial's state may be taken from its last report on, also where the others were too far behind to compare it then.

    Args:
        new_config: takes a trial and its donor, and returns the config with which the trial continues from the donor's
            state. Tune's own hook does not get the trial.

    Returns:
        The scheduler. Its method `restore_trial(trial, step, score)` sets the progress of a continued trial.
    """

    class Population(PopulationBasedTraining):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._trial_state[trial] = _PBTTrialState(trial)

        def restore_trial(self, trial: Any, step: int, score: float) -> None:
            state = self._trial_state[trial]
            state.last_score, state.last_train_time, state.last_perturbation_time = score, step, step

        def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, upper: list[Any], lower: list[Any]) -> None:
            # Tune copies from no trial that was alone or in the middle at its last report. Ours all have a checkpoint.
            super()._checkpoint_or_exploit(trial, tune_controller, upper if trial in lower else [*upper, trial], lower)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return new_config(trial, trial_to_clone), {}

    return Population(custom_explore_fn=lambda config: config, log_config=False, require_attrs=False, **arguments)
