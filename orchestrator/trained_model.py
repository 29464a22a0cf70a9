"""A run's newest model, with what belongs to it: for evaluation and generation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.prepare import PreparedData
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.checkpoint import CheckpointName, fetch_checkpoint, fetch_newest, list_checkpoints, weights_file
from orchestrator.config import RunConfig
from orchestrator.errors import UnknownRunError
from orchestrator.forward import build_model
from orchestrator.model_state import load_weights
from orchestrator.run import Run
from orchestrator.vocabulary import vocabulary_of


@dataclass(frozen=True)
class TrainedModel:
    """Weights of one checkpoint in place, and the data the run is pinned to.

    Attributes:
        averaged: whether they are the moving average that the run keeps.
    """

    model: Transformer | Seq2Seq
    step: int
    data: PreparedData
    averaged: bool


def load_trained(config: RunConfig, run: Run, step: int | None = None) -> TrainedModel:
    """The model of the run's newest checkpoint, or of the one after `step`; averaged weights where it keeps them.

    Raises:
        UnknownRunError: the run has no checkpoint yet, or none after that step.
        CheckpointDamagedError: that one, or every one, is damaged.
    """
    averaged = run.record.averages_weights
    with tempfile.TemporaryDirectory(prefix="manta-model-") as scratch:
        files = (weights_file(averaged=averaged),)
        if step is None:
            fetched = fetch_newest(run.store, run.record, files, Path(scratch))
        else:
            name = _checkpoint_after(step, config, run)
            fetched = name, fetch_checkpoint(run.store, name, files, Path(scratch))
        if fetched is None:
            raise UnknownRunError(
                f"Run {config.run!r} has no checkpoint yet; the first comes within a minute of training."
            )
        data = run.prepare(lambda line: None)
        model = build_model(config, vocabulary_of(config, data.tokenizer, data.job.input_tokenizer))
        load_weights(Path(scratch), model, averaged=averaged)
    return TrainedModel(model.eval(), fetched[0].step, data, averaged)


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
