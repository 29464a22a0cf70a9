"""Ray Tune's internals that `orchestrator.sweep.tune_internals` uses: an upgrade of Ray that lacks them fails here."""

import inspect
from types import SimpleNamespace

import pytest
from ray.train import Checkpoint
from ray.tune.experiment import Trial

from orchestrator.sweep.tune_internals import HEAD_NODE, pass_on_no_secrets, population

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]


def test_tune_has_what_population_based_training_and_the_median_rule_are_changed_in() -> None:
    from ray.tune.schedulers import MedianStoppingRule, PopulationBasedTraining
    from ray.tune.schedulers.pbt import _PBTTrialState

    assert list(inspect.signature(PopulationBasedTraining._get_new_config).parameters) == [
        "self",
        "trial",
        "trial_to_clone",
    ]
    assert list(inspect.signature(MedianStoppingRule._on_insufficient_samples).parameters) == [
        "self",
        "tune_controller",
        "trial",
        "time",
    ]
    state = _PBTTrialState(SimpleNamespace(experiment_tag=""))
    for name in ("last_score", "last_train_time", "last_perturbation_time"):
        assert hasattr(state, name)


def test_a_trial_that_was_ahead_of_all_others_is_a_donor_for_them() -> None:
    """Tune saves no checkpoint of a trial that had nobody to be compared with, and so never copied from it."""
    trials = {name: Trial("manta", stub=True, trial_id=name) for name in ("ahead", "behind")}
    controller = SimpleNamespace(
        get_trials=lambda: list(trials.values()),
        pause_trial=lambda trial, should_checkpoint: paused.append(trial.trial_id),
        _schedule_trial_save=lambda trial, result: Checkpoint("/nowhere"),
    )
    paused: list[str] = []
    pairs: list[tuple[str, str]] = []

    def new_config(trial: Trial, donor: Trial) -> dict[str, object]:
        pairs.append((trial.trial_id, donor.trial_id))
        return {}

    scheduler = population(new_config, time_attr="step", metric="loss", mode="min", perturbation_interval=20)
    for trial in trials.values():
        trial.set_status(Trial.RUNNING)
        scheduler.on_trial_add(controller, trial)
    for name, step, loss in (("ahead", 20, 3.0), ("ahead", 40, 2.0), ("behind", 20, 5.0)):
        scheduler.on_trial_result(controller, trials[name], {"step": step, "loss": loss})
    assert pairs == [("behind", "ahead")] and paused == ["behind"]


def test_the_head_node_has_a_resource_of_its_own() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert HEAD_NODE == HEAD_NODE_RESOURCE_NAME


def test_tunes_actors_get_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution import class_cache as cache

    monkeypatch.setattr(cache, "ENV_VARS_TO_PROPAGATE", set(cache.ENV_VARS_TO_PROPAGATE))
    assert "AWS_SECRET_ACCESS_KEY" in cache.ENV_VARS_TO_PROPAGATE, "Ray has changed; see pass_on_no_secrets"
    pass_on_no_secrets()
    assert not any(name.startswith("AWS_") for name in cache.ENV_VARS_TO_PROPAGATE)
    assert cache.ENV_VARS_TO_PROPAGATE
