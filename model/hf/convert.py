"""Converts models to and from `transformers`: which models map, their `config.json`, and their weights.

What maps exactly, both ways:

    decoder of preset llama               LlamaForCausalLM    model/hf/llama.py
    decoder of preset gpt2                GPT2LMHeadModel     model/hf/gpt2.py
    encoder-decoder of preset original    MarianMTModel       model/hf/marian.py

each with the positions and norms of its preset. Every other model is refused, with the fields that prevent the
conversion. Dropout is not part of a trained model. Documents that were separated in training
(`cross_document_attention`) need no mask afterwards, as long as a sequence holds one document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import ModelConfig
from model.hf.architecture import OUTPUT_WEIGHT, Architecture, ModelShape, NoSuchModelError, Weight
from model.hf.gpt2 import Gpt2
from model.hf.llama import Llama
from model.hf.marian import Marian

ARCHITECTURES: dict[str, Architecture] = {each.model_type: each for each in (Llama(), Gpt2(), Marian())}
"""Every architecture that maps, by its `model_type`."""

MOST = 2**31 - 1
"""Largest size that a `config.json` may name."""

_MOST_LISTED = 1000
"""Layers whose weights are listed, if they are missing."""

_OTHER_WEIGHTS = "The weights are not those of the model that config.json describes"

_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "embed_positions.weight")
"""Endings of names of buffers that follow from the config; some versions of `transformers` store them."""


def export_problems(shape: ModelShape) -> list[str]:
    """Why a model of this shape has no exact counterpart, one line per field; empty if it has one."""
    config = shape.config
    architecture = _architecture_of(shape)
    if architecture is None:
        presets = [each.ours[1] for each in ARCHITECTURES.values() if each.ours[0] == config.architecture]
        return [
            f"model.preset = {config.preset}: of {config.architecture} models, {' and '.join(presets)} can be exported"
        ]
    problems = []
    preset = ModelConfig(preset=config.preset)
    if config.position_kind != preset.position_kind:
        problems.append(
            f"model.positions = {config.position_kind}: {config.preset} has {preset.position_kind} ones in transformers"
        )
    if config.pre_norm != preset.pre_norm:
        theirs, ours = ("pre" if each.pre_norm else "post" for each in (preset, config))
        problems.append(f"model.norm = {ours}: {config.preset} is {theirs}-norm in transformers")
    return [*problems, *architecture.export_problems(shape)]


def to_hf_config(shape: ModelShape, end_of_text: int) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        shape: of the model.
        end_of_text: id that both opens and closes a document.

    Raises:
        NoSuchModelError: see `export_problems`.
    """
    _refuse(export_problems(shape), "This model has no exact counterpart in transformers")
    architecture = _require_architecture(shape)
    return {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": shape.config.tie_embeddings,
        **architecture.config_fields(shape, end_of_text),
    }


