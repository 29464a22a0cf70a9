"""Pairs of an input and a text as micro-batches of similar lengths, so that batches have little padding.

A pair's input is its ids and an end-of-text; its text is `end_of_text, ids, end_of_text`: the first starts decoding,
the last is predicted. A pair is one sample, never cut and never joined with another.

The order of samples is that of `data.order.sample_order`. `bucket_steps` consecutive steps are sorted by length and cut
into micro-batches, which are shuffled over the steps; those of a step are then ordered by length, so that ranks which
take every W-th of them have about the same work. All of it is a function of the samples alone: content and shape of a
micro-batch are the same on any rank and for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.order.packing import MicroBatch, UnitStream
from data.order.sample_order import BUCKET, Ints, Samples, shuffled
from data.tokens.tokenizer import Ids, Tokenizer


class PairBatching:
    """Micro-batches of pairs; see `data.order.packing.Batching`.

    Args:
        seed: the run's seed.
        steps_together: steps whose pairs are sorted together.
        length_multiple: lengths are rounded up to a multiple of it, but not above the longest input or text.
        longest_input, longest_text: most tokens that the model reads of each.
        end_of_text, input_end: ids that end texts and inputs.
    """

    def __init__(
        self,
        *,
        seed: int,
        micro_batch_size: int,
        micro_batches_per_step: int,
        steps_together: int,
        length_multiple: int,
        longest_input: int,
        longest_text: int,
        end_of_text: int,
        input_end: int,
    ) -> None:
        self.steps_together = steps_together
        self._seed, self._size, self._per_step = seed, micro_batch_size, micro_batches_per_step
        self._multiple, self._end_of_text, self._input_end = length_multiple, end_of_text, input_end
        self._longest_input, self._longest_text = longest_input, longest_text

    def count(self, unit: UnitStream) -> int:
        """Pairs in a unit."""
        return len(_lengths(unit))

    def steps(self, samples: Samples, units: Mapping[int, UnitStream], first_step: int) -> list[list[MicroBatch]]:
        """The micro-batches of `steps_together` steps from `first_step` on, which consume `samples`."""
        batches = self._sorted_by_length(samples, units)
        positions = shuffled(len(batches), BUCKET, self._seed, first_step // self.steps_together)
        return [
            [batches[position] for position in np.sort(positions[start : start + self._per_step])]
            for start in range(0, len(batches), self._per_step)
        ]

    def held_out(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        """Micro-batches of the held-out pairs, the longest first."""
        return self._sorted_by_length(samples, units)

    def _sorted_by_length(self, samples: Samples, units: Mapping[int, UnitStream]) -> list[MicroBatch]:
        located = list(zip(samples.unit.tolist(), samples.sequence.tolist(), strict=True))
        begins = {unit: pair_begins(stream) for unit, stream in units.items()}
        lengths = np.array([_lengths(units[unit])[index] for unit, index in located], np.int64).reshape(-1, 2)
        # By the sum, which decides the work; equal sums by the text's length.
        order = np.lexsort((lengths[:, 1], lengths.sum(axis=1)))[::-1]
        ids = samples.ids()
        pairs = [pair_of(units[unit], int(begins[unit][index]), index) for unit, index in located]
        return [
            self._micro_batch([pairs[row] for row in rows], ids[rows])
            for rows in (order[start : start + self._size] for start in range(0, len(order), self._size))
        ]

    def _micro_batch(self, pairs: Sequence[tuple[Ids, Ids]], sample_ids: Ints) -> MicroBatch:
        dtype = pairs[0][1].dtype
        input_counts = np.array([len(input_ids) + 1 for input_ids, _ in pairs], np.int64)
        target_counts = np.array([len(text) + 1 for _, text in pairs], np.int64)
        inputs = np.zeros((len(pairs), self._rounded(input_counts, self._longest_input)), dtype)
        tokens = np.zeros((len(pairs), self._rounded(target_counts, self._longest_text) + 1), dtype)
        for row, (input_ids, text) in enumerate(pairs):
            inputs[row, : len(input_ids)], inputs[row, len(input_ids)] = input_ids, self._input_end
            tokens[row, [0, len(text) + 1]] = self._end_of_text
            tokens[row, 1 : len(text) + 1] = text
        return MicroBatch(tokens, target_counts, sample_ids, inputs, input_counts)

    def _rounded(self, counts: Ints, longest: int) -> int:
        return min(longest, -(-int(counts.max()) // self._multiple) * self._multiple)


def joined(pairs: Sequence[tuple[Ids, Ids]], dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> UnitStream:
    """The pairs of a unit as one stream, `input text input text …`, without end-of-text, and their lengths."""
    parts = [part for pair in pairs for part in pair]
    tokens = np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
    return UnitStream(tokens, None, np.array([len(part) for part in parts], np.int32).reshape(-1, 2))


def pair_begins(unit: UnitStream) -> Ints:
    """(pairs,) int64: the position of each pair's first token in its unit's stream."""
    both = _lengths(unit).sum(axis=1, dtype=np.int64)
    begins: Ints = np.cumsum(both) - both
    return begins


def pair_of(unit: UnitStream, begin: int, index: int) -> tuple[Ids, Ids]:
    """Input and text of a pair, as views into its unit's stream."""
    input_len, text_len = (int(length) for length in _lengths(unit)[index])
    split = begin + input_len
    return unit.tokens[begin:split], unit.tokens[split : split + text_len]


def _lengths(unit: UnitStream) -> NDArray[np.int32]:
    assert unit.lengths is not None
    return unit.lengths


class InputBatch(NamedTuple):
    """Inputs from which a model writes texts.

    Attributes:
        inputs: token ids of each, end-of-text included.
        positions: index of each in the sequence that the batches were made of.
    """

    inputs: list[list[int]]
    positions: list[int]


def input_batches(inputs: Sequence[str], tokenizer: Tokenizer, longest: int, batch_size: int) -> list[InputBatch]:
    """Batches of inputs of similar lengths, the longest first. Inputs are truncated to `longest` tokens."""
    ids = [[*tokenizer.encode(text)[: longest - 1].tolist(), tokenizer.end_of_text] for text in inputs]
    order = sorted(range(len(ids)), key=lambda position: -len(ids[position]))
    cuts = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return [InputBatch([ids[position] for position in positions], positions) for positions in cuts]
