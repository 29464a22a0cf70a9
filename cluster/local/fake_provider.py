"""What Ray's autoscaler asks for nodes on this machine: Ray's own provider of "fake" ones, which are real raylets."""

from __future__ import annotations

from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodeProvider(FakeMultiNodeProvider):
    """Gives every node a folder of its own for what jobs bring along.

    Nodes of one cluster on one machine share the session's folder. Whenever one of them is to have a job's working
    directory, Ray removes what is there and unpacks it anew, from under the feet of the other nodes' workers.
    """

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        default = ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME
        ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"{default}_{self._next_node_id + 1}"
        try:
            super()._create_node_with_resources_and_labels(*args)  # type: ignore[no-untyped-call]
        finally:
            ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = default
