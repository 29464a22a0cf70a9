"""Reading units rides through a store that fails for a while: every unit once, and in order."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.s3 import LocalS3
from data.config import DataConfig, StoreConfig
from data.errors import TransientStoreError
from data.shards.build import build_manifest
from data.shards.manifest import Manifest
from data.stores import patience as patience_module
from data.stores.local import LocalStore
from data.stores.open import open_store
from data.stores.patience import Outage
from data.stores.store import Store
from data.tokens.pipeline import ReadAhead, tokenized_units, tokenized_units_in_chunks
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, load_or_tokenize
from tests.recipes import write_text
from tests.waiting import WAIT_S, wait_until

UNITS = 6


class Failing(LocalStore):
    """A store whose reads fail while `failures`, a list of whether each next one fails, says so."""

    def __init__(self, root: str, failures: list[bool]) -> None:
        super().__init__(root)
        self._failures, self._lock = failures, threading.Lock()

    def get(self, key: str) -> bytes:
        with self._lock:
            fails = self._failures.pop(0) if self._failures else False
        if fails:
            raise TransientStoreError("The store is busy.")
        return super().get(key)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "FIRST_WAIT_S", 0.01)


def prepared(folder: Path, cache: Store, store_config: StoreConfig) -> tuple[Manifest, TokenizeJob]:
    """Units that are tokenized already."""
    source = {"path": str(write_text(folder / "text", documents=UNITS, words=40))}
    config = DataConfig.model_validate({"sources": [source], "validation_fraction": 0})
    job = TokenizeJob(config, store_config, Tokenizer("bytes", [bytes([value]) for value in range(256)]), cache)
    manifest = build_manifest(config.sources, store_config)
    for ordinal in range(UNITS):
        load_or_tokenize(manifest.unit(ordinal), job)
    return manifest, job


@pytest.fixture
def told() -> list[Outage | None]:
    return []


@pytest.mark.parametrize(
    "failures",
    [[True], [False, False, True], [True] * UNITS * 3, [False, True] * UNITS],
    ids=["at once", "in the middle", "again and again", "every other time"],
)
class TestAStoreThatFails:
    def test_every_unit_is_yielded_once_and_in_order(
        self, failures: list[bool], tmp_path: Path, told: list[Outage | None]
    ) -> None:
        cache = LocalStore(str(tmp_path / "cache"))
        manifest, job = prepared(tmp_path, cache, StoreConfig(patience=3600))
        failing = replace(job, cache=Failing(cache.root, list(failures)))
        tables = list(tokenized_units_in_chunks(manifest, failing, ["train"], tell=told.append))
        assert [table["ordinal"][0].as_py() for table in tables] == list(range(UNITS))
        assert any(told) and told[-1] is None

    def test_reading_ahead_goes_on(self, failures: list[bool], tmp_path: Path, told: list[Outage | None]) -> None:
        cache = LocalStore(str(tmp_path / "cache"))
        manifest, job = prepared(tmp_path, cache, StoreConfig(patience=3600))
        expected = [load_or_tokenize(manifest.unit(ordinal), job)["train"][0].as_py() for ordinal in range(UNITS)]
        ahead = ReadAhead(manifest, replace(job, cache=Failing(cache.root, list(failures))), tell=told.append)
        ahead.request(range(UNITS))
        assert [ahead.stream(ordinal).tokens.tobytes() for ordinal in range(UNITS)] == expected
        ahead.close()
        assert any(told) and told[-1] is None


def test_what_was_read_before_the_failure_is_not_read_again(tmp_path: Path) -> None:
    """Otherwise a store that fails now and then would never let many units through."""
    cache = LocalStore(str(tmp_path / "cache"))
    manifest, job = prepared(tmp_path, cache, StoreConfig(patience=3600))
    lost = job.cache_key(manifest.unit(3))

    class Losing(LocalStore):
        def get(self, key: str) -> bytes:
            if key == lost:
                raise TransientStoreError("The store is busy.")
            return super().get(key)

    units = [manifest.unit(ordinal) for ordinal in range(UNITS)]
    tables = tokenized_units(units, replace(job, cache=Losing(cache.root)), ["train"])
    assert [next(tables)["ordinal"][0].as_py() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TransientStoreError, match="busy"):
        next(tables)


def test_readers_of_one_process_share_what_they_have_read(tmp_path: Path) -> None:
    manifest, job = prepared(tmp_path, LocalStore(str(tmp_path / "cache")), StoreConfig(patience=0))
    first = ReadAhead(manifest, job)
    streams = [first.stream(ordinal) for ordinal in range(UNITS)]
    second = ReadAhead(manifest, replace(job, cache=Failing(job.cache.root, [True] * UNITS)))
    assert all(second.stream(ordinal) is streams[ordinal] for ordinal in range(UNITS)), "the store is not asked"
    first.close()
    second.close()
    alone = [weakref.ref(stream) for stream in streams]
    del streams, first, second
    wait_until(lambda: gc.collect() >= 0 and not any(stream() for stream in alone), "nobody keeps them")


def test_without_patience_the_reader_learns_of_the_failure(tmp_path: Path) -> None:
    cache = LocalStore(str(tmp_path / "cache"))
    manifest, job = prepared(tmp_path, cache, StoreConfig(patience=0))
    job = replace(job, cache=Failing(cache.root, [True]))
    with pytest.raises(TransientStoreError, match="busy"):
        list(tokenized_units_in_chunks(manifest, job, ["train"]))
    ahead = ReadAhead(manifest, replace(job, cache=Failing(cache.root, [True])))
    with pytest.raises(TransientStoreError, match="busy"):
        ahead.stream(0)


def test_a_reader_that_waits_for_the_store_can_be_closed(
    tmp_path: Path, told: list[Outage | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "FIRST_WAIT_S", 1e6)
    monkeypatch.setattr(patience_module, "LONGEST_WAIT_S", 1e6)
    cache = LocalStore(str(tmp_path / "cache"))
    manifest, job = prepared(tmp_path, cache, StoreConfig(patience=1e9))
    before = set(threading.enumerate())
    ahead = ReadAhead(manifest, replace(job, cache=Failing(cache.root, [True] * 1000)), tell=told.append)
    ahead.request([0])
    wait_until(lambda: told, "the store fails")
    [reader] = [thread for thread in set(threading.enumerate()) - before if thread.name == "read-ahead"]
    ahead.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.mark.s3
def test_a_store_that_is_cut_off_and_comes_back(
    proxy: FaultyProxy, s3_store_config: StoreConfig, s3_bucket: str, tmp_path: Path, told: list[Outage | None]
) -> None:
    config = s3_store_config.model_copy(update={"endpoint_url": proxy.endpoint_url, "patience": 3600.0})
    manifest, job = prepared(tmp_path, open_store(f"s3://{s3_bucket}/cache", config), config)
    ahead = ReadAhead(manifest, job, tell=told.append)
    first = ahead.stream(0)
    proxy.cut()
    ahead.request(range(UNITS))
    wait_until(lambda: any(told), "the store fails")
    assert ahead.stream(0) is first, "what has been read stays there"
    proxy.mend()
    assert [ahead.stream(ordinal).tokens.tobytes() for ordinal in range(UNITS)] == [
        load_or_tokenize(manifest.unit(ordinal), job)["train"][0].as_py() for ordinal in range(UNITS)
    ]
    ahead.close()
    assert told[-1] is None
