"""Ray Tune's internals that `orchestrator.sweep.tune_internals` uses: an upgrade of Ray that lacks them fails here."""

import inspect
from types import SimpleNamespace

import pytest

from orchestrator.sweep.tune_internals import HEAD_NODE

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


def test_the_head_node_has_a_resource_of_its_own() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert HEAD_NODE == HEAD_NODE_RESOURCE_NAME
