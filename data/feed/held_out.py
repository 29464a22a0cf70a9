"""The fixed samples and pairs of a split: the first in the manifest's order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from data.cleaning.units import documents_of
from data.errors import BadShardError
from data.feed.spec import FeedSpec, ToTranslate
from data.order.packing import MicroBatch, UnitStream
from data.order.pairs import input_batches
from data.order.sample_order import Ints, Samples
from data.stores.patience import Tell, silently
from data.tokens.pipeline import tokenized_units_in_chunks
from data.tokens.unit import stream_columns, unit_stream


def fixed_batches(
    spec: FeedSpec, split: str, start_ray: Callable[[], None] = lambda: None, tell: Tell = silently
) -> list[MicroBatch]:
    """The first samples of a split in the manifest's order, at most `data.validation_sequences`.

    Reads only the units that are needed for them. Sample ids are (unit, sequence) as in training.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
        tell: see `Patience`.
    """
    data, batching = spec.job.data, spec.batching()
    streams: dict[int, UnitStream] = {}
    limit = data.validation_sequences
    units: list[int] = []
    indices: list[int] = []
    part = "train" if split == "train" else "validation"  # column of a unit's row; sources for test have this one only
    columns = stream_columns(part, spec.job)
    for table in tokenized_units_in_chunks(spec.manifest, spec.job, columns, start_ray, _units_of(spec, split), tell):
        if len(units) >= limit:
            break
        ordinal, stream = table["ordinal"][0].as_py(), unit_stream(table, part, spec.job)
        if stream.problem is not None and data.on_bad_shard == "refuse":
            raise BadShardError(stream.problem)
        streams[ordinal] = stream
        count = batching.count(stream)
        units += [ordinal] * count
        indices += range(count)
    unit, index = np.array(units[:limit], np.int64), np.array(indices[:limit], np.int64)
    samples = Samples(np.zeros_like(unit), np.zeros_like(unit), unit, index)
    return batching.held_out(samples, streams)


def pairs_to_translate(
    spec: FeedSpec,
    split: str,
    count: int,
    start_ray: Callable[[], None] = lambda: None,
    tell: Tell = silently,
) -> ToTranslate:
    """The first `count` pairs of a split in the manifest's order, including pairs too long to be trained on.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
        tell: see `Patience`.
    """
    job, data = spec.job, spec.job.data
    pairs = list(islice(raw_pairs(spec, split, start_ray, tell), count))
    inputs = [each for each, _ in pairs]
    batches = input_batches(inputs, job.encoder_tokenizer, data.most_input_tokens, spec.micro_batch_size)
    return ToTranslate(batches, [text for _, text in pairs], job.tokenizer)


def raw_pairs(
    spec: FeedSpec, split: str, start_ray: Callable[[], None] = lambda: None, tell: Tell = silently
) -> Iterator[tuple[str, str]]:
    """The cleaned inputs and texts of a split in the manifest's order.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
        tell: see `Patience`.
    """
    ordinals = _units_of(spec, split)
    return _training_pairs(spec, ordinals) if split == "train" else _held_out_pairs(spec, ordinals, start_ray, tell)


def _units_of(spec: FeedSpec, split: str) -> list[int]:
    """Ordinals of the units that have documents of a split, in the manifest's order."""
    sources = spec.job.data.sources_of(split)
    return [unit for source in sources for unit in spec.manifest.units_of_source(source)]


def _held_out_pairs(
    spec: FeedSpec, ordinals: Sequence[int], start_ray: Callable[[], None], tell: Tell
) -> Iterator[tuple[str, str]]:
    columns = ["validation_pairs"]
    for table in tokenized_units_in_chunks(spec.manifest, spec.job, columns, start_ray, ordinals, tell):
        yield from json.loads(table["validation_pairs"][0].as_py())


def _training_pairs(spec: FeedSpec, ordinals: Sequence[int]) -> Iterator[tuple[str, str]]:
    job = spec.job
    for unit in map(spec.manifest.unit, ordinals):
        for document in documents_of(unit, job.data, job.store_config, job.cleaning, for_training=True):
            yield document.input or "", document.text


def measure_held_out(batches: list[MicroBatch], token_bytes: Ints) -> tuple[int, int]:
    """The number of targets that count in the batches, and the bytes of text that they stand for."""
    target_tokens = text_bytes = 0
    for batch in batches:
        for row, count in zip(batch.tokens, batch.target_counts, strict=True):
            target_tokens += int(count)
            text_bytes += int(token_bytes[row[1 : count + 1]].sum())
    return target_tokens, text_bytes
