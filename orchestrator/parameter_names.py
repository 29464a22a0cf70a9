"""Whether the patterns of a recipe's parameter groups match, found out before training starts."""

from __future__ import annotations

from model.eager import skip_compiler
from orchestrator.config import RunConfig
from orchestrator.errors import InputError
from orchestrator.vocabulary import Vocabulary

_ANY_VOCABULARY = 64
"""The vocabulary is not known yet, and changes no name."""


def refuse_unmatched_groups(config: RunConfig) -> None:
    """Refuse patterns of `train.optimizer.groups` that match no parameter of the recipe's model.

    Raises:
        InputError: all such patterns, each with names near it.
    """
    skip_compiler()
    import torch

    from model.parameter_groups import check_patterns
    from orchestrator.forward import build_model

    rows = config.model.vocab_size or _ANY_VOCABULARY
    input_rows = None if config.data.input_tokenizer is None else config.model.input_vocab_size or _ANY_VOCABULARY
    with torch.device("meta"):  # names and no numbers
        model = build_model(config, Vocabulary(rows, 0, input_rows))
    try:
        check_patterns([name for name, _ in model.named_parameters()], config.train.optimizer.groups)
    except ValueError as error:
        lines = [f"train.optimizer.{problem}" for problem in str(error).splitlines()]
        raise InputError("\n".join(lines)) from None
