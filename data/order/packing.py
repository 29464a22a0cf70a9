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

from data.order.known_units import Excluded
from data.order.sample_order import Samples, place_in

Tokens = NDArray[Any]
"""(n,) uint16 or uint32 token ids."""


class UnitStream(NamedTuple):
    """A unit's tokens.

    Attributes:
        tokens: one stream; none where the shard could not be read.
        problem: the reason why it could not be read, or None.
        lengths: (pairs, 2) int32, tokens of each pair's input and text; None where documents are no pairs.
        excluded: of the unit.
    """

    tokens: Tokens
    problem: str | None = None
    lengths: NDArray[np.int32] | None = None
    excluded: Excluded = Excluded()


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
    """Documents packed into sequences of `seq_len` targets; a step's samples as they come.

    Args:
        rotation_seed: decides from which place on each epoch cuts a unit's stream; None: from its beginning.
    """

    steps_together = 1

    def __init__(self, seq_len: int, micro_batch_size: int, rotation_seed: int | None = None) -> None:
        self._seq_len, self._size, self._seed = seq_len, micro_batch_size, rotation_seed

    def count(self, unit: UnitStream) -> int:
        """Sequences in a unit."""
        return count_sequences(len(unit.tokens), self._seq_len)

    def steps(self, samples: Samples, units: Mapping[int, UnitStream], first_step: int) -> list[list[MicroBatch]]:
        """The micro-batches of one step."""
        if self._seed is None:
            return [self.held_out(samples, units)]
        offsets = [
            place_in(len(units[unit].tokens) - 1, self._seed, epoch, unit)
            for epoch, unit in zip(samples.epoch.tolist(), samples.unit.tolist(), strict=True)
        ]
        return [self._cut(samples, units, offsets)]

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches that hold `samples` in order."""
        return self._cut(samples, units)

    def _cut(
        self, samples: Samples, units: Mapping[int, UnitStream], offsets: Sequence[int] | None = None
    ) -> list[MicroBatch]:
        streams = [units[int(unit)].tokens for unit in samples.unit]
        tokens, target_counts = pack(streams, samples.sequence.tolist(), self._seq_len, offsets)
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


def pack(
    streams: Sequence[Tokens], indices: Sequence[int], seq_len: int, offsets: Sequence[int] | None = None
) -> tuple[Tokens, NDArray[np.int64]]:
    """Sequence `indices[b]` of `streams[b]` for every row b.

    A stream begins and ends with the same token, so it is a ring of one token less; it may be cut from any place of
    the ring on, and still every token is a target exactly once.

    Args:
        offsets: for every row, the place its stream is cut from, in [0, tokens - 1); None: all from their beginnings.

    Returns:
        tokens (B, seq_len + 1) and target_counts (B,) int64, as in MicroBatch. Padding is token 0.
    """
    tokens = np.zeros((len(streams), seq_len + 1), streams[0].dtype if streams else np.uint16)
    target_counts = np.empty(len(streams), np.int64)
    offsets = [0] * len(streams) if offsets is None else offsets
    for row, (stream, index, offset) in enumerate(zip(streams, indices, offsets, strict=True)):
        first, last = index * seq_len, min((index + 1) * seq_len, len(stream) - 1)
        if offset:
            sequence = stream[np.arange(first + offset, last + offset + 1) % (len(stream) - 1)]
        else:
            sequence = stream[first : last + 1]
        tokens[row, : len(sequence)] = sequence
        target_counts[row] = len(sequence) - 1
    return tokens, target_counts
