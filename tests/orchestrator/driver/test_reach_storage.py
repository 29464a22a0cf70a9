"""First contact with a run's storage: a wrong endpoint is an error at once, and one that is only away is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local.faulty_proxy import FaultyProxy
from data.errors import StoreAccessError, StoreSilentError
from data.stores import patience as patience_module
from data.stores.config import StoreConfig
from data.stores.open import open_store
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import is_remembered, remember_recipe
from orchestrator.config.result_fields import resolved
from orchestrator.driver.train import reach_storage
from tests.recipes import tiny_recipe
from tests.waiting import WAIT_S, wait_until


def config_of(**overrides: Any) -> RunConfig:
    return RunConfig.model_validate(tiny_recipe(**overrides))


@pytest.mark.s3
class TestAStoreThatIsAway:
    @pytest.fixture
    def proxy(self, s3_store_config: StoreConfig) -> Iterator[FaultyProxy]:
        """A proxy that is cut."""
        assert s3_store_config.endpoint_url is not None
        with FaultyProxy(s3_store_config.endpoint_url, 1) as proxy:
            proxy.cut()
            yield proxy

    @pytest.fixture
    def config(self, proxy: FaultyProxy, s3_store_config: StoreConfig, s3_bucket: str) -> RunConfig:
        store = s3_store_config.model_copy(update={"endpoint_url": proxy.endpoint_url, "timeout_s": 1})
        return config_of(storage=f"s3://{s3_bucket}/manta").model_copy(update={"store": store})

    def test_it_is_an_error_if_it_has_never_answered(self, config: RunConfig) -> None:
        with pytest.raises(StoreSilentError, match=r"Check that store\.endpoint_url is an S3 endpoint and is up"):
            reach_storage(open_store(config.storage, config.store), config, is_known=False, log=print)

    def test_a_known_one_is_waited_for(
        self, config: RunConfig, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patience_module, "FIRST_WAIT_S", 0.01)
        told: list[str] = []
        root = open_store(config.storage, config.store)
        waiting = threading.Thread(
            target=reach_storage, args=(root, config), kwargs={"is_known": True, "log": told.append}, daemon=True
        )
        waiting.start()
        wait_until(lambda: told, "a line about the outage")
        proxy.mend()
        waiting.join(WAIT_S)
        assert not waiting.is_alive()
        assert told[0].startswith("starting: ") and "the store answers again" in told[-1]

    def test_a_bucket_that_is_missing_is_an_error_for_a_known_one_too(
        self, config: RunConfig, proxy: FaultyProxy
    ) -> None:
        proxy.mend()
        with pytest.raises(StoreAccessError, match="no-such-bucket"):
            reach_storage(open_store("s3://no-such-bucket/x", config.store), config, is_known=True, log=print)


@pytest.mark.parametrize(
    ("other", "known"),
    [
        ({}, True),
        ({"train.lr": 1.0}, True),
        ({"storage": "s3://another/place"}, False),
        ({"store.endpoint_url": "http://127.0.0.1:1"}, False),
        ({"run": "another"}, False),
    ],
)
def test_a_storage_is_known_to_the_run_that_was_started_with_it(
    other: dict[str, Any], known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = config_of(storage="s3://bucket/manta")
    assert not is_remembered(first.run, resolved(first))
    remember_recipe(first.run, resolved(first))
    config = config_of(**{"storage": "s3://bucket/manta", **other})
    assert is_remembered(config.run, resolved(config)) == known
