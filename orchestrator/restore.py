"""Where a worker group goes on from: the newest state in the memory of its nodes, or the newest checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from torch import nn

from orchestrator.checkpoint import MODEL, OPTIMIZER, fetch_checkpoint, fetch_newest
from orchestrator.job import TrainJob
from orchestrator.ledger import StepRow
from orchestrator.model_state import load_optimizer, load_weights, scratch_folder
from orchestrator.node_memory import NodeMemory
from orchestrator.run_record import load_record

_START: dict[str, Any] = {"step": 0, "tokens": 0, "ledger": []}

_FILES = (MODEL, OPTIMIZER)


@dataclass(frozen=True)
class Restored:
    """What a worker group goes on from, beside the tensors.

    Attributes:
        saved: state.json of the newest checkpoint, or that of step 0.
        rows: ledger rows of the steps after it.
    """

    saved: dict[str, Any]
    rows: list[StepRow] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.rows[-1].step if self.rows else int(self.saved["step"])

    @property
    def tokens(self) -> int:
        """Target tokens trained on."""
        return self.rows[-1].tokens if self.rows else int(self.saved["tokens"])


def is_first_of_node(node_id: str) -> bool:
    """Whether this rank is the lowest on its node: the one that keeps and receives snapshots there.

    Ray Train's local rank goes by address, and a machine may hold several nodes.
    """
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, node_id)
    return nodes.index(node_id) == dist.get_rank()


def restore(
    job: TrainJob, memory: NodeMemory, model: nn.Module, optimizer: torch.optim.Optimizer, *, keeper: bool
) -> Restored:
    """Load the newest state there is into model and optimizer, the same one on every rank; rank 0 chooses it for all.

    Args:
        keeper: whether this rank keeps its node's snapshots, see `is_first_of_node`.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
    """
    rank = dist.get_rank()
    held = held_by_rank(memory)
    with tempfile.TemporaryDirectory(prefix="manta-restore-", dir=scratch_folder()) as scratch:
        folder = Path(scratch)
        if rank == 0:
            newest = fetch_newest(job.store, load_record(job.store), (), folder, job.monitor.note.remote)
            saved = newest[1] if newest else _START
        saved = broadcast_from_rank_zero(saved if rank == 0 else None)
        holder = newest_holder(held, saved["step"])
        if holder is not None:
            step = held[holder][0]
            hand_out(memory, step, held, holder, keeper=keeper)
            rows = memory.load(step, model, optimizer)
            return Restored(saved, [row for row in rows if row.step > saved["step"]])
        # Rank 0 fetches first: a damaged file makes it choose the checkpoint before, for all.
        fetched = None
        if rank == 0 and saved["step"]:
            fetched = fetch_newest(job.store, load_record(job.store), _FILES, folder, job.monitor.note.remote)
        name = broadcast_from_rank_zero(fetched[0] if fetched else None)
        if name is None:
            return Restored(_START)
        saved = fetched[1] if fetched else fetch_checkpoint(job.store, name, _FILES, folder)
        load_weights(folder, model)
        load_optimizer(folder, model, optimizer)
        return Restored(saved)


def held_by_rank(memory: NodeMemory) -> list[tuple[int, int]]:
    """For every rank, the step of the newest snapshot on its node and of the first row in it; (-1, -1) for none."""
    steps = memory.steps()
    mine = (steps[-1], memory.first_row(steps[-1])) if steps else (-1, -1)
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, mine)
    return held


def newest_holder(held: list[tuple[int, int]], saved_step: int) -> int | None:
    """The first rank with the newest snapshot that is newer than the checkpoint and joins on to it; None for none.

    Rows between the two would be missing from the ledger where the checkpoint at which the snapshot's rows begin has
    turned out to be damaged.
    """
    joining = [step if first <= saved_step + 1 else -1 for step, first in held]
    best = max(joining)
    return joining.index(best) if best > saved_step else None


def hand_out(memory: NodeMemory, step: int, held: list[tuple[int, int]], holder: int, *, keeper: bool) -> None:
    """Copy the snapshot of `step` from its holder's node to every node that lacks it."""
    if all(theirs == step for theirs, _ in held):
        return
    rank = dist.get_rank()
    box: list[Any] = [memory.files(step) if rank == holder else None]
    dist.broadcast_object_list(box, src=holder)
    if keeper and held[rank][0] != step:
        memory.receive(step, box[0])
    dist.barrier()  # the other ranks of the node read what its first has written
