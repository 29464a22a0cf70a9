"""Packing: the token stream of a unit cut into fixed-length training sequences.

A unit's stream is `end_of_text, document, end_of_text, document, ..., end_of_text`: an end-of-text before every
document and after the last, so a document's first token is predicted from a boundary, and its end is predicted too.
Sequence i has tokens [i * seq_len, i * seq_len + seq_len]: seq_len inputs and, shifted by one, their targets.
Neighbouring sequences share one token, so every token of the stream but the first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.order.known_units import ExcludedDocuments
from data.order.sample_order import Samples, position_in

Tokens = NDArray[Any]
"""(n,) uint16 or uint32 token ids."""


@dataclass(frozen=True, eq=False)
class UnitStream:
    """A unit's tokens.

    Attributes:
        tokens: one stream; empty where the shard cannot be read.
        problem: the reason why it cannot be read, or None.
        lengths: (pairs, 2) int32, tokens of each pair's input and text; None where documents are not pairs.
        excluded: documents of the unit that are excluded from training.
    """

    tokens: Tokens
    problem: str | None = None
    lengths: NDArray[np.int32] | None = None
    excluded: ExcludedDocuments = field(default_factory=ExcludedDocuments)


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass; the same on whichever rank.

    Attributes:
        tokens: (B, T + 1) uint16 or uint32; a decoder reads [:, :-1], its targets are [:, 1:].
        target_counts: (B,) int64; in row b only the first `target_counts[b]` targets count, the rest is padding.
        sample_ids: (B,) int64, see `Samples.ids`.
        inputs: (B, S) uint16 or uint32, input of an encoder; None where documents are not pairs.
        input_counts: (B,) int64; in row b only the first `input_counts[b]` inputs count, the rest is padding.
    """

    tokens: Tokens
    target_counts: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    inputs: Tokens | None = None
    input_counts: NDArray[np.int64] | None = None


class Batching(Protocol):
    """Turns tokens of units into micro-batches: a function of samples and tokens alone.

    Attributes:
        steps_together: consecutive steps that are made together, from all their samples.
    """

    steps_together: int

    def count(self, unit: UnitStream) -> int:
        """Samples in a unit."""

    def steps(self, samples: Samples, units: Mapping[int, UnitStream], first_step: int) -> list[list[MicroBatch]]:
        """The micro-batches of each of `steps_together` steps from `first_step` on.

        Args:
            samples: the samples of all these steps, in order.
            units: the stream of every unit in `samples`.
        """

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches of held-out samples; the last may be smaller."""


class PackedBatching:
    """Packs documents into sequences of `seq_len` targets, in the order of the samples.

    Args:
        rotation_seed: decides the position from which each epoch cuts a unit's stream; None: its beginning.
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
            position_in(len(units[unit].tokens) - 1, self._seed, epoch, unit)
            for epoch, unit in zip(samples.epoch.tolist(), samples.unit.tolist(), strict=True)
        ]
        return [self._cut(samples, units, offsets)]

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches of `samples` in order."""
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

    A stream begins and ends with the same token, so it is a ring of one token less. From whichever position the ring is
    cut, every token is a target exactly once.

    Args:
        offsets: for every row, the position from which its stream is cut, in [0, tokens - 1); None: all from 0.

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
