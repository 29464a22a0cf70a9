"""The feeder: one actor a run that knows steps and hands out references to micro-batches.

It outlives worker groups: what it holds is a function of the run's config, manifest and seed, never of who asks.
A step asked for again, after a restart, is handed out again or made again, and is the same.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import ray

from data.config import DataConfig
from data.errors import BadShardError
from data.known_units import KnownUnits
from data.manifest import Manifest
from data.packing import Batching, MicroBatch, PackedBatching, UnitStream
from data.pairs import InputBatch, PairBatching, input_batches
from data.sample_order import UNKNOWN, CountsUnknownError, Ints, SampleOrder, Samples
from data.token_pipeline import ReadAhead, tokenized_units_in_chunks
from data.tokenized_unit import TokenizeJob, documents_of, stream_columns, unit_stream
from data.tokenizer import Tokenizer

AHEAD_STEPS = 8
"""Steps made before they are asked for."""

RETAINED_STEPS = 64
"""Steps kept behind the newest one asked for, so that workers which restart find them made."""

BLOCK_STEPS, BLOCK_BYTES = 8, 64_000
"""Steps handed out at once: at most so many, and no more than make about so many bytes of one micro-batch a step.

Asking, answering and following references costs the machine about 15 ms however small the micro-batches are; eight
small steps at once make that 2 ms a step. Large ones take longer to compute, and go one by one.
"""

AHEAD_BYTES, AHEAD_UNITS = 128_000_000, 512
"""Shards to be tokenized ahead of the step being made: until there are so many bytes, or so many units."""


@dataclass(frozen=True)
class FeedSpec:
    """What a feeder needs to know of a run; picklable.

    Attributes:
        known: what is known of the units already.
        first_step: step likely to be asked for first; it is made while the workers start.
    """

    manifest: Manifest
    job: TokenizeJob
    seed: int
    global_batch_size: int
    micro_batch_size: int
    known: KnownUnits
    first_step: int = 0

    @property
    def steps_per_block(self) -> int:
        """Consecutive steps that are made and handed out together; see BLOCK_STEPS."""
        data = self.job.data
        longest = data.seq_len + 1 + (data.most_input_tokens if data.has_pairs else 0)
        micro_batch_bytes = self.micro_batch_size * longest * self.job.dtype.itemsize
        return max(1, min(BLOCK_STEPS, BLOCK_BYTES // micro_batch_bytes))

    def order(self) -> SampleOrder:
        """The run's order of samples."""
        return self.order_of(self.manifest, self.job.data, self.seed)

    def batching(self) -> Batching:
        """How the run's tokens become micro-batches."""
        data, job = self.job.data, self.job
        if not data.has_pairs:
            return PackedBatching(data.seq_len, self.micro_batch_size, self.seed if data.rotate_units else None)
        return PairBatching(
            self.seed,
            self.micro_batch_size,
            self.global_batch_size // self.micro_batch_size,
            data.bucket_steps,
            data.length_multiple,
            data.most_input_tokens,
            data.seq_len,
            job.tokenizer.end_of_text,
            job.reads_with.end_of_text,
        )

    @staticmethod
    def order_of(manifest: Manifest, data: DataConfig, seed: int) -> SampleOrder:
        """The order of samples of a run with this data and seed."""
        sources = data.sources_of("train")
        source_units = [manifest.units_of_source(source) for source in sources]
        weights = [data.sources[source].weight for source in sources]
        return SampleOrder(seed, source_units, weights, data.shuffle_units, sources)


@dataclass(frozen=True)
class BlockShare:
    """A rank's part of a block of consecutive steps.

    Attributes:
        first_step: the block's first.
        micro_steps: indices of the rank's micro-batches in each step.
        refs: for each of those indices, a reference to the MicroBatches it has in the block, one a step.
        target_tokens: for each step, targets that count in the whole of it, over all ranks.
    """

    first_step: int
    micro_steps: range
    refs: list[ray.ObjectRef[list[MicroBatch]]]
    target_tokens: list[int]


