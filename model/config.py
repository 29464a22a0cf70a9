"""Settings of the model, its optimizer and its learning-rate schedule, checked when they are built.

Pydantic only: a recipe can be validated, printed or swept over without loading torch.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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

    model_config = _FROZEN

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


class ParameterGroup(BaseModel):
    """What some parameters, chosen by name, have of their own."""

    model_config = _FROZEN

    match: str = Field(
        min_length=1,
        description="Pattern of the parameters' names, such as *norm* or blocks.0.*: * is any text, ? any character, "
        "[ab] one of them. Of several groups that match, the first counts.",
    )
    lr: float = Field(
        default=1.0, ge=0.0, description="Their learning rate as a multiple of the run's; 0 freezes them."
    )
    weight_decay: float | None = Field(
        default=None, ge=0.0, description="Their weight decay, whatever they are; null leaves it as it would be."
    )


# What is usual where it is not what the fields say. Sources: Chen et al. 2023, section 5 (lion); Jordan et al. 2024
# (muon); torch.optim for the others.
_USUAL: dict[str, dict[str, Any]] = {
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "nesterov": True},
    "rmsprop": {"momentum": 0.0},
    "adagrad": {"eps": 1e-10},
}


class OptimizerConfig(BaseModel):
    """Update rule and its constants; the learning rate comes from the schedule.

    A constant that is left out has the value usual for the rule, and one that the rule does not have is ignored.

    Raises:
        ValueError: fields contradict each other.
    """

    model_config = _FROZEN

    name: Literal["sgd", "adam", "adamw", "adafactor", "lion", "muon", "rmsprop", "adagrad"] = Field(
        default="adamw",
        description="Update rule. Weight decay is added to the gradient by sgd, adam, rmsprop and adagrad, and apart "
        "from it in the others. muon is for the matrices inside the model; adamw updates what else there is.",
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95),
        description="Decay of the running mean of gradients and of their squares (adam, adamw, muon's adamw); lion's "
        "two decays, 0.9 and 0.99 unless set.",
    )
    eps: float = Field(
        default=1e-8,
        gt=0.0,
        description="Added to the root of the squares (adam, adamw, muon's adamw, rmsprop; adagrad, 1e-10 unless set).",
    )
    momentum: float = Field(
        default=0.9,
        ge=0.0,
        lt=1.0,
        description="Decay of the velocity (sgd; muon, 0.95 unless set; rmsprop, 0 unless set).",
    )
    nesterov: bool = Field(
        default=False, description="Whether to look ahead along the velocity (sgd; muon, true unless set)."
    )
    alpha: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="Decay of the running mean of squared gradients (rmsprop)."
    )
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw",
        description="Factor on muon's learning rate for a matrix of A x B: match_rms_adamw, 0.2 sqrt(max(A, B)), makes "
        "steps as large as adamw's, so that its learning rate fits; original, sqrt(max(1, A / B)), wants about 0.02.",
    )
    adamw_lr: float = Field(
        default=1.0, ge=0.0, description="Learning rate of what adamw updates, as a multiple of the run's (muon)."
    )
    weight_decay: float = Field(
        default=0.1, ge=0.0, description="Decay of linear-layer matrices; norms, biases and embeddings have none."
    )
    groups: tuple[ParameterGroup, ...] = Field(
        default=(), description="Parameters, chosen by name, with a learning rate or weight decay of their own."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_usual_values(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            return fields
        return _USUAL.get(fields["name"], {}) | fields

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = []
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                nearest = 0.0 if beta < 0.0 else 0.999
                problems.append(f"betas[{index}]={beta} is outside [0, 1). Nearest usual value: {nearest}.")
        if self.nesterov and self.name not in ("sgd", "muon"):
            problems.append(f"nesterov=True needs name=sgd or muon, but name={self.name}. Set nesterov to False.")
        elif self.nesterov and self.name == "sgd" and self.momentum == 0.0:
            problems.append("nesterov=True needs a velocity, but momentum=0.0. Set momentum above 0 (0.9 is usual).")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ScheduleConfig(BaseModel):
    """How the learning rate moves between 0 and its peak; `model.schedule` has the formulas.

    Raises:
        ValueError: fields contradict each other.
    """

    model_config = _FROZEN

    name: Literal["constant", "cosine", "wsd", "inverse_sqrt"] = Field(
        default="cosine",
        description="Course of the learning rate after warm-up. inverse_sqrt is that of Vaswani et al. 2017 where "
        "train.lr is 1 / sqrt(d_model W), 7e-4 for d_model 512 and W 4000, and warmup_steps is W - 1.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises to its peak.")
    decay_steps: int | None = Field(
        default=None, ge=1, description="Length of the final decay of wsd in steps (null means 10 % of all steps)."
    )
    final_lr_fraction: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Last learning rate as a fraction of the peak (cosine and wsd)."
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.decay_steps is not None and self.name != "wsd":
            raise ValueError(
                f"decay_steps={self.decay_steps} needs name=wsd, but name={self.name}. Set decay_steps to null."
            )
        return self


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
