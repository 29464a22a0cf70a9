"""The feeder's specification, and the values it hands out. Imports no Ray at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.config import DataConfig
from data.order.known_units import KnownUnits
from data.order.packing import Batching, MicroBatch, PackedBatching
from data.order.pairs import InputBatch, PairBatching
from data.order.sample_order import SampleOrder
from data.shards.manifest import Manifest
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob

if TYPE_CHECKING:
    import ray

BLOCK_STEPS, BLOCK_BYTES = 8, 64_000
"""Limits of a block, the steps handed out together: most steps, and most bytes of one micro-batch per step.

A request, its answer and the references take about 15 ms, however small the micro-batches are; eight small steps at
once make that 2 ms per step. Large micro-batches take longer to compute, and are handed out one step at a time.
"""


@dataclass(frozen=True)
class FeedSpec:
    """Everything a feeder is built from; picklable.

    Attributes:
        known: the units known before the first step.
        first_step: the step likely to be requested first; it is made while the workers start.
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
        """Steps of a block, which are made and handed out together; see BLOCK_STEPS."""
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
            seed=self.seed,
            micro_batch_size=self.micro_batch_size,
            micro_batches_per_step=self.global_batch_size // self.micro_batch_size,
            steps_together=data.bucket_steps,
            length_multiple=data.length_multiple,
            longest_input=data.most_input_tokens,
            longest_text=data.seq_len,
            end_of_text=job.tokenizer.end_of_text,
            input_end=job.encoder_tokenizer.end_of_text,
        )

    @staticmethod
    def order_of(manifest: Manifest, data: DataConfig, seed: int) -> SampleOrder:
        """The order of samples for this data and seed."""
        sources = data.sources_of("train")
        source_units = [manifest.units_of_source(source) for source in sources]
        weights = [data.sources[source].weight for source in sources]
        return SampleOrder(seed, source_units, weights, data.shuffle_units, sources)


@dataclass(frozen=True)
class BlockShare:
    """A rank's share of a block of consecutive steps.

    Attributes:
        first_step: the block's first.
        micro_steps: indices of the rank's micro-batches in each step.
        refs: for each of those indices, a reference to its MicroBatches in the block, one per step.
        target_tokens: for each step, the targets that count, over all ranks.
    """

    first_step: int
    micro_steps: range
    refs: list[ray.ObjectRef[list[MicroBatch]]]
    target_tokens: list[int]


@dataclass(frozen=True)
class HeldOut:
    """The held-out set of a run, the same at every evaluation and for every world size.

    Attributes:
        refs: references to its micro-batches.
        target_tokens: targets that count.
        text_bytes: bytes of text that those targets stand for; an end-of-text stands for none.
    """

    refs: list[ray.ObjectRef[MicroBatch]]
    target_tokens: int
    text_bytes: int


@dataclass(frozen=True)
class ToTranslate:
    """Pairs to translate: inputs for the model, and reference texts.

    Attributes:
        batches: the inputs; their `positions` are indices into `references`.
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
