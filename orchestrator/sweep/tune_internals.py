"""What of Ray Tune is not public API; `tests/orchestrator/sweep/test_tune_internals.py` holds Ray to it by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD_NODE = "node:__internal_head__"
"""Resource of which the head node has 1, and no other node any; equals `HEAD_NODE_RESOURCE_NAME` of Ray's constants."""


def median_rule(**arguments: Any) -> Any:
    """Tune's median rule without its pauses: after one there would be nothing to go on from."""
    from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

    class UnpausedRule(MedianStoppingRule):
        def _on_insufficient_samples(self, *_: Any) -> str:
            return str(TrialScheduler.CONTINUE)

    return UnpausedRule(**arguments)


def population(new_config: Callable[[Any, Any], dict[str, Any]], **arguments: Any) -> Any:
    """Tune's population-based training for trials that a searcher made.

    Tune refuses any searcher, as one that learns would be misled; one that begins all trials at once does not.

    Args:
        new_config: given a trial and its donor, the config with which the trial goes on from the donor's state. What
            Tune passes to its own hook does not tell for which trial it is.

    Returns:
        the scheduler; its method `know(trial, step, score)` tells it where a trial stood that goes on.
    """
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pbt import _PBTTrialState

    class Population(PopulationBasedTraining):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._trial_state[trial] = _PBTTrialState(trial)

        def know(self, trial: Any, step: int, score: float) -> None:
            state = self._trial_state[trial]
            state.last_score, state.last_train_time, state.last_perturbation_time = score, step, step

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return new_config(trial, trial_to_clone), {}

    return Population(custom_explore_fn=lambda config: config, log_config=False, require_attrs=False, **arguments)
