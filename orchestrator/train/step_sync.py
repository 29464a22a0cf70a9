"""StepSync: exchanges the losses, sample ids and timings of a step among the ranks, in one small all-reduce."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class StepDirective(NamedTuple):
    """Rank 0's decisions for the end of a step; the other ranks pass an empty one.

    Attributes:
        stop: this step is the last.
        snapshot: write the state after this step into the memory of every node.
        pause: end the worker group after this step, so that it restarts with another number of workers.
        background: an evaluator process evaluates the state after this step, not the ranks.
        saved_step: step of the newest checkpoint in object storage.
    """

    stop: bool = False
    snapshot: bool = False
    pause: bool = False
    background: bool = False
    saved_step: int = 0


class StepSync:
    """Loss and sample ids of every micro-batch of a step, by slot.

    A rank fills the slots of the micro-batches it computed and leaves zeros in the rest. So the sum over ranks is the
    whole step, bit for bit, whichever rank computed which slot. A slot that no rank filled has the sample ids -1.

    Args:
        num_slots: micro-batches in the step, over all ranks.
        micro_batch_size: sequences in each; 0 where sample ids do not matter.

    Attributes:
        directive: rank 0's, after `combine`.
        seconds: what a micro-batch took, by rank, after `combine`.
    """

    def __init__(self, num_slots: int, micro_batch_size: int, device: torch.device) -> None:
        self._losses = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._ids = np.zeros((num_slots, micro_batch_size), np.int64)
        self.directive = StepDirective()
        self.seconds: list[float] = []

    def add(self, slot: int, loss_sum: Tensor, sample_ids: NDArray[np.int64]) -> None:
        """Fills a slot.

        Args:
            loss_sum: () float, sum of the slot's token losses.
            sample_ids: (micro_batch_size,) int64.
        """
        self._losses[slot] = loss_sum.detach()
        self._ids[slot] = sample_ids + 1  # 0 means "not filled", and 0 is a sample id

    def combine(self, directive: StepDirective | None = None, rank: int = 0, seconds: float = 0.0) -> None:
        """Sums over ranks; afterwards every rank has the whole step, rank 0's directive and all ranks' `seconds`.

        Args:
            directive: rank 0's; None for an empty one.
            rank: this rank.
            seconds: what a micro-batch took this rank.
        """
        by_rank = np.zeros(dist.get_world_size(), np.int64)
        by_rank[rank] = int(seconds * 1e6)
        decisions = np.array(directive or StepDirective(), np.int64)
        tail = torch.from_numpy(np.concatenate([self._ids.ravel(), by_rank, decisions])).to(self._losses.device)
        packed = torch.cat([self._losses.view(torch.int64), tail])
        dist.all_reduce(packed)
        whole = packed.cpu()
        cuts = np.cumsum([len(self._losses), self._ids.size, len(by_rank)])
        losses, ids, microseconds, directives = whole.tensor_split(cuts.tolist())
        self._losses = losses.view(torch.float64)
        self._ids = ids.numpy().reshape(self._ids.shape)
        self.seconds = [each / 1e6 for each in microseconds.tolist()]
        stop, snapshot, pause, background, saved_step = directives.tolist()
        self.directive = StepDirective(bool(stop), bool(snapshot), bool(pause), bool(background), saved_step)

    def loss_sum(self) -> float:
        """Sum of all token losses, added in slot order."""
        return float(np.add.reduce(self._losses.numpy()))

    def sample_ids(self) -> NDArray[np.int64]:
        """(num_slots * micro_batch_size,) int64 sample ids in training order."""
        return self._ids.ravel() - 1
