"""A decoder-only Transformer in the style of GPT-2 or Llama.

Shape suffixes: B batch, T tokens, D d_model, F feed-forward width, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention, Rotation, document_mask, rotary_angles
from model.config import ModelConfig
from model.loss import chunked_cross_entropy

_NORM_EPS = 1e-5  # Radford et al. 2019 and Touvron et al. 2023 both use this value.
_INIT_STD = 0.02  # Radford et al. 2018, section 4.1.


class Transformer(nn.Module):
    """Token embedding, pre-norm blocks, final norm and an output layer.

    Weights are drawn from torch's global generator: the same `torch.manual_seed` gives the same model.
    To compile it, call `model.compile()`, which works in place: `torch.compile(model)` would rename every parameter.

    Args:
        config: shape of the model; its `vocab_size` is already resolved into the argument below.
        vocab_size: rows of the embedding, V.
        seq_len: longest sequence the positions cover.
        end_of_text: id of the token that opens a document, needed to keep documents apart.

    Raises:
        ValueError: documents are to be kept apart, but there is no end-of-text token to tell them by.
    """

    rotary_cos_TP: Tensor
    rotary_sin_TP: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, seq_len: int, end_of_text: int | None) -> None:
        super().__init__()
        if not config.cross_document_attention and end_of_text is None:
            raise ValueError(
                "cross_document_attention=False needs an end-of-text token to find documents, but end_of_text=None. "
                "Use a tokenizer that has one, or set cross_document_attention to True."
            )
        self.config = config
        self.seq_len = seq_len
        self.end_of_text = end_of_text

        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(seq_len, config.d_model) if config.preset == "gpt2" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config)
        self.output = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)
        if config.preset == "llama":
            cos_TP, sin_TP = rotary_angles(seq_len, config.head_size, config.rope_theta)
            # Not persistent: they follow from the config, and a checkpoint should not fix seq_len.
            self.register_buffer("rotary_cos_TP", cos_TP, persistent=False)
            self.register_buffer("rotary_sin_TP", sin_TP, persistent=False)
        self._initialize()

    @property
    def output_weight(self) -> Tensor:
        """(V, D) weight of the output layer; the token embedding when they are tied (Press & Wolf 2017)."""
        return self.embedding.weight if self.output is None else self.output.weight

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Sum of the token losses of a micro-batch.

        A sum, not a mean: the caller divides by the target tokens of the whole step, so that uneven micro-batches
        weigh what they should.

        Args:
            tokens_BT: (B, T) int64, T <= seq_len.
            targets_BT: (B, T) int64, the token after each position, or `loss.IGNORED_TARGET`.

        Returns:
            () float32.

        Raises:
            ValueError: T > seq_len.
        """
        hidden_BTD = self.hidden_states(tokens_BT)
        loss: Tensor = chunked_cross_entropy(
            hidden_BTD.flatten(0, 1), self.output_weight, targets_BT.flatten(), self.config.loss_chunk_tokens
        )
        return loss

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) scores of the token after each position; for inspection, since training never needs them all."""
        return F.linear(self.hidden_states(tokens_BT), self.output_weight)

    def hidden_states(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D) output of the final norm for (B, T) int64 tokens.

        Raises:
            ValueError: T > seq_len.
        """
        n_tokens = tokens_BT.shape[1]
        if n_tokens > self.seq_len:
            raise ValueError(f"A sequence of {n_tokens} tokens is longer than seq_len={self.seq_len}. Shorten it.")
        x_BTD = self.embedding(tokens_BT)
        rotation = None
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[:n_tokens]
        else:
            rotation = (self.rotary_cos_TP[:n_tokens], self.rotary_sin_TP[:n_tokens])
        mask_B1TT = None
        if not self.config.cross_document_attention:
            assert self.end_of_text is not None
            mask_B1TT = document_mask(tokens_BT, self.end_of_text)

        x_BTD = self.dropout(x_BTD)
        recompute = self.config.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                x_BTD = checkpoint(block, x_BTD, rotation, mask_B1TT, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotation, mask_B1TT)
        normed: Tensor = self.norm(x_BTD)
        return normed

    def _initialize(self) -> None:
        """Normal weights, with what enters the residual stream scaled down by depth (Radford et al. 2019, 2.3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each of the n_layers blocks adds twice, so variances add up to that of one unscaled layer.
        residual_std = _INIT_STD / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                nn.init.normal_(parameter, std=residual_std)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = GeluFeedForward(config) if config.preset == "gpt2" else SwigluFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D); `Attention.forward` explains the other arguments."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, mask_B1TT))
        x_BTD = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        return x_BTD


class GeluFeedForward(nn.Module):
    """down(gelu(up(x))), with the tanh form of GELU that GPT-2 was trained with (Hendrycks & Gimpel 2016)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.ff_width)
        self.down = nn.Linear(config.ff_width, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        out_BTD: Tensor = self.down(F.gelu(self.up(x_BTD), approximate="tanh"))
        return out_BTD


class SwigluFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Gate and up side by side in one matrix: one large product is faster than two.
        self.gate_up = nn.Linear(config.d_model, 2 * config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        out_BTD: Tensor = self.down(F.silu(gate_BTF) * up_BTF)
        return out_BTD


def _norm(config: ModelConfig) -> nn.Module:
    if config.preset == "gpt2":
        return nn.LayerNorm(config.d_model, eps=_NORM_EPS)
    return nn.RMSNorm(config.d_model, eps=_NORM_EPS)
