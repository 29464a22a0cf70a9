"""Audit of the sample ledger: proof that no sample was lost or doubled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.order.sample_order import Ints, SampleOrder


@dataclass(frozen=True)
class Audit:
    """What the run should have trained on, beside what it did.

    Attributes:
        digest: sha256 over all sample ids seen, int64 little-endian, in training order.
        in_order: whether seen and expected are the same, sample by sample.
    """

    expected: int
    seen: int
    duplicated: int
    missing: int
    digest: str
    in_order: bool


def audit(
    order: SampleOrder,
    counts: Ints,
    global_batch_size: int,
    steps: int,
    tables: Iterator[pa.Table],
    steps_together: int = 1,
) -> Audit:
    """Hold what the ranks reported against the order, computed afresh from the manifest's counts.

    Args:
        steps: steps the run's state contains.
        tables: ledger segments, see `read_segments`.
        steps_together: steps whose samples are arranged by length, which counts do not tell; whatever arrangement of
            theirs was seen is in order then. That it was the right one, the digest of another run tells.
    """
    expected_total = steps * global_batch_size
    digest, seen = hashlib.sha256(), 0
    in_order = True
    odd_seen: list[Ints] = []
    odd_expected: list[Ints] = []
    for ids in _in_blocks(tables, steps_together * global_batch_size):
        digest.update(ids.astype("<i8").tobytes())
        room = max(0, min(len(ids), expected_total - seen))
        if steps_together > 1:
            expected = _arranged_as(ids[:room], order, seen, counts, steps_together * global_batch_size)
        else:
            expected = order.samples(seen, room, counts).ids() if room else np.empty(0, np.int64)
        if not np.array_equal(ids, expected):
            in_order = False
            odd_seen.append(ids)
            odd_expected.append(expected)
        seen += len(ids)
    if seen < expected_total:
        odd_expected.append(order.samples(seen, expected_total - seen, counts).ids())
    seen_ids = np.concatenate(odd_seen) if odd_seen else np.empty(0, np.int64)
    expected_ids = np.concatenate(odd_expected) if odd_expected else np.empty(0, np.int64)
    duplicated = len(seen_ids) - len(np.unique(seen_ids))
    strays = np.setdiff1d(seen_ids, expected_ids)
    if len(strays):  # seen before, in a segment that is as it should be
        duplicated += int(np.isin(strays, order.samples(0, expected_total, counts).ids()).sum())
    return Audit(
        expected=expected_total,
        seen=seen,
        duplicated=duplicated,
        missing=len(np.setdiff1d(expected_ids, seen_ids)),
        digest=digest.hexdigest(),
        in_order=in_order and seen == expected_total,
    )


def _in_blocks(tables: Iterator[pa.Table], block: int) -> Iterator[Ints]:
    """Sample ids of ledger segments, cut so that a block of samples is never divided."""
    rest = np.empty(0, np.int64)
    for table in tables:
        ids = np.concatenate([rest, table["sample_ids"].combine_chunks().flatten().to_numpy()])
        whole = len(ids) // block * block
        rest = ids[whole:]
        if whole:
            yield ids[:whole]
    if len(rest):
        yield rest


def _arranged_as(ids: Ints, order: SampleOrder, first: int, counts: Ints, block: int) -> Ints:
    """The samples expected from `first` on, in the arrangement of `ids` in every block of which `ids` are a part."""
    expected = []
    for start in range(0, len(ids), block):
        seen, there = ids[start : start + block], order.samples(first + start, block, counts).ids()
        is_part = len(np.unique(seen)) == len(seen) and bool(np.isin(seen, there).all())
        expected.append(seen if is_part else there[: len(seen)])
    return np.concatenate(expected) if expected else np.empty(0, np.int64)
