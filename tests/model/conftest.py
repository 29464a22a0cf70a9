"""Shared by the model tests: one thread, a known seed, and a model small enough for exact comparisons."""

from collections.abc import Callable, Iterator

import pytest
import torch

from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.transformer import Transformer


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Iterator[None]:
    """Tensors here are tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build() -> Callable[..., Transformer]:
    """Build a seeded model of 2 layers, width 32, 4 heads, 50 tokens, sequences of up to 16; fields by keyword."""

    def build_transformer(**fields: object) -> Transformer:
        config = ModelConfig.model_validate({"n_layers": 2, "d_model": 32, "loss_chunk_tokens": 5} | fields)
        torch.manual_seed(0)
        return Transformer(config, vocab_size=50, seq_len=16, end_of_text=0)

    return build_transformer


@pytest.fixture
def build_seq2seq() -> Callable[..., Seq2Seq]:
    """Build a seeded encoder-decoder of 2 + 2 layers, width 32, 4 heads, targets of up to 12 of 50 words, sources 10.

    `input_vocab_size` as a keyword gives sources a vocabulary of their own; other fields by keyword.
    """

    def build(input_vocab_size: int | None = None, **fields: object) -> Seq2Seq:
        shape = {"architecture": "encoder_decoder", "n_layers": 2, "d_model": 32, "loss_chunk_tokens": 5}
        torch.manual_seed(0)
        return Seq2Seq(ModelConfig.model_validate(shape | fields), 50, input_vocab_size, 12, 10, end_of_text=0)

    return build
