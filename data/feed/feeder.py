"""The feeder: one actor per run that makes the micro-batches of every step and hands out references to them.

It outlives worker groups: its steps depend on the run's config, manifest and seed, not on the ranks that request them.
A step requested again, after a restart, is handed out or made again, and is the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import ray

from data.errors import BadShardError
from data.feed.held_out import fixed_batches, measure_held_out, pairs_to_translate
from data.feed.spec import BlockShare, FeedSpec, HeldOut, ToTranslate, micro_batches_of_rank
from data.order.known_units import KnownUnits
from data.order.packing import MicroBatch
from data.order.sample_order import UNKNOWN, CountsUnknownError, Samples
from data.stores.patience import Tell, silently
from data.tokens.pipeline import ReadAhead

AHEAD_STEPS = 8
"""Steps made before they are requested."""

RETAINED_STEPS = 64
"""Steps kept behind the newest requested one, for workers that restart."""

AHEAD_BYTES, AHEAD_UNITS = 128_000_000, 512
"""Limits of what is tokenized ahead of the step being made: bytes of shards, and units."""


@dataclass(frozen=True)
class _Block:
    refs: list[ray.ObjectRef[list[MicroBatch]]]
    target_tokens: list[int]


class Feeder:
    """Makes the steps of a run in a background thread; the class of the actor.

    Every call that waits for data raises the error that stopped the background thread: BadShardError,
    ShardChangedError, TransientStoreError (after `store.patience`) and others of `data.errors`.

    Args:
        tell: receives the outages of the store, see `data.stores.patience`; called in background threads.
        begin: called first, in the actor's process.
    """

    def __init__(self, spec: FeedSpec, tell: Tell = silently, begin: Callable[[], object] = lambda: None) -> None:
        begin()
        self._spec, self._order, self._batching = spec, spec.order(), spec.batching()
        self._together: tuple[int, list[list[MicroBatch]]] = -1, []
        self._known = spec.known.copy()
        self._tell = tell
        self._read_ahead = ReadAhead(spec.manifest, spec.job, tell=tell)
        self._blocks: dict[int, _Block] = {}
        self._next_block = spec.first_step // spec.steps_per_block
        self._newest_request = spec.first_step
        self._planned_from: object = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._closed = False
        self._held_out: HeldOut | None = None
        self._held_out_lock = asyncio.Lock()
        self._pair_tokens, self._pairs = np.zeros(2, np.int64), 0
        threading.Thread(target=self._make_blocks, name="make-blocks", daemon=True).start()

    async def share(self, step: int, rank: int, world_size: int) -> BlockShare:
        """The share of `rank` in the block that contains `step`. Waits until it is made."""
        self._loop = asyncio.get_running_loop()
        block = step // self._spec.steps_per_block
        self._request(step)
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
        """The units known at present."""
        with self._changed:
            return self._known.copy()

    async def knows_all(self) -> bool:
        """Whether every unit has been tokenized."""
        return bool((self._known.counts != UNKNOWN).all())

    async def mean_lengths(self) -> tuple[float, float] | None:
        """Mean tokens of an input and of a text over the pairs made so far; None where there are none."""
        if not self._pairs:
            return None
        input_tokens, text_tokens = (self._pair_tokens / self._pairs).tolist()
        return input_tokens, text_tokens

    async def held_out(self) -> HeldOut:
        """The fixed held-out set."""
        async with self._held_out_lock:
            if self._held_out is None:
                self._held_out = await asyncio.to_thread(self._make_held_out)
        return self._held_out

    async def to_translate(self, count: int) -> ToTranslate:
        """The first `count` held-out pairs."""
        return await asyncio.to_thread(pairs_to_translate, self._spec, "validation", count, tell=self._tell)

    def close(self) -> None:
        """Ends the background threads; for a feeder whose process goes on."""
        self._read_ahead.close()
        with self._changed:
            self._closed = True
            self._error = self._error or RuntimeError("the feeder is closed")
            self._changed.notify_all()
        self._notify()

    def _make_held_out(self) -> HeldOut:
        batches = fixed_batches(self._spec, "validation", tell=self._tell)
        token_bytes = self._spec.job.tokenizer.token_bytes
        return HeldOut([ray.put(batch) for batch in batches], *measure_held_out(batches, token_bytes))

    def _request(self, step: int) -> None:
        """Records that `step` is needed. If it is neither made nor about to be, making continues from it."""
        block = step // self._spec.steps_per_block
        with self._changed:
            self._newest_request = max(step, self._newest_request)
            about_to_be = self._last_block_ahead(self._next_block * self._spec.steps_per_block)
            if block not in self._blocks and not self._next_block <= block <= about_to_be:
                self._next_block = block
                self._newest_request = step
                self._blocks.clear()
            self._changed.notify_all()

    def _last_block_ahead(self, step: int) -> int:
        return (step + AHEAD_STEPS) // self._spec.steps_per_block

    def _make_blocks(self) -> None:
        retained = RETAINED_STEPS // self._spec.steps_per_block + 1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._closed or self._next_block <= self._last_block_ahead(self._newest_request)
                    )
                    if self._closed:
                        return
                    block = self._next_block
                made = self._make(block)
                with self._changed:
                    if self._next_block == block:  # else another position was requested meanwhile
                        self._blocks[block] = made
                        self._next_block += 1
                        oldest = self._newest_request // self._spec.steps_per_block - retained
                        for stale in [number for number in self._blocks if number < oldest]:
                            del self._blocks[stale]
                self._notify()
        except BaseException as error:  # raised by `share` in the calls that wait
            self._error = error
            self._notify()

    def _notify(self) -> None:
        if self._loop is not None:  # else no call is waiting yet
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
        """The samples of `steps` steps from `step` on. Reads units whose counts are needed to find them."""
        size = self._spec.global_batch_size
        while True:
            self._plan_ahead(step * size)
            try:
                return self._order.samples(step * size, steps * size, self._known.counts)
            except CountsUnknownError as unknown:
                for unit in unknown.units:
                    self._record_unit(int(unit))

    def _record_unit(self, unit: int) -> None:
        stream = self._read_ahead.stream(unit)
        if stream.problem is not None and self._spec.job.data.on_bad_shard == "refuse":
            raise BadShardError(stream.problem)
        with self._changed:
            self._known.record(unit, self._batching.count(stream), stream.problem, stream.excluded)

    def _plan_ahead(self, sample: int) -> None:
        """Requests the next AHEAD_BYTES of shards; a new plan is made only when a source enters another window."""
        windows = self._order.windows_at(sample, self._known.counts)
        if windows == self._planned_from:
            return
        self._planned_from = windows
        manifest = self._spec.manifest
        planned: dict[int, None] = {}
        ahead_bytes = 0
        num_windows = sum(self._order.num_windows(source) for source in range(len(windows)))
        for units in islice(self._order.upcoming_windows(windows), num_windows):
            fresh = [int(unit) for unit in units if int(unit) not in planned]
            planned.update(dict.fromkeys(fresh))
            ahead_bytes += sum(manifest.unit(unit).unit_bytes for unit in fresh)
            if ahead_bytes >= AHEAD_BYTES or len(planned) >= AHEAD_UNITS:
                break
        self._read_ahead.request(list(planned))
