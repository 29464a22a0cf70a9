"""What a feeder is made from, and what it hands out. Needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from data.config import DataConfig
from data.order.known_units import KnownUnits
from data.order.packing import Batching, MicroBatch, PackedBatching
from data.order.pairs import InputBatch, PairBatching
from data.order.sample_order import SampleOrder
from data.shards.manifest import Manifest
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob

BLOCK_STEPS, BLOCK_BYTES = 8, 64_000
"""Steps handed out at once: at most so many, and no more than make about so many bytes of one micro-batch a step.

Asking, answering and following references costs the machine about 15 ms however small the micro-batches are; eight
small steps at once make that 2 ms a step. Large ones take longer to compute, and go one by one.
"""


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
