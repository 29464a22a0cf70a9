"""Shared by all tests: a real S3 server, for those marked s3."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator

import pytest
from hypothesis import settings

from cluster.local.ray import shut_down
from cluster.local.s3 import LocalS3
from data.config import StoreConfig

_numbers = itertools.count(1)

# How long an example takes says nothing on a busy machine.
settings.register_profile("manta", deadline=None, max_examples=40)
settings.load_profile("manta")

# Ray reads its token once in a process, and a cluster that is started here has one of its own.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)

# transformers, against which exported models are held, must never look for anything outside of this machine.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A server on free ports, with keys that it checks; it lives as long as the test session."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_store_config(s3_server: LocalS3) -> StoreConfig:
    """How to reach it."""
    return StoreConfig(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
    )


@pytest.fixture
def s3_bucket(s3_server: LocalS3) -> str:
    """The name of an empty bucket on it."""
    name = f"bucket-{next(_numbers)}"
    s3_server.ensure_bucket(name)
    return name


@pytest.fixture(scope="module")
def ray_cluster_small() -> Iterator[None]:
    """A cluster of one node and four logical CPUs inside this process's session."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=256 << 20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    shut_down()
