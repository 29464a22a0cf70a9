"""Evaluates what the training workers had at a step, in a process of its own while they go on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from data.feed.spec import HeldOut, ToTranslate
from model.seq2seq import Seq2Seq
from orchestrator.evaluation.forward import build_model
from orchestrator.evaluation.scores import held_out_scores, loss_sums
from orchestrator.evaluation.translate import scores_of, translate
from orchestrator.run.job import TrainJob
from orchestrator.snapshots.tensors import load_weights


class Evaluator:
    """Evaluates what the workers had at a step, while they go on; in a process that is none of theirs."""

    def __init__(self, job: TrainJob) -> None:
        torch.set_num_threads(job.config.scaling.threads)
        self._job, self._device = job, torch.device("cuda" if job.config.scaling.on_gpu else "cpu")
        self._model = build_model(job.config, job.vocabulary).to(self._device)

    def evaluate(self, weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Scores of weights over the held-out set, and of translations; none where nothing is held out.

        Args:
            weights: the file that `SnapshotAgent.weights` hands out.
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
        if not isinstance(self._model, Seq2Seq) or not config.eval.translate_during_training:
            return {}
        asked: ToTranslate = ray.get(self._job.feeder.to_translate.remote(config.eval.translate_during_training))
        return scores_of(translate(self._model, asked.batches, asked.tokenizer, config), asked, config)
