"""Models in the form that `transformers` has them: which map, their `config.json`, and their weights under its names.

What maps exactly, both ways:

    decoder of preset llama               LlamaForCausalLM    tied or not, any number of key heads
    decoder of preset gpt2                GPT2LMHeadModel     tied or not
    encoder-decoder of preset original    MarianMTModel       one vocabulary, tied; or two, tied or not

each with the positions and norms that its preset has. Nothing else does, and is refused with the fields that stand in
the way. Names and defaults of the other side's fields are those of its LlamaConfig, GPT2Config and MarianConfig
(version 5). Rotary pairs need no reordering: both rotate channel p with p + K / 2; nor do Marian's sinusoids, sines
first. Dropout is not part of a trained model. Documents kept apart in training (`cross_document_attention`) need no
mask afterwards, as long as a sequence holds one document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

NORM_EPS = 1e-5
"""What our norms add to a variance before its root."""

ARCHITECTURES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "marian": "MarianMTModel"}
"""Class of `transformers` by its `model_type`."""

_KINDS = {("decoder", "llama"): "llama", ("decoder", "gpt2"): "gpt2", ("encoder_decoder", "original"): "marian"}


class NoSuchModelError(ValueError):
    """A model that has no exact counterpart on the other side; the message names every field in the way, one a line."""


@dataclass(frozen=True)
class ModelShape:
    """All that a model is but its weights. From a `config.json`, what is not in it has our defaults.

    Attributes:
        vocab_size: rows of the embedding, padding included.
        seq_len: longest sequence.
        input_vocab_size: rows of the encoder's own embedding; None where it has none.
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
        """A model of this shape, its weights drawn from torch's global generator."""
        if self.source_len is None:
            return Transformer(self.config, self.vocab_size, self.seq_len, end_of_text)
        sizes = (self.vocab_size, self.input_vocab_size, self.seq_len, self.source_len)
        return Seq2Seq(self.config, *sizes, end_of_text)

    @property
    def kind(self) -> str:
        """Its `model_type` on the other side, if it has a counterpart there."""
        return _KINDS[self.config.architecture, self.config.preset]


@dataclass(frozen=True)
class _Weight:
    """One weight of ours and what it is called on the other side.

    Attributes:
        theirs: the weights that ours is made of, one below the other.
        rows: how many rows of ours each of them has.
        transposed: whether theirs is stored as (in, out), like GPT-2's Conv1D; such a weight is one whole.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Ours to theirs, in memory of their own."""
        parts = tensor.split_with_sizes(self.rows) if self.rows else [tensor.t() if self.transposed else tensor]
        named = zip(self.theirs, parts, strict=True)
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in named}

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Theirs to ours, float32."""
        whole = torch.cat([tensors[name].float() for name in self.theirs])
        return whole.t().contiguous() if self.transposed else whole

    def shapes(self, ours: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """What shapes theirs have where ours has a given one."""
        if self.rows:
            return {name: (rows, *ours[1:]) for name, rows in zip(self.theirs, self.rows, strict=True)}
        return {self.theirs[0]: ours[::-1] if self.transposed else ours}


def export_problems(shape: ModelShape) -> list[str]:
    """Why a model of this shape has no exact counterpart, a line a field; empty where it has one."""
    config = shape.config
    if (config.architecture, config.preset) not in _KINDS:
        mapped = " and ".join(preset for architecture, preset in _KINDS if architecture == config.architecture)
        return [f"model.preset = {config.preset}: of {config.architecture} models, {mapped} can be exported"]
    problems = []
    usual = ModelConfig(preset=config.preset)
    if config.position_kind != usual.position_kind:
        problems.append(
            f"model.positions = {config.position_kind}: {config.preset} has {usual.position_kind} ones there"
        )
    if config.pre_norm != usual.pre_norm:
        there, here = ("pre" if each.pre_norm else "post" for each in (usual, config))
        problems.append(f"model.norm = {here}: {config.preset} is {there}-norm there")
    if shape.kind == "marian" and not config.tie_embeddings and shape.input_vocab_size is None:
        problems.append("model.tie_embeddings = false: with one vocabulary, Marian ties all three embeddings")
    return problems


def to_hf_config(shape: ModelShape, end_of_text: int) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        shape: of the model.
        end_of_text: id that both opens and closes a document.

    Raises:
        NoSuchModelError: see `export_problems`.
    """
    _refuse(export_problems(shape), "This model has no exact counterpart in transformers")
    return {
        "architectures": [ARCHITECTURES[shape.kind]],
        "model_type": shape.kind,
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": shape.config.tie_embeddings,
        **_FIELDS[shape.kind](shape),
    } | (_ids_of_pairs(shape, end_of_text) if shape.kind == "marian" else {})


