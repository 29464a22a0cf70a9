"""How a worker group resumes: from the newest snapshot of its nodes, the newest checkpoint, or the initial weights."""

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
from orchestrator.snapshots.resume_point import ResumePoint, copy_rounds
from orchestrator.snapshots.store import NodeMemory
from orchestrator.snapshots.tensors import load_state, load_weights, state_bytes
from orchestrator.workers.beacon import answer_of

AGENT_TRIES = 2
"""Agents of a node that a call may fail with, one after the other, because they died."""


class NodeAgent:
    """The snapshot agent of a node, which is started if there is none, and again if it has died with the monitor.

    Attributes:
        handle: of the actor `SnapshotAgent`.
    """

    def __init__(self, job: TrainJob, node_id: str) -> None:
        self._job, self._node_id = job, node_id
        self.handle: Any = ray.get(job.monitor.agent_of.remote(node_id, job))

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the agent, any number of times, and waits for its answer."""
        for tries_left in reversed(range(AGENT_TRIES)):
            try:
                return answer_of(self.handle, getattr(self.handle, method).remote(*args))
            except ray.exceptions.RayActorError:
                if not tries_left:
                    raise
                self.replace()
        raise AssertionError("the last try returns or raises")

    def replace(self) -> None:
        """Takes the successor of an agent that has died."""
        self.handle = ray.get(self._job.monitor.agent_of.remote(self._node_id, self._job, dead=self.handle))


@dataclass(frozen=True)
class Node:
    """This rank's node.

    Attributes:
        memory: the node's snapshots.
        agent: the node's snapshot agent.
        is_first: whether this rank is the lowest of the node: the one that writes and receives snapshots.
        nodes: node id of every rank.
    """

    node_id: str
    memory: NodeMemory
    agent: NodeAgent
    is_first: bool
    nodes: list[str]


def join_node(job: TrainJob, node_id: str, model: nn.Module) -> Node:
    """Connects a rank to its node's agent, which is started if there is none; called by every rank."""
    agent = NodeAgent(job, node_id)
    # Ray Train derives the local rank from the address, and a machine may hold several nodes.
    nodes = _gathered(node_id)
    memory = agent.call("open_memory", state_bytes(model, averaged=job.config.train.ema_decay is not None))
    return Node(node_id, memory, agent, nodes.index(node_id) == dist.get_rank(), nodes)


def restore(
    job: TrainJob,
    node: Node,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> RunState:
    """Loads the newest state into model, optimizer and average, the same on every rank; called by every rank.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
    """
    held = dict(zip(node.nodes, _gathered(node.memory.newest()), strict=True))
    # Choosing a checkpoint downloads it to rank 0's node: where that one is damaged, all ranks get the one before.
    chosen = node.agent.call("choose_resume_point", held) if dist.get_rank() == 0 else None
    point: ResumePoint = _gathered(chosen)[0]
    if point.holder is not None:
        source, step = point.holder
        lacking = [each for each, (newest, _) in held.items() if newest != step]
        same = [each for each, newest in held.items() if newest == held.get(source)]
        for copies in copy_rounds(same or [source], lacking):
            if node.is_first and node.node_id in copies:
                node.memory.receive(step, NodeAgent(job, copies[node.node_id]).call("files", step))
            dist.barrier()  # who has it now may be asked for it
    elif point.name is not None:
        step = point.name.step
        if node.is_first and dist.get_rank() != 0:
            node.agent.call("fetch", point.name)
    else:
        if job.init is not None:
            load_initial_weights(node, model, average)
        return RunState(point.saved)
    dist.barrier()  # the node's other ranks read what its first rank has brought
    load_state(node.memory.path(step), model, optimizer, average)
    return RunState(point.saved, [row for row in node.memory.rows(step) if row.step > point.saved["step"]])


def load_initial_weights(node: Node, model: nn.Module, average: WeightAverage | None) -> None:
    """Loads the run's initial weights into model and average; the optimizer has no state yet.

    Raises:
        CheckpointDamagedError: the stored weights are missing or changed.
    """
    if node.is_first:
        node.agent.call("fetch_initial")
    dist.barrier()  # a snapshot replaces them only after a step of all ranks
    load_weights(node.memory.path(0), model)
    if average is not None:
        average.load_state_dict(model.state_dict())


def _gathered(mine: Any) -> list[Any]:
    """Every rank's `mine`, by rank."""
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, mine)
    return by_rank
