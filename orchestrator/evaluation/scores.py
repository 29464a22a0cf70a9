"""Scores of a model: loss, perplexity and bits per byte of held-out text, BLEU and chrF of translations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
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


TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""sacrebleu's tokenizers by ISO 639-1 code, for languages without spaces between words; 13a, as in WMT, for others."""


def translation_scores(translations: Sequence[str], references: Sequence[str], language: str | None) -> dict[str, Any]:
    """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, with their sacrebleu signatures.

    Args:
        translations: plain texts, one for each reference.
        language: ISO 639-1 code of both sides; chooses BLEU's tokenizer. None: words between spaces.

    Raises:
        InputError: sacrebleu lacks the segmenter for this language.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    tokenizer = TOKENIZERS.get((language or "").lower().partition("-")[0], "13a")
    try:
        bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    except (ImportError, RuntimeError) as error:
        extra, reason = tokenizer.partition("-")[0], str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"BLEU for eval.language={language} needs a segmenter that is not installed ({reason}). "
            f"pip install 'sacrebleu[{extra}]', or leave eval.language out to count words between spaces."
        ) from error
    bleu_score = bleu.corpus_score(list(translations), [list(references)])
    chrf_score = chrf.corpus_score(list(translations), [list(references)])
    return {
        "bleu": bleu_score.score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf_score.score,
        "chrf_signature": str(chrf.get_signature()),
    }
