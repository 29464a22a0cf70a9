"""What keeps a recipe from running on a cluster is said before anything starts."""

from __future__ import annotations

import pytest

from orchestrator.config.load import config_from
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.errors import RecipeError
from tests.recipes import tiny_recipe

KEYS = {"access_key_id": "planted-access-key", "secret_access_key": "planted-secret-key"}


def test_keys_that_the_nodes_of_a_joined_cluster_would_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from(tiny_recipe(storage="s3://bucket/runs", store=KEYS), "here")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refuse_keys_for_nodes(config)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(RecipeError) as raised:
        refuse_keys_for_nodes(config)
    said = str(raised.value)
    assert "store.secret_access_key" in said and "RAY_ADDRESS=10.0.0.1:6379" in said and "identity" in said
    assert "planted" not in said
    refuse_keys_for_nodes(config_from(tiny_recipe(storage="s3://bucket/runs"), "here"))
