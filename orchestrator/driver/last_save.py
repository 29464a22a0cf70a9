"""The nodes' snapshots at the end of an attempt: the driver saves the newest if no worker can, and frees all.

What cannot be saved stays in the nodes' memory, where the next attempt finds it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

from cluster.ray_nodes import root_cause
from data.errors import MantaError, TransientStoreError
from orchestrator.console import Console
from orchestrator.errors import FencedError
from orchestrator.run.progress import Progress
from orchestrator.workers.failure_causes import single_line

LAST_SAVE_S = 60.0
"""Seconds that the last save of a node's snapshot may take."""

FREE_S = 5.0
"""Seconds that nodes may take to free their memory at the end; lost nodes never answer."""

ACTOR_TIMEOUT_S = 60.0
"""Seconds an actor on the driver's own node may take to answer."""


def save_last_state(monitor: Any, progress: Progress, console: Console) -> bool:
    """Saves the newest snapshot in a node's memory, if it is newer than the checkpoint that was restored.

    Called where no worker can do it. A save that fails is logged, not raised.

    Returns:
        whether the newest state, as far as it still exists, is in the store.
    """
    try:
        agents = ray.get(monitor.agents.remote(), timeout=ACTOR_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        console.line(f"the newest state could not be saved, as the monitor is gone: {single_line(error)[-300:]}")
        return False
    snapshots = []
    for agent in agents.values():
        with suppress(ray.exceptions.RayError):
            snapshots.append((ray.get(agent.newest.remote(), timeout=ACTOR_TIMEOUT_S)[0], agent))
    step, agent = max(snapshots, key=lambda each: each[0], default=(-1, monitor))
    if step <= (progress.restored_step or 0):
        return True
    if progress.restored_step is None:  # adopted from an earlier attempt, and not used yet
        return False
    try:
        ray.get(agent.save.remote(step), timeout=LAST_SAVE_S)
        console.line(f"step {step}: saved from a node's memory.")
        return True
    except (MantaError, ray.exceptions.RayError) as error:
        said = single_line(root_cause(error, MantaError) or error)
        console.line(f"step {step}: could not be saved from a node's memory: {said[-300:]}")
        return False


def is_needed_later(error: BaseException, progress: Progress, *, is_saved: bool) -> bool:
    """Whether the nodes' memory may have a newer state than the store, because the store failed.

    Args:
        error: that ended the attempt.
        progress: the newest that is known.
        is_saved: see `save_last_state`; True where it was not called.
    """
    if root_cause(error, FencedError) is not None:
        return False
    if isinstance(error, KeyboardInterrupt):  # asked for twice, and not waited for
        return not is_saved or any(outage["until"] is None for outage in progress.outages)
    return not is_saved or root_cause(error, TransientStoreError) is not None


def free_memory(monitor: Any) -> None:
    """Frees the snapshots in the memory of all nodes; later attempts cannot restore from them."""
    with suppress(ray.exceptions.RayError):
        agents = ray.get(monitor.agents.remote(), timeout=FREE_S).values()
        freeing = [agent.free.remote() for agent in agents]
        ray.wait(freeing, num_returns=len(freeing), timeout=FREE_S)
