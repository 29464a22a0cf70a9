"""The training loop that every Ray Train worker runs, from restoring the state to the last evaluation.

Rank r of W computes micro-batches r, r + W, ... of each step. Losses are summed and divided by the target tokens of the
whole step, and DDP's one all-reduce sums the gradients, so the update is the same for every W up to rounding.
"""

from __future__ import annotations

import math
import time
from typing import NoReturn

import ray
import torch
import torch.distributed as dist

from data.errors import DiskFullError
from model.optim.schedule import learning_rate
from orchestrator.errors import BadLossError
from orchestrator.evaluation.forward import device_name
from orchestrator.policy.loss_spike import LossSpikeDetector
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.job import PlannedRestart, TrainJob
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.resume import Node, join_node, restore
from orchestrator.train.batches import BatchPrefetcher
from orchestrator.train.evaluate import evaluate
from orchestrator.train.peer_failure import PeerFailureGuard
from orchestrator.train.rank_zero import OtherRank, RankZero
from orchestrator.train.state import TrainState
from orchestrator.train.step import compute, data_parallel, skip_data
from orchestrator.train.watched_clock import WatchedClock, counting_compilations


def train_loop(job: TrainJob) -> None:
    """Trains until the job's last step or until the driver asks to stop; saves a checkpoint either way.

    Raises:
        FencedError: a newer attempt has taken over the run.
        BadLossError: the loss spiked; the controller restarts the group without that step's data, or ends the run.
        PlannedRestart: the state is in memory, and the controller restarts the group with another number of workers.
        MantaError: an error of the feeder or the store.
    """
    clock = WatchedClock("startup")
    config, train = job.config, job.config.train
    torch.set_num_threads(config.scaling.threads)
    state = TrainState.before_step_0(config, job.vocabulary)
    node = join_node(job, ray.get_runtime_context().get_node_id(), state.model)
    restored = restore(job, node, state.model, state.optimizer, state.average)
    step, tokens, stop = restored.step, restored.tokens, False
    unsaved = list(restored.rows)  # on every rank: any node may be the one that survives
    skipped_steps = restored.skipped_steps | ray.get(job.monitor.skipped_steps.remote())
    spikes = LossSpikeDetector(train.max_loss_jump, restored.recent_losses)
    rank_zero = RankZero(job, node, restored, clock) if state.rank == 0 else OtherRank()
    done_before = rank_zero.begin(step, device_name(state.device))
    ddp = data_parallel(state.model, compiled=train.compile)
    peers = PeerFailureGuard(node, state)
    prefetcher = BatchPrefetcher(job.feeder, state.rank, state.world_size, step, job.until)
    with prefetcher, peers.keeping_state(), counting_compilations(clock, compiles=train.compile):
        evaluate_if_lost(job, state, step, clock, rank_zero)
        while step < job.until and not stop:
            began = time.monotonic()
            clock.switch("data_wait")
            share = prefetcher.take(rank_zero.report_waiting)
            cause = "replay" if step < done_before else "training"
            clock.switch("compile" if train.compile and step == restored.step else cause)
            lr = learning_rate(train.schedule, train.lr, step, train.steps)
            loss = grad_norm = None
            if is_skipped := step + 1 in skipped_steps:
                sync, micro_batch_s = skip_data(share, config, state.device)
            else:
                sync, micro_batch_s = compute(ddp, share, config, step, state.device)
            sync.combine(rank_zero.directive(step + 1), state.rank, micro_batch_s)
            if not is_skipped:
                loss, tokens = sync.loss_sum() / share.target_tokens, tokens + share.target_tokens
                problem = spikes.problem(loss)
                grad_norm = state.update(step + 1, lr, train.grad_clip) if problem is None else None
                if grad_norm is None or not math.isfinite(grad_norm):
                    end_at_loss_spike(rank_zero, step + 1, problem or f"grad_norm={grad_norm}", lr, skipped_steps)
            step, stop, step_s = step + 1, sync.directive.stop, time.monotonic() - began

            row = StepRow(step, loss, lr, grad_norm, tokens, state.world_size, step_s, time.time(), sync.sample_ids())
            add_row(unsaved, row, sync.directive.saved_step)
            rank_zero.step_done(row, sync.seconds)
            peers.step_done(step, unsaved)
            if sync.directive.snapshot:
                with clock.during("snapshot"):
                    peers.snapshot_s, disk_full = take_snapshot(node, state, step, unsaved)
                rank_zero.snapshot_taken(step, peers.snapshot_s, disk_full)
            if config.evaluates_after(step) and not stop and not sync.directive.background:
                evaluate_during_training(job, state, step, clock, rank_zero)
            if sync.directive.pause and not stop and step < job.until:
                end_for_resize(rank_zero, step)
    finish(job, state, step, clock, rank_zero)


