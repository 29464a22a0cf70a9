"""Evaluation by the training workers: scores over the held-out set, the same at any world size."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch import nn

from data.feed.spec import HeldOut, ToTranslate
from model.seq2seq import Seq2Seq
from orchestrator.evaluation.scores import held_out_scores, loss_sums
from orchestrator.evaluation.translate import scores_of, translate
from orchestrator.run.job import TrainJob
from orchestrator.train.step_sync import StepSync


def evaluate_held_out(
    job: TrainJob, model: nn.Module, rank: int, world_size: int, device: torch.device
) -> dict[str, float]:
    """Scores over the held-out set, shared out among ranks and summed by slot."""
    held_out: HeldOut = ray.get(job.feeder.held_out.remote())
    if not held_out.refs:
        return {}
    sync = StepSync(len(held_out.refs), 0, device)
    slots = range(rank, len(held_out.refs), world_size)
    batches = (ray.get(held_out.refs[slot]) for slot in slots)
    for slot, loss_sum in zip(slots, loss_sums(model, batches, job.config, device), strict=True):
        sync.add(slot, loss_sum, np.empty(0, np.int64))
    sync.combine()
    return held_out_scores(sync.loss_sum(), held_out.target_tokens, held_out.text_bytes)


def evaluate_translations(job: TrainJob, model: nn.Module, count: int, rank: int, world_size: int) -> dict[str, Any]:
    """BLEU and chrF of the first `count` held-out pairs, batches shared out among ranks. Rank 0 has them."""
    if not isinstance(model, Seq2Seq) or not count:
        return {}
    asked: ToTranslate = ray.get(job.feeder.to_translate.remote(count))
    texts = translate(model, asked.batches[rank::world_size], asked.tokenizer, job.config)
    gathered: list[dict[int, str]] = [{}] * world_size
    dist.all_gather_object(gathered, texts)
    if rank > 0 or not asked.references:
        return {}
    return scores_of({place: text for part in gathered for place, text in part.items()}, asked, job.config)