def from_hf_config(fields: Any) -> ModelShape:
    """The model that a `config.json` describes; fields that it omits have the defaults of their class.

    Args:
        fields: the content of the file; whatever it is.

    Raises:
        NoSuchModelError: our models include none like it; the message lists every field that prevents the conversion.
    """
    if not isinstance(fields, dict):
        raise NoSuchModelError(f"config.json holds no fields, but a {type(fields).__name__}.")
    kind = str(fields.get("model_type"))
    if kind not in ARCHITECTURES:
        raise NoSuchModelError(f"model_type = {kind[:60]} is not supported. Supported: {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[kind]
    _refuse(list(_size_problems(fields, architecture)), "config.json describes an impossible model")
    # A size that is null is one that the file omits.
    fields = {name: value for name, value in fields.items() if value is not None or name not in architecture.sizes}
    try:
        problems = [*_rule_problems(fields, architecture), *architecture.import_problems(fields)]
        _refuse(problems, f"This {architecture.hf_class} has no exact counterpart in manta")
        return architecture.shape(fields)
    except NoSuchModelError:
        raise
    except KeyError as error:
        raise NoSuchModelError(f"config.json has no field {error}.") from None
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise NoSuchModelError("\n".join(["config.json describes an impossible model:", *wrong])) from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # fields of other types than theirs
        raise NoSuchModelError(f"config.json describes an impossible model: {error}.") from None


def to_hf_weights(shape: ModelShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names and in the layout of `transformers`: equal numbers, no shared memory."""
    architecture = _require_architecture(shape)
    theirs: dict[str, Tensor] = {}
    for weight in _layout(architecture, shape):
        theirs |= weight.split(weights[weight.ours])
    return theirs | architecture.zero_weights(shape)


def from_hf_weights(shape: ModelShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_hf_weights`: float32, from any floating-point dtype.

    Also accepts the weights of the bare model without an output layer, whose names lack a prefix. Ignores buffers that
    follow from the config, and copies of tied weights.

    Raises:
        NoSuchModelError: weights are missing, unknown or of another shape than the config says; all are listed.
    """
    architecture = _require_architecture(shape)
    named = _named_weights(architecture, shape, weights)
    if shape.config.n_layers + shape.config.encoder_layers > max(len(weights), _MOST_LISTED):
        _refuse([f"{len(weights)} weights for {shape.config.n_layers:,} layers"], _OTHER_WEIGHTS)
    problems = []
    for name in _zero_weights(architecture, shape):
        if name in named and named.pop(name).any():
            problems.append(f"{name}: not zero, and our model has no such weight")
    layout = list(_layout(architecture, shape))
    try:
        with torch.device("meta"):
            ours = {name: tuple(tensor.shape) for name, tensor in shape.build(0).state_dict().items()}
    except (RuntimeError, TypeError, ValueError) as error:  # sizes that multiply to more than torch can count, say
        raise NoSuchModelError(f"config.json describes an impossible model: {error}.") from None
    wanted = {name: size for weight in layout for name, size in weight.shapes(ours[weight.ours]).items()}
    problems += [f"{name}: missing" for name in wanted if name not in named]
    for name, tensor in named.items():
        if name not in wanted:
            problems.append(f"{name}: not part of this model")
        elif tuple(tensor.shape) != wanted[name]:
            problems.append(f"{name}: {tuple(tensor.shape)}, not {wanted[name]}")
    _refuse(problems, _OTHER_WEIGHTS)
    return {weight.ours: weight.joined(named) for weight in layout}


def _architecture_of(shape: ModelShape) -> Architecture | None:
    ours = (shape.config.architecture, shape.config.preset)
    return next((each for each in ARCHITECTURES.values() if each.ours == ours), None)


def _require_architecture(shape: ModelShape) -> Architecture:
    architecture = _architecture_of(shape)
    assert architecture is not None, "refused by to_hf_config; from_hf_config makes no other shapes"
    return architecture


def _size_problems(fields: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    for name in architecture.sizes:
        value = fields.get(name)
        if value is not None and (type(value) is not int or not 0 < value <= MOST):
            yield f"{name} = {str(value)[:60]!r}: not a whole number from 1 to {MOST:,}"


def _rule_problems(fields: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    for name, (default, supported) in architecture.field_rules.items():
        if (value := fields.get(name, default)) not in supported:
            yield f"{name} = {value!r}: only {' or '.join(map(repr, supported))} is supported"


def _layout(architecture: Architecture, shape: ModelShape) -> Iterator[Weight]:
    """Every weight of a model; the output layer's only if it is not the embedding."""
    yield from architecture.layout(shape)
    if not shape.config.tie_embeddings:
        yield Weight(architecture.output_weight, (OUTPUT_WEIGHT,))


def _named_weights(architecture: Architecture, shape: ModelShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the architecture's prefix, without buffers and copies of tied weights."""
    named = {name: tensor for name, tensor in weights.items() if not name.endswith(_BUFFERS)}
    if not any(name.startswith(architecture.prefix) for name in named):
        without_prefix = {OUTPUT_WEIGHT, *_zero_weights(architecture, shape)}
        named = {
            name if name in without_prefix else architecture.prefix + name: tensor for name, tensor in named.items()
        }
    if shape.config.tie_embeddings:
        named.pop(OUTPUT_WEIGHT, None)
    for name in architecture.tied_copies(shape):
        named.pop(name, None)
    return named


def _zero_weights(architecture: Architecture, shape: ModelShape) -> list[str]:
    with torch.device("meta"):  # only their names: the shape is not proved yet, and may be enormous
        return list(architecture.zero_weights(shape))


def _refuse(problems: list[str], what: str) -> None:
    if problems:
        raise NoSuchModelError("\n".join([f"{what}:", *(f"  {problem}" for problem in problems)]))
