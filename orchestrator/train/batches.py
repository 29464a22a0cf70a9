"""BatchPrefetcher: fetches a rank's micro-batches from the feeder, ahead of the loop, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray

from data.feed.spec import BlockShare
from data.order.packing import MicroBatch

FETCH_TRIES = 3
"""Tries to fetch a step whose micro-batches were lost with the feeder, between its answer and their arrival."""

WAIT_S = 2.0
"""Seconds to wait before each call of `while_waiting`."""

DEPTH = 2
"""Steps fetched ahead of the loop."""


@dataclass(frozen=True)
class FetchedShare:
    """A rank's part of one step, with its micro-batches in this process; see `data.feed.spec.BlockShare`.

    Attributes:
        micro_steps: indices of the rank's micro-batches in the step.
        batches: the micro-batches, in the same order.
        target_tokens: targets that count in the whole step, over all ranks.
    """

    micro_steps: range
    batches: list[MicroBatch]
    target_tokens: int


class BatchPrefetcher:
    """Fetches steps `first` to `last` (exclusive) of a rank in order. A context manager: leaving it ends the thread."""

    def __init__(self, feeder: ray.actor.ActorHandle[Any], rank: int, world_size: int, first: int, last: int) -> None:
        self._feeder, self._rank, self._world_size = feeder, rank, world_size
        self._queue: queue.Queue[FetchedShare | BaseException] = queue.Queue(DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fetch, args=(first, last), name="batch-prefetcher", daemon=True)

    def take(self, while_waiting: Callable[[], object] = lambda: None) -> FetchedShare:
        """Returns the next step's share; calls `while_waiting` every WAIT_S seconds until it has come.

        Raises:
            MantaError: the feeder failed.
        """
        while True:
            try:
                item = self._queue.get(timeout=WAIT_S)
                break
            except queue.Empty:
                while_waiting()
        if isinstance(item, BaseException):
            raise item
        return item

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()

    def _fetch(self, first: int, last: int) -> None:
        try:
            step = first
            while step < last:
                for share in self._fetch_from(step):
                    if step == last or not self._put(share):
                        return
                    step += 1
        except BaseException as error:  # raised in the loop, by take()
            self._put(error)

    def _fetch_from(self, step: int) -> list[FetchedShare]:
        """Fetches `step` and the steps that follow it in its block."""
        for tries_left in reversed(range(FETCH_TRIES)):
            ref: ray.ObjectRef[BlockShare] = self._feeder.share.remote(step, self._rank, self._world_size)
            share = ray.get(ref)
            try:
                steps = zip(*ray.get(share.refs), strict=True)
            except ray.exceptions.ObjectLostError:  # the feeder died; Ray restarts it, and it makes the same batches
                if not tries_left:
                    raise
                continue
            block = [
                FetchedShare(share.micro_steps, list(batches), target_tokens)
                for batches, target_tokens in zip(steps, share.target_tokens, strict=True)
            ]
            return block[step - share.first_step :]
        raise AssertionError("the last try returns or raises")

    def _put(self, item: FetchedShare | BaseException) -> bool:
        """Queues an item, waiting for room; returns False if the prefetcher was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False
