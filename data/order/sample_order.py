"""The order of training samples, as a pure function of seed and data, independent of the cluster.

A run reads an endless sequence of samples; step `s` takes `global_batch_size` of them from `s * global_batch_size` on.
The sequence is built of:

    mixture   the source of each sample: exact shares in every MIXTURE_PERIOD samples, shuffled inside it
    epoch     a pass over a source, whose units are permuted anew in every epoch
    window    `shuffle_units` consecutive units of that permutation; their sequences are shuffled together
    unit      a shard or row group, packed into sequences on its own, so that reading can start at any window

It is integer arithmetic on hashes: there is no generator state, and nothing depends on numpy's or Ray's version. The
number of sequences in a unit is known once it has been tokenized; `counts` has these numbers, UNKNOWN where they are
missing. No result depends on an unknown count: where it would, CountsUnknownError is raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError

Ints = NDArray[np.int64]

MIXTURE_PERIOD = 1000
"""Samples in which every source has exactly its share. A source whose share would be none is refused."""

UNKNOWN = -1
"""In an array of counts: this unit has not been tokenized yet."""

# First part of every hash key, so that mixture, epochs and windows never share a permutation.
_MIXTURE, _EPOCH, _WINDOW, BUCKET, _POSITION = range(5)

# A sample id packs (epoch, unit, sequence) into a positive int64.
_SEQUENCE_BITS, _UNIT_BITS, _EPOCH_BITS = 24, 25, 14


class Samples(NamedTuple):
    """Consecutive samples of the order; four (n,) int64 arrays. `sequence` counts within the unit."""

    source: Ints
    epoch: Ints
    unit: Ints
    sequence: Ints

    def ids(self) -> Ints:
        """Sample ids, (n,) int64: unique for every (epoch, unit, sequence).

        Raises:
            InputError: there are more epochs, units or sequences in a unit than an id can represent.
        """
        limits = (1 << _EPOCH_BITS, 1 << _UNIT_BITS, 1 << _SEQUENCE_BITS)
        for name, values, limit in zip(
            ("epoch", "unit", "sequence"), (self.epoch, self.unit, self.sequence), limits, strict=True
        ):
            if len(values) and int(values.max()) >= limit:
                raise InputError(
                    f"{name} {int(values.max())} does not fit a sample id, the limit is {limit}. "
                    "Make data.seq_len larger, or fewer and larger shards."
                )
        return (self.epoch << (_UNIT_BITS + _SEQUENCE_BITS)) | (self.unit << _SEQUENCE_BITS) | self.sequence


class Position(NamedTuple):
    """A position in one source: the epoch, the window inside the epoch, the sample inside the window."""

    epoch: int
    window: int
    offset: int


class CountsUnknownError(Exception):
    """The result depends on units that have not been tokenized; `units` are the next of them, in order."""

    def __init__(self, units: Ints) -> None:
        super().__init__(units)
        self.units = units


class SampleOrder:
    """The sequence of samples of one run.

    Args:
        seed: the run's seed; another seed gives another order.
        source_units: unit ordinals of each source, contiguous.
        weights: relative share of each source in the mixture, same length.
        shuffle_units: units in a shuffle window.
        numbers: indices of the sources in the recipe, for messages; None: 0 and up.

    Raises:
        InputError: a source's share is below one sample in MIXTURE_PERIOD.
    """

    def __init__(
        self,
        seed: int,
        source_units: Sequence[range],
        weights: Sequence[float],
        shuffle_units: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.seed = seed
        self._numbers = range(len(source_units)) if numbers is None else numbers
        self.source_units = tuple(source_units)
        self.shuffle_units = shuffle_units
        self.quotas = quotas_of(weights, self._numbers)
        # Sized for a few sources: the order is computed step by step, so neighbouring steps need the same values.
        self._mixture_of_period = lru_cache(maxsize=8)(self._compute_mixture)
        self.epoch_units = lru_cache(maxsize=2 * len(self.source_units))(self._compute_epoch_units)
        self._window_rows = lru_cache(maxsize=2 * len(self.source_units))(self._compute_window_rows)

    def samples(self, first: int, count: int, counts: Ints) -> Samples:
        """Samples `first` to `first + count` of the sequence.

        Args:
            counts: (units,) int64, sequences in each unit of the manifest, UNKNOWN where not tokenized.

        Raises:
            CountsUnknownError: counts are missing; tokenize these units, fill in their counts, and call again.
            InputError: a source has no training sequence.
        """
        sources, positions = self.mixture(first, count)
        result = Samples(sources, np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64))
        for source in range(len(self.source_units)):
            remaining = np.flatnonzero(sources == source)
            while len(remaining):
                position = self.locate(source, int(positions[remaining[0]]), counts)
                units, indices = self.window(source, position.epoch, position.window, counts)
                here = remaining[: len(units) - position.offset]
                in_window = slice(position.offset, position.offset + len(here))
                result.epoch[here], result.unit[here], result.sequence[here] = (
                    position.epoch,
                    units[in_window],
                    indices[in_window],
                )
                remaining = remaining[len(here) :]
        return result

    def mixture(self, first: int, count: int) -> tuple[Ints, Ints]:
        """Source of each sample, and its position in the sequence of that source; two (count,) int64 arrays."""
        if len(self.source_units) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        sources, positions = [], []
        for period in range(first // MIXTURE_PERIOD, (first + count - 1) // MIXTURE_PERIOD + 1):
            labels, ranks = self._mixture_of_period(period)
            begin = period * MIXTURE_PERIOD
            inside = slice(max(first - begin, 0), min(first + count - begin, MIXTURE_PERIOD))
            sources.append(labels[inside])
            positions.append(self.quotas[labels[inside]] * period + ranks[inside])
        return np.concatenate(sources), np.concatenate(positions)

    def locate(self, source: int, position: int, counts: Ints) -> Position:
        """The epoch, window and offset of the `position`-th sample of a source. Uses counts only, never data.

        Raises:
            CountsUnknownError, InputError: as `samples`.
        """
        units = self.source_units[source]
        mine = counts[units.start : units.stop]
        epoch = 0
        if not (mine == UNKNOWN).any():
            total = int(mine.sum())
            if total == 0:
                raise InputError(
                    f"Source {self._numbers[source]} has no training sequence: "
                    "all of its documents are empty, held out, skipped or too long."
                )
            epoch, position = divmod(position, total)
        starts = np.arange(0, len(units), self.shuffle_units)
        permuted = counts[self.epoch_units(source, epoch)]
        known_windows = len(starts)
        if (permuted == UNKNOWN).any():
            known_windows = int(np.argmax(permuted == UNKNOWN)) // self.shuffle_units
        ends = np.cumsum(np.add.reduceat(permuted, starts)[:known_windows])
        window = int(np.searchsorted(ends, position, side="right"))
        if window == known_windows:
            missing = self.window_units(source, epoch, window)
            raise CountsUnknownError(missing[counts[missing] == UNKNOWN])
        return Position(epoch, window, position - (int(ends[window - 1]) if window else 0))

    def window_units(self, source: int, epoch: int, window: int) -> Ints:
        """Unit ordinals of a window, at most `shuffle_units` of them."""
        start = window * self.shuffle_units
        return self.epoch_units(source, epoch)[start : start + self.shuffle_units]

    def window(self, source: int, epoch: int, window: int, counts: Ints) -> tuple[Ints, Ints]:
        """Sequences of a window in training order: their units and their indices in them, two (n,) int64 arrays."""
        units = self.window_units(source, epoch, window)
        return self._window_rows(source, epoch, window, tuple(int(count) for count in counts[units]))

    def windows_at(self, sample: int, counts: Ints) -> list[tuple[int, int]]:
        """(epoch, window) that each source reads at `sample`; the first one with an unknown count where counts end."""
        period, inside = divmod(sample, MIXTURE_PERIOD)
        labels, _ = self._mixture_of_period(period)
        windows = []
        for source in range(len(self.source_units)):
            position = int(self.quotas[source]) * period + int((labels[:inside] == source).sum())
            try:
                windows.append(self.locate(source, position, counts)[:2])
            except CountsUnknownError as unknown:
                index = int(np.flatnonzero(self.epoch_units(source, 0) == unknown.units[0])[0])
                windows.append((0, index // self.shuffle_units))
        return windows

    def upcoming_windows(self, windows: Sequence[tuple[int, int]]) -> Iterator[Ints]:
        """Units of the windows from `windows` (one per source) on, endless, in about the order of their use.

        For reading ahead; it is not part of the order. Sources take turns by weight and number of windows.
        """
        turns = [(0.0, source, *windows[source]) for source in range(len(windows))]
        while True:
            due, source, epoch, window = turns.pop(turns.index(min(turns)))
            yield self.window_units(source, epoch, window)
            last = window + 1 == self.num_windows(source)
            following = (epoch + 1, 0) if last else (epoch, window + 1)
            turns.append((due + 1 / (self.num_windows(source) * float(self.quotas[source])), source, *following))

    def num_windows(self, source: int) -> int:
        """Windows in every epoch of a source."""
        return -(-len(self.source_units[source]) // self.shuffle_units)

    def _compute_mixture(self, period: int) -> tuple[Ints, Ints]:
        labels = np.repeat(np.arange(len(self.quotas)), self.quotas)[
            shuffled(MIXTURE_PERIOD, _MIXTURE, self.seed, period)
        ]
        ranks = np.empty(MIXTURE_PERIOD, np.int64)
        for source, quota in enumerate(self.quotas):
            ranks[labels == source] = np.arange(quota)
        return labels, ranks

    def _compute_epoch_units(self, source: int, epoch: int) -> Ints:
        units = self.source_units[source]
        return shuffled(len(units), _EPOCH, self.seed, source, epoch) + units.start

    def _compute_window_rows(self, source: int, epoch: int, window: int, counts: tuple[int, ...]) -> tuple[Ints, Ints]:
        order = shuffled(sum(counts), _WINDOW, self.seed, source, epoch, window)
        units = np.repeat(self.window_units(source, epoch, window), counts)
        indices = np.concatenate([np.arange(count) for count in counts])
        return units[order], indices[order]


def shuffled(count: int, *key: int) -> Ints:
    """Permutation of range(count), (count,) int64, a function of `key` alone.

    Indices are sorted by SplitMix64 hashes of key and index (Steele, Lea & Flood 2014). Unlike a generator's
    `permutation`, this is stable across versions of libraries.
    """
    state = _hashed(*key)
    indices = np.arange(count, dtype=np.uint64)
    hashes = _mix(state + _GOLDEN * (indices + np.uint64(1)))
    # The index replaces the lowest bits of its hash: there are no ties, and a plain sort replaces a slower argsort.
    index_bits = (1 << count.bit_length()) - 1
    ordered = np.sort((hashes & ~np.uint64(index_bits)) | indices)
    return (ordered & np.uint64(index_bits)).astype(np.int64)


def position_in(count: int, *key: int) -> int:
    """A number in range(count), a function of `key` alone; all are about equally likely."""
    return int(_hashed(_POSITION, *key)[0] % np.uint64(count))


_GOLDEN = np.full(1, 0x9E3779B97F4A7C15, np.uint64)  # arrays, not scalars: only arrays wrap around without a warning


def _hashed(*key: int) -> NDArray[np.uint64]:
    """(1,) uint64: a hash of the numbers of a key."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state + _GOLDEN * np.uint64(part % (1 << 64)) + _GOLDEN)
    return state


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def quotas_of(weights: Sequence[float], numbers: Sequence[int]) -> Ints:
    """Samples of each source in a mixture period, (sources,) int64, by largest remainder.

    Args:
        weights: relative share of each source.
        numbers: positions of the sources in the recipe, for the message.

    Raises:
        InputError: a source would have none.
    """
    shares = np.asarray(weights, np.float64) / sum(weights) * MIXTURE_PERIOD
    quotas = np.floor(shares).astype(np.int64)
    # Rounded, so that equal remainders tie exactly, and the stable sort prefers the earlier source.
    neediest = np.argsort(-np.round(shares - quotas, 9), kind="stable")[: MIXTURE_PERIOD - int(quotas.sum())]
    quotas[neediest] += 1
    if (quotas == 0).any():
        source = int(np.argmin(quotas))
        raise InputError(
            f"data.sources.{numbers[source]}.weight={weights[source]} is less than 1/{MIXTURE_PERIOD} of all weights, "
            f"{sum(weights)}: the source would never be read. Raise its weight or remove the source."
        )
    return quotas