@dataclass(frozen=True)
class HeldOut:
    """The held-out set of a run, the same at every evaluation and world size.

    Attributes:
        refs: references to its micro-batches.
        target_tokens: targets that count.
        text_bytes: bytes of text those targets spell; an end-of-text spells none.
    """

    refs: list[ray.ObjectRef[MicroBatch]]
    target_tokens: int
    text_bytes: int


@dataclass(frozen=True)
class ToTranslate:
    """Pairs whose texts a model is to write from their inputs, and what it is held against.

    Attributes:
        batches: the inputs; their `places` are those of `references`.
        tokenizer: of the texts.
    """

    batches: list[InputBatch]
    references: list[str]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class _Block:
    refs: list[ray.ObjectRef[list[MicroBatch]]]
    target_tokens: list[int]


class Feeder:
    """Makes the steps of a run in a background thread; the body of the actor.

    Raises, from every call that waits for data, what stopped the making: BadShardError, ShardChangedError,
    TransientStoreError and kin.
    """

    def __init__(self, spec: FeedSpec) -> None:
        self._spec, self._order, self._batching = spec, spec.order(), spec.batching()
        self._together: tuple[int, list[list[MicroBatch]]] = -1, []
        self._known = spec.known.copy()
        self._read_ahead = ReadAhead(spec.manifest, spec.job)
        self._blocks: dict[int, _Block] = {}
        self._next_block = spec.first_step // spec.steps_per_block
        self._newest_asked = spec.first_step
        self._planned_from: object = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._held_out: HeldOut | None = None
        self._held_out_lock = asyncio.Lock()
        self._pair_tokens, self._pairs = np.zeros(2, np.int64), 0
        threading.Thread(target=self._make_blocks, name="make-blocks", daemon=True).start()

    async def share(self, step: int, rank: int, world_size: int) -> BlockShare:
        """What `rank` of `world_size` computes in the block that holds `step`. Waits until it is made."""
        self._loop = asyncio.get_running_loop()
        block = step // self._spec.steps_per_block
        self._ask(step)
        while block not in self._blocks:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        made = self._blocks[block]
        mine = micro_batches_of_rank(len(made.refs), rank, world_size)
        first_step = block * self._spec.steps_per_block
        return BlockShare(first_step, mine, [made.refs[index] for index in mine], made.target_tokens)

    async def known(self) -> KnownUnits:
        """What is known of the units by now."""
        with self._changed:
            return self._known.copy()

    async def knows_all(self) -> bool:
        """Whether every unit has been tokenized."""
        return bool((self._known.counts != UNKNOWN).all())

    async def mean_lengths(self) -> tuple[float, float] | None:
        """Tokens of an input and of a text, mean over the pairs made so far; None where there are none."""
        if not self._pairs:
            return None
        read, written = (self._pair_tokens / self._pairs).tolist()
        return read, written

    async def held_out(self) -> HeldOut:
        """The fixed held-out set."""
        async with self._held_out_lock:
            if self._held_out is None:
                self._held_out = await asyncio.to_thread(self._make_held_out)
        return self._held_out

    async def to_translate(self, count: int) -> ToTranslate:
        """The first `count` held-out pairs."""
        return await asyncio.to_thread(pairs_to_translate, self._spec, "validation", count)

    def _make_held_out(self) -> HeldOut:
        batches = fixed_batches(self._spec, "validation")
        token_bytes = self._spec.job.tokenizer.token_bytes
        return HeldOut([ray.put(batch) for batch in batches], *measure_held_out(batches, token_bytes))

    def _ask(self, step: int) -> None:
        """Note that `step` is needed; where it is neither made nor about to be, go on from there."""
        block = step // self._spec.steps_per_block
        with self._changed:
            self._newest_asked = max(step, self._newest_asked)
            about_to_be = self._last_block_ahead(self._next_block * self._spec.steps_per_block)
            if block not in self._blocks and not self._next_block <= block <= about_to_be:
                self._next_block = block
                self._newest_asked = step
                self._blocks.clear()
            self._changed.notify_all()

    def _last_block_ahead(self, step: int) -> int:
        return (step + AHEAD_STEPS) // self._spec.steps_per_block

    def _make_blocks(self) -> None:
        retained = RETAINED_STEPS // self._spec.steps_per_block + 1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._next_block <= self._last_block_ahead(self._newest_asked))
                    block = self._next_block
                made = self._make(block)
                with self._changed:
                    if self._next_block == block:  # else someone asked for another place meanwhile
                        self._blocks[block] = made
                        self._next_block += 1
                        oldest = self._newest_asked // self._spec.steps_per_block - retained
                        for stale in [number for number in self._blocks if number < oldest]:
                            del self._blocks[stale]
                self._notify()
        except BaseException as error:  # raised to whoever asks
            self._error = error
            self._notify()

    def _notify(self) -> None:
        if self._loop is not None:  # else nobody is waiting yet
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _make(self, block: int) -> _Block:
        size = self._spec.steps_per_block
        steps = [self._micro_batches(step) for step in range(block * size, (block + 1) * size)]
        self._measure_pairs(batch for batches in steps for batch in batches)
        return _Block(
            [ray.put(list(slot)) for slot in zip(*steps, strict=True)],
            [sum(int(batch.target_counts.sum()) for batch in batches) for batches in steps],
        )

    def _measure_pairs(self, batches: Iterable[MicroBatch]) -> None:
        for batch in batches:
            if batch.input_counts is not None:
                self._pair_tokens += batch.input_counts.sum(), batch.target_counts.sum()
                self._pairs += len(batch.target_counts)

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        first_step = step - step % self._batching.steps_together
        if self._together[0] != first_step:
            samples = self._samples(first_step, self._batching.steps_together)
            streams = {int(unit): self._read_ahead.stream(int(unit)) for unit in np.unique(samples.unit)}
            self._together = first_step, self._batching.steps(samples, streams, first_step)
        return self._together[1][step - first_step]

    def _samples(self, step: int, steps: int) -> Samples:
        """The samples of `steps` steps from `step` on; tokenizes what must be known to tell."""
        size = self._spec.global_batch_size
        while True:
            self._plan_ahead(step * size)
            try:
                return self._order.samples(step * size, steps * size, self._known.counts)
            except CountsUnknownError as unknown:
                for unit in unknown.units:
                    self._learn(int(unit))

    def _learn(self, unit: int) -> None:
        stream = self._read_ahead.stream(unit)
        if stream.problem is not None and self._spec.job.data.on_bad_shard == "refuse":
            raise BadShardError(stream.problem)
        with self._changed:
            self._known.learn(unit, self._batching.count(stream), stream.problem, stream.left_out)

    def _plan_ahead(self, sample: int) -> None:
        """Have the next AHEAD_BYTES of shards tokenized; planned anew only when a source enters another window."""
        windows = self._order.windows_at(sample, self._known.counts)
        if windows == self._planned_from:
            return
        self._planned_from = windows
        manifest = self._spec.manifest
        wishes: dict[int, None] = {}
        ahead_bytes = 0
        num_windows = sum(self._order.num_windows(source) for source in range(len(windows)))
        for units in islice(self._order.upcoming_windows(windows), num_windows):
            fresh = [int(unit) for unit in units if int(unit) not in wishes]
            wishes.update(dict.fromkeys(fresh))
            ahead_bytes += sum(manifest.unit(unit).unit_bytes for unit in fresh)
            if ahead_bytes >= AHEAD_BYTES or len(wishes) >= AHEAD_UNITS:
                break
        self._read_ahead.wish(list(wishes))


