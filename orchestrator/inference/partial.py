"""A part of an evaluation: some micro-batches and inputs, by one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from data.order.packing import MicroBatch
from data.order.pairs import InputBatch
from model.seq2seq import Seq2Seq
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.scores import loss_sums
from orchestrator.evaluation.translate import translate

if TYPE_CHECKING:
    from orchestrator.inference.trained_model import TrainedModel


class Part(NamedTuple):
    """What an evaluation finds in some of the micro-batches and inputs.

    Attributes:
        losses: sums of token losses by micro-batch.
        texts: what was written for inputs, by their places.
    """

    losses: Mapping[int, float]
    texts: Mapping[int, str]


def evaluate_part(
    config: RunConfig, trained: TrainedModel, batches: Mapping[int, MicroBatch], inputs: Sequence[InputBatch]
) -> Part:
    """Evaluate micro-batches, and translate inputs, on this machine's GPU if it has one: a function of each alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained.model.to(device)
    losses = map(float, loss_sums(model, batches.values(), config, device))
    texts = translate(model, inputs, trained.data.tokenizer, config) if isinstance(model, Seq2Seq) else {}
    return Part(dict(zip(batches, losses, strict=True)), texts)
