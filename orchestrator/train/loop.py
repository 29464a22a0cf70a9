"""The training loop: what every Ray Train worker runs, top to bottom.

Rank r of W computes micro-batches r, r + W, ... of each step. Losses are summed and divided by the target tokens of the
whole step, and DDP's one all-reduce adds gradients up, so the update is the same for every W up to rounding.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import ray
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import DiskFullError
from model.optim.optimizer import build_optimizer, clip_gradients, set_learning_rate
from model.optim.schedule import learning_rate
from model.optim.weight_average import WeightAverage
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import BadLossError
from orchestrator.evaluation.forward import (
    autocast,
    build_model,
    device_name,
    model_inputs,
    seed_dropout,
    worker_device,
)
from orchestrator.policy.loss_spike import LossSpikeDetector
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.job import PlannedRestart, TrainJob
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.resume import Node, join_node, restore
from orchestrator.snapshots.tensors import save_state
from orchestrator.train.batches import BatchPrefetcher, FetchedShare
from orchestrator.train.evaluate import evaluate_held_out, evaluate_translations
from orchestrator.train.peer_failure import PeerFailureGuard
from orchestrator.train.rank_zero import RankZero
from orchestrator.train.step_sync import StepSync

FORWARD_SHARE = 1 / 3
"""Part of a micro-batch's time that its forward pass takes: backward computes twice as much."""


def train_loop(job: TrainJob) -> None:
    """Train until the last step, or until the driver asks to stop; save either way.

    Raises:
        FencedError: a newer attempt has taken the run over.
        BadLossError: the loss has gone report_loss_spike; the group is started again without that step's data, or the run ends.
        PlannedRestart: the state is in memory, and the group is to be started in another size.
        MantaError: whatever the feeder or the store raised.
    """
    clock = GoodputClock("startup")
    config, train = job.config, job.config.train
    rank, world_size = dist.get_rank(), dist.get_world_size()  # Ray Train's context would import Ray Tune to tell
    torch.set_num_threads(config.scaling.threads)
    device = worker_device(config)

    model = build_model(config, job.vocabulary).to(device)
    optimizer = build_optimizer(model, train.optimizer, train.lr)
    average = WeightAverage(model, train.ema_decay) if train.ema_decay is not None else None
    node = join_node(job, ray.get_runtime_context().get_node_id(), model)
    restored = restore(job, node, model, optimizer, average)
    first_step, step, tokens = restored.step, restored.step, restored.tokens
    unsaved = list(restored.rows)  # on every rank: whose node survives must not depend on luck
    skipped_steps = restored.skipped_steps | ray.get(job.monitor.skipped_steps.remote())
    losses = LossSpikeDetector(train.max_loss_jump, restored.recent_losses)
    rank_zero = RankZero(job, node, restored, clock) if rank == 0 else None
    done_before = rank_zero.begin(step, device_name(device)) if rank_zero is not None else 0
    ddp = data_parallel(model, compiled=train.compile)

    stop = False
    peer_failure = PeerFailureGuard(node, model, optimizer, average)
    with BatchPrefetcher(job.feeder, rank, world_size, step, train.steps) as reader, peer_failure.keeping_its_state():
        while step < train.steps and not stop:
            began = time.monotonic()
            clock.switch("data_wait")
            share = reader.take() if rank_zero is None else reader.take(rank_zero.waiting)
            clock.switch(
                "compile" if train.compile and step == first_step else "replay" if step < done_before else "training"
            )

            lr = learning_rate(train.schedule, train.lr, step, train.steps)
            bad = step + 1 in skipped_steps
            sync, took = add_samples(share, config, device) if bad else compute(ddp, share, config, step, device)
            sync.combine(rank_zero.directive(step + 1) if rank_zero is not None else None, rank, took)
            loss = grad_norm = None
            if not bad:
                loss = sync.loss_sum() / share.target_tokens
                problem = losses.problem(loss)
                grad_norm = apply_update(model, optimizer, lr, train.grad_clip) if problem is None else None
                if grad_norm is None or not math.isfinite(grad_norm):
                    skip_step(job, step + 1, problem or f"grad_norm={grad_norm}", lr, skipped_steps, rank_zero)
                if average is not None:
                    average.update(step + 1)
                tokens += share.target_tokens
            step, stop = step + 1, sync.directive.stop

            step_s = time.monotonic() - began
            row = StepRow(step, loss, lr, grad_norm, tokens, world_size, step_s, time.time(), sync.sample_ids())
            unsaved = [each for each in [*unsaved, row] if each.step > sync.directive.saved_step]
            if rank_zero is not None:
                rank_zero.step_done(row, sync.seconds)
            peer_failure.step, peer_failure.unsaved = step, unsaved
            if sync.directive.snapshot:
                with clock.during("snapshot"):
                    cost_s, full = keep_in_memory(node, step, model, optimizer, average, unsaved)
                peer_failure.cost_s = cost_s
                if rank_zero is not None:
                    rank_zero.snapshot_taken(step, cost_s, full)
            if config.evaluates_after(step) and not stop and not sync.directive.background:
                with clock.during("evaluation"):
                    evaluate_during_training(job, model, average, step, rank, world_size, device, rank_zero)
            if sync.directive.pause and not stop and step < train.steps:
                if rank_zero is not None:
                    rank_zero.before_pause(step)
                dist.barrier()  # the first to leave ends the group, and with it whoever still writes its snapshot
                raise PlannedRestart(f"after step {step}")

    finish(job, model, average, step, rank, world_size, device, clock, rank_zero)


