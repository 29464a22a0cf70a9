"""Decoders of preset gpt2 as GPT2LMHeadModel. Names and defaults of fields are those of GPT2Config, version 5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from model.blocks import NORM_EPS
from model.config import ModelConfig
from model.hf.architecture import Architecture, FieldRules, ModelShape, Weight


class Gpt2(Architecture):
    """GPT2LMHeadModel: embeddings tied or not."""

    model_type = "gpt2"
    hf_class = "GPT2LMHeadModel"
    ours = ("decoder", "gpt2")
    prefix = "transformer."
    sizes = ("n_embd", "n_inner", "n_layer", "n_head", "n_positions", "vocab_size")
    field_rules: ClassVar[FieldRules] = {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "layer_norm_epsilon": (1e-5, (NORM_EPS,)),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    }

    def config_fields(self, shape: ModelShape, end_of_text: int) -> dict[str, Any]:
        """See `Architecture.config_fields`."""
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

    def shape(self, fields: Mapping[str, Any]) -> ModelShape:
        """See `Architecture.shape`."""
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

    def layout(self, shape: ModelShape) -> Iterator[Weight]:
        """See `Architecture.layout`."""
        yield Weight("embedding.weight", ("transformer.wte.weight",))
        yield Weight("positions.weight", ("transformer.wpe.weight",))
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
            # GPT-2's linear layers are of class Conv1D, which stores weights as (in, out).
            yield Weight(f"{ours}.weight", (f"{theirs}.weight",), transposed=".ln_" not in theirs)
            yield Weight(f"{ours}.bias", (f"{theirs}.bias",))