def micro_batches_of_rank(micro_batches_per_step: int, rank: int, world_size: int) -> range:
    """Indices of the micro-batches that `rank` computes in every step.

    Their union over ranks is the whole step and nothing twice, for any `world_size`: a resize changes who computes a
    micro-batch, never which micro-batches a step holds.

    Raises:
        ValueError: more ranks than micro-batches; some rank would have no gradient to give.
    """
    if world_size > micro_batches_per_step:
        raise ValueError(f"world_size={world_size} exceeds micro_batches_per_step={micro_batches_per_step}")
    return range(rank, micro_batches_per_step, world_size)


def fixed_batches(spec: FeedSpec, split: str, start_ray: Callable[[], None] = lambda: None) -> list[MicroBatch]:
    """The samples of a split in the manifest's order, up to `data.validation_sequences`; the same whoever asks.

    Reads units only until there are so many. Sample ids are (unit, sequence) as in training.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
    """
    data, batching = spec.job.data, spec.batching()
    streams: dict[int, UnitStream] = {}
    limit = data.validation_sequences
    units: list[int] = []
    indices: list[int] = []
    part = "train" if split == "train" else "validation"  # of a unit's row: a source of test has no other
    columns = stream_columns(part, spec.job)
    for table in tokenized_units_in_chunks(spec.manifest, spec.job, columns, start_ray, _units_of(spec, split)):
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
    spec: FeedSpec, split: str, count: int, start_ray: Callable[[], None] = lambda: None
) -> ToTranslate:
    """The first `count` pairs of a split in the manifest's order, those too long to be trained on among them.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
    """
    job, data = spec.job, spec.job.data
    pairs = list(islice(raw_pairs(spec, split, start_ray), count))
    inputs = [read for read, _ in pairs]
    batches = input_batches(inputs, job.reads_with, data.most_input_tokens, spec.micro_batch_size)
    return ToTranslate(batches, [text for _, text in pairs], job.tokenizer)


