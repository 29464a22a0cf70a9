"""Keys are where the processes need them, and in nothing that is passed on."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from data.errors import StoreAccessError
from data.stores.s3_access import S3Access
from orchestrator.config.load import config_from
from orchestrator.run.run import reaching_storage
from tests.recipes import tiny_recipe

KEYS = {"access_key_id": "planted-access-key", "secret_access_key": "planted-secret-key"}


def test_a_recipes_keys_become_variables_for_as_long_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    config = config_from(tiny_recipe(storage="s3://bucket/runs", store=KEYS), "here")
    with reaching_storage(config) as reached:
        for passed_on in (pickle.dumps(reached), json.dumps(reached.model_dump(mode="json")).encode()):
            assert not any(key.encode() in passed_on for key in KEYS.values())
        assert os.environ["AWS_ACCESS_KEY_ID"] == "planted-access-key"
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "planted-secret-key"
        assert "AWS_SESSION_TOKEN" not in os.environ
    assert os.environ["AWS_SESSION_TOKEN"] == "of-other-keys" and os.environ["AWS_SECRET_ACCESS_KEY"] == "another"
    assert "AWS_ACCESS_KEY_ID" not in os.environ


def test_half_a_pair_is_refused() -> None:
    config = config_from(tiny_recipe(storage="s3://bucket/runs", store={"access_key_id": "planted-access-key"}), "here")
    with pytest.raises(StoreAccessError, match="go together"), reaching_storage(config):
        pass


def test_a_server_of_another_machine_is_told_of(tmp_path: Path) -> None:
    config = config_from(tiny_recipe(storage="s3://bucket/runs", store={"serve": str(tmp_path / "none")}), "here")
    with pytest.raises(StoreAccessError, match="serves its own machine only"):
        S3Access.of(config.store)
