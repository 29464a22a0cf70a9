"""Texts that a model writes from inputs, and how close they come to those of the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data.feed.spec import ToTranslate
from data.order.pairs import InputBatch
from data.tokens.tokenizer import Tokenizer
from model.decoding.beam_search import beam_search
from model.seq2seq import Seq2Seq
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.scores import translation_scores


def translate(model: Seq2Seq, batches: Iterable[InputBatch], tokenizer: Tokenizer, config: RunConfig) -> dict[int, str]:
    """What beam search writes for every input, by its place; `eval.*` of the recipe decide how.

    A function of the batch alone, so that it does not matter who translates which.
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
        texts |= {place: tokenizer.decode(ids) for place, ids in zip(batch.places, written, strict=True)}
    return texts


def scores_of(texts: Mapping[int, str], asked: ToTranslate, config: RunConfig) -> dict[str, Any]:
    """BLEU, chrF and their signatures, by the names that evaluations go by."""
    in_order = [texts[place] for place in range(len(asked.references))]
    scores = translation_scores(in_order, asked.references, config.eval.language)
    return {f"val_{name}": value for name, value in scores.items()} | {"val_translated": len(in_order)}
