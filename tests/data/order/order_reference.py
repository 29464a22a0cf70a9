"""A reference for the order of samples: iterates from the first sample, with plain lists and generators."""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from data.order.sample_order import MIXTURE_PERIOD, SampleOrder, Samples

Row = tuple[int, int, int, int]
"""Source, epoch, unit and index of one sample."""


def sample_order(
    *source_units: range, seed: int = 0, weights: Sequence[float] | None = None, shuffle_units: int = 1
) -> SampleOrder:
    """An order of the sources' units, equally weighted by default."""
    return SampleOrder(seed, source_units, weights or [1.0] * len(source_units), shuffle_units)


def split_mix_64(seed: int) -> Iterator[int]:
    """The generator as Steele, Lea & Flood 2014 print it."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        value = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        yield value ^ (value >> 31)


def reference_shuffle(items: Sequence, *key: int) -> list:
    """`items` sorted by the numbers that a SplitMix64 seeded by the key draws for them, less their lowest bits."""
    state = 0
    for part in key:
        # The number drawn at a counter advanced by `part` golden ratios and one more.
        state = next(split_mix_64((state + part * 0x9E3779B97F4A7C15) % 2**64))
    draws = zip(split_mix_64(state), range(len(items)), strict=False)
    coarse = 2 ** len(items).bit_length()
    return [items[place] for _, place in sorted((draw // coarse, place) for draw, place in draws)]


def reference_quotas(weights: Sequence[int]) -> list[int]:
    """Largest remainder (Hamilton's method) in exact fractions."""
    shares = [Fraction(weight, sum(weights)) * MIXTURE_PERIOD for weight in weights]
    quotas = [int(share) for share in shares]
    while sum(quotas) < MIXTURE_PERIOD:
        quotas[max(range(len(weights)), key=lambda i: (shares[i] - quotas[i], -i))] += 1
    return quotas


class Case(NamedTuple):
    """A small data set and how it is mixed; sizes[s][u] is the number of sequences in unit u of source s."""

    seed: int
    sizes: list[list[int]]
    weights: list[int]
    shuffle_units: int

    @property
    def counts(self) -> np.ndarray:
        return np.array(list(itertools.chain(*self.sizes)), np.int64)

    def source_units(self) -> list[range]:
        ends = list(itertools.accumulate(len(units) for units in self.sizes))
        return [range(end - len(units), end) for end, units in zip(ends, self.sizes, strict=True)]

    def order(self) -> SampleOrder:
        return SampleOrder(self.seed, self.source_units(), self.weights, self.shuffle_units)

    def source_line(self, source: int) -> Iterator[Row]:
        """The samples of a source, epoch after epoch, endless."""
        for epoch in itertools.count():
            units = reference_shuffle(list(self.source_units()[source]), 1, self.seed, source, epoch)
            for window in itertools.count():
                inside, units = units[: self.shuffle_units], units[self.shuffle_units :]
                rows = [(unit, index) for unit in inside for index in range(self.counts[unit])]
                for unit, index in reference_shuffle(rows, 2, self.seed, source, epoch, window):
                    yield source, epoch, unit, index
                if not units:
                    break

    def line(self, first: int, count: int) -> list[Row]:
        """Samples `first` to `first + count`, after iterating over all before them."""
        sources = [self.source_line(source) for source in range(len(self.sizes))]
        labels = [source for source, quota in enumerate(reference_quotas(self.weights)) for _ in range(quota)]
        mixed = (
            next(sources[label])
            for period in itertools.count()
            for label in reference_shuffle(labels, 0, self.seed, period)
        )
        return list(itertools.islice(mixed, first, first + count))


def rows_of(samples: Samples) -> list[Row]:
    return list(zip(*(column.tolist() for column in samples), strict=True))
