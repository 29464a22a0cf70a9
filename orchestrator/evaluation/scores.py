"""Scores of held-out text: loss, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from data.order.packing import MicroBatch
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import autocast, model_inputs


def held_out_scores(loss_sum: float, target_tokens: int, text_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity exp(loss), and bits per byte of the text that the targets spell.

    Bits per byte, loss_sum / ln 2 / text_bytes, is comparable between vocabularies, and with compressors.

    Args:
        loss_sum: sum of all token losses, in nats.
        target_tokens: number of those tokens.
        text_bytes: bytes of the text they spell.
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
    """Yields the sum of token losses of each micro-batch, () float32, without dropout or gradients."""
    model.eval()
    try:
        for batch in batches:
            with torch.no_grad(), autocast(config, device):
                yield model(*model_inputs(batch, device))
    finally:
        model.train()