def evaluate_if_lost(
    job: TrainJob, state: TrainState, step: int, clock: GoodputClock, rank_zero: RankZero | OtherRank
) -> None:
    """Does the evaluation that is due after `step` if there is none: the run was stopped there, or its workers died."""
    if step == 0 or not job.config.evaluates_after(step) or step in job.evaluated:
        return
    has_evaluated = [state.rank == 0 and ray.get(job.monitor.has_evaluated.remote(step))]
    dist.broadcast_object_list(has_evaluated)  # what rank 0 was told: all ranks have to do the same
    if not has_evaluated[0]:
        evaluate_during_training(job, state, step, clock, rank_zero)


def add_row(unsaved: list[StepRow], row: StepRow, saved_step: int) -> None:
    """Adds a row to those that are not in object storage; removes those up to `saved_step`, which are.

    A store that is away for hours leaves a row for every step, so nothing here takes longer for it at each step.
    """
    unsaved.append(row)
    if unsaved[0].step <= saved_step:
        unsaved[:] = [each for each in unsaved if each.step > saved_step]


def take_snapshot(
    node: Node, state: TrainState, step: int, unsaved: list[StepRow]
) -> tuple[float, DiskFullError | None]:
    """Writes the state after `step` into the node's memory; the node's first rank does, the others return at once.

    Without room there is no snapshot, and a sudden death costs all steps since the newest snapshot of another node.

    Returns:
        seconds it took, and the error where there is no room.
    """
    began = time.monotonic()
    if not node.is_first:
        return 0.0, None
    try:
        with node.memory.writing(step, unsaved) as folder:
            state.save(folder)
    except DiskFullError as error:
        return time.monotonic() - began, error
    return time.monotonic() - began, None


def evaluate_during_training(
    job: TrainJob, state: TrainState, step: int, clock: GoodputClock, rank_zero: RankZero | OtherRank
) -> None:
    """Evaluates the state after `step` on all ranks; rank 0 reports the scores."""
    with clock.during("evaluation"):
        rank_zero.report(phase="evaluating")
        scores = evaluate(job, state, job.config.eval.translate_during_training)
        rank_zero.report_scores(step, scores)


def end_at_loss_spike(
    rank_zero: RankZero | OtherRank, step: int, problem: str, lr: float, skipped_steps: set[int]
) -> NoReturn:
    """Ends the group because the loss spiked in `step`; snapshots and checkpoints hold nothing of that step.

    Raises:
        BadLossError: always.
    """
    rank_zero.report_loss_spike(step, f"{problem} in step {step}", skipped_steps)
    dist.barrier()  # the monitor has the report before the first rank ends the group
    raise BadLossError(
        f"{problem} in step {step} at lr={lr:.3g}. All checkpoints are from earlier steps. Lower train.lr or "
        f"train.grad_clip, or lengthen train.schedule.warmup_steps, under a new `run:` name."
    )


def end_for_resize(rank_zero: RankZero | OtherRank, step: int) -> NoReturn:
    """Ends the group after `step`, whose state is in memory, so that it restarts with another number of workers.

    Raises:
        PlannedRestart: always.
    """
    rank_zero.before_pause(step)
    dist.barrier()  # the first rank to leave ends the group, also for a rank that still writes its snapshot
    raise PlannedRestart(f"after step {step}")


def finish(job: TrainJob, state: TrainState, step: int, clock: GoodputClock, rank_zero: RankZero | OtherRank) -> None:
    """Saves a checkpoint, evaluates if the run is at its last step, and reports the result."""
    is_last = step == job.config.train.steps
    rank_zero.report(phase="saving")
    with clock.during("checkpoint"):
        rank_zero.save_and_wait(step)
    rank_zero.report(phase="evaluating")
    if is_last:
        with clock.during("evaluation"):
            rank_zero.wait_for_evaluation()
    scores = {}
    if is_last and job.config.data.has_held_out:
        with clock.during("evaluation"):
            scores = evaluate(job, state, job.config.eval.translate)
    dist.barrier()  # another node's snapshot may be needed until the last checkpoint is in the store
    rank_zero.report_result({"step": step, **scores})
