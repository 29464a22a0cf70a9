"""`manta prepare`, and the same before training: makes a run's data ready, and refuses what cannot be trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.errors import InputError
from data.prepare import Pins, PreparedData, prepare_data
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from model.eager import skip_compiler
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.nodes.ray_session import RayWhenNeeded
from orchestrator.run.run import Run, reaching_storage, stores
from orchestrator.run.vocabulary import Vocabulary, vocabulary_of


def prepare(config: RunConfig) -> None:
    """Check the shards, learn the tokenizer and tokenize, as far as that has not been done."""
    console = Console()
    with reaching_storage(config) as config, RayWhenNeeded(config, console.line) as start_ray:
        root, _ = stores(config)
        root.check()
        data = prepared(config, root, Pins(), console.line, start_ray)
        console.line(f"ready: {data.summary()}")


def prepared(
    config: RunConfig, root: Store, pins: Pins, tell: Callable[[str], None], start_ray: Callable[[], None]
) -> PreparedData:
    """`prepare_data` for the recipe; what the model cannot be or be trained with is refused before anything is done.

    Raises:
        InputError: a pattern of train.optimizer.groups matches none of the model's parameters.
        InitialWeightsError: `train.init_from` is not of the recipe's model.
    """
    if config.train.optimizer.groups:  # else torch is not needed here
        refuse_unmatched_groups(config)

    def check(tokenizer: Tokenizer, input_tokenizer: Tokenizer | None) -> None:
        vocabulary_of(config, tokenizer, input_tokenizer)
        if config.train.init_from is not None and pins.manifest is None:  # a run that has begun looks when it goes on
            _initial_weights().checked_folder(config, tokenizer)

    return prepare_data(config.data, config.store, root, pins, tell, check, start_ray)


def _initial_weights() -> Any:
    """What reads `train.init_from`, which takes torch: commands on any other run do without it."""
    skip_compiler()
    from orchestrator.driver import initial_weights

    return initial_weights


def initial_weights_of(run: Run, tokenizer: Tokenizer, tell: Callable[[str], object]) -> str | None:
    """`pin_initial_weights` where there is something to pin."""
    if run.config.train.init_from is None:
        return None
    digest: str | None = _initial_weights().pin_initial_weights(run, tokenizer, tell)
    return digest


_ANY_VOCABULARY = 64
"""The vocabulary is not known yet, and changes no name."""


def refuse_unmatched_groups(config: RunConfig) -> None:
    """Refuse patterns of `train.optimizer.groups` that match no parameter of the recipe's model.

    Raises:
        InputError: all such patterns, each with names near it.
    """
    skip_compiler()
    import torch

    from model.optim.parameter_groups import check_patterns
    from orchestrator.evaluation.forward import build_model

    rows = config.model.vocab_size or _ANY_VOCABULARY
    input_rows = None if config.data.input_tokenizer is None else config.model.input_vocab_size or _ANY_VOCABULARY
    with torch.device("meta"):  # names and no numbers
        model = build_model(config, Vocabulary(rows, 0, input_rows))
    try:
        check_patterns([name for name, _ in model.named_parameters()], config.train.optimizer.groups)
    except ValueError as error:
        lines = [f"train.optimizer.{problem}" for problem in str(error).splitlines()]
        raise InputError("\n".join(lines)) from None
