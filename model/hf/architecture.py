"""Shared by the architectures that map to `transformers`: the base class `Architecture`, `ModelShape` and `Weight`.

An architecture is one file beside this one with a subclass of `Architecture`, and one row of `ARCHITECTURES` in
`model.hf.convert`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

FieldRules = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""By the name of a field of `config.json`: the default of its class, and the values that our models support."""

OUTPUT_WEIGHT = "lm_head.weight"
"""Name of the output layer's weight in `transformers`, the same for every architecture."""


class NoSuchModelError(ValueError):
    """A model without an exact counterpart on the other side; the message lists every field that prevents it."""


@dataclass(frozen=True)
class ModelShape:
    """Everything that defines a model except its weights.

    A shape read from a `config.json` has our defaults for whatever the file does not contain.

    Attributes:
        config: settings of the model.
        vocab_size: rows of the embedding, padding included.
        seq_len: longest sequence.
        input_vocab_size: rows of the encoder's own embedding; None if it has none.
        source_len: longest source; None for a decoder.
    """

    config: ModelConfig
    vocab_size: int
    seq_len: int
    input_vocab_size: int | None = None
    source_len: int | None = None

    @classmethod
    def of(cls, model: Transformer | Seq2Seq) -> ModelShape:
        """The shape of a model."""
        if isinstance(model, Transformer):
            return cls(model.config, model.embedding.num_embeddings, model.seq_len)
        own = model.encoder.embedding
        rows = model.decoder.embedding.num_embeddings
        return cls(model.config, rows, model.seq_len, None if own is None else own.num_embeddings, model.source_len)

    def build(self, end_of_text: int) -> Transformer | Seq2Seq:
        """Builds a model of this shape; its weights are drawn from torch's global generator."""
        if self.source_len is None:
            return Transformer(self.config, self.vocab_size, self.seq_len, end_of_text)
        sizes = (self.vocab_size, self.input_vocab_size, self.seq_len, self.source_len)
        return Seq2Seq(self.config, *sizes, end_of_text)


@dataclass(frozen=True)
class Weight:
    """One of our weights, and the weights of `transformers` that it corresponds to.

    Attributes:
        ours: its name in our state dict.
        theirs: names of the weights that ours consists of, concatenated along the rows.
        rows: number of our rows in each of `theirs`; empty if there is only one.
        transposed: whether theirs is stored as (in, out), like GPT-2's Conv1D; such a weight is never split.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Converts ours to theirs; the results share no memory."""
        parts = tensor.split_with_sizes(self.rows) if self.rows else [tensor.t() if self.transposed else tensor]
        named = zip(self.theirs, parts, strict=True)
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in named}

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Converts theirs to ours, float32."""
        whole = torch.cat([tensors[name].float() for name in self.theirs])
        return whole.t().contiguous() if self.transposed else whole

    def shapes(self, ours: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of theirs, given the shape of ours."""
        if self.rows:
            return {name: (rows, *ours[1:]) for name, rows in zip(self.theirs, self.rows, strict=True)}
        return {self.theirs[0]: ours[::-1] if self.transposed else ours}


class Architecture(ABC):
    """Maps the models of one `model_type` of `transformers` to ours, and back.

    Attributes:
        model_type: value of `model_type` in `config.json`.
        hf_class: class of `transformers` that the model is loaded as.
        ours: `architecture` and `preset` of our models that map to it.
        prefix: prefix of all weights except the output layer's; the bare model is stored without it.
        field_rules: fields whose unsupported values mean computations that our models do not have.
        sizes: fields that are whole numbers.
        output_weight: our name of the output layer's weight, if it is not the embedding.
    """

    model_type: ClassVar[str]
    hf_class: ClassVar[str]
    ours: ClassVar[tuple[str, str]]
    prefix: ClassVar[str]
    field_rules: ClassVar[FieldRules]
    sizes: ClassVar[tuple[str, ...]]
    output_weight: ClassVar[str] = "output.weight"

    @abstractmethod
    def config_fields(self, shape: ModelShape, end_of_text: int) -> dict[str, Any]:
        """Fields of `config.json` besides those that every architecture has."""

    @abstractmethod
    def shape(self, fields: Mapping[str, Any]) -> ModelShape:
        """The shape that a `config.json` describes; fields that it omits have the defaults of their class.

        Raises:
            KeyError: a field without a default is missing.
            pydantic.ValidationError: the fields contradict each other.
        """

    @abstractmethod
    def layout(self, shape: ModelShape) -> Iterator[Weight]:
        """Every weight except the output layer's."""

    def import_problems(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """Why a `config.json` has no counterpart among our models, beyond `field_rules`; one line per field."""
        return iter(())

    def export_problems(self, shape: ModelShape) -> Iterator[str]:
        """Why a model has no counterpart in this architecture, beyond its preset's positions and norms."""
        return iter(())

    def tied_copies(self, shape: ModelShape) -> Iterator[str]:
        """Names under which a weights file may store an embedding once more, besides the output layer's."""
        return iter(())

    def zero_weights(self, shape: ModelShape) -> dict[str, Tensor]:
        """Weights that `transformers` has and our models do not: exported as zeros, imported only if they are zero."""
        return {}
