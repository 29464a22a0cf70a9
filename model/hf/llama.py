"""Decoders of preset llama as LlamaForCausalLM.

Rotary pairs need no reordering: both sides rotate channel p with p + K / 2. Names and defaults of fields are those of
LlamaConfig, version 5; where version 4 stored a setting elsewhere, that place is read too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from model.blocks import NORM_EPS
from model.config import ModelConfig
from model.hf.architecture import Architecture, FieldRules, ModelShape, Weight


class Llama(Architecture):
    """LlamaForCausalLM: embeddings tied or not, any number of key heads."""

    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    ours = ("decoder", "llama")
    prefix = "model."
    sizes = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "max_position_embeddings", "vocab_size"),
    )
    field_rules: ClassVar[FieldRules] = {
        "hidden_act": ("silu", ("silu", "swish")),
        "rms_norm_eps": (1e-6, (NORM_EPS,)),
        "attention_bias": (False, (False,)),
        "mlp_bias": (False, (False,)),
    }

    def config_fields(self, shape: ModelShape, end_of_text: int) -> dict[str, Any]:
        """See `Architecture.config_fields`."""
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
            "rope_theta": config.rope_theta,  # where version 4 reads it
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
        }

    def shape(self, fields: Mapping[str, Any]) -> ModelShape:
        """See `Architecture.shape`."""
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

    def import_problems(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """See `Architecture.import_problems`."""
        rope = _rope(fields)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            yield f"rope_type = {kind!r}: only 'default' is supported"
        if (part := rope.get("partial_rotary_factor", 1.0)) != 1.0:
            yield f"partial_rotary_factor = {part}: only whole heads can be rotated, 1.0"
        width, heads = fields.get("hidden_size", 0), fields.get("num_attention_heads", 1)
        if (size := fields.get("head_dim")) is not None and size * heads != width:
            yield f"head_dim = {size}: only hidden_size / num_attention_heads = {width // heads} is supported"

    def layout(self, shape: ModelShape) -> Iterator[Weight]:
        """See `Architecture.layout`."""
        config = shape.config
        yield Weight("embedding.weight", ("model.embed_tokens.weight",))
        yield Weight("norm.weight", ("model.norm.weight",))
        heads = (config.n_heads * config.head_size, *2 * (config.kv_heads * config.head_size,))
        for index in range(config.n_layers):
            ours, theirs = f"blocks.{index}", f"model.layers.{index}"
            attention = tuple(f"{theirs}.self_attn.{name}_proj.weight" for name in "qkv")
            gate_up = tuple(f"{theirs}.mlp.{name}_proj.weight" for name in ("gate", "up"))
            yield Weight(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",))
            yield Weight(f"{ours}.attention.qkv.weight", attention, heads)
            yield Weight(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",))
            yield Weight(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",))
            yield Weight(f"{ours}.feed_forward.gate_up.weight", gate_up, 2 * (config.ff_width,))
            yield Weight(f"{ours}.feed_forward.down.weight", (f"{theirs}.mlp.down_proj.weight",))


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings, from the fields of version 4 or 5."""
    rope = {"rope_theta": fields.get("rope_theta") or 10000.0, **(fields.get("rope_scaling") or {})}
    return rope | (fields.get("rope_parameters") or {})
