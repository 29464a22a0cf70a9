"""What the ranks tell each other about a step, in one small all-reduce."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class StepDirective(NamedTuple):
    """What rank 0 tells all with a step; the others say nothing.

    Attributes:
        stop: no step after this one.
        snapshot: keep the state after this step in the memory of every node.
        pause: end the worker group after this step, to be started again in another size.
        background: the state after this step is evaluated elsewhere, and not by the ranks.
        saved_step: step of the newest checkpoint in object storage.
    """

    stop: bool = False
    snapshot: bool = False
    pause: bool = False
    background: bool = False
    saved_step: int = 0


class StepSync:
    """Loss and sample ids of every micro-batch of a step, by slot.

    A rank fills the slots of the micro-batches it computed and leaves zeros in the rest, so that the sum over ranks is
    the whole step, bit by bit: it does not depend on who computed what. A slot nobody filled shows up as sample id -1.

    Args:
        num_slots: micro-batches in the step, over all ranks.
        micro_batch_size: sequences in each; 0 where sample ids do not matter.
    """

    def __init__(self, num_slots: int, micro_batch_size: int, device: torch.device) -> None:
        self._losses = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._ids = np.zeros((num_slots, micro_batch_size), np.int64)
        self.directive = StepDirective()
        self.seconds: list[float] = []

    def add(self, slot: int, loss_sum: Tensor, sample_ids: NDArray[np.int64]) -> None:
        """Fill a slot: the sum of its token losses, () float, and its (micro_batch_size,) sample ids."""
        self._losses[slot] = loss_sum.detach()
        self._ids[slot] = sample_ids + 1  # 0 means "not filled", and 0 is a sample id

    def combine(self, directive: StepDirective | None = None, rank: int = 0, seconds: float = 0.0) -> None:
        """Add up over ranks; afterwards every rank holds the whole step, rank 0's directive, and `seconds` by rank.

        Args:
            seconds: what this rank took to compute a micro-batch.
        """
        by_rank = np.zeros(dist.get_world_size(), np.int64)
        by_rank[rank] = int(seconds * 1e6)
        told = np.array(directive or StepDirective(), np.int64)
        tail = torch.from_numpy(np.concatenate([self._ids.ravel(), by_rank, told])).to(self._losses.device)
        packed = torch.cat([self._losses.view(torch.int64), tail])
        dist.all_reduce(packed)
        whole = packed.cpu()
        cuts = np.cumsum([len(self._losses), self._ids.size, len(by_rank)])
        losses, ids, micros, told_all = whole.tensor_split(cuts.tolist())
        self._losses = losses.view(torch.float64)
        self._ids = ids.numpy().reshape(self._ids.shape)
        self.seconds = [micro / 1e6 for micro in micros.tolist()]
        stop, snapshot, pause, background, saved_step = told_all.tolist()
        self.directive = StepDirective(bool(stop), bool(snapshot), bool(pause), bool(background), saved_step)

    def loss_sum(self) -> float:
        """Sum of all token losses in slot order."""
        return float(np.add.reduce(self._losses.numpy()))

    def sample_ids(self) -> NDArray[np.int64]:
        """(micro-batches x micro_batch_size,) ids in training order."""
        return self._ids.ravel() - 1