def raw_pairs(spec: FeedSpec, split: str, start_ray: Callable[[], None] = lambda: None) -> Iterator[tuple[str, str]]:
    """The inputs and texts of a split in the manifest's order, as they are after `data.steps`.

    Args:
        split: "train", "validation" or "test".
        start_ray: called if a unit must be tokenized; Ray runs when it returns.
    """
    ordinals = _units_of(spec, split)
    return _read_pairs(spec, ordinals) if split == "train" else _held_out_pairs(spec, ordinals, start_ray)


def _units_of(spec: FeedSpec, split: str) -> list[int]:
    """Ordinals of the units that have documents of a split, in the manifest's order."""
    sources = spec.job.data.sources_of(split)
    return [unit for source in sources for unit in spec.manifest.units_of_source(source)]


def _held_out_pairs(
    spec: FeedSpec, ordinals: Sequence[int], start_ray: Callable[[], None]
) -> Iterator[tuple[str, str]]:
    columns = ["validation_pairs"]
    for table in tokenized_units_in_chunks(spec.manifest, spec.job, columns, start_ray, ordinals):
        yield from json.loads(table["validation_pairs"][0].as_py())


def _read_pairs(spec: FeedSpec, ordinals: Sequence[int]) -> Iterator[tuple[str, str]]:
    job = spec.job
    for unit in map(spec.manifest.unit, ordinals):
        for document in documents_of(unit, job.data, job.store_config, job.cleaning, for_training=True):
            yield document.input or "", document.text


def measure_held_out(batches: list[MicroBatch], token_bytes: Ints) -> tuple[int, int]:
    """Targets that count in the batches, and the bytes of text they spell."""
    target_tokens = text_bytes = 0
    for batch in batches:
        for row, count in zip(batch.tokens, batch.target_counts, strict=True):
            target_tokens += int(count)
            text_bytes += int(token_bytes[row[1 : count + 1]].sum())
    return target_tokens, text_bytes
