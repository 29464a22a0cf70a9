"""Node provider of the local autoscaled cluster: Ray's own provider of "fake" nodes, which are real raylets.

A module of its own, because Ray's autoscaler imports it by name, in its own process.
"""

from __future__ import annotations

from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodeProvider(FakeMultiNodeProvider):
    """Gives every node its own folder for the working directories of jobs.

    Nodes of one cluster on one machine share the session's folder. Whenever one of them needs a job's working
    directory, Ray deletes the existing one and unpacks it again, while workers of the other nodes are using it.
    """

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        default = ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME
        ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"{default}_{self._next_node_id + 1}"
        try:
            super()._create_node_with_resources_and_labels(*args)  # type: ignore[no-untyped-call]
        finally:
            ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = default
