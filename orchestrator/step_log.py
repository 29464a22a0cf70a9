"""What the ranks tell each other about a step, in one small all-reduce."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class StepLog:
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
        self._stop = 0

    def note(self, slot: int, loss_sum: Tensor, sample_ids: NDArray[np.int64]) -> None:
        """Fill a slot: the sum of its token losses, () float, and its (micro_batch_size,) sample ids."""
        self._losses[slot] = loss_sum.detach()
        self._ids[slot] = sample_ids + 1  # 0 means "not filled", and 0 is a sample id

    def combine(self, *, stop: bool = False) -> None:
        """Add up over ranks; afterwards every rank holds the whole step. `stop`: this rank was asked to stop."""
        tail = torch.from_numpy(np.append(self._ids.ravel(), int(stop))).to(self._losses.device)
        packed = torch.cat([self._losses.view(torch.int64), tail])
        dist.all_reduce(packed)
        whole = packed.cpu()
        slots = len(self._losses)
        self._losses = whole[:slots].view(torch.float64)
        self._ids = whole[slots:-1].numpy().reshape(self._ids.shape)
        self._stop = int(whole[-1])

    def loss_sum(self) -> float:
        """Sum of all token losses in slot order."""
        return float(np.add.reduce(self._losses.numpy()))

    def sample_ids(self) -> NDArray[np.int64]:
        """(micro-batches x micro_batch_size,) ids in training order."""
        return self._ids.ravel() - 1

    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop; the same answer on all of them."""
        return self._stop > 0
