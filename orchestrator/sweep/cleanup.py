"""What a trial that was not ended in order may leave behind on nodes: snapshots in their memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import ray

from data.ray_internals import on_node
from orchestrator.node_memory import forget

TIMEOUT_S = 10.0
"""Seconds that nodes may take; those that are gone never answer."""


def free_node_memory(run_urls: Sequence[str]) -> None:
    """Have every node let go of the snapshots of these runs, none of which is being trained."""
    if not run_urls:
        return
    task = ray.remote(num_cpus=0)(forget)
    tasks = [
        task.options(**on_node(node["NodeID"])).remote(list(run_urls))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    with suppress(ray.exceptions.RayError):
        ray.wait(tasks, num_returns=len(tasks), timeout=TIMEOUT_S)
