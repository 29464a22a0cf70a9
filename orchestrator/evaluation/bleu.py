"""BLEU and chrF of translations. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.errors import InputError

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
