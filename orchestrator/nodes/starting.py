"""Nodes that an autoscaler is starting, as far as Ray knows, in the process of Ray Train's controller."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

import ray

from cluster.autoscaler_state import read_autoscaler_state, workers_per_node
from cluster.node_environment import group_limits

READ_INTERVAL_S, READ_TIMEOUT_S = 5.0, 1
"""Seconds between two reads of the autoscaler's state, and for one of them."""


class StartingNodes:
    """Counts the workers that will fit on nodes that are starting.

    Args:
        per_worker: resources of a worker.
    """

    def __init__(self, per_worker: Mapping[str, float]) -> None:
        self._per_worker = dict(per_worker)
        self._slots, self._read_at = 0, -READ_INTERVAL_S

    def slots(self) -> int:
        """The number, at most `READ_INTERVAL_S` old; 0 where it is not known."""
        if time.monotonic() - self._read_at >= READ_INTERVAL_S:
            self._slots, self._read_at = 0, time.monotonic()
            with suppress(Exception):  # the controller would not survive it
                state = read_autoscaler_state(ray.get_runtime_context().gcs_address, READ_TIMEOUT_S)
                fitting = {group.name: workers_per_node(group, self._per_worker) for group in group_limits()}
                self._slots = sum(len(nodes) * fitting.get(group, 0) for group, nodes in state.starting.items())
        return self._slots
