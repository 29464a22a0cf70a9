"""Evaluation over the held-out set: perplexity per token and bits per byte."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.packing import MicroBatch
from orchestrator.config import RunConfig
from orchestrator.forward import autocast, inputs_and_targets


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
                yield model(*inputs_and_targets(batch, device))
    finally:
        model.train()


def evaluate(config: RunConfig) -> dict[str, Any]:
    """Score the newest checkpoint of the recipe's run on its held-out set, on this machine alone.

    Raises:
        UnknownRunError: there is no such run, or it has no checkpoint yet.
        InputError: nothing is held out.
    """
    from data.errors import InputError
    from data.feeder import held_out_batches, measure_held_out
    from orchestrator.run import RayWhenNeeded, feed_spec, open_run, reaching_storage
    from orchestrator.trained_model import load_trained

    with reaching_storage(config) as config:
        run = open_run(config)
        trained = load_trained(config, run)
        with RayWhenNeeded(config, lambda line: print(line, file=sys.stderr)) as start_ray:
            batches = held_out_batches(feed_spec(run, trained.data), start_ray)
    if not batches:
        raise InputError(
            f"data.validation_fraction={config.data.validation_fraction} holds nothing out to evaluate on."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = math.fsum(float(loss) for loss in loss_sums(trained.model.to(device), batches, config, device))
    target_tokens, text_bytes = measure_held_out(batches, trained.data.tokenizer.token_bytes)
    return {
        "run": config.run,
        "step": trained.step,
        "val_tokens": target_tokens,
        "val_bytes": text_bytes,
        **held_out_scores(total, target_tokens, text_bytes),
    }
