"""Scores of a model: perplexity per token and bits per byte of held-out text, BLEU and chrF of translations."""

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


TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""How sacrebleu finds words in languages that do not put spaces between them; in all others, as WMT does (13a)."""


def translation_scores(translations: Sequence[str], references: Sequence[str], language: str | None) -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) over a corpus, 0 to 100, with their signatures.

    Args:
        translations: one a reference, as plain text.
        language: of both, as ISO 639-1 has it; decides what counts as a word for BLEU. None: words between spaces.

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
