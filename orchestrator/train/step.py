"""The computation of one optimizer step: forward, backward, the sum of gradients over ranks, and the update."""

import math
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.optim.optimizer import clip_gradients, set_learning_rate
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import autocast, model_inputs, seed_dropout
from orchestrator.train.batches import FetchedShare
from orchestrator.train.step_sync import StepSync

FORWARD_SHARE = 1 / 3
"""Part of a micro-batch's time that its forward pass takes: backward computes twice as much."""


def compute(
    ddp: DistributedDataParallel, share: FetchedShare, config: RunConfig, step: int, device: torch.device
) -> tuple[StepSync, float]:
    """Forward and backward over this rank's micro-batches; the last backward sums the gradients over ranks.

    Returns:
        this rank's part of the step's StepSync, and seconds a micro-batch took, without waiting for other ranks.
    """
    began = time.monotonic()
    sync = StepSync(config.train.micro_batches_per_step, config.train.micro_batch_size, device)
    micro_batch_s = 0.0
    for done, (micro_step, batch) in enumerate(zip(share.micro_steps, share.batches, strict=True)):
        seed_dropout(config, step, micro_step)
        is_last = micro_step == share.micro_steps[-1]
        with nullcontext() if is_last else ddp.no_sync():
            with autocast(config, device):
                loss_sum = ddp(*model_inputs(batch, device), config.train.label_smoothing)
            # Measured before backward, which waits for the other ranks at the last micro-batch.
            micro_batch_s = (time.monotonic() - began) / (done + FORWARD_SHARE)
            (loss_sum / share.target_tokens).backward()
        sync.add(micro_step, loss_sum, batch.sample_ids)
    return sync, micro_batch_s


def skip_data(share: FetchedShare, config: RunConfig, device: torch.device) -> tuple[StepSync, float]:
    """Records the samples of a skipped step and computes nothing. Returns as `compute` does."""
    sync = StepSync(config.train.micro_batches_per_step, config.train.micro_batch_size, device)
    for micro_step, batch in zip(share.micro_steps, share.batches, strict=True):
        sync.add(micro_step, torch.zeros(()), batch.sample_ids)
    return sync, 0.0


def apply_update(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, grad_clip: float | None) -> float:
    """Clips the gradients, updates the weights and clears the gradients.

    Returns:
        norm of the gradients before clipping. Where it is not finite, the weights stay as they are.
    """
    set_learning_rate(optimizer, lr)
    grad_norm = float(clip_gradients(model.parameters(), grad_clip or math.inf))
    if math.isfinite(grad_norm):
        optimizer.step()
    # Zeroed, not dropped: the gradients are views into DDP's buckets, and new ones would have to be copied there.
    optimizer.zero_grad(set_to_none=False)
    return grad_norm


def data_parallel(model: nn.Module, *, compiled: bool) -> DistributedDataParallel:
    """Wraps the model in a DDP that sums gradients instead of averaging them.

    The losses are already divided by the target tokens of the whole step.
    """
    # Every rank drew or loaded the same weights; DDP compares their shapes and copies rank 0's, which settles the rest.
    if compiled:
        model.compile()  # in place: torch.compile(model) would rename every weight
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    ddp.register_comm_hook(None, _sum_gradients)
    return ddp


# DDP checks that the annotations are these classes, so this module must not import `annotations` of __future__.
# To a type checker GradBucket is not there: torch defines it only where it was built with distributed support.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
