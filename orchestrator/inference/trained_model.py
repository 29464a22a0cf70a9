"""A run's newest model, with what belongs to it: for evaluation and generation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.prepare import PreparedData
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
    """Weights of one checkpoint in place, and the data the run is pinned to.

    Attributes:
        averaged: whether they are the moving average that the run keeps.
    """

    model: Transformer | Seq2Seq
    step: int
    data: PreparedData
    averaged: bool


def load_trained(config: RunConfig, run: Run, step: int | None = None) -> TrainedModel:
    """The model of the run's newest checkpoint, or of that of `step`; averaged weights where the run keeps them.

    Raises:
        ConfigChangedError: the recipe's data or model are not the run's.
        UnknownRunError: the run has no checkpoint yet, or none of that step.
        CheckpointDamagedError: none of its checkpoints is whole, or that one is not.
    """
    refuse_changed_config(run.record, config, ("data.", "model."), but=("data.validation_sequences",))
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
            f"Run {run.config.run!r} has no checkpoint yet; the first comes within a minute of training."
        )
    names = list_checkpoints(run.store, run.record)
    for name in reversed(names):
        if name.step == step:
            fetch_checkpoint(run.store, name, (file,), folder)
            return name
    steps = ", ".join(str(name.step) for name in names) or "none"
    raise UnknownRunError(f"Run {run.config.run!r} has no checkpoint of step {step}. Steps that are kept: {steps}.")
