"""Sizes of a run's embeddings, derived from its tokenizers.

A module of its own, since workers, driver and evaluation need it and none of them needs the rest of `Run`.
"""

from __future__ import annotations

from typing import NamedTuple

from data.errors import InputError
from data.tokens.tokenizer import Tokenizer
from model.size import count_parameters
from orchestrator.config.recipe import RunConfig


class Vocabulary(NamedTuple):
    """The vocabulary of a run, as the model needs it.

    Attributes:
        rows: rows of the embedding.
        end_of_text: id that opens and closes texts.
        input_rows: rows of a separate embedding for inputs; None if inputs share the other, or there are none.
    """

    rows: int
    end_of_text: int
    input_rows: int | None = None


def vocabulary_of(config: RunConfig, tokenizer: Tokenizer, input_tokenizer: Tokenizer | None = None) -> Vocabulary:
    """Builds the vocabulary of the recipe's model for these tokenizers.

    Raises:
        InputError: a tokenizer has more ids than its embedding has rows.
    """
    try:
        rows = config.model.resolve_vocab_size(tokenizer.vocab_size)
        if input_tokenizer is None:
            return Vocabulary(rows, tokenizer.end_of_text)
        input_rows = config.model.resolve_input_vocab_size(input_tokenizer.vocab_size)
        return Vocabulary(rows, tokenizer.end_of_text, input_rows)
    except ValueError as error:
        raise InputError(f"model.{error}") from None


def parameters_of(config: RunConfig, vocabulary: Vocabulary) -> int:
    """Number of parameters of the recipe's model; a tied embedding counts once."""
    data, rows, input_rows = config.data, vocabulary.rows, vocabulary.input_rows
    lengths = data.seq_len, data.most_input_tokens
    return count_parameters(config.model, rows, lengths[0], input_vocab_size=input_rows, source_len=lengths[1]).total
