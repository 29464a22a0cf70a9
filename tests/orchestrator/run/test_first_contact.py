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
from orchestrator.run.first_contact import reach_storage
from tests.recipes import tiny_recipe
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def _new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which no storage is known."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def proxy(s3_store_config: StoreConfig) -> Iterator[FaultyProxy]:
    assert s3_store_config.endpoint_url is not None
    with FaultyProxy(s3_store_config.endpoint_url, 1) as proxy:
        yield proxy


@pytest.fixture
def config(proxy: FaultyProxy, s3_store_config: StoreConfig, s3_bucket: str) -> RunConfig:
    store = s3_store_config.model_copy(update={"endpoint_url": proxy.endpoint_url, "timeout_s": 1})
    recipe = RunConfig.model_validate(tiny_recipe(storage=f"s3://{s3_bucket}/manta"))
    return recipe.model_copy(update={"store": store})


def reach(config: RunConfig, log: Any = print) -> None:
    reach_storage(open_store(config.storage, config.store), config, log)


def test_silence_is_an_error_if_it_has_never_answered(config: RunConfig, proxy: FaultyProxy) -> None:
    proxy.cut()
    with pytest.raises(StoreSilentError, match=r"store\.endpoint_url"):
        reach(config)


@pytest.mark.parametrize("silence", ["refused", "no answer"])
def test_a_known_one_is_waited_for(
    silence: str, config: RunConfig, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "FIRST_WAIT_S", 0.01)
    reach(config)
    if silence == "refused":
        proxy.cut()
    else:
        proxy.delay_s = 3600.0
    told: list[str] = []
    waiting = threading.Thread(target=reach, args=(config, told.append), daemon=True)
    waiting.start()
    wait_until(lambda: told, "a line about the outage")
    proxy.delay_s = 0.0
    proxy.mend()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert told[0].startswith("starting: ") and "the store answers again" in told[-1]


def test_a_bucket_that_is_missing_is_an_error_for_a_known_one_too(config: RunConfig) -> None:
    reach(config)
    with pytest.raises(StoreAccessError, match="no-such-bucket"):
        reach(config.model_copy(update={"storage": "s3://no-such-bucket/manta"}))


def test_another_endpoint_is_not_known(config: RunConfig) -> None:
    reach(config)
    store = config.store.model_copy(update={"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StoreSilentError):
        reach(config.model_copy(update={"store": store}))


def test_a_folder_that_cannot_be_written_prevents_nothing(config: RunConfig) -> None:
    Path(".manta").write_text("a file in the folder's place")
    reach(config)
