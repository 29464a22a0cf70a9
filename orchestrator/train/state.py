"""TrainState: the model, its optimizer and average, and this process's rank and device."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from model.optim.optimizer import build_optimizer
from model.optim.weight_average import WeightAverage
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import build_model, worker_device
from orchestrator.run.vocabulary import Vocabulary
from orchestrator.snapshots.tensors import save_state
from orchestrator.train.step import apply_update


@dataclass(frozen=True)
class TrainState:
    """What a rank trains, and where. The tensors are the same on every rank after every step.

    Attributes:
        model: the model without its DDP wrapper.
        optimizer: updates the model's weights.
        average: moving average of the weights; None where the recipe keeps none.
        rank: this process in the worker group, 0 <= rank < world_size.
        world_size: ranks in the worker group.
        device: where the model is.
    """

    model: Transformer | Seq2Seq
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def before_step_0(cls, config: RunConfig, vocabulary: Vocabulary) -> TrainState:
        """Builds the state a run starts from: a function of config and seed, the same on every rank."""
        rank, world_size = dist.get_rank(), dist.get_world_size()  # asking Ray Train's context would import Ray Tune
        device, train = worker_device(config), config.train
        model = build_model(config, vocabulary).to(device)
        optimizer = build_optimizer(model, train.optimizer, train.lr)
        average = WeightAverage(model, train.ema_decay) if train.ema_decay is not None else None
        return cls(model, optimizer, average, rank, world_size, device)

    def update(self, step: int, lr: float, grad_clip: float | None) -> float:
        """Applies the summed gradients as the run's `step`th update; returns their norm before clipping.

        Where the norm is not finite, weights and average stay as they are.
        """
        grad_norm = apply_update(self.model, self.optimizer, lr, grad_clip)
        if self.average is not None and math.isfinite(grad_norm):
            self.average.update(step)
        return grad_norm

    def save(self, folder: Path) -> None:
        """Writes all tensors into a folder; see `save_state`."""
        save_state(folder, self.model, self.optimizer, self.average)

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Context in which the model has the weights to evaluate: their average, where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()
