"""Ray Tune's internals that `orchestrator.sweep.tune.internals` uses: an upgrade of Ray that lacks them fails here."""

import inspect

import pytest

from orchestrator.sweep.tune.internals import HEAD_NODE, pass_on_no_secrets

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]


def test_tune_has_what_the_median_rule_is_changed_in() -> None:
    from ray.tune.schedulers import MedianStoppingRule

    assert list(inspect.signature(MedianStoppingRule._on_insufficient_samples).parameters) == [
        "self",
        "tune_controller",
        "trial",
        "time",
    ]


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
