"""Where a worker group goes on from: the newest state in the memory of its nodes, or the newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import nn

from model.optim.weight_average import WeightAverage
from orchestrator.run.job import TrainJob
from orchestrator.run.state import RunState
from orchestrator.snapshots.agent import Origin
from orchestrator.snapshots.store import NodeMemory
from orchestrator.snapshots.tensors import load_state, load_weights, state_bytes


@dataclass(frozen=True)
class Node:
    """The node this rank is on.

    Attributes:
        memory: where its workers keep their state.
        agent: handle of its `SnapshotAgent`.
        is_first: whether this rank is the lowest on it: the one that writes and receives snapshots.
        nodes: id of the node of every rank.
    """

    node_id: str
    memory: NodeMemory
    agent: Any
    is_first: bool
    nodes: list[str]


def join_node(job: TrainJob, node_id: str, model: nn.Module) -> Node:
    """Have this node's agent at hand, made now where there is none; called by every rank."""
    agent = ray.get(job.monitor.agent_of.remote(node_id, job))
    # Ray Train's local rank goes by address, and a machine may hold several nodes.
    nodes = _gathered(node_id)
    memory = ray.get(agent.open_memory.remote(state_bytes(model, averaged=job.config.train.ema_decay is not None)))
    return Node(node_id, memory, agent, nodes.index(node_id) == dist.get_rank(), nodes)


def restore(
    job: TrainJob,
    node: Node,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> RunState:
    """Load the newest state there is into model, optimizer and average, the same on every rank; rank 0 chooses it.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
    """
    held = dict(zip(node.nodes, _gathered(node.memory.newest()), strict=True))
    # Rank 0's choice has put a checkpoint into its node's memory: a damaged one made it choose the one before, for all.
    chosen: Origin | None = ray.get(node.agent.choose.remote(held)) if dist.get_rank() == 0 else None
    origin: Origin = _gathered(chosen)[0]
    if origin.holder is not None:
        node_id, step = origin.holder
        if node.is_first and node.memory.newest()[0] != step:
            holder = ray.get(job.monitor.agent_of.remote(node_id, job))
            node.memory.receive(step, ray.get(holder.files.remote(step)))
    elif origin.name is not None:
        step = origin.name.step
        if node.is_first and dist.get_rank() != 0:
            ray.get(node.agent.fetch.remote(origin.name))
    else:
        if job.init is not None:
            begin_with_initial_weights(node, model, average)
        return RunState(origin.saved)
    dist.barrier()  # the other ranks of a node read what its first has brought there
    load_state(node.memory.path(step), model, optimizer, average)
    return RunState(origin.saved, [row for row in node.memory.rows(step) if row.step > origin.saved["step"]])


def begin_with_initial_weights(node: Node, model: nn.Module, average: WeightAverage | None) -> None:
    """Load the weights that the run begins with, and begin their average with them; the optimizer stays as new.

    Raises:
        CheckpointDamagedError: they are not those that were kept.
    """
    if node.is_first:
        ray.get(node.agent.fetch_initial.remote())
    dist.barrier()  # nothing is written over them before all ranks have come through a step
    load_weights(node.memory.path(0), model)
    if average is not None:
        average.load_state_dict(model.state_dict())


def _gathered(mine: Any) -> list[Any]:
    """What every rank has."""
    all_of_them: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    return all_of_them
