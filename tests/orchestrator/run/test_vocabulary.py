"""What follows from a recipe and its vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.config.load import config_from
from orchestrator.evaluation.forward import build_model
from orchestrator.run.vocabulary import Vocabulary, parameters_of
from tests.recipes import tiny_recipe

PAIRS = {"data.sources": [{"path": "text", "input_column": "en"}], "model.architecture": "encoder_decoder"}


@pytest.mark.parametrize(
    ("overrides", "vocabulary"),
    [
        ({}, Vocabulary(300, 0)),
        ({"model.preset": "gpt2", "data.seq_len": 48}, Vocabulary(300, 0)),
        (PAIRS | {"model.preset": "original", "data.input_len": 24}, Vocabulary(300, 0)),
        (PAIRS | {"data.input_tokenizer": {"kind": "bytes"}}, Vocabulary(300, 0, 257)),
    ],
)
def test_the_number_of_parameters_is_that_of_the_model_which_is_built(
    overrides: dict[str, Any], vocabulary: Vocabulary
) -> None:
    config = config_from(tiny_recipe(**overrides), "a test")
    with torch.device("meta"):
        model = build_model(config, vocabulary)
    assert parameters_of(config, vocabulary) == sum(parameter.numel() for parameter in model.parameters())
