"""A run's newest model, with what belongs to it: for evaluation and generation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.prepare import PreparedData
from model.transformer import Transformer
from orchestrator.checkpoint import MODEL, fetch_newest
from orchestrator.config import RunConfig
from orchestrator.errors import UnknownRunError
from orchestrator.forward import build_model
from orchestrator.model_state import load_weights
from orchestrator.run import Run, embedding_rows


@dataclass(frozen=True)
class TrainedModel:
    """Weights of one checkpoint in place, and the data the run is pinned to."""

    model: Transformer
    step: int
    data: PreparedData


def load_trained(config: RunConfig, run: Run) -> TrainedModel:
    """The model of the run's newest checkpoint.

    Raises:
        UnknownRunError: the run has no checkpoint yet.
        CheckpointDamagedError: none of its checkpoints is whole.
    """
    with tempfile.TemporaryDirectory(prefix="manta-model-") as scratch:
        fetched = fetch_newest(run.store, run.record, (MODEL,), Path(scratch))
        if fetched is None:
            raise UnknownRunError(
                f"Run {config.run!r} has no checkpoint yet; the first comes within a minute of training."
            )
        data = run.prepare(lambda line: None)
        tokenizer = data.tokenizer
        model = build_model(config, embedding_rows(config, tokenizer), tokenizer.end_of_text)
        load_weights(Path(scratch), model)
    return TrainedModel(model.eval(), fetched[0].step, data)
