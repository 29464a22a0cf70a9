"""Shared by the data tests marked ray: one small cluster a module."""

from collections.abc import Iterator

import pytest


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
    ray.shutdown()
