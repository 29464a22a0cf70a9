"""Blocks of attention and feed-forward layers, and the stack of blocks that encoder and decoder share.

Shape suffixes: B batch, T tokens, L tokens attended to, S source tokens, D d_model, F feed-forward width, P pairs of
channels that rotate.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention, CrossAttention, Rotation, rotary_angles
from model.cache import Cache, LayerCache
from model.config import ModelConfig

NORM_EPS = 1e-5  # Radford et al. 2019 and Touvron et al. 2023 both use this value.

_INIT_STD = 0.02  # Radford et al. 2018, section 4.1.


class Memory(NamedTuple):
    """The encoder's output, for cross-attention."""

    states_BSD: Tensor
    """(B, S, D) output of the encoder."""
    mask_B11S: Tensor
    """(B, 1, 1, S) bool, False for padding."""


class Stack(nn.Module):
    """Token embedding, positions, blocks, and a final norm if blocks do not end with one.

    Args:
        config: shape of the model.
        n_layers: blocks.
        max_tokens: longest sequence the positions cover.
        vocab_size: rows of the embedding; None if another stack's embedding is used.
        cross_attention: whether blocks also attend to an encoder's output.
    """

    embedding: nn.Embedding | None
    rotary_cos_TP: Tensor
    rotary_sin_TP: Tensor
    sinusoids_TD: Tensor

    def __init__(
        self, config: ModelConfig, n_layers: int, max_tokens: int, vocab_size: int | None, *, cross_attention: bool
    ) -> None:
        super().__init__()
        self.config = config
        self._additions = n_layers * (3 if cross_attention else 2)
        width, positions = config.d_model, config.position_kind
        # The order of these lines is the order in which weights are drawn.
        self.embedding = None if vocab_size is None else nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_tokens, width) if positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, cross_attention=cross_attention) for _ in range(n_layers))
        self.norm = _norm(config) if config.pre_norm else nn.Identity()
        # Buffers are not persistent: they follow from the config, and a checkpoint must not fix max_tokens.
        if positions == "rotary":
            cos_TP, sin_TP = rotary_angles(max_tokens, config.head_size, config.rope_theta)
            self.register_buffer("rotary_cos_TP", cos_TP, persistent=False)
            self.register_buffer("rotary_sin_TP", sin_TP, persistent=False)
        elif positions == "sinusoidal":
            self.register_buffer("sinusoids_TD", sinusoids(max_tokens, width), persistent=False)

    def run_blocks(
        self,
        embedded_BTD: Tensor,
        mask: Tensor | None,
        memory: Memory | None = None,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Runs everything after the embedding.

        Args:
            embedded_BTD: (B, T, D) token embeddings.
            mask: as in `Attention.forward`.
            memory: the encoder's output, for cross-attention.
            cache: keys and values of earlier tokens, for decoding.
            positions_BT: (B, T) int64 positions in the sequence; None means 0 .. T - 1 in every row.

        Returns:
            (B, T, D), normed.
        """
        x_BTD, rotation = self._with_positions(embedded_BTD, positions_BT)
        x_BTD = self.dropout(x_BTD)
        recompute = self.config.activation_checkpointing and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            if recompute:
                x_BTD = checkpoint(block, x_BTD, rotation, mask, memory, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotation, mask, memory, None if cache is None else cache.layers[number])
        normed: Tensor = self.norm(x_BTD)
        return normed

    def _with_positions(self, x_BTD: Tensor, positions_BT: Tensor | None) -> tuple[Tensor, Rotation | None]:
        """Scaled embeddings with positions added, or with the angles for the rotation of queries and keys."""
        where = slice(x_BTD.shape[1]) if positions_BT is None else positions_BT
        if (scale := self.config.embedding_scale) != 1.0:
            x_BTD = x_BTD * scale
        if self.positions is not None:
            return x_BTD + self.positions.weight[where], None
        if self.config.position_kind == "sinusoidal":
            return x_BTD + self.sinusoids_TD[where], None
        cos, sin = self.rotary_cos_TP[where], self.rotary_sin_TP[where]
        return x_BTD, (cos, sin) if positions_BT is None else (cos.unsqueeze(1), sin.unsqueeze(1))

    def draw_weights(self) -> None:
        """Draws all weights from torch's global generator."""
        if self.config.preset == "original":
            self._draw_as_in_tensor2tensor()
        else:
            self._draw_as_in_gpt2()

    def _draw_as_in_gpt2(self) -> None:
        """Normal weights; those that write to the residual stream are scaled by depth (Radford et al. 2019, 2.3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # A block adds to the stream twice, or three times with cross-attention: variances add up to that of one layer.
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                nn.init.normal_(parameter, std=_INIT_STD / math.sqrt(self._additions))

    def _draw_as_in_tensor2tensor(self) -> None:
        """Uniform weights by width in and out (Glorot & Bengio 2010, eq. 16), normal embeddings of variance 1 / D.

        Queries, keys and values count as one matrix of three times the width, however they are stored, as in
        fairseq: post-norm models begin to learn only with the smaller bound.
        """
        width = self.config.d_model
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) or name == "output":
                nn.init.normal_(module.weight, std=width**-0.5)
            elif isinstance(module, nn.Linear):
                joint = name.endswith((".qkv", ".q", ".kv"))
                widths = 4 * width if joint else module.in_features + module.out_features
                bound = math.sqrt(6 / widths)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)


class Block(nn.Module):
    """Self-attention, cross-attention if there is an encoder, and a feed-forward layer, each added to its input.

    Pre-norm: x + sublayer(norm(x)) (Radford et al. 2019). Post-norm: norm(x + sublayer(x)) (Vaswani et al. 2017).
    """

    def __init__(self, config: ModelConfig, *, cross_attention: bool = False) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        if cross_attention:
            self.cross_attention_norm = _norm(config)
            self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = SwigluFeedForward(config) if config.preset == "llama" else FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        memory: Memory | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `Attention.forward` and `CrossAttention.forward` explain the other arguments."""
        x_BTD = self._add(x_BTD, self.attention_norm, self.attention, rotation, mask, cache)
        if memory is not None:
            x_BTD = self._add(x_BTD, self.cross_attention_norm, self.cross_attention, *memory, cache)
        return self._add(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _add(self, x_BTD: Tensor, norm: nn.Module, sublayer: nn.Module, *arguments: Any) -> Tensor:
        if self.pre_norm:
            added: Tensor = x_BTD + self.dropout(sublayer(norm(x_BTD), *arguments))
            return added
        normed: Tensor = norm(x_BTD + self.dropout(sublayer(x_BTD, *arguments)))
        return normed


class FeedForward(nn.Module):
    """down(f(up(x))) with biases.

    f is the tanh form of GELU that GPT-2 was trained with (Hendrycks & Gimpel 2016), or ReLU in the original
    Transformer (Vaswani et al. 2017, eq. 2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.relu = config.preset == "original"
        self.up = nn.Linear(config.d_model, config.ff_width)
        self.down = nn.Linear(config.ff_width, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        up_BTF = self.up(x_BTD)
        out_BTD: Tensor = self.down(F.relu(up_BTF) if self.relu else F.gelu(up_BTF, approximate="tanh"))
        return out_BTD


class SwigluFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Gate and up side by side in one matrix: one large product is faster than two.
        self.gate_up = nn.Linear(config.d_model, 2 * config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=False)
        self.stacked_rows = {"gate_up": (config.ff_width, config.ff_width)}  # see `model.optim.parameter_groups`

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        out_BTD: Tensor = self.down(F.silu(gate_BTF) * up_BTF)
        return out_BTD


def sinusoids(n_positions: int, width: int) -> Tensor:
    """Sine and cosine of position t times frequency 10000^(-2i / D), (T, D) float32 (Vaswani et al. 2017, section 3.5).

    All sines come first, then all cosines, as in tensor2tensor and Marian; the paper's text alternates them, which is
    the same up to a fixed reordering of channels. Frequencies are the paper's and Marian's; tensor2tensor's reach
    1 / 10000 itself.
    """
    cosines_TP, sines_TP = rotary_angles(n_positions, width, theta=10000.0)  # the same angles, for the whole width
    return torch.cat((sines_TP, cosines_TP), dim=1)


def _norm(config: ModelConfig) -> nn.Module:
    if config.preset == "llama":
        return nn.RMSNorm(config.d_model, eps=NORM_EPS)
    return nn.LayerNorm(config.d_model, eps=NORM_EPS)
