"""Translates held-out inputs with beam search, and scores the texts against those of the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data.feed.spec import ToTranslate
from data.order.pairs import InputBatch
from data.tokens.tokenizer import Tokenizer
from model.decoding.beam_search import beam_search
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.bleu import translation_scores


def translate(
    model: Transformer | Seq2Seq, batches: Iterable[InputBatch], tokenizer: Tokenizer, config: RunConfig
) -> dict[int, str]:
    """Text that beam search finds for every input, by the input's position; `eval.*` of the recipe sets the search.

    Each text depends on its batch alone, so any process may translate any batch.
    """
    texts: dict[int, str] = {}
    for batch in batches:
        written = beam_search(
            model,
            batch.inputs,
            config.data.seq_len,
            beam_size=config.eval.beam_size,
            length_penalty=config.eval.length_penalty,
            end_of_text=tokenizer.end_of_text,
            vocab_limit=tokenizer.vocab_size,
        )
        texts |= {position: tokenizer.decode(ids) for position, ids in zip(batch.positions, written, strict=True)}
    return texts


def scores_of_texts(texts: Mapping[int, str], pairs: ToTranslate, config: RunConfig) -> dict[str, Any]:
    """BLEU, chrF and their signatures under the names that evaluations store them by, `val_...`."""
    in_order = [texts[position] for position in range(len(pairs.references))]
    scores = translation_scores(in_order, pairs.references, config.eval.language)
    return {f"val_{name}": value for name, value in scores.items()} | {"val_translated": len(in_order)}
