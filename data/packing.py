"""Packing: the token stream of a unit cut into fixed-length training sequences.

A unit's stream is `end_of_text, document, end_of_text, document, ..., end_of_text`: the token before every document
and after the last one is the same, so each document's first token is predicted from a boundary and its end is predicted
too. Sequence i holds tokens [i * seq_len, i * seq_len + seq_len]: seq_len inputs and, one further on, their targets.
Neighbours share one token, so every token of the stream but the first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]
"""(n,) uint16 or uint32 token ids."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads; the same whoever computes it.

    Attributes:
        tokens: (B, seq_len + 1) uint16 or uint32; inputs are [:, :-1], targets [:, 1:].
        target_counts: (B,) int64; in row b only the first `target_counts[b]` targets count, the rest is padding.
        sample_ids: (B,) int64, see `Samples.ids`.
    """

    tokens: Tokens
    target_counts: NDArray[np.int64]
    sample_ids: NDArray[np.int64]


def token_stream(documents: Sequence[Tokens], end_of_text: int, dtype: np.dtype[Any]) -> Tokens:
    """The stream of a unit; empty where there are no documents."""
    if not documents:
        return np.empty(0, dtype)
    boundary = np.array([end_of_text], dtype)
    return np.concatenate([part for document in documents for part in (boundary, document)] + [boundary]).astype(
        dtype, copy=False
    )


def count_sequences(num_tokens: int, seq_len: int) -> int:
    """Sequences in a stream of `num_tokens` tokens; the last may be padded."""
    return max(0, -(-(num_tokens - 1) // seq_len))


def pack(streams: Sequence[Tokens], indices: Sequence[int], seq_len: int) -> tuple[Tokens, NDArray[np.int64]]:
    """Sequence `indices[b]` of `streams[b]` for every row b.

    Returns:
        tokens (B, seq_len + 1) and target_counts (B,) int64, as in MicroBatch. Padding is token 0.
    """
    tokens = np.zeros((len(streams), seq_len + 1), streams[0].dtype if streams else np.uint16)
    target_counts = np.empty(len(streams), np.int64)
    for row, (stream, index) in enumerate(zip(streams, indices, strict=True)):
        sequence = stream[index * seq_len : index * seq_len + seq_len + 1]
        tokens[row, : len(sequence)] = sequence
        target_counts[row] = len(sequence) - 1
    return tokens, target_counts
