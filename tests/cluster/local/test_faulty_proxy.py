"""The proxy forwards connections, and fails as configured; a real server behind it checks every signature."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from cluster.local.faulty_proxy import FaultyProxy
from data.config import StoreConfig
from data.errors import DiskFullError, TransientStoreError
from data.stores.open import open_store
from data.stores.store import Store

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(s3_store_config: StoreConfig) -> Iterator[FaultyProxy]:
    assert s3_store_config.endpoint_url is not None
    with FaultyProxy(s3_store_config.endpoint_url, seed=3) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy, s3_store_config: StoreConfig, s3_bucket: str) -> Store:
    config = s3_store_config.model_copy(update={"endpoint_url": proxy.endpoint_url})
    return open_store(f"s3://{s3_bucket}/through", config)


def test_left_alone_it_changes_nothing(store: Store) -> None:
    content = bytes(range(256)) * 20_000
    store.put("large", content)
    assert store.get("large") == content
    assert [info.key for info in store.list("")] == ["large"]


def test_requests_that_fail_now_and_then_are_got_over(proxy: FaultyProxy, store: Store) -> None:
    store.put("key", b"value")
    proxy.failing = 0.2
    assert [store.get("key") for _ in range(20)] == [b"value"] * 20


def test_requests_that_all_fail_are_an_error_of_the_store_and_then_it_is_back(proxy: FaultyProxy, store: Store) -> None:
    store.put("key", b"value")
    proxy.failing = 1.0
    with pytest.raises(TransientStoreError):
        store.get("key")
    proxy.failing = 0.0
    assert store.get("key") == b"value"


def test_a_full_store_takes_nothing_and_gives_and_deletes_what_it_has(proxy: FaultyProxy, store: Store) -> None:
    for key in ("one", "two"):
        store.put(key, b"value")
    proxy.full = True
    with pytest.raises(DiskFullError, match="507"):
        store.put("three", b"value")
    assert store.get("two") == b"value"
    assert store.delete_prefix("one") == 1
    proxy.full = False
    store.put("three", b"value")
    assert [info.key for info in store.list("")] == ["three", "two"]


class CuttingProxy(FaultyProxy):
    """Passes on the head of a PUT, and cuts the connection before its body."""

    async def _requests(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        request = await reader.read(64 << 10)
        upstream.write(request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        await upstream.drain()
        upstream.close()
        client.close()


def test_a_put_that_is_cut_off_leaves_what_was_there(s3_store_config: StoreConfig, s3_bucket: str) -> None:
    direct = open_store(f"s3://{s3_bucket}/cut", s3_store_config)
    direct.put("key", b"before")
    assert s3_store_config.endpoint_url is not None
    with CuttingProxy(s3_store_config.endpoint_url) as proxy:
        config = s3_store_config.model_copy(update={"endpoint_url": proxy.endpoint_url})
        with pytest.raises(TransientStoreError):
            open_store(f"s3://{s3_bucket}/cut", config).put("key", b"a longer content")
    assert direct.get("key") == b"before"


def test_answers_come_late(proxy: FaultyProxy, store: Store) -> None:
    store.put("key", b"value")
    proxy.delay_s = 0.3
    began = time.monotonic()
    assert store.get("key") == b"value"
    assert time.monotonic() - began >= 0.3