def _ids_of_pairs(shape: ModelShape, end_of_text: int) -> dict[str, Any]:
    """Targets begin and end with end-of-text. Masks tell padding; an id for it must be in both vocabularies."""
    padding = end_of_text if shape.input_vocab_size is None else None
    return {"decoder_start_token_id": end_of_text, "pad_token_id": padding, "forced_eos_token_id": None}


def _llama_fields(shape: ModelShape) -> dict[str, Any]:
    config = shape.config
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.seq_len,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": config.rope_theta,  # where version 4 looks for it
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    }


def _gpt2_fields(shape: ModelShape) -> dict[str, Any]:
    config = shape.config
    return {
        "n_embd": config.d_model,
        "n_inner": config.ff_width,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_positions": shape.seq_len,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


def _marian_fields(shape: ModelShape) -> dict[str, Any]:
    config = shape.config
    assert shape.source_len is not None
    own = shape.input_vocab_size
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", config.n_heads), ("ffn_dim", config.ff_width), ("layerdrop", 0.0))
    }
    return {
        "vocab_size": shape.vocab_size if own is None else own,  # the encoder's; one for both where they share it
        "decoder_vocab_size": shape.vocab_size,
        "share_encoder_decoder_embeddings": own is None,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.n_layers,
        **sides,
        "activation_function": "relu",
        "scale_embedding": True,
        "static_position_embeddings": True,  # as version 4 knew them
        "max_position_embeddings": max(shape.seq_len, shape.source_len),
        "is_encoder_decoder": True,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": 0.0,
    }


_FIELDS = {"llama": _llama_fields, "gpt2": _gpt2_fields, "marian": _marian_fields}


def from_hf_config(fields: Mapping[str, Any]) -> ModelShape:
    """The model that a `config.json` describes; fields that it leaves out have the defaults of their class.

    Raises:
        NoSuchModelError: we have no such model; every field in the way is named.
    """
    kind = str(fields.get("model_type"))
    if kind not in ARCHITECTURES:
        raise NoSuchModelError(f"model_type = {kind}: the models that map are {', '.join(ARCHITECTURES)}.")
    problems = [*_other_values(fields, _RULES[kind]), *_PROBLEMS[kind](fields)]
    _refuse(problems, f"This {ARCHITECTURES[kind]} has no exact counterpart in manta")
    try:
        return _SHAPES[kind](fields)
    except KeyError as error:
        raise NoSuchModelError(f"config.json has no field {error}.") from None
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise NoSuchModelError("\n".join(["config.json describes a model that cannot be:", *wrong])) from None


def _llama_shape(fields: Mapping[str, Any]) -> ModelShape:
    heads = fields["num_attention_heads"]
    config = ModelConfig(
        preset="llama",
        n_layers=fields["num_hidden_layers"],
        d_model=fields["hidden_size"],
        n_heads=heads,
        n_kv_heads=fields.get("num_key_value_heads") or heads,
        d_ff=fields["intermediate_size"],
        tie_embeddings=fields.get("tie_word_embeddings", False),
        rope_theta=_rope(fields)["rope_theta"],
    )
    return ModelShape(config, fields["vocab_size"], fields.get("max_position_embeddings", 2048))


def _gpt2_shape(fields: Mapping[str, Any]) -> ModelShape:
    width = fields["n_embd"]
    config = ModelConfig(
        preset="gpt2",
        n_layers=fields["n_layer"],
        d_model=width,
        n_heads=fields["n_head"],
        d_ff=fields.get("n_inner") or 4 * width,
        tie_embeddings=fields.get("tie_word_embeddings", True),
    )
    return ModelShape(config, fields["vocab_size"], fields.get("n_positions", 1024))


def _marian_shape(fields: Mapping[str, Any]) -> ModelShape:
    config = ModelConfig(
        architecture="encoder_decoder",
        preset="original",
        n_layers=fields["decoder_layers"],
        n_encoder_layers=fields["encoder_layers"],
        d_model=fields["d_model"],
        n_heads=fields["decoder_attention_heads"],
        d_ff=fields["decoder_ffn_dim"],
        tie_embeddings=fields.get("tie_word_embeddings", True),
    )
    rows, longest = fields["vocab_size"], fields.get("max_position_embeddings", 1024)
    if fields.get("share_encoder_decoder_embeddings", True):
        return ModelShape(config, rows, longest, None, longest)
    return ModelShape(config, fields.get("decoder_vocab_size") or rows, longest, rows, longest)


