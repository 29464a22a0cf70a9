"""Evaluation by the training workers: scores over the held-out set, the same at any world size."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch.distributed as dist

from data.feed.fetch import held_out_batches
from data.feed.spec import HeldOut, ToTranslate
from orchestrator.evaluation.scores import held_out_scores, loss_sums
from orchestrator.evaluation.translate import scores_of_texts, translate
from orchestrator.run.job import TrainJob
from orchestrator.train.state import TrainState
from orchestrator.train.step_sync import StepSync
from orchestrator.train.watched_clock import each_marked


def evaluate(job: TrainJob, state: TrainState, num_translated: int) -> dict[str, Any]:
    """Scores the weights to evaluate; every rank calls this, and rank 0 gets all scores.

    Args:
        num_translated: held-out pairs to translate, where the data has pairs.
    """
    with state.evaluated_weights():
        return held_out_scores_of(job, state) | translation_scores_of(job, state, num_translated)


def held_out_scores_of(job: TrainJob, state: TrainState) -> dict[str, float]:
    """Loss, perplexity and bits per byte over the held-out set, on every rank; the ranks share its micro-batches."""
    held_out: HeldOut = ray.get(job.feeder.held_out.remote())
    if not held_out.refs:
        return {}
    sync = StepSync(len(held_out.refs), 0, state.device)
    slots = range(state.rank, len(held_out.refs), state.world_size)
    batches = held_out_batches(job.feeder, held_out, each_marked(slots))
    for slot, loss_sum in zip(slots, loss_sums(state.model, batches, job.config, state.device), strict=True):
        sync.add(slot, loss_sum, np.empty(0, np.int64))
    sync.combine()
    return held_out_scores(sync.loss_sum(), held_out.target_tokens, held_out.text_bytes)


def translation_scores_of(job: TrainJob, state: TrainState, count: int) -> dict[str, Any]:
    """BLEU and chrF of the first `count` held-out pairs; the ranks share the batches. Only rank 0 gets them."""
    if not job.config.data.has_pairs or not count:
        return {}
    pairs: ToTranslate = ray.get(job.feeder.to_translate.remote(count))
    batches = each_marked(pairs.batches[state.rank :: state.world_size])
    texts = translate(state.model, batches, pairs.tokenizer, job.config)
    gathered: list[dict[int, str]] = [{}] * state.world_size
    dist.all_gather_object(gathered, texts)
    if state.rank > 0 or not pairs.references:
        return {}
    return scores_of_texts({position: text for part in gathered for position, text in part.items()}, pairs, job.config)
