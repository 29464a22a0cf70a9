"""Loads the model of a run's checkpoint, with the data it belongs to, for evaluation, generation and export."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.prepared import PreparedData
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import UnknownRunError
from orchestrator.evaluation.forward import build_model
from orchestrator.run.checkpoint import CheckpointName, fetch_checkpoint, fetch_newest, list_checkpoints, weights_file
from orchestrator.run.run import Run, refuse_changed_config
from orchestrator.run.vocabulary import vocabulary_of
from orchestrator.snapshots.tensors import load_weights


@dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of one checkpoint.

    Attributes:
        step: the checkpoint's step.
        data: the run's manifest, tokenizer and how its data is read.
        averaged: whether the weights are the moving average that the run keeps.
    """

    model: Transformer | Seq2Seq
    step: int
    data: PreparedData
    averaged: bool


def load_trained(config: RunConfig, run: Run, step: int | None = None) -> TrainedModel:
    """Loads the model of the checkpoint of `step` or the newest; its averaged weights where the run keeps them.

    Raises:
        ConfigChangedError: the recipe's data or model differ from the run's.
        UnknownRunError: the run has no checkpoint yet, or none of that step.
        CheckpointDamagedError: all its checkpoints are damaged, or that one is.
    """
    refuse_changed_config(run.record, config, ("data.", "model."), ignored=("data.validation_sequences",))
    averaged = run.record.averages_weights
    with tempfile.TemporaryDirectory(prefix="manta-model-") as scratch:
        name = _fetch(run, step, weights_file(averaged=averaged), Path(scratch))
        data = run.prepare(lambda line: None)
        model = build_model(config, vocabulary_of(config, data.tokenizer, data.job.input_tokenizer))
        load_weights(Path(scratch), model, averaged=averaged)
    return TrainedModel(model.eval(), name.step, data, averaged)


def _fetch(run: Run, step: int | None, file: str, folder: Path) -> CheckpointName:
    if step is None:
        if fetched := fetch_newest(run.store, run.record, (file,), folder):
            return fetched[0]
        raise UnknownRunError(
            f"Run {run.config.run!r} has no checkpoint yet; training saves the first within a minute."
        )
    names = list_checkpoints(run.store, run.record)
    for name in reversed(names):
        if name.step == step:
            fetch_checkpoint(run.store, name, (file,), folder, run.record)
            return name
    steps = ", ".join(str(name.step) for name in names) or "none"
    raise UnknownRunError(f"Run {run.config.run!r} has no checkpoint of step {step}. Steps that are kept: {steps}.")
