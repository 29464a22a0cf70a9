"""Encoder-decoders of preset original as MarianMTModel.

Names and defaults of fields are those of MarianConfig, version 5. Sinusoidal positions need no reordering: both sides
have all sines before all cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from model.config import ModelConfig
from model.hf.architecture import Architecture, FieldRules, ModelShape, Weight

_OWN_LAYERS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.out_proj",),
    "attention_norm": ("self_attn_layer_norm",),
    "feed_forward.up": ("fc1",),
    "feed_forward.down": ("fc2",),
    "feed_forward_norm": ("final_layer_norm",),
}

_CROSS_ATTENTION_LAYERS = {
    "cross_attention.q": ("encoder_attn.q_proj",),
    "cross_attention.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention.out": ("encoder_attn.out_proj",),
    "cross_attention_norm": ("encoder_attn_layer_norm",),
}


class Marian(Architecture):
    """MarianMTModel: one vocabulary with tied embeddings; or two, with the output layer tied or not."""

    model_type = "marian"
    hf_class = "MarianMTModel"
    ours = ("encoder_decoder", "original")
    prefix = "model."
    output_weight = "decoder.output.weight"
    sizes = (
        *("d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
        *("encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings", "vocab_size", "decoder_vocab_size"),
    )
    field_rules: ClassVar[FieldRules] = {
        "activation_function": ("gelu", ("relu",)),
        "scale_embedding": (False, (True,)),
        # Fields of version 4, whose class also described models other than Marian's own.
        "static_position_embeddings": (True, (True,)),
        "normalize_before": (False, (False,)),
        "normalize_embedding": (False, (False,)),
        "add_final_layer_norm": (False, (False,)),
    }

    def config_fields(self, shape: ModelShape, end_of_text: int) -> dict[str, Any]:
        """See `Architecture.config_fields`. Targets begin and end with the end-of-text token."""
        config = shape.config
        assert shape.source_len is not None
        own = shape.input_vocab_size
        sides = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in (("attention_heads", config.n_heads), ("ffn_dim", config.ff_width), ("layerdrop", 0.0))
        }
        return {
            "vocab_size": shape.vocab_size if own is None else own,  # the encoder's; of both if they share one
            "decoder_vocab_size": shape.vocab_size,
            "share_encoder_decoder_embeddings": own is None,
            "d_model": config.d_model,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.n_layers,
            **sides,
            "activation_function": "relu",
            "scale_embedding": True,
            "static_position_embeddings": True,  # read by version 4
            "max_position_embeddings": max(shape.seq_len, shape.source_len),
            "is_encoder_decoder": True,
            "dropout": config.dropout,
            "attention_dropout": config.dropout,
            "activation_dropout": 0.0,
            "decoder_start_token_id": end_of_text,
            # Padding is known from masks; an id for it would have to be in both vocabularies.
            "pad_token_id": end_of_text if own is None else None,
            "forced_eos_token_id": None,
        }

    def shape(self, fields: Mapping[str, Any]) -> ModelShape:
        """See `Architecture.shape`."""
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

    def import_problems(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """See `Architecture.import_problems`."""
        for name in ("attention_heads", "ffn_dim"):
            encoder, decoder = fields.get(f"encoder_{name}"), fields.get(f"decoder_{name}")
            if encoder != decoder:
                yield f"encoder_{name} = {encoder}, decoder_{name} = {decoder}: only equal values are supported"
        if fields.get("share_encoder_decoder_embeddings", True) and not fields.get("tie_word_embeddings", True):
            yield (
                "tie_word_embeddings = False contradicts share_encoder_decoder_embeddings = True: the number of "
                "embeddings is not clear"
            )

    def export_problems(self, shape: ModelShape) -> Iterator[str]:
        """See `Architecture.export_problems`."""
        if not shape.config.tie_embeddings and shape.input_vocab_size is None:
            yield "model.tie_embeddings = false: with one vocabulary, Marian ties all three embeddings"

    def tied_copies(self, shape: ModelShape) -> Iterator[str]:
        """See `Architecture.tied_copies`."""
        if shape.input_vocab_size is None:
            yield from ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")

    def zero_weights(self, shape: ModelShape) -> dict[str, Tensor]:
        """The output layer's bias, which ours does not have."""
        return {"final_logits_bias": torch.zeros(1, shape.vocab_size)}

    def layout(self, shape: ModelShape) -> Iterator[Weight]:
        """See `Architecture.layout`."""
        if shape.input_vocab_size is None:
            yield Weight("decoder.embedding.weight", ("model.shared.weight",))
        else:
            yield Weight("encoder.embedding.weight", ("model.encoder.embed_tokens.weight",))
            yield Weight("decoder.embedding.weight", ("model.decoder.embed_tokens.weight",))
        config = shape.config
        encoder = product(("encoder",), range(config.encoder_layers), _OWN_LAYERS.items())
        decoder = product(("decoder",), range(config.n_layers), (_OWN_LAYERS | _CROSS_ATTENTION_LAYERS).items())
        for side, index, (ours, theirs) in (*encoder, *decoder):
            rows = len(theirs) * (config.d_model,) if len(theirs) > 1 else ()
            for part in ("weight", "bias"):
                parts = tuple(f"model.{side}.layers.{index}.{name}.{part}" for name in theirs)
                yield Weight(f"{side}.blocks.{index}.{ours}.{part}", parts, rows)
