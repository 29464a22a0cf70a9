"""Settings of the model, checked when they are built."""

import math
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

# Widths that are multiples of 64 fill the tiles of matrix units (tensor cores, AMX) without a ragged edge.
_WIDTH_MULTIPLE = 64

_POSITIONS: dict[str, Literal["sinusoidal", "learned", "rotary"]] = {
    "gpt2": "learned",
    "llama": "rotary",
    "original": "sinusoidal",
}


class ModelConfig(BaseModel):
    """Shape of a Transformer, decoder-only or encoder-decoder.

    Raises:
        ValueError: fields contradict each other; the message lists every contradiction, not just the first.
    """

    model_config = FROZEN

    architecture: Literal["decoder", "encoder_decoder"] = Field(
        default="decoder",
        description="decoder continues text; encoder_decoder reads a source and writes a target (cross-attention).",
    )
    preset: Literal["gpt2", "llama", "original"] = Field(
        default="llama",
        description="Block style: gpt2 (LayerNorm, learned positions, GELU, biases), "
        "llama (RMSNorm, RoPE, SwiGLU, no biases) or original (Vaswani et al. 2017: LayerNorm after each sublayer, "
        "sinusoidal positions, ReLU, biases, embeddings times sqrt(d_model)).",
    )
    positions: Literal["sinusoidal", "learned", "rotary"] | None = Field(
        default=None,
        description="How positions enter (null: as the preset says): sinusoidal or learned ones are added to the "
        "embeddings, rotary ones turn queries and keys.",
    )
    norm: Literal["pre", "post"] | None = Field(
        default=None,
        description="Where norms are (null: as the preset says): pre, before each sublayer and after the last block; "
        "or post, after each sublayer's sum.",
    )
    n_layers: int = Field(default=4, ge=1, description="Number of Transformer blocks (of the decoder).")
    n_encoder_layers: int | None = Field(
        default=None, ge=1, description="Number of blocks of the encoder (encoder_decoder only; null means n_layers)."
    )
    d_model: int = Field(default=256, ge=1, description="Width of the residual stream.")
    n_heads: int = Field(default=4, ge=1, description="Number of query heads; each is d_model / n_heads wide.")
    n_kv_heads: int | None = Field(
        default=None,
        ge=1,
        description="Number of key and value heads, shared by groups of query heads (llama only; null means n_heads).",
    )
    d_ff: int | None = Field(
        default=None,
        ge=1,
        description="Hidden width of the feed-forward layer "
        "(null means 4 d_model for gpt2 and original, 8/3 d_model rounded up to a multiple of 64 for llama).",
    )
    tie_embeddings: bool = Field(
        default=True, description="Whether the output layer reuses the token embedding as its weight."
    )
    dropout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Probability of zeroing embeddings, attention weights and block outputs while training.",
    )
    rope_theta: float = Field(default=10000.0, gt=1.0, description="Base of the RoPE wavelengths (rotary only).")
    vocab_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the embedding (null means the tokenizer's size rounded up to a multiple of 64).",
    )
    input_vocab_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the encoder's own embedding, where sources have a tokenizer of their own (null: as for "
        "vocab_size).",
    )
    activation_checkpointing: bool = Field(
        default=False, description="Whether blocks recompute their activations in the backward pass to save memory."
    )
    loss_chunk_tokens: int = Field(
        default=1024, ge=1, description="Tokens whose logits are held at once while the loss is computed."
    )
    cross_document_attention: bool = Field(
        default=True, description="Whether a token may attend to earlier documents packed into its sequence."
    )

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head, d_k in Vaswani et al. 2017."""
        return self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        """Hidden width of the feed-forward layer, with the default filled in.

        SwiGLU has three matrices to GELU's two, so 8/3 d_model costs what 4 d_model does (Shazeer 2020, section 3).
        """
        if self.d_ff is not None:
            return self.d_ff
        if self.preset == "llama":
            return _round_up(-(-8 * self.d_model // 3), _WIDTH_MULTIPLE)
        return 4 * self.d_model

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder, with the default filled in; 0 where there is none."""
        if self.architecture == "decoder":
            return 0
        return self.n_layers if self.n_encoder_layers is None else self.n_encoder_layers

    @property
    def position_kind(self) -> Literal["sinusoidal", "learned", "rotary"]:
        """How positions enter, with the preset's choice filled in."""
        return self.positions if self.positions is not None else _POSITIONS[self.preset]

    @property
    def pre_norm(self) -> bool:
        """Whether norms come before sublayers, with the preset's choice filled in."""
        return self.norm == "pre" if self.norm is not None else self.preset != "original"

    @property
    def has_biases(self) -> bool:
        """Whether linear layers and norms have biases; the output layer never has one."""
        return self.preset != "llama"

    @property
    def embedding_scale(self) -> float:
        """What token embeddings are multiplied by as they enter: sqrt(d_model) or 1 (Vaswani et al. 2017, section 3.4).

        Sinusoids are of size 1, which embeddings as they are drawn are not, so the two belong together.
        """
        scaled = self.preset == "original" or self.position_kind == "sinusoidal"
        return math.sqrt(self.d_model) if scaled else 1.0

    def resolve_vocab_size(self, tokenizer_size: int) -> int:
        """Rows of the embedding for a tokenizer with ids 0 .. tokenizer_size - 1.

        Raises:
            ValueError: `vocab_size` is set and some of the tokenizer's ids would have no row.
        """
        return _rows("vocab_size", self.vocab_size, tokenizer_size)

    def resolve_input_vocab_size(self, tokenizer_size: int) -> int:
        """Rows of the encoder's own embedding for a source tokenizer with ids 0 .. tokenizer_size - 1.

        Raises:
            ValueError: `input_vocab_size` is set and some of the tokenizer's ids would have no row.
        """
        return _rows("input_vocab_size", self.input_vocab_size, tokenizer_size)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = [*self._problems_of_heads(), *self._problems_of_architecture()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_heads(self) -> Iterator[str]:
        if self.d_model % self.n_heads:
            yield (
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}. "
                f"Nearest that are: {_nearest_multiples(self.d_model, self.n_heads)}."
            )
        elif self.position_kind == "rotary" and self.head_size % 2:
            yield (
                f"d_model={self.d_model} with n_heads={self.n_heads} gives heads of odd size {self.head_size}, "
                f"and RoPE rotates pairs. Nearest d_model: {_nearest_multiples(self.d_model, 2 * self.n_heads)}."
            )
        if self.position_kind == "sinusoidal" and self.d_model % 2:
            yield (
                f"d_model={self.d_model} is odd, and sinusoidal positions are pairs of sine and cosine. "
                f"Nearest d_model: {_nearest_multiples(self.d_model, 2 * self.n_heads)}."
            )
        if self.preset != "llama" and self.n_kv_heads not in (None, self.n_heads):
            yield (
                f"n_kv_heads={self.n_kv_heads} needs preset=llama; preset={self.preset} has as many key heads as query "
                f"heads. Leave it null or set it to n_heads={self.n_heads}."
            )
        elif self.n_heads % self.kv_heads:
            yield (
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.kv_heads}. "
                f"Nearest n_kv_heads: {_nearest_divisor(self.n_heads, self.kv_heads)}."
            )

    def _problems_of_architecture(self) -> Iterator[str]:
        if self.architecture == "decoder":
            for name in ("n_encoder_layers", "input_vocab_size"):
                if (value := getattr(self, name)) is not None:
                    yield f"{name}={value} needs architecture=encoder_decoder, which has an encoder. Set it to null."
        elif not self.cross_document_attention:
            yield (
                "cross_document_attention=False needs architecture=decoder: sequences of an encoder-decoder are one "
                "document each. Set it to true."
            )


def _rows(field: str, wanted: int | None, tokenizer_size: int) -> int:
    """Rows of an embedding: as many as wanted, or the tokenizer's ids rounded up."""
    rounded = _round_up(tokenizer_size, _WIDTH_MULTIPLE)
    if wanted is not None and wanted < tokenizer_size:
        raise ValueError(
            f"{field}={wanted} is smaller than the tokenizer's {tokenizer_size} tokens. "
            f"Smallest that fits: {tokenizer_size}; null takes {rounded}."
        )
    return rounded if wanted is None else wanted


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _nearest_multiples(value: int, factor: int) -> str:
    """The multiples of `factor` on either side of `value`, as text; 0 is not offered."""
    below = value // factor * factor
    return f"{below}, {below + factor}" if below else str(factor)


def _nearest_divisor(value: int, wanted: int) -> int:
    """The divisor of `value` closest to `wanted`, the larger of two equally close."""
    divisors = (d for d in range(1, value + 1) if value % d == 0)
    return min(divisors, key=lambda d: (abs(d - wanted), -d))