def compute(
    ddp: DistributedDataParallel, share: FetchedShare, config: RunConfig, step: int, device: torch.device
) -> tuple[StepSync, float]:
    """Forward and backward over this rank's micro-batches; the last one's backward adds gradients up over ranks.

    Returns:
        what the ranks are to tell each other, and the seconds a micro-batch took, without waiting for other ranks.
    """
    began = time.monotonic()
    sync = StepSync(config.train.micro_batches_per_step, config.train.micro_batch_size, device)
    took = 0.0
    for done, (micro_step, batch) in enumerate(zip(share.micro_steps, share.batches, strict=True)):
        seed_dropout(config, step, micro_step)
        last = micro_step == share.micro_steps[-1]
        with nullcontext() if last else ddp.no_sync():
            with autocast(config, device):
                loss_sum = ddp(*model_inputs(batch, device), config.train.label_smoothing)
            took = (time.monotonic() - began) / (done + FORWARD_SHARE)
            (loss_sum / share.target_tokens).backward()
        sync.add(micro_step, loss_sum, batch.sample_ids)
    return sync, took


def add_samples(share: FetchedShare, config: RunConfig, device: torch.device) -> tuple[StepSync, float]:
    """Take note of the samples of a step whose data is left out; nothing is computed."""
    sync = StepSync(config.train.micro_batches_per_step, config.train.micro_batch_size, device)
    for micro_step, batch in zip(share.micro_steps, share.batches, strict=True):
        sync.add(micro_step, torch.zeros(()), batch.sample_ids)
    return sync, 0.0


def skip_step(
    job: TrainJob, step: int, problem: str, lr: float, skipped_steps: set[int], rank_zero: RankZero | None
) -> NoReturn:
    """End the group because the loss has gone report_loss_spike in `step`; nothing of that step is in what is kept.

    Raises:
        BadLossError: always.
    """
    if rank_zero is not None:
        ray.get(job.monitor.report_loss_spike.remote(step, f"{problem} in step {step}", skipped_steps))
    dist.barrier()  # the driver is to know before the group ends
    raise BadLossError(
        f"{problem} in step {step} at lr={lr:.3g}. What is saved is from before. Lower train.lr or train.grad_clip, or "
        f"lengthen train.schedule.warmup_steps, under a new `run:` name."
    )


def finish(
    job: TrainJob,
    model: nn.Module,
    average: WeightAverage | None,
    step: int,
    rank: int,
    world_size: int,
    device: torch.device,
    clock: GoodputClock,
    rank_zero: RankZero | None,
) -> None:
    """Save, evaluate where the run is at its end, and tell the driver."""
    result: dict[str, Any] = {"step": step}
    if rank_zero is not None:
        rank_zero.tell(phase="saving")
        with clock.during("checkpoint"):
            rank_zero.save_and_wait(step)
        rank_zero.tell(phase="evaluating")
        if step == job.config.train.steps:
            with clock.during("evaluation"):
                rank_zero.wait_for_evaluation()
    if step == job.config.train.steps and job.config.data.has_held_out:
        with clock.during("evaluation"), evaluated_weights(average):
            result |= evaluate_held_out(job, model, rank, world_size, device)
            result |= evaluate_translations(job, model, job.config.eval.translate, rank, world_size)
    dist.barrier()  # until the last checkpoint is there, another node's memory may be needed
    if rank_zero is not None:
        ray.get(job.monitor.report.remote(phase="done", result=result, goodput=clock.seconds()))


def keep_in_memory(
    node: Node,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    unsaved: list[StepRow],
) -> tuple[float, DiskFullError | None]:
    """Keep the state in this node's memory; its first rank does.

    Without room it is not kept, and a sudden death costs all steps since the newest snapshot of another node.

    Returns:
        seconds it took, and why it could not be kept.
    """
    began = time.monotonic()
    if not node.is_first:
        return 0.0, None
    try:
        with node.memory.writing(step, unsaved) as folder:
            save_state(folder, model, optimizer, average)
    except DiskFullError as error:
        return time.monotonic() - began, error
    return time.monotonic() - began, None


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


def apply_update(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, grad_clip: float | None) -> float:
    """Clip, update and clear the gradients; returns their norm before clipping."""
    set_learning_rate(optimizer, lr)
    grad_norm = float(clip_gradients(model.parameters(), grad_clip or math.inf))
    if math.isfinite(grad_norm):
        optimizer.step()
    # Zeroed, not dropped: the gradients are views into DDP's buckets, and new ones would have to be copied there.
    optimizer.zero_grad(set_to_none=False)
    return grad_norm


def evaluated_weights(average: WeightAverage | None) -> AbstractContextManager[None]:
    """Inside the block the model has the weights that are evaluated: the average, where one is kept."""
    return nullcontext() if average is None else average.in_place()


def evaluate_during_training(
    job: TrainJob,
    model: nn.Module,
    average: WeightAverage | None,
    step: int,
    rank: int,
    world_size: int,
    device: torch.device,
    rank_zero: RankZero | None,
) -> None:
    """Evaluate, and say what came of it."""
    if rank_zero is not None:
        rank_zero.tell(phase="evaluating")
    with evaluated_weights(average):
        scores: dict[str, Any] = evaluate_held_out(job, model, rank, world_size, device)
        scores |= evaluate_translations(job, model, job.config.eval.translate_during_training, rank, world_size)
    if rank_zero is not None:
        job.monitor.evaluated.remote(step, scores, average is not None)
