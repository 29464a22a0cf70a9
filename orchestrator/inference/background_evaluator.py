"""Evaluator: evaluates a snapshot's weights in a process of its own while the workers train on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from data.feed.fetch import held_out_batches
from data.feed.spec import HeldOut, ToTranslate
from orchestrator.evaluation.forward import build_model
from orchestrator.evaluation.scores import held_out_scores, loss_sums
from orchestrator.evaluation.translate import scores_of_texts, translate
from orchestrator.run.job import TrainJob
from orchestrator.snapshots.tensors import load_weights


class Evaluator:
    """Scores the weights of snapshots of one run, with a model built from the run's config."""

    def __init__(self, job: TrainJob) -> None:
        torch.set_num_threads(job.config.scaling.threads)
        self._job, self._device = job, torch.device("cuda" if job.config.scaling.on_gpu else "cpu")
        self._model = build_model(job.config, job.vocabulary).to(self._device)

    def evaluate(self, weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Scores over the held-out set, and of translations; {} where the run has no held-out set.

        Args:
            weights: what `SnapshotAgent.weights` returns: the content of the weights file, by name.
        """
        with tempfile.TemporaryDirectory(prefix="manta-weights-") as folder:
            for name, content in weights.items():
                content.tofile(Path(folder) / name)
            load_weights(Path(folder), self._model, averaged=self._job.config.train.ema_decay is not None)
        held_out: HeldOut = ray.get(self._job.feeder.held_out.remote())
        if not held_out.refs:
            return {}
        batches = held_out_batches(self._job.feeder, held_out, range(len(held_out.refs)))
        total = math.fsum(float(loss) for loss in loss_sums(self._model, batches, self._job.config, self._device))
        return held_out_scores(total, held_out.target_tokens, held_out.text_bytes) | self._translations()

    def _translations(self) -> dict[str, Any]:
        config = self._job.config
        count = config.eval.translate_during_training
        if not config.data.has_pairs or not count:
            return {}
        pairs: ToTranslate = ray.get(self._job.feeder.to_translate.remote(count))
        return scores_of_texts(translate(self._model, pairs.batches, pairs.tokenizer, config), pairs, config)
