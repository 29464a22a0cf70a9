"""Evaluation over the held-out set: perplexity per token and bits per byte."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from data.packing import MicroBatch
from data.pairs import InputBatch
from model.seq2seq import Seq2Seq
from orchestrator.config import RunConfig
from orchestrator.forward import autocast, model_inputs
from orchestrator.translate import scores_of, translate

if TYPE_CHECKING:
    from data.feeder import FeedSpec
    from orchestrator.trained_model import TrainedModel


def held_out_scores(loss_sum: float, target_tokens: int, text_bytes: int) -> dict[str, float]:
    """Held-out loss in nats per token, perplexity exp(loss), and bits per byte of the text the targets spell.

    Bits per byte, loss_sum / ln 2 / text_bytes, compares models of different vocabularies, and with compressors.
    """
    loss = loss_sum / target_tokens
    return {
        "val_loss": loss,
        "val_perplexity": math.exp(min(loss, 700)),
        "val_bits_per_byte": loss_sum / math.log(2) / text_bytes,
    }


def loss_sums(
    model: nn.Module, batches: Iterable[MicroBatch], config: RunConfig, device: torch.device
) -> Iterator[Tensor]:
    """The sum of token losses of each micro-batch, () float32, without dropout and gradients."""
    model.eval()
    try:
        for batch in batches:
            with torch.no_grad(), autocast(config, device):
                yield model(*model_inputs(batch, device))
    finally:
        model.train()


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


def evaluate(
    config: RunConfig, split: str = "validation", step: int | None = None, workers: int = 0, *, nearest: bool = False
) -> dict[str, Any]:
    """Score a checkpoint of the recipe's run on a split of its data.

    The first `data.validation_sequences` samples of the split count, and of pairs the first `eval.translate` are
    translated.

    Args:
        split: "train", "validation" or "test".
        step: of the checkpoint; None: the newest.
        workers: processes that share the work, on the cluster that this one joins or on this machine; 0: this process
            does it. The result is the same, on devices of one kind.
        nearest: also score the texts that retrieval finds, see `NearestPair`.

    Raises:
        UnknownRunError: there is no such run, or it has no such checkpoint.
        InputError: the split is empty, or there is nothing to retrieve for.
    """
    from data.errors import InputError
    from data.feeder import fixed_batches, measure_held_out, pairs_to_translate
    from orchestrator.run import RayWhenNeeded, feed_spec, open_run, reaching_storage
    from orchestrator.trained_model import load_trained

    with reaching_storage(config) as config:
        run = open_run(config)
        trained = load_trained(config, run, step)
        spec = feed_spec(run, trained.data)
        with RayWhenNeeded(config, lambda line: print(line, file=sys.stderr)) as start_ray:
            batches = fixed_batches(spec, split, start_ray)
            translates = isinstance(trained.model, Seq2Seq) and config.eval.translate
            asked = pairs_to_translate(spec, split, config.eval.translate, start_ray) if translates else None
            if nearest and (asked is None or split == "train"):
                raise InputError(
                    "--nearest is for pairs that the model has not been trained on, and eval.translate > 0."
                )
            retrieved = _nearest(spec, split, config) if nearest else {}
        if not batches:
            raise InputError(
                f"The {split} split is empty: data.validation_fraction = {config.data.validation_fraction}, and "
                f"data.sources have split = {', '.join(source.split for source in config.data.sources)}."
            )
        inputs = [] if asked is None else asked.batches
        if workers:
            from orchestrator.evaluation_workers import evaluate_apart

            part = evaluate_apart(run, trained.step, batches, inputs, workers)
        else:
            part = evaluate_part(config, trained, dict(enumerate(batches)), inputs)
    target_tokens, text_bytes = measure_held_out(batches, trained.data.tokenizer.token_bytes)
    scores = {
        "val_tokens": target_tokens,
        "val_bytes": text_bytes,
        **held_out_scores(math.fsum(part.losses.values()), target_tokens, text_bytes),
    }
    if asked is not None:
        scores |= scores_of(part.texts, asked, config)
    if asked is not None and nearest:
        found = scores_of(retrieved, asked, config)
        scores |= {f"val_nearest_{name}": found[f"val_{name}"] for name in ("bleu", "chrf")}
    prefix = {"validation": "val"}.get(split, split)
    named = {f"{prefix}_{name.removeprefix('val_')}": value for name, value in scores.items()}
    weights = "averaged" if trained.averaged else "as trained"
    return {"run": config.run, "step": trained.step, "weights": weights, **named}


def _nearest(spec: FeedSpec, split: str, config: RunConfig) -> dict[int, str]:
    """For every pair that is translated, by its place, the text of the training pair whose input is nearest."""
    from data.feeder import raw_pairs
    from orchestrator.nearest import NearestPair

    asked = islice(raw_pairs(spec, split), config.eval.translate)
    return dict(enumerate(NearestPair(raw_pairs(spec, "train")).texts([read for read, _ in asked])))
