"""Causal self-attention with rotary positions and shared key heads.

Shape suffixes: B batch, T tokens, D d_model, H query heads, G key and value heads, K head size, P = K / 2 pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every position's angles, (T, P) float32 each."""


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d_k)) V over all heads, then the output projection (Vaswani et al. 2017, section 3.2).

    Groups of H / G query heads share one key and value head (Ainslie et al. 2023).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.preset == "gpt2"
        self.head_size = config.head_size
        self.head_counts = (config.n_heads, config.kv_heads, config.kv_heads)
        self.queries_per_key = config.n_heads // config.kv_heads
        self.dropout = config.dropout
        # One matrix for queries, keys and values: one large product is faster than three small ones.
        self.qkv = nn.Linear(config.d_model, sum(self.head_counts) * self.head_size, bias=bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None) -> Tensor:
        """Mix tokens with those before them.

        Args:
            x_BTD: (B, T, D).
            rotation: angles of the T positions, or None if positions were added to the embeddings.
            mask_B1TT: (B, 1, T, T) bool, True where row attends to column; None means plain causal.

        Returns:
            (B, T, D), dtype of the projections.
        """
        heads = self.qkv(x_BTD).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        q_BHTK, k_BGTK, v_BGTK = heads.split(self.head_counts, dim=1)
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        # Not enable_gqa: on CUDA, shared heads with a mask or in float32 silently fall back to a kernel that writes the
        # whole T x T matrix. Repeated heads fit every fused kernel, and on a CPU they take the same time.
        if self.queries_per_key > 1:
            k_BGTK = k_BGTK.repeat_interleave(self.queries_per_key, dim=1)
            v_BGTK = v_BGTK.repeat_interleave(self.queries_per_key, dim=1)
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGTK,
            v_BGTK,
            attn_mask=mask_B1TT,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_B1TT is None,
        )
        projected: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return projected


def rotary_angles(seq_len: int, head_size: int, theta: float) -> Rotation:
    """Cosine and sine of position t times frequency theta^(-2p / K), (T, P) float32 each (Su et al. 2021, eq. 15)."""
    # float64 until the end: at position 100,000 a float32 angle is already off in the third decimal.
    frequencies_P = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles_TP = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies_P)
    return angles_TP.cos().float(), angles_TP.sin().float()


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pair p of each head by its position's angle, keeping shape and dtype.

    Pair p is (p, p + P) rather than the paper's (2p, 2p + 1). Scores are the same up to a fixed reordering of a
    head's channels, which the learned projections absorb, and contiguous halves are read faster.
    """
    cos_TP, sin_TP = rotation
    first, second = x_BHTK.chunk(2, dim=-1)
    rotated = torch.cat((first * cos_TP - second * sin_TP, first * sin_TP + second * cos_TP), dim=-1)
    return rotated.to(x_BHTK.dtype)


def document_mask(tokens_BT: Tensor, end_of_text: int) -> Tensor:
    """Which tokens each token may attend to when documents must not see each other.

    An end-of-text token opens a document, so document ids count the end-of-text tokens so far. Whatever precedes
    the first one is the tail of a document that began in another sequence.

    Returns:
        (B, 1, T, T) bool, True where row attends to column: not later, and of the same document.
    """
    document_BT = (tokens_BT == end_of_text).cumsum(dim=1)
    same_document_BTT = document_BT.unsqueeze(2) == document_BT.unsqueeze(1)
    return same_document_BTT.tril().unsqueeze(1)
