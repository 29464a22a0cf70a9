"""A run's newest model, with what belongs to it: for evaluation and generation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.prepare import PreparedData
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.checkpoint import MODEL, CheckpointName, fetch_checkpoint, fetch_newest, list_checkpoints
from orchestrator.config import RunConfig
from orchestrator.errors import UnknownRunError
from orchestrator.forward import build_model
from orchestrator.model_state import load_weights
from orchestrator.run import Run
from orchestrator.vocabulary import vocabulary_of


@dataclass(frozen=True)
class TrainedModel:
    """Weights of one checkpoint in place, and the data the run is pinned to."""

    model: Transformer | Seq2Seq
    step: int
    data: PreparedData


def load_trained(config: RunConfig, run: Run, step: int | None = None) -> TrainedModel:
    """The model of the run's newest checkpoint, or of the one after `step`.

    Raises:
        UnknownRunError: the run has no checkpoint yet, or none after that step.
        CheckpointDamagedError: that one, or every one, is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="manta-model-") as scratch:
        if step is None:
            fetched = fetch_newest(run.store, run.record, (MODEL,), Path(scratch))
        else:
            name = _checkpoint_after(step, config, run)
            fetched = name, fetch_checkpoint(run.store, name, (MODEL,), Path(scratch))
        if fetched is None:
            raise UnknownRunError(
                f"Run {config.run!r} has no checkpoint yet; the first comes within a minute of training."
            )
        data = run.prepare(lambda line: None)
        model = build_model(config, vocabulary_of(config, data.tokenizer, data.job.input_tokenizer))
        load_weights(Path(scratch), model)
    return TrainedModel(model.eval(), fetched[0].step, data)


def _checkpoint_after(step: int, config: RunConfig, run: Run) -> CheckpointName:
    names = list_checkpoints(run.store, run.record)
    found = [name for name in names if name.step == step]
    if not found:
        there = ", ".join(str(name.step) for name in names) or "none"
        raise UnknownRunError(
            f"Run {config.run!r} has no checkpoint of step {step}. There are: {there} (checkpoint.keep = "
            f"{config.checkpoint.keep} are kept)."
        )
    return found[-1]