_SHAPES = {"llama": _llama_shape, "gpt2": _gpt2_shape, "marian": _marian_shape}

# Fields whose other values are computations that we have not: the default of their class, and what is taken.
_RULES: Mapping[str, Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "llama": {
        "hidden_act": ("silu", ("silu", "swish")),
        "rms_norm_eps": (1e-6, (NORM_EPS,)),
        "attention_bias": (False, (False,)),
        "mlp_bias": (False, (False,)),
    },
    "gpt2": {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "layer_norm_epsilon": (1e-5, (NORM_EPS,)),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    },
    "marian": {
        "activation_function": ("gelu", ("relu",)),
        "scale_embedding": (False, (True,)),
        # These were fields in version 4, where other models than Marian's own could be said with them.
        "static_position_embeddings": (True, (True,)),
        "normalize_before": (False, (False,)),
        "normalize_embedding": (False, (False,)),
        "add_final_layer_norm": (False, (False,)),
    },
}


def _other_values(fields: Mapping[str, Any], rules: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> Iterator[str]:
    for name, (default, taken) in rules.items():
        if (value := fields.get(name, default)) not in taken:
            yield f"{name} = {value!r}: we have {' or '.join(map(repr, taken))}"


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings, wherever version 4 or 5 keeps them."""
    rope = {"rope_theta": fields.get("rope_theta") or 10000.0, **(fields.get("rope_scaling") or {})}
    return rope | (fields.get("rope_parameters") or {})


def _rope_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    rope = _rope(fields)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        yield f"rope_type = {kind!r}: we have 'default'"
    if (part := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        yield f"partial_rotary_factor = {part}: we rotate whole heads, 1.0"
    width, heads = fields.get("hidden_size", 0), fields.get("num_attention_heads", 1)
    if (size := fields.get("head_dim")) is not None and size * heads != width:
        yield f"head_dim = {size}: our heads are hidden_size / num_attention_heads = {width // heads} wide"


def _marian_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in ("attention_heads", "ffn_dim"):
        encoder, decoder = fields.get(f"encoder_{name}"), fields.get(f"decoder_{name}")
        if encoder != decoder:
            yield f"encoder_{name} = {encoder}, decoder_{name} = {decoder}: ours are the same on both sides"
    if fields.get("share_encoder_decoder_embeddings", True) and not fields.get("tie_word_embeddings", True):
        yield "tie_word_embeddings = False with share_encoder_decoder_embeddings = True: three embeddings, or one?"


_PROBLEMS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "llama": _rope_problems,
    "gpt2": lambda fields: iter(()),
    "marian": _marian_problems,
}


def to_hf_weights(shape: ModelShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as the other side names, splits and turns it; the same numbers, and no two in shared memory."""
    theirs: dict[str, Tensor] = {}
    for weight in _layout(shape):
        theirs |= weight.split(weights[weight.ours])
    if shape.kind == "marian":
        theirs[_LOGITS_BIAS] = torch.zeros(1, shape.vocab_size)  # ours has none
    return theirs


def from_hf_weights(shape: ModelShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_hf_weights`: float32, from whatever floating point they are stored in.

    Also takes the weights of the bare model below the output layer, whose names lack a prefix, and passes over buffers
    that follow from the config and over copies of tied weights.

    Raises:
        NoSuchModelError: weights are missing, left over or of another shape than the config says; all are named.
    """
    named = _with_prefix({name: each for name, each in weights.items() if not name.endswith(_BUFFERS)}, shape)
    for name in _copies(shape):
        named.pop(name, None)
    problems = []
    if shape.kind == "marian" and named.pop(_LOGITS_BIAS, torch.zeros(1)).any():
        problems.append(f"{_LOGITS_BIAS}: not zero, and our output layer has no bias")
    layout = list(_layout(shape))
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in shape.build(0).state_dict().items()}
    wanted = {name: size for weight in layout for name, size in weight.shapes(ours[weight.ours]).items()}
    problems += [f"{name}: missing" for name in wanted if name not in named]
    for name, tensor in named.items():
        if name not in wanted:
            problems.append(f"{name}: not part of this model")
        elif tuple(tensor.shape) != wanted[name]:
            problems.append(f"{name}: {tuple(tensor.shape)}, not {wanted[name]}")
    _refuse(problems, "The weights are not those of the model that config.json describes")
    return {weight.ours: weight.joined(named) for weight in layout}


_LOGITS_BIAS = "final_logits_bias"

_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "embed_positions.weight")

_PREFIX = {"llama": "model.", "gpt2": "transformer.", "marian": "model."}

_OUTPUT = "lm_head.weight"


def _with_prefix(weights: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    prefix = _PREFIX[shape.kind]
    if any(name.startswith(prefix) for name in weights):
        return dict(weights)
    return {name if name in (_OUTPUT, _LOGITS_BIAS) else prefix + name: tensor for name, tensor in weights.items()}


def _copies(shape: ModelShape) -> Iterator[str]:
    """Names under which an embedding may be stored once more."""
    if shape.config.tie_embeddings:
        yield _OUTPUT
    if shape.kind == "marian" and shape.input_vocab_size is None:
        yield from ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def _layout(shape: ModelShape) -> Iterator[_Weight]:
    """Every weight of a model, the output layer's only where it is not the embedding."""
    yield from _LAYOUTS[shape.kind](shape)
    if not shape.config.tie_embeddings:
        yield _Weight("decoder.output.weight" if shape.kind == "marian" else "output.weight", (_OUTPUT,))


def _llama_layout(shape: ModelShape) -> Iterator[_Weight]:
    config = shape.config
    yield _Weight("embedding.weight", ("model.embed_tokens.weight",))
    yield _Weight("norm.weight", ("model.norm.weight",))
    heads = (config.n_heads * config.head_size, *2 * (config.kv_heads * config.head_size,))
    for index in range(config.n_layers):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        attention = tuple(f"{theirs}.self_attn.{name}_proj.weight" for name in "qkv")
        gate_up = tuple(f"{theirs}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        yield _Weight(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",))
        yield _Weight(f"{ours}.attention.qkv.weight", attention, heads)
        yield _Weight(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",))
        yield _Weight(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",))
        yield _Weight(f"{ours}.feed_forward.gate_up.weight", gate_up, 2 * (config.ff_width,))
        yield _Weight(f"{ours}.feed_forward.down.weight", (f"{theirs}.mlp.down_proj.weight",))


def _gpt2_layout(shape: ModelShape) -> Iterator[_Weight]:
    yield _Weight("embedding.weight", ("transformer.wte.weight",))
    yield _Weight("positions.weight", ("transformer.wpe.weight",))
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    layers = range(shape.config.n_layers)
    pairs = [(f"blocks.{i}.{our}", f"transformer.h.{i}.{names[our]}") for i in layers for our in names]
    for ours, theirs in [*pairs, ("norm", "transformer.ln_f")]:
        # Its linear layers are of a class that keeps weights as (in, out).
        yield _Weight(f"{ours}.weight", (f"{theirs}.weight",), transposed=".ln_" not in theirs)
        yield _Weight(f"{ours}.bias", (f"{theirs}.bias",))


def _marian_layout(shape: ModelShape) -> Iterator[_Weight]:
    if shape.input_vocab_size is None:
        yield _Weight("decoder.embedding.weight", ("model.shared.weight",))
    else:
        yield _Weight("encoder.embedding.weight", ("model.encoder.embed_tokens.weight",))
        yield _Weight("decoder.embedding.weight", ("model.decoder.embed_tokens.weight",))
    own = {
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.out_proj",),
        "attention_norm": ("self_attn_layer_norm",),
        "feed_forward.up": ("fc1",),
        "feed_forward.down": ("fc2",),
        "feed_forward_norm": ("final_layer_norm",),
    }
    across = {
        "cross_attention.q": ("encoder_attn.q_proj",),
        "cross_attention.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_attention.out": ("encoder_attn.out_proj",),
        "cross_attention_norm": ("encoder_attn_layer_norm",),
    }
    config = shape.config
    for side, layers, names in (("encoder", config.encoder_layers, own), ("decoder", config.n_layers, own | across)):
        for index, (ours, theirs) in product(range(layers), names.items()):
            rows = len(theirs) * (config.d_model,) if len(theirs) > 1 else ()
            for part in ("weight", "bias"):
                parts = tuple(f"model.{side}.layers.{index}.{name}.{part}" for name in theirs)
                yield _Weight(f"{side}.blocks.{index}.{ours}.{part}", parts, rows)


_LAYOUTS = {"llama": _llama_layout, "gpt2": _gpt2_layout, "marian": _marian_layout}


def _refuse(problems: list[str], what: str) -> None:
    if problems:
        raise NoSuchModelError("\n".join([f"{what}:", *(f"  {problem}" for problem in problems)]))
