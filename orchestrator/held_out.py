"""Evaluation by those who train, and beside them: scores over the held-out set, the same at any world size."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from data.feeder import HeldOut, ToTranslate
from model.seq2seq import Seq2Seq
from orchestrator.evaluate import held_out_scores, loss_sums
from orchestrator.forward import build_model
from orchestrator.job import TrainJob
from orchestrator.model_state import load_weights
from orchestrator.step_log import StepLog
from orchestrator.translate import scores_of, translate


def evaluate_held_out(
    job: TrainJob, model: nn.Module, rank: int, world_size: int, device: torch.device
) -> dict[str, float]:
    """Scores over the held-out set, shared out among ranks and summed by slot."""
    held_out: HeldOut = ray.get(job.feeder.held_out.remote())
    if not held_out.refs:
        return {}
    log = StepLog(len(held_out.refs), 0, device)
    slots = range(rank, len(held_out.refs), world_size)
    batches = (ray.get(held_out.refs[slot]) for slot in slots)
    for slot, loss_sum in zip(slots, loss_sums(model, batches, job.config, device), strict=True):
        log.note(slot, loss_sum, np.empty(0, np.int64))
    log.combine()
    return held_out_scores(log.loss_sum(), held_out.target_tokens, held_out.text_bytes)


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


class Evaluator:
    """Evaluates what the workers had at a step, while they go on; in a process that is none of theirs."""

    def __init__(self, job: TrainJob) -> None:
        torch.set_num_threads(job.config.scaling.threads)
        self._job, self._device = job, torch.device("cuda" if job.config.scaling.on_gpu else "cpu")
        self._model = build_model(job.config, job.vocabulary).to(self._device)

    def evaluate(self, weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Scores of weights over the held-out set, and of translations; none where nothing is held out.

        Args:
            weights: the file that `NodeKeeper.weights` hands out.
        """
        with tempfile.TemporaryDirectory(prefix="manta-weights-") as folder:
            for name, content in weights.items():
                content.tofile(Path(folder) / name)
            load_weights(Path(folder), self._model, averaged=self._job.config.train.ema_decay is not None)
        held_out: HeldOut = ray.get(self._job.feeder.held_out.remote())
        if not held_out.refs:
            return {}
        batches = (ray.get(ref) for ref in held_out.refs)
        total = math.fsum(float(loss) for loss in loss_sums(self._model, batches, self._job.config, self._device))
        return held_out_scores(total, held_out.target_tokens, held_out.text_bytes) | self._translations()

    def _translations(self) -> dict[str, Any]:
        config = self._job.config
        if not isinstance(self._model, Seq2Seq) or not config.eval.translate_on_the_way:
            return {}
        asked: ToTranslate = ray.get(self._job.feeder.to_translate.remote(config.eval.translate_on_the_way))
        return scores_of(translate(self._model, asked.batches, asked.tokenizer, config), asked, config)
