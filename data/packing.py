"""Packing: the token stream of a unit cut into fixed-length training sequences.

A unit's stream is `end_of_text, document, end_of_text, document, ..., end_of_text`: the token before every document
and after the last one is the same, so each document's first token is predicted from a boundary and its end is predicted
too. Sequence i holds tokens [i * seq_len, i * seq_len + seq_len]: seq_len inputs and, one further on, their targets.
Neighbours share one token, so every token of the stream but the first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.sample_order import Samples

Tokens = NDArray[Any]
"""(n,) uint16 or uint32 token ids."""


class UnitStream(NamedTuple):
    """A unit's tokens.

    Attributes:
        tokens: one stream; none where the shard could not be read.
        problem: the reason why it could not be read, or None.
        lengths: (pairs, 2) int32, tokens of each pair's input and text; None where documents are no pairs.
    """

    tokens: Tokens
    problem: str | None = None
    lengths: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads; the same whoever computes it.

    Attributes:
        tokens: (B, T + 1) uint16 or uint32; a decoder reads [:, :-1], its targets are [:, 1:].
        target_counts: (B,) int64; in row b only the first `target_counts[b]` targets count, the rest is padding.
        sample_ids: (B,) int64, see `Samples.ids`.
        inputs: (B, S) uint16 or uint32, what an encoder reads; None where documents are no pairs.
        input_counts: (B,) int64; in row b only the first `input_counts[b]` inputs count, the rest is padding.
    """

    tokens: Tokens
    target_counts: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    inputs: Tokens | None = None
    input_counts: NDArray[np.int64] | None = None


class Batching(Protocol):
    """How the tokens of units become micro-batches: a function of samples and tokens alone.

    Attributes:
        steps_together: steps that are made of their samples together.
    """

    steps_together: int

    def count(self, unit: UnitStream) -> int:
        """Samples in a unit."""

    def steps(self, samples: Samples, units: Mapping[int, UnitStream], first_step: int) -> list[list[MicroBatch]]:
        """The micro-batches of each of `steps_together` steps from `first_step` on.

        Args:
            samples: those of all these steps, in order.
            units: the stream of every unit among them.
        """

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches of held-out samples; the last may be smaller."""


class PackedBatching:
    """Documents packed into sequences of `seq_len` targets; a step's samples as they come."""

    steps_together = 1

    def __init__(self, seq_len: int, micro_batch_size: int) -> None:
        self._seq_len, self._size = seq_len, micro_batch_size

    def count(self, unit: UnitStream) -> int:
        """Sequences in a unit."""
        return count_sequences(len(unit.tokens), self._seq_len)

    def steps(self, samples: Samples, units: Mapping[int, UnitStream], first_step: int) -> list[list[MicroBatch]]:
        """The micro-batches of one step."""
        return [self.held_out(samples, units)]

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches that hold `samples` in order."""
        streams = [units[int(unit)].tokens for unit in samples.unit]
        tokens, target_counts = pack(streams, samples.sequence.tolist(), self._seq_len)
        ids = samples.ids()
        cuts = [slice(start, start + self._size) for start in range(0, len(ids), self._size)]
        return [MicroBatch(tokens[cut], target_counts[cut], ids[cut]) for cut in cuts]


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
