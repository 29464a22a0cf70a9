"""`manta prepare`, and the same step of `manta train`: prepares a run's data, refuses what cannot be trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.errors import InputError
from data.prepare import prepare_data
from data.prepared import Pins, PreparedData
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from model.eager import skip_compiler
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.nodes.ray_session import RaySession
from orchestrator.run.first_contact import reach_storage
from orchestrator.run.run import Run, reaching_storage, stores
from orchestrator.run.vocabulary import Vocabulary, vocabulary_of


def prepare(config: RunConfig) -> None:
    """Checks the shards, trains the tokenizer and tokenizes, as far as that has not been done."""
    console = Console()
    refuse_keys_for_nodes(config)
    with reaching_storage(config) as config, RaySession(config, console.line) as start_ray:
        root, _ = stores(config)
        reach_storage(root, config, console.line)
        data = prepared(config, root, Pins(), console.line, start_ray)
        console.line(f"ready: {data.summary()}")


def prepared(
    config: RunConfig, root: Store, pins: Pins, log: Callable[[str], None], start_ray: Callable[[], None]
) -> PreparedData:
    """Runs `prepare_data` for the recipe, after checking what the model and the optimizer need.

    Raises:
        InputError: a pattern of train.optimizer.groups matches no parameter of the model.
        InitialWeightsError: the weights of `train.init_from` do not fit the recipe's model.
    """
    if config.train.optimizer.groups:  # otherwise this process needs no torch
        refuse_unmatched_groups(config)

    def check(tokenizer: Tokenizer, input_tokenizer: Tokenizer | None) -> None:
        vocabulary_of(config, tokenizer, input_tokenizer)
        # A run that has begun checks its initial weights when it pins them.
        if config.train.init_from is not None and pins.manifest is None:
            _initial_weights().checked_folder(config, tokenizer)

    return prepare_data(config.data, config.store, root, pins, log, check, start_ray)


def _initial_weights() -> Any:
    """Imports the module that reads `train.init_from`, which needs torch; other runs do without it."""
    skip_compiler()
    from orchestrator.driver import initial_weights

    return initial_weights


def initial_weights_of(run: Run, tokenizer: Tokenizer, log: Callable[[str], object]) -> str | None:
    """Runs `pin_initial_weights` if the run has initial weights; returns their sha256."""
    if run.config.train.init_from is None:
        return None
    digest: str | None = _initial_weights().pin_initial_weights(run, tokenizer, log)
    return digest


_ANY_VOCABULARY = 64
"""Stands for the vocabulary size, which is not known yet and changes no parameter name."""


def refuse_unmatched_groups(config: RunConfig) -> None:
    """Checks that every pattern of `train.optimizer.groups` matches a parameter of the recipe's model.

    Raises:
        InputError: some match none; lists them, each with similar parameter names.
    """
    skip_compiler()
    import torch

    from model.optim.parameter_groups import check_patterns
    from orchestrator.evaluation.forward import build_model

    rows = config.model.vocab_size or _ANY_VOCABULARY
    input_rows = None if config.data.input_tokenizer is None else config.model.input_vocab_size or _ANY_VOCABULARY
    with torch.device("meta"):  # names only, no memory
        model = build_model(config, Vocabulary(rows, 0, input_rows))
    try:
        check_patterns([name for name, _ in model.named_parameters()], config.train.optimizer.groups)
    except ValueError as error:
        lines = [f"train.optimizer.{problem}" for problem in str(error).splitlines()]
        raise InputError("\n".join(lines)) from None
