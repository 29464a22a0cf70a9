"""Ids of a run's tokenizers as the model needs to know them."""

from __future__ import annotations

from typing import NamedTuple

from data.errors import InputError
from data.tokens.tokenizer import Tokenizer
from orchestrator.config.recipe import RunConfig


class Vocabulary(NamedTuple):
    """Of a run.

    Attributes:
        rows: of the embedding.
        end_of_text: id that opens and closes texts.
        input_rows: of an embedding for inputs alone; None where inputs share the other, or there are none.
    """

    rows: int
    end_of_text: int
    input_rows: int | None = None


def vocabulary_of(config: RunConfig, tokenizer: Tokenizer, input_tokenizer: Tokenizer | None = None) -> Vocabulary:
    """The vocabulary that the recipe's model has for these tokenizers.

    Raises:
        InputError: a tokenizer has ids beyond the rows of its embedding.
    """
    try:
        rows = config.model.resolve_vocab_size(tokenizer.vocab_size)
        if input_tokenizer is None:
            return Vocabulary(rows, tokenizer.end_of_text)
        input_rows = config.model.resolve_input_vocab_size(input_tokenizer.vocab_size)
        return Vocabulary(rows, tokenizer.end_of_text, input_rows)
    except ValueError as error:
        raise InputError(f"model.{error}") from None
