"""The training loop: what every Ray Train worker runs, top to bottom.

Rank r of W computes micro-batches r, r + W, ... of each step. Losses are summed and divided by the target tokens of the
whole step, and DDP's one all-reduce adds gradients up, so the update is the same for every W up to rounding.
"""

# No `from __future__ import annotations` here: DDP looks at the real annotations of its communication hook.
import math
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.optimizer import build_optimizer, clip_gradients
from model.schedule import learning_rate
from orchestrator.checkpoint import MODEL, OPTIMIZER, fetch_checkpoint, fetch_newest
from orchestrator.config import RunConfig
from orchestrator.errors import NonFiniteLossError
from orchestrator.evaluate import held_out_scores, loss_sums
from orchestrator.forward import autocast, build_model, inputs_and_targets, seed_dropout
from orchestrator.goodput import GoodputClock
from orchestrator.job import TrainJob
from orchestrator.ledger import StepLedger, StepRow
from orchestrator.model_state import load_optimizer, load_weights, scratch_folder
from orchestrator.recorder import Recorder
from orchestrator.run_record import load_record
from orchestrator.step_log import StepLog
from orchestrator.step_reader import FetchedShare, StepReader


def train_loop(job: TrainJob) -> None:
    """Train until the last step, or until the driver asks to stop; save either way.

    Raises:
        FencedError: a newer attempt has taken the run over.
        NonFiniteLossError: the loss is no longer a number.
        MantaError: whatever the feeder or the store raised.
    """
    clock = GoodputClock("startup")
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.scaling.threads)
    device = worker_device(config)

    model = build_model(config, job.vocab_size, job.end_of_text).to(device)
    optimizer = build_optimizer(model, train.optimizer, train.lr)
    state = restore(job, model, optimizer, rank)
    first_step = step = int(state["step"])
    recorder = None
    if rank == 0:
        ledger = StepLedger(job.store, job.attempt, step, state["ledger"], state["tokens"])
        recorder = Recorder(job, model, optimizer, ledger, clock)
        recorder.tell(phase="training", restored_step=step, world_size=world_size)
    ddp = data_parallel(model, compiled=train.compile)

    stop = False
    with StepReader(job.feeder, rank, world_size, step, train.steps) as reader:
        while step < train.steps and not stop:
            began = time.monotonic()
            clock.switch("data_wait")
            share = reader.take()
            clock.switch(
                "compile"
                if train.compile and step == first_step
                else "replay"
                if step < job.done_before
                else "training"
            )

            lr = learning_rate(train.schedule, train.lr, step, train.steps)
            log = accumulate_gradients(ddp, share, config, step, device)
            log.combine(stop=recorder is not None and recorder.stop_heard())
            loss = log.loss_sum() / share.target_tokens
            grad_norm = apply_update(model, optimizer, lr, train.grad_clip)
            refuse_non_finite(loss, grad_norm, step, lr)
            step, stop = step + 1, log.stop_requested()

            if recorder is not None:
                tokens = recorder.tokens + share.target_tokens
                recorder.step_done(
                    StepRow(step, loss, lr, grad_norm, tokens, world_size, time.monotonic() - began, log.sample_ids())
                )
            if config.eval.every_steps and step % config.eval.every_steps == 0 and step < train.steps and not stop:
                with clock.during("evaluation"):
                    scores = evaluate_held_out(job, model, rank, world_size, device)
                if recorder is not None:
                    loss, bits = scores["val_loss"], scores["val_bits_per_byte"]
                    recorder.note(f"step {step}: held-out loss {loss:.4f}, {bits:.4f} bits per byte")

    result: dict[str, Any] = {"step": step}
    if recorder is not None:
        recorder.tell(phase="saving")
        with clock.during("checkpoint"):
            recorder.save_and_wait(step)
        recorder.tell(phase="evaluating")
    if step == train.steps and config.data.validation_fraction > 0:
        with clock.during("evaluation"):
            result |= evaluate_held_out(job, model, rank, world_size, device)
    if recorder is not None:
        ray.get(job.monitor.report.remote(phase="done", result=result, goodput=clock.seconds()))


