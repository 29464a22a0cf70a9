"""What the driver does with the nodes' snapshots where there are no workers: save the newest, then free all."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
import ray.train

from data.errors import MantaError
from orchestrator.console import Console
from orchestrator.run.progress import Progress
from orchestrator.workers.failure_causes import single_line

LAST_SAVE_S = 60.0
"""Seconds that a last save of what the nodes hold may take, where there are no workers to do it."""

FREE_S = 5.0
"""Seconds that nodes may take to free their memory at the end; those that are gone never answer."""

ACTOR_TIMEOUT_S = 60.0
"""Seconds an actor on the driver's own node may take to answer."""


def save_last_state(monitor: Any, progress: Progress, console: Console) -> None:
    """Save the newest state that a node holds, where there are no workers that could; as far as that can be done."""
    if progress.restored_step is None:
        return
    agents = ray.get(monitor.agents.remote(), timeout=ACTOR_TIMEOUT_S)
    found = []
    for agent in agents.values():
        with suppress(ray.exceptions.RayError):
            found.append((ray.get(agent.newest.remote(), timeout=ACTOR_TIMEOUT_S)[0], agent))
    step, agent = max(found, key=lambda each: each[0], default=(-1, monitor))
    if step <= progress.restored_step:
        return
    try:
        ray.get(agent.save.remote(step), timeout=LAST_SAVE_S)
        console.line(f"step {step}: saved from a node's memory.")
    except (MantaError, ray.exceptions.RayError) as error:
        console.line(f"step {step}: could not be saved from a node's memory: {single_line(error)[-300:]}")


def free_memory(monitor: Any) -> None:
    """Have every node let go of its snapshots: no later attempt goes on from them."""
    with suppress(ray.exceptions.RayError):
        agents = ray.get(monitor.agents.remote(), timeout=FREE_S).values()
        freeing = [agent.free.remote() for agent in agents]
        ray.wait(freeing, num_returns=len(freeing), timeout=FREE_S)
