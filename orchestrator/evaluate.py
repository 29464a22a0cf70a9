"""Evaluation over the held-out set: perplexity per token and bits per byte."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.packing import MicroBatch
from model.seq2seq import Seq2Seq
from orchestrator.config import RunConfig
from orchestrator.forward import autocast, model_inputs
from orchestrator.translate import scores_of, translate


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


def evaluate(config: RunConfig, split: str = "validation", step: int | None = None) -> dict[str, Any]:
    """Score a checkpoint of the recipe's run on a split of its data, on this machine alone.

    The first `data.validation_sequences` samples of the split count, and of pairs the first `eval.translate` are
    translated.

    Args:
        split: "train", "validation" or "test".
        step: of the checkpoint; None: the newest.

    Raises:
        UnknownRunError: there is no such run, or it has no such checkpoint.
        InputError: the split is empty.
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
    if not batches:
        raise InputError(
            f"The {split} split is empty: data.validation_fraction = {config.data.validation_fraction}, and "
            f"data.sources have split = {', '.join(source.split for source in config.data.sources)}."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained.model.to(device)
    total = math.fsum(float(loss) for loss in loss_sums(model, batches, config, device))
    target_tokens, text_bytes = measure_held_out(batches, trained.data.tokenizer.token_bytes)
    scores = {
        "val_tokens": target_tokens,
        "val_bytes": text_bytes,
        **held_out_scores(total, target_tokens, text_bytes),
    }
    if asked is not None and isinstance(model, Seq2Seq):
        scores |= scores_of(translate(model, asked.batches, asked.tokenizer, config), asked, config)
    prefix = {"validation": "val"}.get(split, split)
    named = {f"{prefix}_{name.removeprefix('val_')}": value for name, value in scores.items()}
    weights = "averaged" if trained.averaged else "as trained"
    return {"run": config.run, "step": trained.step, "weights": weights, **named}