def worker_device(config: RunConfig) -> torch.device:
    """The GPU Ray gave this worker, or the CPU."""
    if not config.scaling.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device  # takes a while to import

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


def restore(job: TrainJob, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, Any]:
    """Load the newest checkpoint into model and optimizer; rank 0 chooses it for all.

    Returns:
        its state.json, or that of step 0.
    """
    with tempfile.TemporaryDirectory(prefix="manta-restore-", dir=scratch_folder()) as scratch:
        folder, files = Path(scratch), (MODEL, OPTIMIZER)
        tell = job.monitor.note.remote
        fetched = fetch_newest(job.store, load_record(job.store), files, folder, tell) if rank == 0 else None
        name = broadcast_from_rank_zero(fetched[0] if fetched else None)
        if name is None:
            return {"step": 0, "tokens": 0, "ledger": []}
        state = fetched[1] if fetched else fetch_checkpoint(job.store, name, files, folder)
        load_weights(folder, model)
        load_optimizer(folder, model, optimizer)
        return state


def data_parallel(model: nn.Module, *, compiled: bool) -> DistributedDataParallel:
    """DDP that adds gradients up instead of averaging them: losses are already divided by the whole step's targets."""
    # Every rank drew or loaded the same weights; DDP compares their shapes and copies rank 0's, which settles the rest.
    if compiled:
        model.compile()  # in place: torch.compile(model) would rename every weight
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    ddp.register_comm_hook(None, _sum_gradients)
    return ddp


# To a type checker GradBucket is not there: torch defines it only where it was built with distributed support.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def accumulate_gradients(
    ddp: DistributedDataParallel, share: FetchedShare, config: RunConfig, step: int, device: torch.device
) -> StepLog:
    """Forward and backward over this rank's micro-batches; the last one's backward adds gradients up over ranks."""
    log = StepLog(config.train.micro_batches_per_step, config.train.micro_batch_size, device)
    for micro_step, batch in zip(share.micro_steps, share.batches, strict=True):
        seed_dropout(config, step, micro_step)
        last = micro_step == share.micro_steps[-1]
        with nullcontext() if last else ddp.no_sync():
            with autocast(config, device):
                loss_sum = ddp(*inputs_and_targets(batch, device))
            (loss_sum / share.target_tokens).backward()
        log.note(micro_step, loss_sum, batch.sample_ids)
    return log


def apply_update(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, grad_clip: float | None) -> float:
    """Clip, update and clear the gradients; returns their norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    grad_norm = float(clip_gradients(model.parameters(), grad_clip or math.inf))
    if math.isfinite(grad_norm):
        optimizer.step()
    # Zeroed, not dropped: the gradients are views into DDP's buckets, and new ones would have to be copied there.
    optimizer.zero_grad(set_to_none=False)
    return grad_norm


def refuse_non_finite(loss: float, grad_norm: float, step: int, lr: float) -> None:
    """Raises NonFiniteLossError where training has gone astray; what is saved is not."""
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise NonFiniteLossError(
            f"loss={loss} and grad_norm={grad_norm} in step {step + 1} at lr={lr:.3g}. What is saved is from before. "
            f"Lower train.lr or train.grad_clip, or lengthen train.schedule.warmup_steps, under a new `run:` name."
        )


def evaluate_held_out(
    job: TrainJob, model: nn.Module, rank: int, world_size: int, device: torch.device
) -> dict[str, float]:
    """Scores over the held-out set, shared out among ranks and summed by slot: the same at any world size."""
    held_out = ray.get(job.feeder.held_out.remote())
    if not held_out.refs:
        return {}
    log = StepLog(len(held_out.refs), 0, device)
    slots = range(rank, len(held_out.refs), world_size)
    batches = (ray.get(held_out.refs[slot]) for slot in slots)
    for slot, loss_sum in zip(slots, loss_sums(model, batches, job.config, device), strict=True):
        log.note(slot, loss_sum, np.empty(0, np.int64))
    log.combine()
    return held_out_scores(log.loss_sum(), held_out.target_tokens, held_out.text_bytes)
