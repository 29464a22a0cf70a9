"""Attention with rotary positions and shared key heads: over a sequence's own tokens, or over another sequence.

Shape suffixes: B batch, T tokens, L tokens attended to, S source tokens, D d_model, H query heads, G key and value
heads, K head size, P = K / 2 pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import LayerCache
from model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every position's angles, (T, P) float32 each; (B, 1, T, P) if each row has its own positions."""


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d_k)) V over all heads, then the output projection (Vaswani et al. 2017, section 3.2).

    Groups of H / G query heads share one key and value head (Ainslie et al. 2023).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.head_counts = [config.n_heads, config.kv_heads, config.kv_heads]
        self.dropout = config.dropout
        # One matrix for queries, keys and values: one large product is faster than three small ones.
        self.qkv = nn.Linear(config.d_model, sum(self.head_counts) * self.head_size, bias=config.has_biases)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.has_biases)

    @property
    def stacked_rows(self) -> dict[str, tuple[int, ...]]:
        """Rows of the matrices that are stacked in a layer's weight, by layer; see `model.optim.parameter_groups`."""
        return {"qkv": tuple(heads * self.head_size for heads in self.head_counts)}

    def forward(
        self, x_BTD: Tensor, rotation: Rotation | None, mask_B1TL: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attends to tokens of the same sequence.

        Args:
            x_BTD: (B, T, D).
            rotation: angles of the T positions, or None if positions were added to the embeddings.
            mask_B1TL: bool, True where row attends to column, of a shape that broadcasts to (B, 1, T, L); None means
                plain causal. L = T without a cache.
            cache: keys and values of earlier tokens; those of these tokens are appended.

        Returns:
            (B, T, D), dtype of the projections.
        """
        q_BHTK, k_BGLK, v_BGLK = torch.split(_heads(self.qkv(x_BTD), self.head_size), self.head_counts, dim=1)
        if rotation is not None:
            q_BHTK, k_BGLK = rotate(q_BHTK, rotation), rotate(k_BGLK, rotation)
        if cache is not None:
            k_BGLK, v_BGLK = cache.extend(k_BGLK, v_BGLK)
        dropout = self.dropout if self.training else 0.0
        projected: Tensor = self.out(_attend(q_BHTK, k_BGLK, v_BGLK, mask_B1TL, dropout))
        return projected


class CrossAttention(nn.Module):
    """Attention whose keys and values come from the encoder (Vaswani et al. 2017, section 3.2.3).

    Queries and keys are not rotated: the distance between a target's token and a source's has no meaning.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.dropout
        self.q = nn.Linear(config.d_model, config.d_model, bias=config.has_biases)
        self.kv = nn.Linear(config.d_model, 2 * config.kv_heads * config.head_size, bias=config.has_biases)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.has_biases)
        rows = config.kv_heads * config.head_size
        self.stacked_rows = {"kv": (rows, rows)}  # see `model.optim.parameter_groups`

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor, mask_B11S: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Attends to tokens of another sequence.

        Args:
            x_BTD: (B, T, D).
            memory_BSD: (B, S, D) output of the encoder. With a cache, B may be a multiple of its rows: that many
                neighbouring rows share one source.
            mask_B11S: (B, 1, 1, S) bool, False for padding of the source; as many rows as `memory_BSD`.
            cache: keeps the memory's keys and values for later calls.

        Returns:
            (B, T, D), dtype of the projections.
        """
        q_BHTK = _heads(self.q(x_BTD), self.head_size)
        if cache is None:
            k_BGSK, v_BGSK = self._keys_and_values(memory_BSD)
        else:
            if cache.memory is None:
                cache.memory = self._keys_and_values(memory_BSD)
            k_BGSK, v_BGSK = cache.memory
        dropout = self.dropout if self.training else 0.0
        # Rows that share a source become queries of one row, so that keys and values need not be repeated.
        q_BHTK, rows_per_source = _fold_rows(q_BHTK, len(k_BGSK))
        mixed_BTD = _attend(q_BHTK, k_BGSK, v_BGSK, mask_B11S, dropout)
        projected: Tensor = self.out(mixed_BTD.reshape(-1, mixed_BTD.shape[1] // rows_per_source, mixed_BTD.shape[2]))
        return projected

    def _keys_and_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        k_BGSK, v_BGSK = _heads(self.kv(memory_BSD), self.head_size).chunk(2, dim=1)
        return k_BGSK, v_BGSK


def _heads(x_BTD: Tensor, head_size: int) -> Tensor:
    """(B, T, H K) to (B, H, T, K)."""
    return torch.unflatten(x_BTD, -1, (-1, head_size)).transpose(1, 2)


def _fold_rows(q_BHTK: Tensor, n_rows: int) -> tuple[Tensor, int]:
    """(R n, H, T, K) to (n, H, R T, K), and R."""
    rows_per_source = len(q_BHTK) // n_rows
    if rows_per_source == 1:
        return q_BHTK, 1
    return torch.unflatten(q_BHTK, 0, (n_rows, rows_per_source)).transpose(1, 2).flatten(2, 3), rows_per_source


def _attend(q_BHTK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, mask_B1TL: Tensor | None, dropout: float) -> Tensor:
    """(B, T, D) weighted values of all heads side by side; a mask of None means plain causal."""
    n_heads, n_tokens = q_BHTK.shape[1], q_BHTK.shape[2]
    queries_per_key = n_heads // k_BGLK.shape[1]
    if queries_per_key > 1 and mask_B1TL is not None and mask_B1TL.shape[2] == 1:
        # All queries have the same mask: those of heads that share keys become queries of one head, without a copy.
        q_BHTK = q_BHTK.reshape(len(q_BHTK), -1, queries_per_key * n_tokens, q_BHTK.shape[-1])
    elif queries_per_key > 1:
        # Not enable_gqa: on CUDA, shared heads with a mask or in float32 silently fall back to a kernel that writes
        # the whole T x T matrix. Repeated heads fit every fused kernel, and on a CPU they take the same time.
        k_BGLK = k_BGLK.repeat_interleave(queries_per_key, dim=1)
        v_BGLK = v_BGLK.repeat_interleave(queries_per_key, dim=1)
    mixed_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGLK, v_BGLK, attn_mask=mask_B1TL, dropout_p=dropout, is_causal=mask_B1TL is None
    )
    return mixed_BHTK.reshape(len(q_BHTK), n_heads, n_tokens, -1).transpose(1, 2).flatten(2)


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


def padding_mask(counts_B: Tensor, length: int) -> Tensor:
    """Mask of padded rows, (B, 1, 1, length) bool, True for the first `counts_B` columns of each row.

    A row of padding alone keeps its first column: attention over no columns is not a number, and the result of
    a row without tokens is not used.
    """
    columns = torch.arange(length, device=counts_B.device)
    return (columns < counts_B.clamp(min=1).unsqueeze(1)).unsqueeze(1).unsqueeze(1)


def document_mask(tokens_BT: Tensor, end_of_text: int) -> Tensor:
    """Mask of the tokens that each token may attend to if attention across documents is excluded.

    An end-of-text token opens a document, so document ids count the end-of-text tokens so far. Tokens before
    the first one are the end of a document that began in another sequence.

    Returns:
        (B, 1, T, T) bool, True where row attends to column: not later, and of the same document.
    """
    document_BT = (tokens_BT == end_of_text).cumsum(dim=1)
    same_document_BTT = document_BT.unsqueeze(2) == document_BT.unsqueeze(1)
    return same_document_BTT.tril().unsqueeze(1)
