"""The nodes' snapshots at the end of an attempt: the driver saves the newest if no worker can, and frees all."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

from data.errors import MantaError
from orchestrator.console import Console
from orchestrator.run.progress import Progress
from orchestrator.workers.failure_causes import single_line

LAST_SAVE_S = 60.0
"""Seconds that the last save of a node's snapshot may take."""

FREE_S = 5.0
"""Seconds that nodes may take to free their memory at the end; lost nodes never answer."""

ACTOR_TIMEOUT_S = 60.0
"""Seconds an actor on the driver's own node may take to answer."""


def save_last_state(monitor: Any, progress: Progress, console: Console) -> None:
    """Saves the newest snapshot in a node's memory, if it is newer than the checkpoint that was restored.

    Called where no worker can do it. A save that fails is logged, not raised.
    """
    if progress.restored_step is None:
        return
    agents = ray.get(monitor.agents.remote(), timeout=ACTOR_TIMEOUT_S)
    snapshots = []
    for agent in agents.values():
        with suppress(ray.exceptions.RayError):
            snapshots.append((ray.get(agent.newest.remote(), timeout=ACTOR_TIMEOUT_S)[0], agent))
    step, agent = max(snapshots, key=lambda each: each[0], default=(-1, monitor))
    if step <= progress.restored_step:
        return
    try:
        ray.get(agent.save.remote(step), timeout=LAST_SAVE_S)
        console.line(f"step {step}: saved from a node's memory.")
    except (MantaError, ray.exceptions.RayError) as error:
        console.line(f"step {step}: could not be saved from a node's memory: {single_line(error)[-300:]}")


def free_memory(monitor: Any) -> None:
    """Frees the snapshots in the memory of all nodes; later attempts cannot restore from them."""
    with suppress(ray.exceptions.RayError):
        agents = ray.get(monitor.agents.remote(), timeout=FREE_S).values()
        freeing = [agent.free.remote() for agent in agents]
        ray.wait(freeing, num_returns=len(freeing), timeout=FREE_S)
