"""Audit of the sample ledger: checks that every sample was trained on exactly once, in the expected order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.feed.spec import FeedSpec
from data.order.sample_order import Ints, SampleOrder
from data.shards.manifest import read_manifest
from orchestrator.run.ledger import IDS_SCHEMA, read_segments
from orchestrator.run.run import Run

MOST_AUDITED = 10_000_000
"""Most samples that are audited without being asked for: it takes some seconds."""


@dataclass(frozen=True)
class Audit:
    """Result of an audit: counts of samples.

    Attributes:
        expected: samples that the run's steps should have trained on.
        seen: samples in the ledger.
        duplicated: samples in the ledger beyond the first occurrence of each.
        missing: expected samples that are not in the ledger.
        digest: sha256 over all seen sample ids, int64 little-endian, in training order.
        in_order: whether the seen and the expected ids are equal, position by position.
    """

    expected: int
    seen: int
    duplicated: int
    missing: int
    digest: str
    in_order: bool


def audit_run(run: Run, state: Mapping[str, Any], counts: Ints | None, *, audits_all: bool = False) -> dict[str, Any]:
    """Audits the sample ledger of a run.

    Args:
        state: state of the newest checkpoint.
        counts: (units,) training samples in each unit, from the same checkpoint; None if there is none.
        audits_all: audit more than MOST_AUDITED samples, which takes minutes for a thousand millions.

    Returns:
        fields of an `Audit`; only `expected` if the samples are too many; nothing before the first checkpoint.
    """
    if counts is None or run.record.manifest is None:
        return {}
    config = run.config
    expected = state["step"] * config.train.global_batch_size
    if expected > MOST_AUDITED and not audits_all:
        return {"expected": expected}
    manifest = read_manifest(run.root, run.record.manifest)
    order = FeedSpec.order_of(manifest, config.data, config.seed)
    done = audit(
        order,
        counts,
        config.train.global_batch_size,
        state["step"],
        read_segments(run.store, state["ledger"], IDS_SCHEMA, state.get("ledger_digests", {})),
        config.data.bucket_steps if config.data.has_pairs else 1,
    )
    return asdict(done)


def audit(
    order: SampleOrder,
    counts: Ints,
    global_batch_size: int,
    steps: int,
    tables: Iterator[pa.Table],
    steps_together: int = 1,
) -> Audit:
    """Compares the sample ids that the ranks reported with the order recomputed from `counts`.

    Args:
        counts: (units,) training samples in each unit.
        steps: steps that the run's state contains.
        tables: ledger segments, see `read_segments`.
        steps_together: steps in a block whose samples are sorted by length. Counts do not give lengths, so any
            arrangement within a block counts as in order; comparing digests of two runs checks the arrangement.
    """
    expected_total = steps * global_batch_size
    digest, seen = hashlib.sha256(), 0
    in_order = True
    unmatched_seen: list[Ints] = []
    unmatched_expected: list[Ints] = []
    for ids in _whole_blocks(tables, steps_together * global_batch_size):
        digest.update(ids.astype("<i8").tobytes())
        within = max(0, min(len(ids), expected_total - seen))
        if steps_together > 1:
            expected = _expected_as_arranged(ids[:within], order, seen, counts, steps_together * global_batch_size)
        else:
            expected = order.samples(seen, within, counts).ids() if within else np.empty(0, np.int64)
        if not np.array_equal(ids, expected):
            in_order = False
            unmatched_seen.append(ids)
            unmatched_expected.append(expected)
        seen += len(ids)
    if seen < expected_total:
        unmatched_expected.append(order.samples(seen, expected_total - seen, counts).ids())
    seen_ids = np.concatenate(unmatched_seen) if unmatched_seen else np.empty(0, np.int64)
    expected_ids = np.concatenate(unmatched_expected) if unmatched_expected else np.empty(0, np.int64)
    duplicated = len(seen_ids) - len(np.unique(seen_ids))
    unexpected = np.setdiff1d(seen_ids, expected_ids)
    if len(unexpected):  # a second occurrence: the first is in a block that matched its expectation
        duplicated += int(np.isin(unexpected, order.samples(0, expected_total, counts).ids()).sum())
    return Audit(
        expected=expected_total,
        seen=seen,
        duplicated=duplicated,
        missing=len(np.setdiff1d(expected_ids, seen_ids)),
        digest=digest.hexdigest(),
        in_order=in_order and seen == expected_total,
    )


def _whole_blocks(tables: Iterator[pa.Table], block: int) -> Iterator[Ints]:
    """Sample ids of the segments in pieces of whole blocks; only the last piece may end inside a block."""
    rest = np.empty(0, np.int64)
    for table in tables:
        ids = np.concatenate([rest, table["sample_ids"].combine_chunks().flatten().to_numpy()])
        whole = len(ids) // block * block
        rest = ids[whole:]
        if whole:
            yield ids[:whole]
    if len(rest):
        yield rest


def _expected_as_arranged(ids: Ints, order: SampleOrder, first: int, counts: Ints, block: int) -> Ints:
    """Expected ids from position `first` on; a block whose `ids` are all expected there takes their arrangement."""
    expected = []
    for start in range(0, len(ids), block):
        seen, wanted = ids[start : start + block], order.samples(first + start, block, counts).ids()
        is_part = len(np.unique(seen)) == len(seen) and bool(np.isin(seen, wanted).all())
        expected.append(seen if is_part else wanted[: len(seen)])
    return np.concatenate(expected) if expected else np.empty(0, np.int64)
